"""From a person's image files to one prepared `Case`.

A prepared case lies on the model grid, bias corrected, co-registered and normalized exactly as
`engine` prepares a request.
"""

import functools
import logging
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813

from synthesis.errors import TrainingError
from synthesis.fitting import fit_body
from synthesis.patches import bounding_box
from synthesis.people import WHOLE_HEAD, Person, digest_images
from synthesis.preprocessing import (
    UNIT_LIMITS,
    UNIT_SCALES,
    correct_bias,
    make_grid,
    mask_body,
    measure_scale,
    resample,
    to_canonical,
)
from synthesis.registration import register_rigid
from synthesis.types import Anchor, Case, ContrastLabel, FloatArray, MaskArray

HU_LOW, HU_HIGH = -1024.0, 3071.0
T1W = ContrastLabel("T1w")
CT, PET = ContrastLabel("CT"), ContrastLabel("FDG PET")
UNITS_OF = {CT: "HU", PET: "SUVbw"}
"""Contrasts whose values have a unit, which they keep."""
UNEVEN = 0.1
"""Share of the distance between slices by which they may be off."""

logger = logging.getLogger(__name__)


def read_image(data_folder: Path, path: str) -> sitk.Image:
    """Read an image as float32: an ITK file, a DICOM folder, or a DICOM folder in a tar archive.

    Args:
        data_folder: where the paths of manifests begin.
        path: `file`, `folder` or `archive.tar.xz:folder`.
    """
    archive, _, member = path.partition(":")
    if member:
        with tempfile.TemporaryDirectory() as place, tarfile.open(data_folder / archive) as tar:
            inside = [m for m in tar.getmembers() if m.name.startswith(f"{member}/")]
            tar.extractall(place, inside, filter="data")
            return _read_series(Path(place) / member)
    if (data_folder / path).is_dir():
        return _read_series(data_folder / path)
    image: sitk.Image = sitk.ReadImage(data_folder / path, sitk.sitkFloat32)
    return image


def _read_series(folder: Path) -> sitk.Image:
    """Read a series; where slices are missing, they are interpolated and the others stay in place.

    The reader by itself would spread the slices evenly over the gap.
    """
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder))
    slices = [sitk.ReadImage(name, sitk.sitkFloat32) for name in names]
    first = slices[0]
    normal = np.array(first.GetDirection()).reshape(3, 3)[:, 2]
    places = np.array([np.dot(normal, one.GetOrigin()) for one in slices])
    gaps = np.diff(places)
    spacing = float(gaps.min()) if gaps.size else first.GetSpacing()[2]
    steps = gaps / spacing
    if spacing <= 0 or bool(np.any(np.abs(steps - np.rint(steps)) > UNEVEN)):
        raise TrainingError(
            f"{folder.name}: slices are {gaps.min():.2f} to {gaps.max():.2f} mm apart"
        )
    numbers = np.concatenate([[0], np.cumsum(np.rint(steps).astype(int))])
    stack = np.concatenate([sitk.GetArrayFromImage(one) for one in slices])
    array = np.empty((int(numbers[-1]) + 1, *stack.shape[1:]), np.float32)
    for number in range(len(array)):
        after = int(np.searchsorted(numbers, number))
        before = after if numbers[after] == number else after - 1
        share = 0.0 if before == after else (number - numbers[before]) / np.diff(numbers)[before]
        array[number] = (1 - share) * stack[before] + share * stack[after]
    if len(array) > len(stack):
        logger.warning("%s: %d slices interpolated", folder.name, len(array) - len(stack))
    image = sitk.GetImageFromArray(array)
    image.SetOrigin(first.GetOrigin())
    image.SetDirection(first.GetDirection())
    image.SetSpacing((*first.GetSpacing()[:2], spacing))
    return image


def prepare(
    person: Person,
    data_folder: Path,
    *,
    spacing_mm: float,
    anchor: Anchor,
    seed: int = 0,
    brain_mask: Path | None = None,
) -> Case:
    """Read a person's images onto the model grid of the first contrast, normalized.

    CT is kept in HU divided by 1000, PET in SUV by body weight divided by 10; MR is scaled by its
    own percentiles inside the mask.

    Raises:
        TrainingError: the person has no usable mask, or the images are others than the manifest's.
        UnusableInput: the brain mask found no adult brain.
    """
    images = _read_images(person, data_folder)
    reference = next(iter(images.values()))
    grid = make_grid(reference, spacing_mm)
    on_grid = {}
    for label, image in images.items():
        transform = None
        if not person.is_aligned and image is not reference:
            transform = register_rigid(reference, image, seed=seed).transform
        outside = HU_LOW if label == CT else 0.0
        on_grid[label] = resample(image, grid, transform, outside=outside)
    mask = _mask(person, on_grid, grid, data_folder, brain_mask)
    arrays = _normalize(on_grid, mask, anchor)
    inside = sitk.GetArrayFromImage(mask) > 0
    labels = None
    if person.labels is not None:
        segmentation = to_canonical(sitk.ReadImage(data_folder / person.labels, sitk.sitkUInt8))
        labels = sitk.GetArrayFromImage(resample(segmentation, grid, nearest=True))
    box = bounding_box(inside)
    return Case(
        subject=person.subject,
        images={label: array[box] for label, array in arrays.items()},
        mask=inside[box],
        labels=None if labels is None else labels[box],
        spacing=(grid.GetSpacing()[2], grid.GetSpacing()[1], grid.GetSpacing()[0]),
    )


