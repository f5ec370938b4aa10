"""What the demonstration sends: a person's folder, a real study of the data folder, or a phantom.

Of the last two one contrast is held back, so that the result can be laid beside the real one.
"""

import os
import tarfile
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pydicom
from highdicom import Volume
from pydicom.errors import InvalidDicomError

from dicom_node.acquired import AcquiredStudy, write_series
from dicom_node.domain import ContrastLabel
from synthesis.phantom import SEQUENCES, render
from synthesis.types import ContrastLabel as SynthesisLabel

DATA_VARIABLE = "DICOM_NODE_DATA"
BESIDE_THE_CLONE = Path("../shared/data")
REAL_STUDY = Path("dicom_brain_adi/adi.tar.xz")
REAL_NOTE = (
    "One volunteer's brain MR from FNNDSC/data, dicom/adi_brain (Apache-2.0). "
    "Its T2-weighted series was held back from node and PACS."
)
REAL_HELD_BACK = (ContrastLabel("T2w"), "AX FSE T2")
"""The contrast, and the Series Description by which the study's only series of it is known."""

PHANTOM_NOTE = (
    "A PHANTOM: a head rendered from formulas, no person was imaged. "
    "Its {label} series was held back from node and PACS."
)
PHANTOM_SENT = (ContrastLabel("T1w"), ContrastLabel("FLAIR"))
PHANTOM_HELD_BACK = ContrastLabel("T2w")
PHANTOM_NAMESPACE = uuid.UUID("6d7a2f2a-7a8e-5b39-9c60-0d3c5cbb6a55")
PHANTOM_STARTED = datetime(2026, 1, 5, 9, 30, tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parcel:
    """One study, ready to be sent.

    Attributes:
        note: where it comes from and what is missing, in a sentence or two for the report.
        files: every instance that is sent.
        held_back: label to the files that nobody but the report sees.
    """

    note: str
    is_phantom: bool
    study_instance_uid: str
    files: tuple[Path, ...]
    held_back: dict[ContrastLabel, tuple[Path, ...]]


def find_real_study() -> Path | None:
    """Return the archive of the real study, or None where the test images are not at hand."""
    archive = Path(os.environ.get(DATA_VARIABLE, BESIDE_THE_CLONE)) / REAL_STUDY
    return archive if archive.is_file() else None


def prepare_folder(folder: Path, held_back: Mapping[ContrastLabel, Path] | None = None) -> Parcel:
    """Return the study of a folder and the folders below it.

    Args:
        folder: what is sent.
        held_back: label to the folder of the real series, which is not.

    Raises:
        ValueError: the folder holds no DICOM file, or files of more than one study.
    """
    files = dict(_read_headers(folder))
    studies = {header.StudyInstanceUID for header in files.values()}
    if len(studies) != 1:
        raise ValueError(f"{folder}: one study is wanted, DICOM files of {len(studies)} are there")
    return Parcel(
        note=f"{len(files)} instances from a folder that you named.",
        is_phantom=False,
        study_instance_uid=str(studies.pop()),
        files=tuple(files),
        held_back={
            label: tuple(dict(_read_headers(real))) for label, real in (held_back or {}).items()
        },
    )


def prepare_real_study(archive: Path, scratch: Path) -> Parcel:
    """Unpack the real study below `scratch`, and hold one contrast back."""
    with tarfile.open(archive) as tar:
        tar.extractall(scratch, filter="data")
    headers = dict(_read_headers(scratch))
    label, description = REAL_HELD_BACK
    held = tuple(path for path, h in headers.items() if h.SeriesDescription == description)
    return Parcel(
        note=REAL_NOTE,
        is_phantom=False,
        study_instance_uid=str(next(iter(headers.values())).StudyInstanceUID),
        files=tuple(path for path in headers if path not in held),
        held_back={label: held},
    )


def prepare_phantom(
    scratch: Path,
    *,
    seed: int = 0,
    spacing: tuple[float, float, float] = (3.0, 1.2, 1.2),
    sent: tuple[ContrastLabel, ...] = PHANTOM_SENT,
    held_back: ContrastLabel = PHANTOM_HELD_BACK,
) -> Parcel:
    """Render a head and write it below `scratch` as a study.

    Args:
        scratch: gets one folder per contrast.
        seed: of the head, and of its UIDs.
        spacing: (slices, rows, columns) in mm; coarse is quick.
        sent: contrasts that go to the node.
        held_back: the contrast that does not.
    """
    phantom = render(seed=seed, spacing=spacing)
    study = AcquiredStudy(
        namespace=PHANTOM_NAMESPACE,
        key=f"head {seed} {spacing}",
        patient_name="PHANTOM^HEAD",
        patient_id=f"PHANTOM{seed}",
        started=PHANTOM_STARTED,
        description="RENDERED PHANTOM HEAD",
        is_phantom=True,
    )
    written: dict[ContrastLabel, tuple[Path, ...]] = {}
    for number, label in enumerate((*sent, held_back), start=1):
        volume = Volume.from_components(
            phantom.images[SynthesisLabel(label)],
            spacing=phantom.spacing,
            patient_orientation="HPL",
            center_position=(0.0, 0.0, 0.0),
            coordinate_system="PATIENT",
        )
        instances = write_series(
            study,
            volume,
            modality="MR",
            number=number,
            description=f"{label} phantom",
            acquisition=_describe_sequence(label),
        )
        folder = scratch / label
        folder.mkdir(parents=True)
        paths = tuple(folder / f"{index:03d}.dcm" for index in range(1, len(instances) + 1))
        for path, instance in zip(paths, instances, strict=True):
            instance.save_as(path, enforce_file_format=True)
        written[label] = paths
    return Parcel(
        note=PHANTOM_NOTE.format(label=held_back),
        is_phantom=True,
        study_instance_uid=study.study_instance_uid,
        files=tuple(path for label in sent for path in written[label]),
        held_back={held_back: written[held_back]},
    )


def _describe_sequence(label: ContrastLabel) -> dict[str, str | int | float | list[str]]:
    sequence = SEQUENCES[label]
    facts: dict[str, str | int | float | list[str]] = {
        "ScanningSequence": "SE" if sequence.ti is None else ["SE", "IR"],
        "SequenceVariant": "NONE",
        "MRAcquisitionType": "2D",
        "RepetitionTime": sequence.tr,
        "EchoTime": sequence.te,
        "EchoTrainLength": 1,
        "FlipAngle": 90,
        "MagneticFieldStrength": 1.5,
    }
    if sequence.ti is not None:
        facts["InversionTime"] = sequence.ti
    return facts


def _read_headers(folder: Path) -> Iterator[tuple[Path, pydicom.Dataset]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            try:
                header = pydicom.dcmread(
                    path, specific_tags=["StudyInstanceUID", "SeriesDescription"]
                )
            except InvalidDicomError:
                continue
            if "StudyInstanceUID" in header:
                header.setdefault("SeriesDescription", "")
                yield path, header
