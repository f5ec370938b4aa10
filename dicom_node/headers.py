"""The header facts of one received file, as the JSON types that the ledger keeps.

Read once per instance by `assembly`; conditions, labels, geometry and identity are judged from
these facts alone. Enhanced multi-frame images are flattened to the keywords of single-frame ones,
private b-values to Diffusion b-value. What cannot be read as what it should be is left out: a
silent header is judged with care, a wrong fact would mislead. The patient's identity is kept as a
digest, which is enough to see two patients in one study.
"""

import hashlib
import math
import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from pydicom import Dataset, config, dcmread
from pydicom.uid import UID

from dicom_node.elements import read_bytes, read_numbers
from dicom_node.errors import UnusableStudy
from dicom_node.exposures import EXPOSURE_CLASSES, check_exposure
from dicom_node.pixels import READ_ERRORS, check_codec, check_format, read_rescale
from dicom_node.readable import LISTS, NUMBERS, TEXTS, TRACER_CODE, VECTORS

VOLUME_MODALITIES = frozenset({"MR", "CT", "PT"})
"""What a volume can be read from."""
FLAT_MODALITIES = frozenset(EXPOSURE_CLASSES)
"""What pictures of one exposure are: radiographs, ultrasound, photographs."""
IMAGE_MODALITIES = VOLUME_MODALITIES | FLAT_MODALITIES
"""What can be worked with; other objects of a study are listed and passed over."""

PROBLEM = "problem"
"""Key of `[code, sentence]`: why the pixels cannot be read; absent when they can."""
IDENTITY = "identity"
"""Key of a digest of Patient ID; empty when the patient has none."""
BIRTH = "birth"
"""Key of a digest of Patient's Birth Date; absent when the header has none."""
SEX = "sex"
"""Key of a digest of Patient's Sex; absent when the header has none."""
AGE = "age"
"""Key of the patient's age in years, by Patient's Age, else by birth date and study date."""
FRAME_POSITIONS = "frame_positions"
"""Key of the Image Position (Patient) of every frame of a multi-frame image."""
FRAME_ORIENTATIONS = "frame_orientations"
"""Key of the Image Orientation (Patient) of every frame of a multi-frame image."""
FRAME_FACTS = "frame_facts"
"""Key of what differs among the frames of a multi-frame image: a list of values by keyword."""
FRAMES = "frames"
"""Key of the numbers, from 1, of the frames that are one of several volumes of a multi-frame image;
set by `series`, which tells them apart."""
ORDER = ("TemporalPositionIdentifier", "AcquisitionNumber", "TriggerTime")
"""What tells the repeats of a volume apart, the best first."""

_AGE = re.compile(r"(\d{3})([DWMY])")
_PER_YEAR = {"D": 365.2425, "W": 52.1775, "M": 12.0, "Y": 1.0}
"""Units of Patient's Age (VR AS, PS3.5 section 6.2) in a year."""
_LONGEST_TEXT = 256
_NEVER_NEGATIVE = frozenset(
    {"RepetitionTime", "EchoTime", "InversionTime", "DiffusionBValue", "MagneticFieldStrength"}
)
_ENHANCED_NUMBERS = {
    "EffectiveEchoTime": "EchoTime",
    "InversionTimes": "InversionTime",
    "RepetitionTime": "RepetitionTime",
    "FlipAngle": "FlipAngle",
    "EchoTrainLength": "EchoTrainLength",
    "DiffusionBValue": "DiffusionBValue",
    "SliceThickness": "SliceThickness",
    "SpacingBetweenSlices": "SpacingBetweenSlices",
    "KVP": "KVP",
    "TemporalPositionIndex": "TemporalPositionIdentifier",
    "FrameAcquisitionNumber": "AcquisitionNumber",
    "NominalCardiacTriggerDelayTime": "TriggerTime",
}
_VARYING = (
    *("EchoTime", "InversionTime", "FlipAngle", "DiffusionBValue"),
    *("AcquisitionContrast", "ComplexImageComponent", "ImageType", *ORDER),
)
"""What tells the volumes of a multi-frame image apart."""
_FRAME_CODES = ("AcquisitionContrast", "ComplexImageComponent", "AcquisitionType")
"""Codes of a frame; the image itself says MIXED where its frames differ (PS3.3 C.8.13.3.1.1)."""
_B_VALUES = (
    (0x0019, "SIEMENS MR HEADER", 0x0C),
    (0x0043, "GEMS_PARM_01", 0x39),
    (0x2001, "Philips Imaging DD 001", 0x03),
    (0x0065, "Image Private Header", 0x09),  # UIH
)
_GE_B_VALUE_OFFSET = 1e9
"""GE adds it to some b-values to mark their calibration."""

