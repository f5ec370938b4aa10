"""Quick looks: source, result and uncertainty of one job, slice by slice in three planes, as PNG.

For a first glance by whoever releases a result, never for a diagnosis. All three lie on the grid of
the reference source, so that one slice number means one place in the patient. A radiograph, an
ultrasound image or a photograph is one picture, as it came. A job's volumes are windowed once, to 8
bits, and kept for a few jobs.
"""

import io
import threading
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
from highdicom import Volume
from numpy.typing import NDArray
from PIL import Image
from pydicom import Dataset

from dicom_node.domain import DerivedInstance, Role
from dicom_node.elements import read_bytes
from dicom_node.errors import UnusableStudy
from dicom_node.exposures import EXPOSURE_CLASSES, RADIOGRAPHS, WHITE, read_detector_spacing
from dicom_node.ledger import Job, Ledger
from dicom_node.store import Store
from dicom_node.volumes import read_map, read_picture, read_volume

KEPT_JOBS = 3
MOST_VOXELS = 64 * 2**20
"""Larger ones are for a workstation."""

ORIENTATION = "HPL"
"""Slices towards the head, rows to the back, columns to the left: as radiologists look."""

CT_WINDOW = (-160.0, 240.0)
"""Soft tissue, HU."""

BESIDE_THE_MIDLINE_MM = 9.0
"""In the midline of a head there is nothing but fluid and falx."""

PERCENTILES = (0.5, 99.7)
"""Of the voxels above the background."""

_FLOAT_EPSILON = float(np.finfo(np.float32).eps)
_SHOWN_PIXELS = 512
_HEAT = np.array(  # black to pale yellow; lightness grows evenly
    [(0, 0, 0), (66, 15, 98), (144, 38, 104), (218, 73, 70), (250, 150, 40), (252, 246, 180)]
)

Bytes8 = NDArray[np.uint8]


class Plane(StrEnum):
    """How a volume is cut, in the order of the array's axes; or the one plane of a picture."""

    TRANSVERSE = "transverse"
    CORONAL = "coronal"
    SAGITTAL = "sagittal"
    PICTURE = "picture"


VOLUME_PLANES = (Plane.TRANSVERSE, Plane.CORONAL, Plane.SAGITTAL)
_AXES = {**{plane: axis for axis, plane in enumerate(VOLUME_PLANES)}, Plane.PICTURE: 0}

Edges = Mapping[str, str]
"""Which way the edges of a picture point: left, right, top, bottom."""

