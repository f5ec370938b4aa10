"""People for training and evaluation: a manifest, and one prepared `Case` per person.

Splits are by person, never by slice. A prepared case lies on the model grid, bias corrected,
co-registered and normalized exactly as `engine` prepares a request.
"""

import functools
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import SimpleITK as sitk  # noqa: N813
import yaml
from pydantic import BaseModel, ConfigDict

from synthesis.errors import TrainingError
from synthesis.preprocessing import (
    bounding_box,
    correct_bias,
    make_grid,
    mask_body,
    measure_scale,
    resample,
    to_canonical,
)
from synthesis.registration import register_rigid
from synthesis.types import Anchor, Case, ContrastLabel, FloatArray, MaskArray

SPLITS = ("train", "validation", "test")
HU_LOW, HU_HIGH = -1024.0, 3071.0


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Dataset(_Strict):
    """Where people come from."""

    licence: str
    skull: Literal["stripped", "whole head", "none"]


class Person(_Strict):
    """One person's images.

    Attributes:
        mask: `nonzero`, `body`, `whole head` (no mask is at hand: test only) or a label file.
    """

    subject: str
    dataset: str
    split: Literal["train", "validation", "test"]
    mask: str
    images: dict[str, str]
    labels: str | None = None

    @property
    def is_aligned(self) -> bool:
        """Whether the images lie on one another as they are."""
        return self.mask in ("nonzero", "body")


class Manifest(_Strict):
    """The people, and the data sets that they come from."""

    datasets: dict[str, Dataset]
    people: tuple[Person, ...]

    def select(
        self, split: str, contrasts: frozenset[str], dataset: str | None = None
    ) -> list[Person]:
        """Return the people of a split who have at least two of `contrasts`."""
        return [
            person
            for person in self.people
            if person.split == split
            and len(contrasts & set(person.images)) > 1
            and dataset in (None, person.dataset)
        ]


def read_manifest(path: Path) -> Manifest:
    """Read a manifest.

    Raises:
        TrainingError: a person appears twice or names an unknown data set.
    """
    manifest = Manifest.model_validate(yaml.safe_load(path.read_text()))
    subjects = [person.subject for person in manifest.people]
    if len(subjects) != len(set(subjects)):
        raise TrainingError(f"{path}: a subject appears twice; splits are by person")
    for person in manifest.people:
        if person.dataset not in manifest.datasets:
            raise TrainingError(f"{path}: {person.subject}: unknown dataset {person.dataset!r}")
    return manifest


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
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image: sitk.Image = sitk.Cast(reader.Execute(), sitk.sitkFloat32)
    return image


def prepare(
    person: Person, data_folder: Path, *, spacing_mm: float, anchor: Anchor, seed: int = 0
) -> Case:
    """Read a person's images onto the model grid of the first contrast, normalized.

    CT is kept in HU divided by 1000; MR is scaled by its own percentiles inside the mask.

    Raises:
        TrainingError: the person has no usable mask.
    """
    images = {
        ContrastLabel(label): to_canonical(read_image(data_folder, path))
        for label, path in person.images.items()
    }
    reference = next(iter(images.values()))
    grid = make_grid(reference, spacing_mm)
    on_grid = {}
    for label, image in images.items():
        transform = None
        if not person.is_aligned and image is not reference:
            transform = register_rigid(reference, image, seed=seed).transform
        outside = HU_LOW if label == "CT" else 0.0
        on_grid[label] = resample(image, grid, transform, outside=outside)
    mask = _mask(person, on_grid, grid, data_folder)
    arrays: dict[ContrastLabel, FloatArray] = {}
    inside = sitk.GetArrayFromImage(mask) > 0
    for label, image in on_grid.items():
        if label == "CT":
            array = np.clip(sitk.GetArrayFromImage(image), HU_LOW, HU_HIGH) / 1000
            arrays[label] = array.astype(np.float32)
            continue
        array = sitk.GetArrayFromImage(correct_bias(image, mask)).astype(np.float32)
        arrays[label] = np.where(inside, measure_scale(array, inside, anchor).forward(array), 0)
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


def _mask(
    person: Person, on_grid: Mapping[ContrastLabel, sitk.Image], grid: sitk.Image, folder: Path
) -> sitk.Image:
    arrays = {label: sitk.GetArrayFromImage(image) for label, image in on_grid.items()}
    if person.mask == "nonzero":
        # resampling left small negative values outside some brains
        inside = functools.reduce(np.logical_and, (a > 0.01 * a.max() for a in arrays.values()))
        inside = _fill(inside)
    elif person.mask == "body":
        inside = mask_body(arrays[ContrastLabel("T1w")])
    elif person.mask == "whole head":
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


def cached_cases(
    people: list[Person], data_folder: Path, cache: Path, *, spacing_mm: float, anchor: Anchor
) -> Iterator[Case]:
    """Yield each person's case, prepared once and kept as float16 below `cache`."""
    cache.mkdir(parents=True, exist_ok=True)
    for person in people:
        path = cache / f"{person.subject}.npz"
        if not path.exists():
            case = prepare(person, data_folder, spacing_mm=spacing_mm, anchor=anchor)
            arrays: dict[str, Any] = {
                f"image_{k}": v.astype(np.float16) for k, v in case.images.items()
            }
            if case.labels is not None:
                arrays["labels"] = case.labels
            temporary = path.with_suffix(".part.npz")
            np.savez(temporary, mask=case.mask, spacing=np.array(case.spacing), **arrays)
            temporary.rename(path)
        with np.load(path, allow_pickle=False) as saved:
            yield Case(
                subject=person.subject,
                images={
                    ContrastLabel(k.removeprefix("image_")): saved[k].astype(np.float32)
                    for k in saved.files
                    if k.startswith("image_")
                },
                mask=saved["mask"],
                labels=saved["labels"] if "labels" in saved.files else None,
                spacing=(
                    float(saved["spacing"][0]),
                    float(saved["spacing"][1]),
                    float(saved["spacing"][2]),
                ),
            )


def _three(values: FloatArray) -> tuple[float, float, float]:
    a, b, c = (float(v) for v in values)
    return a, b, c