def prepare_fitted(
    person: Person, data_folder: Path, *, spacing_mm: float, anchor: Anchor
) -> tuple[Case, Mapping[str, Any]]:
    """Read a body's MR and CT onto the model grid, the CT bent to lie on the MR, and how it was.

    Only the part of the MR's body where the CT has body, too, is judged and taught.

    Raises:
        TrainingError: the person has no body with T1w and CT, or the images are others than the
            manifest's.
    """
    if person.mask != "body" or not {T1W, CT} <= set(person.images):
        raise TrainingError(f"{person.subject}: only a body with T1w and CT can be fitted")
    images = _read_images(person, data_folder)
    grid = make_grid(images[T1W], spacing_mm)
    on_grid = {label: resample(image, grid) for label, image in images.items() if label != CT}
    inside = mask_body(sitk.GetArrayFromImage(on_grid[T1W]))
    fit = fit_body(on_grid[T1W], images[CT], inside)
    on_grid[CT] = resample(images[CT], grid, fit.transform, outside=HU_LOW)
    mask = sitk.GetImageFromArray(inside.astype(np.uint8))
    mask.CopyInformation(grid)
    arrays = _normalize(on_grid, mask, anchor)
    box = bounding_box(inside)
    case = Case(
        subject=person.subject,
        images={label: array[box] for label, array in arrays.items()},
        mask=inside[box],
        judged=fit.shared[box],
        spacing=(grid.GetSpacing()[2], grid.GetSpacing()[1], grid.GetSpacing()[0]),
    )
    return case, fit.record


def _read_images(person: Person, data_folder: Path) -> dict[ContrastLabel, sitk.Image]:
    if person.sha256 is not None and digest_images(person, data_folder) != person.sha256:
        raise TrainingError(
            f"{person.subject}: the images at {data_folder} are others than the manifest says"
        )
    return {
        ContrastLabel(label): to_canonical(read_image(data_folder, path))
        for label, path in person.images.items()
    }


def _normalize(
    on_grid: Mapping[ContrastLabel, sitk.Image], mask: sitk.Image, anchor: Anchor
) -> dict[ContrastLabel, FloatArray]:
    arrays: dict[ContrastLabel, FloatArray] = {}
    inside = sitk.GetArrayFromImage(mask) > 0
    for label, image in on_grid.items():
        if label in UNITS_OF:
            units = UNITS_OF[label]
            array = np.clip(sitk.GetArrayFromImage(image), *UNIT_LIMITS[units])
            arrays[label] = UNIT_SCALES[units].forward(array)
            continue
        array = correct_bias(image, mask)
        arrays[label] = np.where(inside, measure_scale(array, inside, anchor).forward(array), 0)
    return arrays


def _mask(
    person: Person,
    on_grid: Mapping[ContrastLabel, sitk.Image],
    grid: sitk.Image,
    folder: Path,
    brain_mask: Path | None,
) -> sitk.Image:
    if person.mask == WHOLE_HEAD and brain_mask is not None:
        from synthesis.methods.brain_mask import find_brain  # noqa: PLC0415 - torch

        return find_brain(next(iter(on_grid.values())), brain_mask)[0]
    arrays = {label: sitk.GetArrayFromImage(image) for label, image in on_grid.items()}
    if person.mask == "nonzero":
        # resampling left small negative values outside some brains
        inside = functools.reduce(np.logical_and, (a > 0.01 * a.max() for a in arrays.values()))
        inside = _fill(inside)
    elif person.mask == "body":
        inside = mask_body(arrays[ContrastLabel("T1w")])
    elif person.mask == WHOLE_HEAD:
        raise TrainingError(f"{person.subject}: a whole head without a mask is for testing only")
    else:
        label = to_canonical(sitk.ReadImage(folder / person.mask, sitk.sitkUInt8))
        inside = _fill(sitk.GetArrayFromImage(resample(label, grid, nearest=True)) > 0)
    image = sitk.GetImageFromArray(inside.astype(np.uint8))
    image.CopyInformation(grid)
    return image


def _fill(inside: MaskArray) -> MaskArray:
    image = sitk.GetImageFromArray(inside.astype(np.uint8))
    closed = sitk.BinaryMorphologicalClosing(image, (2, 2, 2))
    filled = sitk.BinaryFillhole(closed)
    return np.asarray(sitk.GetArrayFromImage(filled) > 0)
