"""Own checks of what a job wrote, run once more before it is sent: `work` holds what fails here.

Validators judge an instance against its IOD; they do not see that a series claims another
modality's class, hides where it comes from or sits beside its source (`dicom.md`, section 5).
A problem is a sentence; none of them repeats an attribute of the patient. No element that was
copied raw is decoded, so that what is written afterwards has the bytes that were checked.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.tag import BaseTag
from pydicom.uid import (
    UID,
    Comprehensive3DSRStorage,
    CTImageStorage,
    MRImageStorage,
    ParametricMapStorage,
    PositronEmissionTomographyImageStorage,
)

from dicom_node.elements import read_bytes, read_numbers
from dicom_node.exposures import EXPOSURE_CLASSES, RADIOGRAPHS
from dicom_node.geometry import ORIENTATION_TOLERANCE
from dicom_node.identity import IDENTITY
from dicom_node.images import CT_INTERCEPT
from dicom_node.iod import check_iod
from dicom_node.provenance import (
    LONGEST_DESCRIPTION,
    MANUFACTURER,
    PREFIX,
    PRIVATE_CREATOR,
    PRIVATE_GROUP,
    SYNTHESIS_CODE,
)

MODALITIES: dict[UID, str] = {
    MRImageStorage: "MR",
    CTImageStorage: "CT",
    PositronEmissionTomographyImageStorage: "PT",
    ParametricMapStorage: "OT",
    Comprehensive3DSRStorage: "SR",
    **{uid: modality for modality, uid in EXPOSURE_CLASSES.items()},
}
IMAGES = frozenset(uid for uid, modality in MODALITIES.items() if modality in {"MR", "CT", "PT"})
PICTURES = frozenset(EXPOSURE_CLASSES.values())
PLACE_TOLERANCE_MM = 1e-3
IN_THE_PATIENT = (
    *("ImagePositionPatient", "ImageOrientationPatient", "SliceLocation", "SliceThickness"),
    *("FrameOfReferenceUID", "PositionReferenceIndicator", "SpacingBetweenSlices"),
)
"""A picture has no such place, and none is made up."""
ON_THE_DETECTOR = ("Rows", "Columns", "PixelSpacing")
"""As in the source."""

ACQUISITION = (
    *("ProtocolName", "SequenceName", "FlipAngle", "NumberOfAverages", "PixelBandwidth", "SAR"),
    *("dBdt", "AcquisitionMatrix", "InPlanePhaseEncodingDirection", "ReceiveCoilName"),
    *("TransmitCoilName", "ImagingFrequency", "ImagedNucleus", "EchoNumbers", "InversionTime"),
    *("MagneticFieldStrength", "NumberOfPhaseEncodingSteps", "PercentSampling", "TriggerTime"),
    *("PercentPhaseFieldOfView", "ReconstructionDiameter", "GantryDetectorTilt", "ExposureTime"),
    *("XRayTubeCurrent", "Exposure", "FilterType", "ConvolutionKernel", "FocalSpots", "CTDIvol"),
    *("DataCollectionDiameter", "TableHeight", "GeneratorPower", "ContrastBolusAgent"),
    *("ScatterCorrectionMethod", "AttenuationCorrectionMethod", "ReconstructionMethod"),
    *("PerformedProcedureStepID", "PerformedProcedureStepStartDate", "OperatorsName"),
)
"""Describes an acquisition that did not make these pixels."""
EMPTY = ("RepetitionTime", "EchoTime", "EchoTrainLength", "KVP", "CollimatorType")
"""Required by the IOD, unknown by nature."""
ALIKE = (
    *("SOPClassUID", "Modality", "SeriesNumber", "SeriesDescription", "FrameOfReferenceUID"),
    *("Manufacturer", "ManufacturerModelName", "SoftwareVersions", "DeviceUID", "StationName"),
    *("ImageType", "RescaleSlope", "RescaleIntercept", "Rows", "Columns", "WindowCenter"),
    *("WindowWidth", "ContributingEquipmentSequence"),
    *("DerivationDescription", "DerivationCodeSequence", "RelatedSeriesSequence", "ImageComments"),
    *("InstanceCreationDate", "InstanceCreationTime", "LossyImageCompression", "SyntheticData"),
)
"""The same in every instance of a series."""

_Check = Callable[[Sequence[Dataset], Sequence[Dataset]], Iterable[str]]


def check(derived: Sequence[Dataset], sources: Sequence[Dataset]) -> list[str]:
    """Return the problems of everything that a job wrote.

    Args:
        derived: the instances, of every series.
        sources: headers of every source instance.
    """
    series: dict[str, list[Dataset]] = defaultdict(list)
    for instance in derived:
        series[str(instance.SeriesInstanceUID)].append(instance)
    uids = Counter(instance.SOPInstanceUID for instance in derived)
    problems = [f"SOP Instance UID {uid} is used twice" for uid, n in uids.items() if n > 1]
    for instances in series.values():
        problems += check_series(instances, sources)
    return problems


def check_series(derived: Sequence[Dataset], sources: Sequence[Dataset]) -> list[str]:
    """Return the problems of one derived series, each told once."""
    checks: list[_Check] = [_check_uids, _check_identity, _check_claims, _check_equipment]
    checks += [_check_private, _check_alike]
    if derived[0].SOPClassUID in IMAGES:
        checks += [_check_image_claims, _check_references, _check_places]
    if derived[0].SOPClassUID in PICTURES:
        checks += [_check_image_claims, _check_references, _check_detector]
    found = (problem for run in checks for problem in run(derived, sources))
    name = f"series {derived[0].get('SeriesNumber')}"
    return list(dict.fromkeys(f"{name}: {problem}" for problem in found))


def _check_uids(derived: Sequence[Dataset], sources: Sequence[Dataset]) -> Iterator[str]:
    known = {str(s.SOPInstanceUID) for s in sources} | {str(s.SeriesInstanceUID) for s in sources}
    studies = {s.StudyInstanceUID for s in sources}
    for instance in derived:
        if instance.SOPInstanceUID in known or instance.SeriesInstanceUID in known:
            yield "a UID of a source is used again"
        if instance.StudyInstanceUID not in studies:
            yield "the Study Instance UID is not that of a source"
        if instance.file_meta.MediaStorageSOPInstanceUID != instance.SOPInstanceUID:
            yield "the file's SOP Instance UID is another"
    numbers = sorted(int(instance.InstanceNumber or 0) for instance in derived)
    if numbers != list(range(1, len(derived) + 1)):
        yield "Instance Numbers do not run from 1 to the number of instances"


def _check_identity(derived: Sequence[Dataset], sources: Sequence[Dataset]) -> Iterator[str]:
    """Compare bytes: an archive does."""
    first_of_series = {s.SeriesInstanceUID: s for s in reversed(sources)}.values()
    known = [_identity(source) for source in first_of_series]
    for instance in derived:
        identity = _identity(instance)
        if identity not in known:
            nearest = max(known, key=lambda k: len(k.items() & identity.items()), default={})
            changed = [k for k in identity if identity[k] != nearest.get(k)]
            yield f"patient or study differ from the source's in {', '.join(changed)}"


def _identity(instance: Dataset) -> dict[str, bytes]:
    return {k: read_bytes(instance, k) for k in IDENTITY if not k.endswith("Sequence")}


def _check_claims(derived: Sequence[Dataset], _: Sequence[Dataset]) -> Iterator[str]:
    for instance in derived:
        modality = MODALITIES.get(instance.SOPClassUID)
        if modality is None or instance.Modality != modality:
            yield f"modality {instance.Modality} in {instance.SOPClassUID.name}"
        if instance.get("SyntheticData") != "YES":
            yield "Synthetic Data is not YES"
        if instance.get("ContentQualification") != "RESEARCH":
            yield "Content Qualification is not RESEARCH"
        description = str(instance.get("SeriesDescription", ""))
        if not description.startswith(f"{PREFIX} ") or "NOT ACQUIRED" not in description:
            yield "Series Description does not say that the series is synthetic"
        if len(description) > LONGEST_DESCRIPTION:
            yield "Series Description is too long"


def _check_equipment(derived: Sequence[Dataset], _: Sequence[Dataset]) -> Iterator[str]:
    for instance in derived:
        if instance.get("Manufacturer") != MANUFACTURER:
            yield "Manufacturer is not this software"
        if not instance.get("InstanceCreatorUID"):
            yield "Instance Creator UID is missing"
        items = instance.get("ContributingEquipmentSequence") or []
        purposes = [_codes(item, "PurposeOfReferenceCodeSequence") for item in items]
        if ["109101"] not in purposes:
            yield "the scanner is not among the contributing equipment"
        synthesizers = [i for i, p in zip(items, purposes, strict=True) if p == ["109100"]]
        if not synthesizers or not synthesizers[-1].get("DeviceUID"):
            yield "the synthesizer is not among the contributing equipment"


def _check_private(derived: Sequence[Dataset], _: Sequence[Dataset]) -> Iterator[str]:
    for instance in derived:
        try:
            block = instance.private_block(PRIVATE_GROUP, PRIVATE_CREATOR)
            json.loads(block[0x01].value)
        except (KeyError, ValueError):
            yield "the private record of the job is missing"
        if any(tag.is_private and tag.group != PRIVATE_GROUP for tag in _tags(instance)):
            yield "private attributes of another maker came along"


def _check_alike(derived: Sequence[Dataset], _: Sequence[Dataset]) -> Iterator[str]:
    for keyword in ALIKE:
        values = [instance.get(keyword) for instance in derived]
        if any(value != values[0] for value in values[1:]):
            yield f"{keyword} varies inside the series"


def _check_image_claims(derived: Sequence[Dataset], sources: Sequence[Dataset]) -> Iterator[str]:
    lossy = any(source.get("LossyImageCompression") == "01" for source in sources)
    for image in derived:
        yield from check_iod(image)
        if image.get("ImageType", [""])[0] != "DERIVED":
            yield "Image Type does not say DERIVED"
        yield from (f"{k} describes an acquisition" for k in ACQUISITION if k in image)
        yield from (f"{k} is invented" for k in EMPTY if image.get(k) is not None)
        windows = len(read_numbers(image, "WindowCenter") or ())
        if windows != 1 and (image.SOPClassUID in IMAGES or image.Modality in RADIOGRAPHS):
            yield "there is not exactly one window"
        if image.get("LossyImageCompression") != "01" and lossy:
            yield "lossy compression of a source is not passed on"
        if image.get("BurnedInAnnotation", "YES" if image.SOPClassUID in IMAGES else "NO") != "NO":
            yield "Burned In Annotation is not NO"
        rescale = (image.get("RescaleSlope"), image.get("RescaleIntercept"))
        if image.Modality == "CT" and rescale != (1, CT_INTERCEPT):
            yield "CT is not stored as HU + 1024"
        length = image.Rows * image.Columns * image.SamplesPerPixel * image.BitsAllocated // 8
        if len(image.PixelData) != length + length % 2:
            yield "pixels do not fill the image"


def _check_references(derived: Sequence[Dataset], sources: Sequence[Dataset]) -> Iterator[str]:
    received = {(s.SOPClassUID, s.SOPInstanceUID) for s in sources}
    series = {s.SeriesInstanceUID for s in sources}
    for image in derived:
        if SYNTHESIS_CODE.value not in _codes(image, "DerivationCodeSequence"):
            yield "the derivation is not coded as a synthesis"
        if not image.get("DerivationDescription"):
            yield "the derivation is not described"
        if {i.SeriesInstanceUID for i in image.get("RelatedSeriesSequence") or []} != series:
            yield "the related series are not the source series"
        listed = _referenced(image.get("SourceImageSequence") or [])
        by_series = _referenced(
            instance
            for item in image.get("ReferencedSeriesSequence") or []
            for instance in item.get("ReferencedInstanceSequence") or []
        )
        if not listed:
            yield "no source image is referenced"
        if not listed <= received:
            yield "an image that was never received is referenced"
        if listed != by_series:
            yield "references by purpose and by series differ"


def _check_places(derived: Sequence[Dataset], sources: Sequence[Dataset]) -> Iterator[str]:
    """Compare geometry with the source on whose slices the series claims to lie."""
    cosines = _plane(derived[0])[:6]
    row, column = cosines[:3], cosines[3:]
    if max(abs(row @ row - 1), abs(column @ column - 1), abs(row @ column)) > ORIENTATION_TOLERANCE:
        yield "Image Orientation is not orthonormal"
    normal = np.cross(row, column)
    stacks = defaultdict(list)
    for source in sources:
        stacks[source.SeriesInstanceUID].append(source)
    if not any(_is_same_stack(derived, stack, normal) for stack in stacks.values()):
        yield "slices do not lie on those of a source"
    numbers = [int(image.InstanceNumber or 0) for image in derived]
    heights = np.array([_place(image) for image in derived]) @ normal
    if (np.diff(heights[np.argsort(numbers)]) <= 0).any():
        yield "Instance Numbers do not follow the normal"


def _check_detector(derived: Sequence[Dataset], sources: Sequence[Dataset]) -> Iterator[str]:
    """Compare a picture with the source whose rows and columns it claims to have."""
    for image in derived:
        yield from (f"{k} is invented" for k in IN_THE_PATIENT if k in image)
        if not any(
            all(read_numbers(image, k) == read_numbers(source, k) for k in ON_THE_DETECTOR)
            for source in sources
        ):
            yield "rows and columns are not those of a source"


def _is_same_stack(
    derived: Sequence[Dataset], sources: Sequence[Dataset], normal: NDArray[np.float64]
) -> bool:
    frames = {i.get("FrameOfReferenceUID") for i in (*derived, sources[0])} - {None, ""}
    if len(derived) != len(sources) or len(frames) > 1:
        return False
    ours, theirs = (
        np.array(
            sorted(
                (np.array([*_place(i), *_plane(i)]) for i in stack), key=lambda p: p[:3] @ normal
            )
        )
        for stack in (derived, sources)
    )
    return bool(np.abs(ours - theirs).max() <= PLACE_TOLERANCE_MM)


def _place(image: Dataset) -> NDArray[np.float64]:
    return np.array(read_numbers(image, "ImagePositionPatient") or [np.nan] * 3)


def _plane(image: Dataset) -> NDArray[np.float64]:
    """Return orientation, pixel spacing, rows and columns."""
    keywords = ("ImageOrientationPatient", "PixelSpacing", "Rows", "Columns")
    return np.array([n for k in keywords for n in read_numbers(image, k) or [np.nan]])


def _referenced(items: Iterable[Dataset]) -> set[tuple[str, str]]:
    return {(i.ReferencedSOPClassUID, i.ReferencedSOPInstanceUID) for i in items}


def _codes(dataset: Dataset, keyword: str) -> list[str]:
    return [str(item.get("CodeValue")) for item in dataset.get(keyword) or []]


def _tags(dataset: Dataset) -> Iterator[BaseTag]:
    for tag in list(dataset.keys()):
        yield tag
        element = dataset.get_item(tag)
        if element is not None and element.VR == "SQ":
            for item in dataset[tag].value:
                yield from _tags(item)