Facts = dict[str, Any]


def read_header(path: Path) -> Facts:
    """Return the header facts of one DICOM file.

    Never raises for a bad file: `PROBLEM` says what is wrong with it.
    """
    try:
        with config.disable_value_validation():
            image = dcmread(path, stop_before_pixels=True)
            return read_facts(image, UID(image.file_meta.TransferSyntaxUID))
    except READ_ERRORS as error:
        return {PROBLEM: ["unreadable", f"cannot be read as DICOM ({type(error).__name__})"]}


def read_facts(image: Dataset, syntax: UID) -> Facts:
    """Return the header facts of an image that was read.

    Args:
        image: its pixels may be left out.
        syntax: Transfer Syntax that the pixels are stored in.
    """
    facts: Facts = {}
    facts.update(_read_texts(image))
    facts.update(_read_numbers(image, {name: name for name in NUMBERS}))
    for keyword, count in VECTORS.items():
        if len(vector := _numbers(image, keyword)) == count:
            facts[keyword] = vector
    facts.update(_read_items(image))
    if "DiffusionBValue" not in facts and (b_value := _read_private_b_value(image)) is not None:
        facts["DiffusionBValue"] = b_value
    frames = image.get("PerFrameFunctionalGroupsSequence")
    if frames:
        shared = image.get("SharedFunctionalGroupsSequence") or [Dataset()]
        mixed = {keyword: "MIXED" for keyword in _FRAME_CODES if facts.get(keyword) == "MIXED"}
        facts.update({**_read_frames(image, shared[0], frames), **mixed})
    facts[IDENTITY] = digest_identity(read_bytes(image, "PatientID"))
    for key, keyword in ((BIRTH, "PatientBirthDate"), (SEX, "PatientSex")):
        if digest := digest_identity(read_bytes(image, keyword)):
            facts[key] = digest
    if (age := _read_age(image)) is not None:
        facts[AGE] = age
    if facts.get("Modality") in IMAGE_MODALITIES and (problem := _find_problem(image, syntax)):
        facts[PROBLEM] = problem
    return facts


def _read_age(image: Dataset) -> float | None:
    """Return the age of the patient in years, or None."""
    if found := _AGE.fullmatch(str(image.get("PatientAge") or "").strip()):
        return round(int(found[1]) / _PER_YEAR[found[2]], 2)
    try:
        born, seen = (
            datetime.strptime(str(image.get(keyword) or ""), "%Y%m%d")  # noqa: DTZ007 - dates
            for keyword in ("PatientBirthDate", "StudyDate")
        )
    except ValueError:
        return None
    age = (seen - born).days / _PER_YEAR["D"]
    return round(age, 2) if age >= 0 else None


def _read_texts(image: Dataset) -> Iterator[tuple[str, str | list[str]]]:
    for keyword in TEXTS:
        if text := str(image.get(keyword) or "").strip(" \0"):
            yield keyword, text[:_LONGEST_TEXT]
    for keyword in LISTS:
        value = image.get(keyword)
        items = [value] if isinstance(value, str) else list(value or ())
        if texts := [str(item).strip() for item in items if str(item).strip()]:
            yield keyword, texts


def _read_numbers(item: Dataset, names: Mapping[str, str]) -> Iterator[tuple[str, Any]]:
    """Yield the numbers of a data set under the names of single-frame images."""
    for keyword, name in names.items():
        numbers = _numbers(item, keyword)
        if numbers and not (name in _NEVER_NEGATIVE and min(numbers) < 0):
            yield name, numbers[0] if len(numbers) == 1 else numbers


def _read_items(image: Dataset) -> Iterator[tuple[str, str]]:
    """Yield what is told in other places: agent, tracer, side and region that was imaged."""
    if agents := image.get("ContrastBolusAgentSequence"):
        yield "ContrastBolusAgent", str(agents[0].get("CodeMeaning") or "given")
    for tracer in image.get("RadiopharmaceuticalInformationSequence") or ():
        codes = tracer.get("RadiopharmaceuticalCodeSequence") or [Dataset()]
        if name := codes[0].get("CodeMeaning") or tracer.get("Radiopharmaceutical"):
            yield "Radiopharmaceutical", str(name)
        if value := codes[0].get("CodeValue"):
            scheme = codes[0].get("CodingSchemeDesignator")
            yield TRACER_CODE, f"{scheme}:{value}"
    if not image.get("Laterality") and (side := image.get("ImageLaterality")):
        yield "Laterality", str(side)
    views = image.get("ViewCodeSequence")
    if views and not image.get("ViewPosition") and views[0].get("CodeMeaning"):
        yield "ViewPosition", str(views[0].CodeMeaning).upper()
    regions = image.get("AnatomicRegionSequence")
    if regions and not image.get("BodyPartExamined") and regions[0].get("CodeMeaning"):
        yield "BodyPartExamined", str(regions[0].CodeMeaning).upper()


