"""A case as DICOM files, written attribute by attribute with nothing of the product."""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmwrite
from pydicom.dataset import FileMetaDataset
from pydicom.uid import (
    UID,
    CTImageStorage,
    EnhancedCTImageStorage,
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
    PositronEmissionTomographyImageStorage,
)
from pydicom.valuerep import format_number_as_ds

from geometries.cases import Planes, Storage

ROOT = "1.2.826.0.1.3680043.8.498.77"
CLASSES: Mapping[str, UID] = {
    "MR": MRImageStorage,
    "CT": CTImageStorage,
    "PT": PositronEmissionTomographyImageStorage,
}
MULTI_FRAME_CLASSES: Mapping[str, UID] = {
    "MR": EnhancedMRImageStorage,
    "CT": EnhancedCTImageStorage,
}
AIR_HU = -1000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenSeries:
    """A series on the disk, and what is true of it.

    Attributes:
        values: in real units as they were stored, (slices, rows, columns), in the case's order.
    """

    paths: list[Path]
    values: NDArray[np.float64]


def in_units(tissue: NDArray[np.float64], modality: str) -> NDArray[np.float64]:
    """Return the values of a scene in HU, SUVbw or, for MR, in a scanner's own unit."""
    if modality == "CT":
        return np.where(tissue > 0, tissue * 600 - 400, AIR_HU)
    return tissue * (6.0 if modality == "PT" else 1000.0)


def write_series(
    tissue: NDArray[np.float64],
    planes: Planes,
    storage: Storage,
    folder: Path,
    *,
    number: int,
    missing: tuple[int, ...] = (),
) -> WrittenSeries:
    """Write a series of tissue values and return it."""
    slopes = np.array(storage.slopes)[:, None, None]
    stored = np.rint((in_units(tissue, storage.modality) - storage.intercept) / slopes)
    lowest = -(1 << (storage.bits - 1)) if storage.signed else 0
    stored = np.clip(stored, lowest, lowest + (1 << storage.bits) - 1).astype(np.int64)
    folder.mkdir(parents=True)
    kept = [k for k in storage.order if k not in missing]
    if storage.multi_frame:
        images = [_multi_frame(stored, planes, storage, kept, number)]
    else:
        images = [
            _single_frame(stored, planes, storage, k, number, place)
            for place, k in enumerate(kept, 1)
        ]
    paths = []
    for image in images:
        path = folder / f"{len(paths):03d}.dcm"
        buffer = io.BytesIO()
        dcmwrite(buffer, image, enforce_file_format=True)
        path.write_bytes(buffer.getvalue())
        paths.append(path)
    return WrittenSeries(paths=paths, values=stored * slopes + storage.intercept)


def _common(storage: Storage, planes: Planes, number: int, instance: int) -> Dataset:
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    classes = MULTI_FRAME_CLASSES if storage.multi_frame else CLASSES
    image.SOPClassUID = classes[storage.modality]
    image.SOPInstanceUID = f"{ROOT}.{number}.{instance}"
    image.StudyInstanceUID = f"{ROOT}.9"
    image.SeriesInstanceUID = f"{ROOT}.{number}"
    image.FrameOfReferenceUID = f"{ROOT}.8"
    image.Modality = storage.modality
    image.PatientName, image.PatientID = "PHANTOM^BOX", "BOX-1"
    image.PatientPosition = "HFS"
    image.StudyDate, image.StudyTime = "20260101", "120000"
    image.BodyPartExamined = "HEAD"
    image.Manufacturer = "ACME"
    image.InstanceNumber = instance
    image.SamplesPerPixel = 1
    image.PhotometricInterpretation = "MONOCHROME2"
    _, image.Rows, image.Columns = planes.shape
    image.BitsAllocated = 8 if storage.bits == 8 else 16
    image.BitsStored, image.HighBit = storage.bits, storage.bits - 1
    image.PixelRepresentation = int(storage.signed)
    if storage.modality == "PT":
        image.Units = "GML"
    return image


def _numbers(values: NDArray[np.float64], digits: int | None) -> list[str]:
    if digits is None:
        return [format_number_as_ds(float(v) + 0.0) for v in values]
    return [f"{v + 0.0:.{digits}f}" for v in values]


def _plane(planes: Planes, storage: Storage, k: int) -> tuple[Dataset, Dataset, Dataset]:
    """Return the position, the orientation and the pixel measures of a slice."""
    position, orientation, measures = Dataset(), Dataset(), Dataset()
    position.ImagePositionPatient = _numbers(planes.origins()[k], storage.digits)
    cosines = np.concatenate([planes.axes[:, 2], planes.axes[:, 1]])
    digits = None if storage.digits is None else storage.digits + 3
    orientation.ImageOrientationPatient = _numbers(cosines, digits)
    measures.PixelSpacing = _numbers(np.array(planes.spacing[1:]), None)
    measures.SliceThickness = format_number_as_ds(planes.spacing[0])
    return position, orientation, measures


def _transformation(storage: Storage, k: int) -> Dataset:
    values = Dataset()
    values.RescaleSlope = format_number_as_ds(storage.slopes[k])
    values.RescaleIntercept = format_number_as_ds(storage.intercept)
    values.RescaleType = {"CT": "HU"}.get(storage.modality, "US")
    return values


def _has_rescale(storage: Storage) -> bool:
    return storage.modality != "MR" or set(storage.slopes) != {1.0} or storage.intercept != 0


def _pixels(stored: NDArray[np.int64], storage: Storage) -> bytes:
    size = 1 if storage.bits == 8 else 2
    return stored.astype(f"<{'i' if storage.signed else 'u'}{size}").tobytes()


def _put_pixels(image: Dataset, pixels: bytes) -> None:
    image.add_new("PixelData", "OW", pixels + b"\0" * (len(pixels) % 2))


def _single_frame(
    stored: NDArray[np.int64], planes: Planes, storage: Storage, k: int, number: int, instance: int
) -> Dataset:
    image = _common(storage, planes, number, instance)
    for part in _plane(planes, storage, k):
        image.update(part)
    if _has_rescale(storage):
        image.update(_transformation(storage, k))
    _put_pixels(image, _pixels(stored[k], storage))
    return image


def _multi_frame(
    stored: NDArray[np.int64], planes: Planes, storage: Storage, kept: list[int], number: int
) -> Dataset:
    image = _common(storage, planes, number, 1)
    image.NumberOfFrames = len(kept)
    shared, frames = Dataset(), []
    for k in kept:
        position, orientation, measures = _plane(planes, storage, k)
        shared.PlaneOrientationSequence = [orientation]
        shared.PixelMeasuresSequence = [measures]
        frame = Dataset()
        frame.PlanePositionSequence = [position]
        if _has_rescale(storage):
            frame.PixelValueTransformationSequence = [_transformation(storage, k)]
        frames.append(frame)
    image.SharedFunctionalGroupsSequence = [shared]
    image.PerFrameFunctionalGroupsSequence = frames
    _put_pixels(image, _pixels(stored[kept], storage))
    return image