_OPPOSITE = {"R": "L", "L": "R", "A": "P", "P": "A", "H": "F", "F": "H"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One of the volumes that are looked at.

    Attributes:
        name: in an address: `source`, `result` or `uncertainty`.
        title: what it is, for a person.
        shows: which values are black and white.
        array: (slices, rows, columns) towards the head, the back and the left; 0 is black. Of a
            picture (1, rows, columns) as it came, or with three colors behind.
        is_heat: whether it is colored.
    """

    name: str
    title: str
    shows: str
    array: Bytes8
    is_heat: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """All that is looked at of one job.

    Attributes:
        layers: on one grid.
        spacing: in mm along the axes.
        edges: by plane in which it can be looked at.
    """

    layers: tuple[Layer, ...]
    spacing: tuple[float, float, float]
    edges: Mapping[Plane, Edges]

    def count(self, plane: Plane) -> int:
        """Return how many slices there are in a plane."""
        return int(self.layers[0].array.shape[_AXES[plane]])

    def choose(self, plane: Plane) -> int:
        """Return the slice that is shown first: the middle one, or beside the midline."""
        aside = BESIDE_THE_MIDLINE_MM / self.spacing[-1] if plane is Plane.SAGITTAL else 0.0
        count = self.count(plane)
        return min(count - 1, count // 2 + round(aside))

    def draw(self, name: str, plane: Plane, number: int) -> bytes:
        """Return one slice as PNG, square pixels, head or front up.

        Raises:
            LookupError: there is no such layer or slice.
        """
        layer = next((each for each in self.layers if each.name == name), None)
        if layer is None or plane not in self.edges or not 0 <= number < self.count(plane):
            raise LookupError("there is no such picture")
        axis = _AXES[plane]
        image = np.take(layer.array, number, axis=axis)
        image = image if axis == 0 else image[::-1]
        height, width = np.delete(np.asarray(self.spacing), axis) * image.shape[:2]
        scale = _SHOWN_PIXELS / max(height, width)
        size = max(1, round(width * scale)), max(1, round(height * scale))
        drawn = Image.fromarray(np.ascontiguousarray(image)).resize(size, Image.Resampling.BILINEAR)
        if layer.is_heat:
            drawn = drawn.convert("P")
            drawn.putpalette(_heat_palette())
        buffer = io.BytesIO()
        drawn.save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()


class Gallery:
    """The looks at jobs, the last few kept; safe to share between threads."""

    def __init__(self, ledger: Ledger, store: Store) -> None:
        self._ledger = ledger
        self._store = store
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, Look] = OrderedDict()

    def look(self, plan_id: str) -> Look:
        """Return the look at a job.

        Raises:
            LookupError: there is no such job, it has no result, or its files are gone.
            UnusableStudy: a volume cannot be read, or is too large to be looked at.
        """
        job = self._ledger.job(plan_id)
        key = f"{plan_id} {job.attempt}"
        with self._lock:
            if key not in self._kept:
                self._kept[key] = self._read(job)
                if len(self._kept) > KEPT_JOBS:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(key)
            return self._kept[key]

    def _read(self, job: Job) -> Look:
        derived = self._ledger.derived(job.plan.plan_id)
        images = self._find(derived, Role.IMAGE)
        if not images:
            raise LookupError("this job has made no image")
        label, contents = next(iter(self._ledger.read_sources(job.plan.plan_id).items()))
        if job.plan.target_modality in EXPOSURE_CLASSES:
            return _look_at_pictures(
                (f"{label}, acquired", self._locate(contents[0].path)),
                (f"{job.plan.target}, synthetic", self._locate(images[0].path)),
            )
        frames = job.plan.source_frames.get(label, ())
        source = self._read_volume([each.path for each in contents], frames)
        result = self._read_volume([each.path for each in images])
        is_ct = job.plan.target_modality == "CT"
        window = CT_WINDOW if is_ct else _find_window(np.asarray(result.array))
        layers = [
            _make_layer("source", f"{label}, acquired", source, None, ""),
            _make_layer(
                "result", f"{job.plan.target}, synthetic", result, window, "HU" if is_ct else ""
            ),
        ]
        for each in self._find(derived, Role.UNCERTAINTY)[:1]:
            width = result.with_array(read_map(self._locate(each.path), result))
            top = float(np.percentile(np.asarray(width.array), PERCENTILES[1]))
            layers.append(
                _make_layer(
                    "uncertainty",
                    "Uncertainty: half the width of the 90 % band",
                    width,
                    (0.0, top or 1.0),
                    "HU" if is_ct else "",
                    is_heat=True,
                )
            )
        shapes = {layer.array.shape for layer in layers}
        if len(shapes) > 1:
            raise UnusableStudy("other_grid", "source and result do not lie on one grid")
        turned = result.to_patient_orientation(ORIENTATION)
        slices, rows, columns = (float(each) for each in turned.spacing)
        return Look(layers=tuple(layers), spacing=(slices, rows, columns), edges=_VOLUME_EDGES)

    def _find(self, derived: Sequence[DerivedInstance], role: Role) -> list[DerivedInstance]:
        return [each for each in derived if each.role is role]

    def _read_volume(self, names: Sequence[str], frames: Collection[int] = ()) -> Volume:
        volume, _ = read_volume([self._locate(name) for name in names], frames)
        if volume.array.size > MOST_VOXELS:
            raise UnusableStudy("too_large", "the volume is too large for a quick look")
        return volume

    def _locate(self, name: str) -> Path:
        path = self._store.path(name)
        if not path.is_file():
            raise LookupError("the files are gone: retention has deleted them")
        return path


def _make_layer(
    name: str,
    title: str,
    volume: Volume,
    window: tuple[float, float] | None,
    unit: str,
    *,
    is_heat: bool = False,
) -> Layer:
    turned = np.asarray(volume.to_patient_orientation(ORIENTATION).array, np.float32)
    low, high = window or _find_window(turned)
    return Layer(
        name=name,
        title=title,
        shows=f"{low:.4g} to {high:.4g} {unit}".rstrip(),
        array=_scale(turned, low, high),
        is_heat=is_heat,
    )


def _scale(array: NDArray[np.float32], low: float, high: float) -> Bytes8:
    scaled: NDArray[np.float32] = np.clip((array - low) / max(high - low, _FLOAT_EPSILON), 0, 1)
    return np.round(scaled * 255).astype(np.uint8)


def _find_window(array: NDArray[np.generic]) -> tuple[float, float]:
    """Return from where to where a volume is shown: its tissue, by its brighter voxels."""
    values = np.asarray(array, np.float32)
    tissue = values[values > values.mean()]
    if not tissue.size:
        return float(values.min()), float(values.max()) + _FLOAT_EPSILON
    low = float(np.percentile(values, PERCENTILES[0]))
    return low, float(np.percentile(tissue, PERCENTILES[1]))


def _heat_palette() -> bytes:
    places = np.linspace(0, 255, len(_HEAT))
    channels = [np.interp(np.arange(256), places, _HEAT[:, k]) for k in range(3)]
    return np.stack(channels, axis=1).round().astype(np.uint8).tobytes()


_VOLUME_EDGES = {
    plane: dict(zip(("left", "right", "top", "bottom"), letters, strict=True))
    for plane, letters in zip(VOLUME_PLANES, ("RLAP", "RLHF", "APHF"), strict=True)
}


def _look_at_pictures(source: tuple[str, Path], result: tuple[str, Path]) -> Look:
    """Return the look at one exposure: titles and files of what came, and of what was made."""
    layers = []
    for name, (title, path) in (("source", source), ("result", result)):
        picture, (header,) = read_picture(path)
        samples = np.asarray(picture.array, np.float32)
        low, high = _find_window(samples) if header.Modality in RADIOGRAPHS else (0.0, WHITE)
        shown = np.moveaxis(_scale(samples, low, high), 0, -1)[None]
        layers.append(
            Layer(
                name=name,
                title=title,
                shows=f"{low:.4g} to {high:.4g}",
                array=shown if len(samples) > 1 else shown[..., 0],
            )
        )
    rows, columns = read_detector_spacing(header)
    edges = {Plane.PICTURE: _name_edges(header)}
    return Look(layers=tuple(layers), spacing=(1.0, rows, columns), edges=edges)


def _name_edges(header: Dataset) -> Edges:
    """Return where the edges of a picture point, if its header tells (Patient Orientation)."""
    told = read_bytes(header, "PatientOrientation").decode("latin-1").split("\\")
    if len(told) != 2 or not all(each and set(each) <= _OPPOSITE.keys() for each in told):  # noqa: PLR2004
        return {}
    (left, right), (top, bottom) = (
        ("".join(_OPPOSITE[letter] for letter in each), each) for each in told
    )
    return {"left": left, "right": right, "top": top, "bottom": bottom}
