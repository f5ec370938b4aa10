"""Inputs with one fault each, made from a good series: what the network and the archives bring."""

from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from io import BytesIO
from pathlib import Path

from pydicom import Dataset, dcmread, dcmwrite
from pydicom.uid import generate_uid


def copy_study(files: Iterable[Path], fault: str) -> list[Dataset]:
    """Return a series as a study of its own, with the same UIDs for the same fault."""
    copies = [dcmread(path) for path in files]
    for index, one in enumerate(copies):
        one.StudyInstanceUID = generate_uid(entropy_srcs=[fault, "study"])
        one.SeriesInstanceUID = generate_uid(entropy_srcs=[fault, "series"])
        one.SOPInstanceUID = generate_uid(entropy_srcs=[fault, str(index)])
        one.file_meta.MediaStorageSOPInstanceUID = one.SOPInstanceUID
    return copies


def one_slice(study: list[Dataset]) -> list[Dataset]:
    """Keep one slice: a sample, not a volume."""
    return study[:1]


def without_geometry(study: list[Dataset]) -> list[Dataset]:
    """Take the positions away."""
    for one in study:
        del one.ImagePositionPatient
    return study


def of_mixed_orientations(study: list[Dataset]) -> list[Dataset]:
    """Turn every other slice, as in a localizer."""
    for one in study[::2]:
        one.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]
    return study


def with_a_gap(study: list[Dataset]) -> list[Dataset]:
    """Lose a third of the slices in one piece."""
    third = len(study) // 3
    return study[:third] + study[2 * third :]


def of_two_people(study: list[Dataset]) -> list[Dataset]:
    """Give half of the slices another Patient ID."""
    for one in study[::2]:
        one.PatientID = "SOMEBODY-ELSE"
    return study


def with_two_contents(study: list[Dataset]) -> list[Dataset]:
    """Send one slice again under its UID, with other pixels."""
    other = deepcopy(study[0])
    other.PixelData = bytes(len(other.PixelData))
    return [*study, other]


STUDIES: dict[str, tuple[Callable[[list[Dataset]], list[Dataset]], str]] = {
    "one slice": (one_slice, "one_slice"),
    "missing geometry": (without_geometry, "geometry_missing"),
    "mixed orientations": (of_mixed_orientations, "orientation"),
    "slices lost": (with_a_gap, "slice_gap"),
    "two patients": (of_two_people, "identity_conflict"),
    "two contents under one UID": (with_two_contents, "uid_conflict"),
}
"""Fault to what makes it, and the code of the reason for which the node holds the study."""


def save(study: Sequence[Dataset], folder: Path) -> Path:
    """Write a study into a folder of its own."""
    folder.mkdir(parents=True)
    for index, one in enumerate(study):
        one.save_as(folder / f"{index:03d}.dcm")
    return folder


def encode(instance: Dataset) -> bytes:
    """Return the data set alone, as it travels, in Explicit VR Little Endian."""
    buffer = BytesIO()
    bare = Dataset()
    bare.update(instance)
    bare.remove_private_tags()
    dcmwrite(buffer, bare, implicit_vr=False, little_endian=True, enforce_file_format=False)
    return buffer.getvalue()
