"""One case through the whole path, and how far what comes out is from what went in.

    files → read_volume → synthesize (register, model grid, back) → write_derived → files

The method is the identity, so that nothing may change. What comes out is read by pydicom and by
SimpleITK, not by the product.
"""

import json
import multiprocessing
import shutil
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813
from numpy.typing import NDArray
from pydicom import Dataset, dcmread

from dicom_node.derive import write_derived
from dicom_node.domain import ContrastLabel, Role
from dicom_node.elements import encode
from dicom_node.errors import UnusableStudy
from dicom_node.images import MOST_STORED
from dicom_node.provenance import PRIVATE_CREATOR, PRIVATE_GROUP, SourceSeries
from dicom_node.volumes import read_volume
from doubles.identity import OTHER, TARGETS, install_identity, write_identity_model
from doubles.job import make_plan
from doubles.series import NAMESPACE
from geometries.cases import MODEL_SPACING_MM, Geometry
from geometries.files import WrittenSeries, in_units, write_series
from geometries.scene import BLOB_MM, Points
from synthesis.engine import synthesize
from synthesis.registry import load_card
from synthesis.types import Verdict

EDGE_MM = 9.0
"""From the edge of the field of view to where smoothing does not feel it."""
FEWEST_VOXELS = 20
BLOB_WINDOW_MM = 3.5 * BLOB_MM


BOUNDS: Mapping[str, float] = {
    "position_mm": 1e-3,
    "cosine": 1e-4,
    "voxel": 0.505,
    "ramp": 1.0,
    "blob": 0.1,
    "hu": 1.0,
    "registration_mm": 0.5,
}
"""Of `Errors`. A voxel may be off by its rounding to half a unit; 0.005 more is what float32 leaves
of the 32,767 levels of PT."""
FEWEST_OTHER_GRIDS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Errors:
    """The worst errors of one case; None where the case does not measure it.

    Attributes:
        position_mm: of Image Position (Patient), and of SimpleITK's corners.
        cosine: of Image Orientation (Patient).
        voxel: stored units, every covered voxel, same grid.
        ramp: stored units (of source or result, whichever is coarser), in the interior, other grid.
        blob: centroid, in voxels of the reference.
        registration_mm: root mean square over the points of the body.
        hu: as `voxel` and `ramp`, in HU.
        covered: share of the body that is not padding.
    """

    name: str
    position_mm: float
    cosine: float
    registration_mm: float
    blob: float
    voxel: float | None = None
    ramp: float | None = None
    hu: float | None = None
    covered: float


def travel_all(cases: Sequence[Geometry], folder: Path) -> list[Errors | str]:
    """Send cases through in two processes; one that is refused answers with the code."""
    install_identity(folder)
    models = {modality: folder / modality for modality in TARGETS}
    for modality, place in models.items():
        write_identity_model(place, modality, MODEL_SPACING_MM)
    with ProcessPoolExecutor(
        2, multiprocessing.get_context("spawn"), _begin, (sys.path, folder)
    ) as pool:
        places = [folder / f"case-{k}" for k in range(len(cases))]
        return list(pool.map(_try, cases, [models] * len(cases), places, chunksize=4))


def _begin(path: list[str], folder: Path) -> None:
    sys.path[:] = [*path, str(folder)]
    sitk.ProcessObject.SetGlobalWarningDisplay(False)  # GDCM tells of rounded positions


def _try(case: Geometry, models: Mapping[str, Path], folder: Path) -> Errors | str:
    try:
        return travel(case, models, folder)
    except UnusableStudy as error:
        return error.code


def travel(case: Geometry, models: Mapping[str, Path], folder: Path) -> Errors:
    """Send one case through and measure it.

    Args:
        case: sound.
        models: folder of the identity model of each modality.
        folder: a place for its files, emptied at the end.

    Raises:
        UnusableStudy: the reference is no volume.
    """
    reference = write_series(
        case.reference.sample(case.scene.value),
        case.reference,
        case.reference_storage,
        folder / "reference",
        number=1,
        missing=case.missing,
    )
    moved = case.moving.sample(lambda p: case.scene.value(case.move_back(p), other=True))
    other = write_series(moved, case.moving, case.moving_storage, folder / "other", number=2)
    target, _, copied, _ = TARGETS[case.reference_storage.modality]
    sources = {
        ContrastLabel(copied): _read(reference),
        ContrastLabel(OTHER): _read(other),
    }
    modality = case.reference_storage.modality
    card = load_card(models[modality], f"identity-{modality.lower()}")
    plan = make_plan(
        sources, target, modality, model_id=card.id, model_digest=card.digest, anatomy="HEAD"
    )
    answer = synthesize(
        {label: source.volume for label, source in sources.items()},
        target=target,
        reference=copied,
        model_id=card.id,
        model_digest=card.digest,
        models_folder=models[modality],
        seed=plan.seed,
    )
    assert answer.quality.verdict is not Verdict.REFUSE, (case.name, answer.quality.reasons)
    written = write_derived(plan, answer, sources, card, NAMESPACE, station_name="NODE")
    out = folder / "derived"
    out.mkdir()
    for facts, image in written:
        if facts.role is Role.IMAGE:
            (out / f"{facts.number:03d}.dcm").write_bytes(encode(image))
    errors = _measure(case, reference, out, np.asarray(answer.covered.array) > 0)
    shutil.rmtree(folder)
    return errors


def _read(series: WrittenSeries) -> SourceSeries:
    volume, headers = read_volume(series.paths)
    uid = str(headers[0].SeriesInstanceUID)
    return SourceSeries(series_instance_uid=uid, datasets=headers, volume=volume)


