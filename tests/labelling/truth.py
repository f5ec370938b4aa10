"""The truth file beside the headers and files that it is about.

`series_truth.yaml` says how it was made. Which series are held out is decided here, by the name of
the set that they come from, so that nobody can choose.
"""

import hashlib
import json
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydicom import Dataset, config
from pydicom.uid import ExplicitVRLittleEndian

from dicom_node.assembly import read_folder
from dicom_node.domain import Header
from dicom_node.headers import read_facts
from dicom_node.series import split_series
from dicom_node.strict_yaml import read_document

TRUTH = Path(__file__).parents[1] / "truth" / "series_truth.yaml"
UNDECIDABLE = "undecidable"
HELD_OUT = 2
"""Remainder modulo 3 of the SHA-256 of a set's name: that which holds nearest a third of all."""
KNOWN = frozenset({"sts_ctmrpet_dicom"})
"""Sets that tests had known before the parts were told apart: never held out."""

TEXTS = (
    *("StudyDescription", "SeriesDescription", "ProtocolName", "SequenceName"),
    *("PulseSequenceName", "RequestedProcedureDescription", "PerformedProcedureStepDescription"),
    "DerivationDescription",
)
"""What people or scanners write in words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """What one real series is.

    Attributes:
        name: set and place, for tables.
        header: of its first image.
        problem: of the volume, where its files are there: why it is none.
        label: a word of the vocabulary, or `UNDECIDABLE`.
        needs_text: nobody could tell with the text hidden.
        agent: whether a contrast agent was given, None where nothing says so.
        origin: acquired or derived, None where the header leaves it open.
    """

    name: str
    held_out: bool
    header: Header
    problem: tuple[str, str] | None
    label: str
    needs_text: bool
    agent: bool | None
    origin: str | None

    @property
    def vendor(self) -> str:
        """The maker of the scanner, under one name for all its names."""
        name = str(self.header.get("Manufacturer", "")).casefold()
        for part, vendor in _VENDORS.items():
            if part in name:
                return vendor
        return "other or not told"


_VENDORS = {
    **{"siemens": "Siemens", "ge medical": "GE", "genesis": "GE", "philips": "Philips"},
    **{"toshiba": "Canon/Toshiba", "canon": "Canon/Toshiba", "hitachi": "Hitachi", "uih": "UIH"},
    **{"united imaging": "UIH", "acme": "Acme (NEMA samples)", "elscint": "Elscint"},
    **{"hyperfine": "Hyperfine", "bruker": "Bruker", "esaote": "Esaote", "fuji": "Fuji"},
}


_FOLDERS = {name: f"dicom_syntax/{name}" for name in ("dcm_qa_ts", "dicom2nifti")}


def is_held_out(set_name: str) -> bool:
    """Say whether the series of a set are kept from whoever writes rules."""
    digest = int(hashlib.sha256(set_name.encode()).hexdigest(), 16)
    return digest % 3 == HELD_OUT and set_name not in KNOWN


def read_truth(data: Path) -> list[Truth]:
    """Return every series of the truth file with its header.

    Args:
        data: the folder of real test images.

    Raises:
        ValueError: a header is not the one that was labelled.
    """
    truth = read_document(TRUTH.read_bytes(), TRUTH.name).read()
    facts = json.loads((data / "series_headers" / "series.json").read_text())
    found = []
    for set_name, entries in truth["series_headers"].items():
        for entry in entries:
            record = facts[entry["index"]]
            if record["set"] != set_name or digest_of(record["facts"]) != entry["digest"]:
                raise ValueError(f"series {entry['index']} is not the one that was labelled")
            name = f"{set_name} {entry['index']}"
            found.append(_build(name, set_name, entry, build_header(record["facts"]), None))
    for set_name, entries in truth["files"].items():
        with open_folder(data, set_name) as folder:
            found += [
                _build(
                    f"{set_name} {entry['path']}",
                    set_name,
                    entry,
                    *read_series(folder / entry["path"]),
                )
                for entry in entries
            ]
    return found


def digest_of(facts: Mapping[str, Any]) -> str:
    """Return what names the facts of one series."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:8]


def build_header(facts: Mapping[str, Any]) -> Header:
    """Return the header that the node reads of an image with these facts.

    Facts of functional groups are told as SEQUENCE.ATTRIBUTE; they become shared groups.
    """
    image, shared = Dataset(), Dataset()
    with config.disable_value_validation():
        for name, value in facts.items():
            if value is None:
                continue
            group, _, keyword = name.rpartition(".")
            if not group:
                setattr(image, keyword, value)
                continue
            if group not in shared:
                setattr(shared, group, [Dataset()])
            setattr(getattr(shared, group)[0], keyword, value)
        if len(shared):
            image.SharedFunctionalGroupsSequence = [shared]
            image.PerFrameFunctionalGroupsSequence = [
                Dataset() for _ in range(int(facts.get("NumberOfFrames") or 1))
            ]
        return read_facts(image, ExplicitVRLittleEndian)


@contextmanager
def open_folder(data: Path, set_name: str) -> Iterator[Path]:
    """Yield the folder of a set's DICOM files, unpacked if it comes as an archive."""
    archives = list((data / set_name).glob("*.tar.xz"))
    if not archives:
        yield data / _FOLDERS.get(set_name, set_name)
        return
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(archives[0]) as archive:
            archive.extractall(folder, filter="data")
        yield Path(folder)


def read_series(folder: Path) -> tuple[Header, tuple[str, str] | None]:
    """Return the first header of the largest volume in a folder, and its problem."""
    instances = [instance for group in read_folder(folder).values() for instance in group]
    largest = max(split_series(instances), key=lambda volume: len(volume.instances))
    return largest.instances[0].header or {}, largest.problem


def hide_text(header: Header) -> Header:
    """Return a header without what is written in words."""
    return {keyword: value for keyword, value in header.items() if keyword not in TEXTS}


def _build(
    name: str,
    set_name: str,
    entry: Mapping[str, Any],
    header: Header,
    problem: tuple[str, str] | None,
) -> Truth:
    return Truth(
        name=name,
        held_out=is_held_out(set_name),
        header=header,
        problem=problem,
        label=entry["label"],
        needs_text=entry.get("by") == "text",
        agent=entry.get("agent"),
        origin=entry.get("origin"),
    )
