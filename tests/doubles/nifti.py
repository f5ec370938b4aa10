"""NIfTI images as volumes: the grid and the values are kept, the affine goes from RAS to LPS."""

import uuid
from datetime import UTC, datetime
from pathlib import Path

import nibabel
import numpy as np
from highdicom import Volume

NAMESPACE = uuid.UUID("a3f3f2f0-3a55-5c7e-8a55-8f9b0b3dd9a1")
STARTED = datetime(2026, 1, 6, 11, 0, tzinfo=UTC)
RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


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
