"""NIfTI images as MR studies that could have come from a scanner, physics unknown and left out.

Each image keeps its own grid and its own values; only the affine goes from RAS to LPS. All share a
Frame of Reference when they were acquired in one session.
"""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import nibabel
import numpy as np
from highdicom import Volume

from dicom_node.acquired import AcquiredStudy, write_series

NAMESPACE = uuid.UUID("a3f3f2f0-3a55-5c7e-8a55-8f9b0b3dd9a1")
STARTED = datetime(2026, 1, 6, 11, 0, tzinfo=UTC)
RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenStudy:
    """A study in files: `files` by the label that its images were given under."""

    study_instance_uid: str
    files: dict[str, tuple[Path, ...]]


def write_study(folder: Path, key: str, images: Mapping[str, Path]) -> WrittenStudy:
    """Write each image as one MR series below `folder`, described by nothing but its label."""
    study = AcquiredStudy(
        namespace=NAMESPACE,
        key=key,
        patient_name=f"TEST^{key.upper()}",
        patient_id=key,
        started=STARTED,
        description="BRAIN",
        body_part="BRAIN",
    )
    files: dict[str, tuple[Path, ...]] = {}
    for number, (label, path) in enumerate(images.items(), start=1):
        instances = write_series(
            study,
            read_nifti(path, study.uid("frame of reference")),
            modality="MR",
            number=number,
            description=label,
            acquisition={},
        )
        target = folder / label
        target.mkdir(parents=True)
        paths = tuple(target / f"{index:03d}.dcm" for index in range(1, len(instances) + 1))
        for one, instance in zip(paths, instances, strict=True):
            instance.save_as(one, enforce_file_format=True)
        files[label] = paths
    return WrittenStudy(study_instance_uid=study.study_instance_uid, files=files)


def read_nifti(path: Path, frame_of_reference_uid: str) -> Volume:
    """Return an image as a volume whose slices are the planes of its third axis."""
    image = nibabel.load(path)
    array = np.asarray(image.dataobj, dtype=np.float32)  # (columns, rows, slices)
    affine = RAS_TO_LPS @ image.affine
    flipped = np.eye(4)[[2, 1, 0, 3]]  # (slice, row, column) to (column, row, slice)
    return Volume(
        array.transpose(2, 1, 0),  # (slices, rows, columns)
        affine @ flipped,
        coordinate_system="PATIENT",
        frame_of_reference_uid=frame_of_reference_uid,
    )