def _measure(
    case: Geometry, reference: WrittenSeries, folder: Path, mask: NDArray[np.bool_]
) -> Errors:
    images = [dcmread(path) for path in sorted(folder.glob("*.dcm"))]
    origins = case.reference.origins()
    places = np.array([image.ImagePositionPatient for image in images], float)
    apart = np.linalg.norm(places[:, None] - origins, axis=-1)
    slices = apart.argmin(axis=1)
    assert sorted(slices) == [k for k in range(len(origins)) if k not in case.missing]
    cosines = np.array([image.ImageOrientationPatient for image in images], float)
    truth = np.concatenate([case.reference.axes[:, 2], case.reference.axes[:, 1]])
    stored = np.array([image.pixel_array for image in images], float)
    slope = float(images[0].get("RescaleSlope", 1))
    intercept = float(images[0].get("RescaleIntercept", 0))
    record = json.loads(images[0].private_block(PRIVATE_GROUP, PRIVATE_CREATOR)[0x01].value)
    steps = {(step["step"], step.get("contrast")): step for step in record["steps"]}
    _, units, copied, pad = TARGETS[case.reference_storage.modality]
    scale = steps["normalize", copied]
    wanted = reference.values[slices]
    points = case.reference.points()[slices]
    depth = case.scene.depth(points)
    exact = in_units(case.scene.ramp(points), case.reference_storage.modality)
    span = 1.0
    if units == "standard scale":
        span = (scale["high"] - scale["low"]) / 1000
        wanted, exact = ((each - scale["low"]) / span for each in (wanted, exact))
        wanted = np.clip(wanted, 0, MOST_STORED)  # a voxel in 200 is darker than the scale's 0
    covered = _turn(case, mask)[slices]
    assert (stored[~covered] == round((pad - intercept) / slope)).all()
    error, ramp_error = (np.abs(stored - (each - intercept) / slope) for each in (wanted, exact))
    ramp = case.scene.is_ramp(points) & _inside_field(case, points)
    in_hu = error[covered] if case.same_grid else ramp_error[ramp]
    shows_ramp = not case.same_grid and ramp.sum() >= FEWEST_VOXELS
    coarse = max(1.0, max(case.reference_storage.slopes) / slope / span)
    body = points[depth > 0]
    astray = _find_move(steps["register", OTHER], body) - case.move(body)
    outside = np.abs(_corners(images, folder) - _true_corners(case, slices)).max()
    return Errors(
        name=case.name,
        position_mm=max(float(apart.min(axis=1).max()), outside),
        cosine=float(np.abs(cosines - truth).max()),
        registration_mm=float(np.sqrt((astray**2).sum(axis=-1).mean())),
        blob=_blob_shift(case, points, stored * slope + intercept, wanted),
        voxel=float(error[covered].max()) if case.same_grid else None,
        ramp=float(ramp_error[ramp].max() / coarse) if shows_ramp else None,
        hu=float(in_hu.max() * slope) if units == "HU" and in_hu.size else None,
        covered=float(covered[depth > 6].mean()),
    )


def _turn(case: Geometry, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return a mask of the volume with its slices in the case's order."""
    normal = np.cross(case.reference.axes[:, 2], case.reference.axes[:, 1])
    return mask[::-1] if normal @ case.reference.axes[:, 0] > 0 else mask


def _inside_field(case: Geometry, points: Points) -> NDArray[np.bool_]:
    """Return which points lie well within the planes of the reference."""
    planes = case.reference
    along = (points - planes.middle) @ planes.axes
    half = np.array(planes.shape) * planes.spacing / 2
    return np.asarray((np.abs(along) < half - EDGE_MM).all(axis=-1))


def _find_move(step: Mapping[str, object], points: Points) -> Points:
    transform = sitk.Euler3DTransform()
    transform.SetFixedParameters(step["transform"]["fixed_parameters"])
    transform.SetParameters(step["transform"]["parameters"])
    matrix = np.array(transform.GetMatrix()).reshape(3, 3)
    center = np.array(transform.GetCenter())
    return (points - center) @ matrix.T + center + np.array(transform.GetTranslation())


def _corners(images: list[Dataset], folder: Path) -> Points:
    """Return first and last voxel of the derived volume as SimpleITK places them."""
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    last = [n - 1 for n in image.GetSize()]
    return np.array([image.TransformIndexToPhysicalPoint(index) for index in ([0, 0, 0], last)])


def _true_corners(case: Geometry, slices: NDArray[np.int_]) -> Points:
    points = case.reference.points()
    normal = np.cross(case.reference.axes[:, 2], case.reference.axes[:, 1])
    heights = points[slices, 0, 0] @ normal
    low, high = slices[heights.argmin()], slices[heights.argmax()]
    return np.array([points[low, 0, 0], points[high, -1, -1]])


def _blob_shift(
    case: Geometry,
    points: Points,
    seen: NDArray[np.float64],
    wanted: NDArray[np.float64],
) -> float:
    """Return how far the measured blob has moved, in voxels of the reference."""
    center = case.scene.center
    window = np.linalg.norm(points - center, axis=-1) < BLOB_WINDOW_MM
    ramp = case.scene.ramp(points)[window]
    places = [_centroid(case, points[window], each[window], ramp) for each in (seen, wanted)]
    steps = (places[0] - places[1]) @ case.reference.axes / case.reference.spacing
    return float(np.abs(steps).max())


def _centroid(
    case: Geometry, points: Points, values: NDArray[np.float64], ramp: NDArray[np.float64]
) -> Points:
    """Return the center of what rises above the ramp."""
    away = np.linalg.norm(points - case.scene.center, axis=-1)
    rim = away > 0.95 * BLOB_WINDOW_MM
    slope, level = np.polyfit(ramp[rim], values[rim], 1)
    rise = values - slope * ramp - level
    return np.asarray((points * rise[:, None]).sum(axis=0) / rise.sum())