def _read_frames(image: Dataset, shared: Dataset, frames: Any) -> Facts:
    """Return the facts of a multi-frame image; one that differs among frames is a list."""
    found: dict[str, list[Any]] = {}
    varying: dict[str, list[Any]] = {keyword: [] for keyword in _VARYING}
    positions, orientations = [], []
    for frame in frames:
        facts: Facts = {}
        for group in (shared, frame):
            for element in group:
                if element.VR == "SQ" and element.value:
                    facts.update(_read_group(element.value[0]))
        positions.append(facts.pop("ImagePositionPatient", None))
        orientations.append(facts.pop("ImageOrientationPatient", None))
        for keyword, values in varying.items():
            values.append(facts.get(keyword))
        for keyword in ("ImageType", *ORDER):  # the image's own says what its frames share
            facts.pop(keyword, None)
        for keyword, value in facts.items():
            values = found.setdefault(keyword, [])
            if value not in values:
                values.append(value)
    flat = {name: values[0] if len(values) == 1 else values for name, values in found.items()}
    flat[FRAME_POSITIONS], flat[FRAME_ORIENTATIONS] = positions, orientations
    if differing := {
        keyword: values
        for keyword, values in varying.items()
        if any(value != values[0] for value in values)
    }:
        flat[FRAME_FACTS] = differing
    flat.update(
        (keyword, values[0])
        for keyword in ORDER
        if keyword not in differing and (values := varying[keyword])[0] is not None
    )
    flat.update(_read_pulse_sequence(image))
    return flat


def _read_group(group: Dataset) -> Facts:
    facts: Facts = dict(_read_numbers(group, _ENHANCED_NUMBERS))
    for keyword, count in VECTORS.items():
        if len(vector := _numbers(group, keyword)) == count:
            facts[keyword] = vector
    for keyword in _FRAME_CODES:
        if text := group.get(keyword):
            facts[keyword] = str(text)
    if side := group.get("FrameLaterality"):
        facts["Laterality"] = str(side)
    if frame_type := group.get("FrameType"):
        facts["ImageType"] = [str(value) for value in frame_type]
    return facts


def _read_pulse_sequence(image: Dataset) -> Facts:
    """Return Scanning Sequence and Sequence Variant as a single-frame image would tell them.

    Source: PS3.3 C.8.13.4 (MR Pulse Sequence) and C.8.3.1 (MR Image).
    """
    echoes = {"SPIN": ["SE"], "GRADIENT": ["GR"], "BOTH": ["SE", "GR"]}
    sequence = list(echoes.get(str(image.get("EchoPulseSequence")), []))
    if any(
        item.get("InversionRecovery") == "YES"
        for group in image.get("SharedFunctionalGroupsSequence") or ()
        for item in group.get("MRModifierSequence") or ()
    ):
        sequence.append("IR")
    if image.get("EchoPlanarPulseSequence") == "YES":
        sequence.append("EP")
    variant = []
    if str(image.get("SteadyStatePulseSequence") or "NONE") != "NONE":
        variant.append("SS")
    if str(image.get("Spoiling") or "NONE") != "NONE":
        variant.append("SP")
    facts: Facts = {}
    if sequence and "ScanningSequence" not in image:
        facts["ScanningSequence"] = sequence
    if variant and "SequenceVariant" not in image:
        facts["SequenceVariant"] = variant
    return facts


def _read_private_b_value(image: Dataset) -> float | None:
    for group, creator, element in _B_VALUES:
        try:
            value = image.private_block(group, creator)[element].value
            number = float(value if isinstance(value, str | bytes | float | int) else value[0])
        except (KeyError, TypeError, ValueError, IndexError):
            continue
        if math.isfinite(number) and number >= 0:
            return number % _GE_B_VALUE_OFFSET
    return None


def _find_problem(image: Dataset, syntax: UID) -> list[str] | None:
    try:
        if image.get("Modality") in FLAT_MODALITIES:
            check_exposure(image, syntax)
            return None
        check_format(image)
        check_codec(syntax)
        if "PerFrameFunctionalGroupsSequence" not in image:
            read_rescale(image)
    except UnusableStudy as error:
        return [error.code, str(error)]
    return None


def _numbers(item: Dataset, keyword: str) -> list[float]:
    try:
        return list(read_numbers(item, keyword) or ())
    except ValueError:
        return []


def digest_identity(identity: bytes) -> str:
    """Return what is kept of an attribute by which patients are told apart."""
    return hashlib.sha256(identity).hexdigest()[:16] if identity else ""
