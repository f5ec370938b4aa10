"""Small acquired-looking series, and their files."""

import uuid
from collections.abc import Iterable, Sequence
from copy import deepcopy
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from highdicom import Volume
from numpy.typing import NDArray
from pydicom import Dataset

from dicom_node.acquired import AcquiredStudy, write_series
from dicom_node.elements import encode
from doubles.tools import require_program

NAMESPACE = uuid.UUID("6f1d1a52-5e0c-4f0a-9f57-0d7a3c1f7e11")

ACQUISITIONS = {
    "T1w": {
        "ScanningSequence": ["GR", "IR"],
        "SequenceVariant": ["SP", "MP"],
        "MRAcquisitionType": "3D",
        "RepetitionTime": 8,
        "EchoTime": 3,
        "InversionTime": 900,
        "FlipAngle": 9,
        "ProtocolName": "T1 MPRAGE",
        "Manufacturer": "ACME",
        "ManufacturerModelName": "Magnet 3",
        "MagneticFieldStrength": 3,
    },
    "T2w": {
        "ScanningSequence": "SE",
        "SequenceVariant": "SK",
        "MRAcquisitionType": "2D",
        "RepetitionTime": 4000,
        "EchoTime": 100,
        "EchoTrainLength": 15,
        "Manufacturer": "ACME",
    },
    "CT": {"KVP": 120, "Manufacturer": "ACME"},
    "PET": {"Manufacturer": "ACME"},
}


def make_study(**changes: object) -> AcquiredStudy:
    facts = {
        "namespace": NAMESPACE,
        "key": "study",
        "patient_name": "PHANTOM^HEAD",
        "patient_id": "PHANTOM-1",
        "started": datetime(2020, 1, 2, 3, 4, 5, tzinfo=UTC),
        "description": "Brain",
    }
    return AcquiredStudy(**(facts | changes))


def make_volume(
    shape: tuple[int, int, int] = (6, 20, 24),
    *,
    spacing: tuple[float, float, float] = (2.5, 1.2, 1.1),
    angles: tuple[float, float] = (0.3, 0.2),
    origin: tuple[float, float, float] = (-20, -30, 7),
    highest: float = 1000,
    lowest: float = 0,
    seed: int = 0,
) -> Volume:
    """An oblique volume of smooth noise in whole numbers."""
    (c, s), (d, t) = ((np.cos(a), np.sin(a)) for a in angles)
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    tip = np.array([[1, 0, 0], [0, d, -t], [0, t, d]])
    columns = np.diag(spacing[::-1])[:, ::-1]  # slices run up, rows back, columns left
    affine = np.eye(4)
    affine[:3, :3] = turn @ tip @ columns
    affine[:3, 3] = origin
    noise = np.random.default_rng(seed).random(shape)
    array = np.rint(lowest + noise * (highest - lowest)).astype(np.float32)
    return Volume(array=array, affine=affine, coordinate_system="PATIENT")


def make_series(
    label: str = "T1w", volume: Volume | None = None, *, number: int = 1, **study: object
) -> list[Dataset]:
    modality = {"CT": "CT", "PET": "PT"}.get(label, "MR")
    return write_series(
        make_study(**study),
        volume or make_volume(),
        modality=modality,
        number=number,
        description=f"{label} test",
        acquisition=ACQUISITIONS[label],
    )


def make_activity(
    volume: Volume | None = None, *, number: int = 1, **study: object
) -> list[Dataset]:
    """Return a PET in Bq/ml: 70 kg, 400 MBq of F-18 given one half-life before the scan began."""
    tracer = Dataset()
    tracer.Radiopharmaceutical = "FDG -- fluorodeoxyglucose"
    tracer.RadiopharmaceuticalStartTime = "095820"
    tracer.RadiopharmaceuticalStartDateTime = "20200102095820"
    tracer.RadionuclideTotalDose = "400000000"
    tracer.RadionuclideHalfLife = "6586.2"
    scanned = {
        "Units": "BQML",
        "SUVType": None,
        "CorrectedImage": ["DECY", "ATTN", "SCAT"],
        "DecayCorrection": "START",
        "PatientWeight": "70",
        "SeriesDate": "20200102",
        "SeriesTime": "114806.2",
        "AcquisitionDate": "20200102",
        "AcquisitionTime": "114806.2",
        "RadiopharmaceuticalInformationSequence": [tracer],
    }
    instances = make_series("PET", volume, number=number, **study)
    for instance in instances:
        for keyword, value in scanned.items():
            setattr(instance, keyword, deepcopy(value))
    return instances


HEAD_MM = 3.0
"""Between the voxels of `make_head`."""


def make_head(fluid: float) -> NDArray[np.float32]:
    """Return a head of 90 mm radius: air, scalp, dark skull, brain, and ventricles of `fluid`."""
    axes = np.indices((64, 64, 64)) * HEAD_MM - 96
    radius = np.sqrt((axes**2).sum(axis=0))
    ventricles = np.sqrt(axes[0] ** 2 + (axes[1] / 2) ** 2 + (axes[2] - 10) ** 2)
    head = np.zeros(radius.shape, np.float32)
    head[radius < 90] = 2.0
    head[radius < 84] = 0.02
    head[radius < 78] = 1.0 + 0.1 * np.sin(axes[0])[radius < 78]
    head[ventricles < 16] = fluid
    return head * 300


def make_enhanced(*volumes: Sequence[Dataset]) -> Dataset:
    """Return a multi-frame image of stacks that differ in echo time, as an enhanced MR holds them.

    The frames of one position follow one another. Without arguments there is one stack, each slice
    of which has a slope of its own.
    """
    stacks = volumes or [make_series()]
    for k, instance in enumerate(() if volumes else stacks[0], 1):
        instance.RescaleSlope = str(k)
    instances = [instance for position in zip(*stacks, strict=True) for instance in position]
    enhanced = deepcopy(instances[0])
    enhanced.SOPClassUID = "1.2.840.10008.5.1.4.1.1.4.1"
    shared, frames = Dataset(), []
    measures, orientation = Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = enhanced.PixelSpacing, enhanced.SliceThickness
    orientation.ImageOrientationPatient = enhanced.ImageOrientationPatient
    shared.PixelMeasuresSequence = [measures]
    shared.PlaneOrientationSequence = [orientation]
    for instance in instances:
        frame, position, values = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = instance.ImagePositionPatient
        values.RescaleSlope = instance.get("RescaleSlope", "1")
        values.RescaleIntercept, values.RescaleType = "0", "US"
        echo = Dataset()
        echo.EffectiveEchoTime = float(instance.EchoTime)
        frame.MREchoSequence = [echo]
        frame.PlanePositionSequence = [position]
        frame.PixelValueTransformationSequence = [values]
        frames.append(frame)
    enhanced.NumberOfFrames = len(frames)
    enhanced.SharedFunctionalGroupsSequence = [shared]
    enhanced.PerFrameFunctionalGroupsSequence = frames
    enhanced.PixelData = b"".join(instance.PixelData for instance in instances)
    plane = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
    for keyword in (*plane, "EchoTime", "RescaleSlope"):
        enhanced.pop(keyword, None)
    return enhanced


def write_files(instances: Iterable[Dataset], folder: Path) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for k, instance in enumerate(instances):
        path = folder / f"{k:04d}.dcm"
        path.write_bytes(encode(instance))
        paths.append(path)
    return paths


def require_validators() -> tuple[str, str]:
    """Return the paths of dciodvfy and dcentvfy, or end the test."""
    return require_program("dciodvfy", "dicom3tools"), require_program("dcentvfy", "dicom3tools")
