"""A checker that cannot fail is no checker: every fault that was ever met, planted again.

The faults are those of the design note `dicom.md`, section 5, and what its author's validators
missed. Each must be caught by our own check or, where that leaves it to them, by dicom3tools.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydicom import DataElement, Dataset, config
from pydicom.uid import CTImageStorage, PositronEmissionTomographyImageStorage

from dicom_node.conformance import check, check_series
from dicom_node.demonstration.validators import find_errors
from dicom_node.derive import SourceSeries
from dicom_node.domain import ContrastLabel, Role
from dicom_node.elements import encode, read_bytes
from doubles.job import derive, make_sources
from doubles.series import make_series, require_validators, write_files

Sources = dict[ContrastLabel, SourceSeries]
Plant = Callable[[list[Dataset]], object]

TARGETS = {"MR": "FLAIR", "CT": "CT", "PT": "PET"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("study")


@pytest.fixture(scope="module")
def sources(folder: Path) -> Sources:
    return make_sources(folder)


@pytest.fixture(scope="module")
def headers(sources: Sources) -> list[Dataset]:
    return [header for source in sources.values() for header in source.datasets]


def write(sources: Sources, modality: str, role: Role = Role.IMAGE) -> list[Dataset]:
    written = derive(sources, TARGETS[modality], modality)
    return [copy.deepcopy(ds) for facts, ds in written if facts.role == role]


@dataclass(frozen=True)
class Fault:
    """A fault, and what our own check says of it; empty when only the validators see it."""

    modality: str
    plant: Plant
    told: str
    role: Role = Role.IMAGE


def every(**values: object) -> Plant:
    """Set attributes of every instance."""

    def plant(instances: list[Dataset]) -> None:
        for instance in instances:
            for keyword, value in values.items():
                setattr(instance, keyword, value)

    return plant


def one(**values: object) -> Plant:
    return lambda instances: every(**values)(instances[2:3])


def drop(*keywords: str) -> Plant:
    def plant(instances: list[Dataset]) -> None:
        for instance in instances:
            for keyword in keywords:
                delattr(instance, keyword)

    return plant


def forget_scanner(instances: list[Dataset]) -> None:
    for instance in instances:
        del instance.ContributingEquipmentSequence[:-1]


def move_slice(instances: list[Dataset]) -> None:
    x, y, z = instances[2].ImagePositionPatient
    instances[2].ImagePositionPatient = [x, y + 0.1, z]


def shear(instances: list[Dataset]) -> None:
    for instance in instances:
        first, *rest = instance.ImageOrientationPatient
        instance.ImageOrientationPatient = [first + 0.05, *rest]


def refer_to_a_stranger(instances: list[Dataset]) -> None:
    instances[0].SourceImageSequence[0].ReferencedSOPInstanceUID = "1.2.3.4"


def forget_a_reference(instances: list[Dataset]) -> None:
    del instances[0].ReferencedSeriesSequence[0].ReferencedInstanceSequence[0]


def bring_private_group(instances: list[Dataset]) -> None:
    instances[0].private_block(0x0029, "SIEMENS CSA HEADER", create=True).add_new(1, "LO", "x")


def bring_private_group_inside(instances: list[Dataset]) -> None:
    bring_private_group([instances[0].SourceImageSequence[0]])


def count_twice(instances: list[Dataset]) -> None:
    instances[1].SOPInstanceUID = instances[0].SOPInstanceUID


def squeeze_window(instances: list[Dataset]) -> None:
    group = instances[0].SharedFunctionalGroupsSequence[0].FrameVOILUTSequence[0]
    group.VOILUTFunction, group.WindowWidth = "LINEAR", 0.5


def encode_again(instances: list[Dataset]) -> None:
    for instance in instances:
        instance.SpecificCharacterSet = "ISO_IR 192"


def cut_pixels(instances: list[Dataset]) -> None:
    instances[0].PixelData = instances[0].PixelData[:-2]


def talk_on(instances: list[Dataset]) -> None:
    text = "AI SYNTH " + "NOT ACQUIRED " * 9
    for instance in instances:
        instance.add(DataElement("SeriesDescription", "LO", text, validation_mode=config.IGNORE))


def keep_uid(instances: list[Dataset]) -> None:
    instances[0].SOPInstanceUID = instances[0].SourceImageSequence[0].ReferencedSOPInstanceUID


FAULTS = {
    "second value SECONDARY in PT Image Type": Fault(
        "PT", every(ImageType=["DERIVED", "SECONDARY"]), ""
    ),
    "Patient Position beside the orientation codes": Fault("PT", every(PatientPosition="HFS"), ""),
    "12 bits stored in PT": Fault("PT", every(BitsStored=12, HighBit=11), ""),
    "no third value of Image Type": Fault("MR", every(ImageType=["DERIVED", "SECONDARY"]), ""),
    "neither Body Part nor Laterality": Fault("MR", drop("BodyPartExamined"), ""),
    "narrow window under LINEAR": Fault("MR", squeeze_window, "", Role.UNCERTAINTY),
    "two windows": Fault("CT", every(WindowCenter=[40, 500], WindowWidth=[400, 2000]), "window"),
    "Type 2 attributes left out": Fault(
        "MR", drop("ReferringPhysicianName"), "ReferringPhysicianName (type 2) is missing"
    ),
    "no KVP": Fault("CT", drop("KVP"), "KVP (type 2) is missing"),
    "no Synthetic Data": Fault("MR", drop("SyntheticData"), "Synthetic Data"),
    "no Synthetic Data in the report": Fault(
        "MR", drop("SyntheticData"), "Synthetic Data", Role.REPORT
    ),
    "no Content Qualification": Fault("MR", drop("ContentQualification"), "Content Qualification"),
    "ORIGINAL": Fault("MR", every(ImageType=["ORIGINAL", "PRIMARY", "OTHER"]), "DERIVED"),
    "modality MR in CT": Fault("CT", every(Modality="MR"), "modality MR in CT Image Storage"),
    "scanner as manufacturer": Fault("MR", every(Manufacturer="ACME"), "Manufacturer"),
    "manufacturer of one slice": Fault("MR", one(Manufacturer="ACME"), "Manufacturer varies"),
    "equipment dropped": Fault("MR", drop("ContributingEquipmentSequence"), "synthesizer is not"),
    "scanner dropped": Fault("MR", forget_scanner, "scanner is not"),
    "source images dropped": Fault("MR", drop("SourceImageSequence"), "no source image"),
    "related series dropped": Fault("MR", drop("RelatedSeriesSequence"), "related series"),
    "derivation dropped": Fault("MR", drop("DerivationDescription"), "not described"),
    "derivation code dropped": Fault("MR", drop("DerivationCodeSequence"), "not coded"),
    "reference to a stranger": Fault("MR", refer_to_a_stranger, "never received"),
    "references that differ": Fault("MR", forget_a_reference, "by purpose and by series differ"),
    "invented echo time": Fault("MR", every(EchoTime="90"), "EchoTime is invented"),
    "acquisition of the source": Fault("MR", every(FlipAngle="9"), "FlipAngle describes"),
    "contrast agent": Fault("MR", every(ContrastBolusAgent="Gd"), "ContrastBolusAgent describes"),
    "slope that varies": Fault("PT", one(RescaleSlope="2"), "RescaleSlope varies"),
    "intercept of one slice": Fault("CT", one(RescaleIntercept="0"), "RescaleIntercept varies"),
    "slice in another frame of reference": Fault(
        "MR", one(FrameOfReferenceUID="1.2.3"), "FrameOfReferenceUID varies"
    ),
    "series in another frame of reference": Fault(
        "MR", every(FrameOfReferenceUID="1.2.3"), "do not lie on those of a source"
    ),
    "slice moved by 0.1 mm": Fault("MR", move_slice, "do not lie on those of a source"),
    "slice left out": Fault("MR", lambda s: s.pop(), "do not lie on those of a source"),
    "oblique axes": Fault("MR", shear, "not orthonormal"),
    "instance numbers upside down": Fault(
        "MR",
        lambda s: [setattr(i, "InstanceNumber", 6 - k) for k, i in enumerate(s)],
        "do not follow the normal",
    ),
    "instance number twice": Fault("MR", one(InstanceNumber=1), "Instance Numbers do not run"),
    "other patient": Fault("MR", every(PatientID="2"), "differ from the source's in PatientID"),
    "other study": Fault("MR", every(StudyInstanceUID="1.2.3"), "Study Instance UID is not"),
    "text encoded again": Fault("MR", encode_again, "differ from the source's in SpecificChar"),
    "UID of the source": Fault("MR", keep_uid, "used again"),
    "UID twice": Fault("MR", count_twice, "used twice"),
    "private group of the scanner": Fault("MR", bring_private_group, "another maker"),
    "private group in a sequence": Fault("MR", bring_private_group_inside, "another maker"),
    "record of the job dropped": Fault(
        "MR", lambda s: s[0].pop(0x00771001), "private record of the job"
    ),
    "no warning in the description": Fault(
        "MR", every(SeriesDescription="FLAIR"), "does not say that the series is synthetic"
    ),
    "endless description": Fault("MR", talk_on, "too long"),
    "pixels cut": Fault("MR", cut_pixels, "pixels do not fill"),
    "burned-in text": Fault("MR", every(BurnedInAnnotation="YES"), "Burned In"),
    "attribute of another IOD": Fault("MR", every(KVP="120"), "KVP is not in the IOD"),
}
assert len(FAULTS) >= 24


@pytest.mark.parametrize("name", [n for n, fault in FAULTS.items() if fault.told])
def test_fault_is_told(sources: Sources, headers: list[Dataset], name: str) -> None:
    fault = FAULTS[name]
    instances = write(sources, fault.modality, fault.role)

    fault.plant(instances)

    problems = check(instances, headers)
    assert any(fault.told in problem for problem in problems), problems


@pytest.mark.integration
@pytest.mark.parametrize("name", [n for n, fault in FAULTS.items() if not fault.told])
def test_fault_that_is_left_to_the_validators_is_told_by_them(
    tmp_path: Path, folder: Path, sources: Sources, name: str
) -> None:
    fault = FAULTS[name]
    instances = write(sources, fault.modality, fault.role)
    files = sorted(folder.rglob("*.dcm"))
    before = find_errors(require_validators(), write_files(instances, tmp_path / "a"), files)

    fault.plant(instances)

    after = find_errors(require_validators(), write_files(instances, tmp_path / "b"), files)
    assert not any("Error" in line for line in before)
    assert any("Error" in line for line in after)


@pytest.mark.parametrize("modality", TARGETS)
def test_what_is_written_has_no_problem(
    sources: Sources, headers: list[Dataset], modality: str
) -> None:
    written = derive(sources, TARGETS[modality], modality, description="brain only")

    assert check([ds for _, ds in written], headers) == []


@pytest.mark.parametrize(
    ("modality", "sop_class_uid"),
    [("CT", CTImageStorage), ("PT", PositronEmissionTomographyImageStorage)],
)
def test_header_of_an_mr_that_calls_itself_another_class_has_many_problems(
    headers: list[Dataset], modality: str, sop_class_uid: str
) -> None:
    copied = make_series()
    for instance in copied:
        instance.SOPClassUID, instance.Modality = sop_class_uid, modality

    assert len(check_series(copied, headers)) > 15


def test_lossy_flag_that_was_reset_is_told(sources: Sources, headers: list[Dataset]) -> None:
    instances = write(sources, "MR")
    lossy = copy.deepcopy(headers)
    lossy[0].LossyImageCompression = "01"

    problems = check(instances, lossy)

    assert any("lossy" in problem for problem in problems)


def test_check_leaves_the_bytes_as_they_are(tmp_path: Path) -> None:
    sources = make_sources(tmp_path)
    written = [ds for _, ds in derive(sources)]
    untouched = [encode(ds) for _, ds in derive(sources)]

    check(written, [header for source in sources.values() for header in source.datasets])

    assert all(ds.get_item("PatientName").is_raw for ds in written)
    assert [encode(ds) for ds in written] == untouched


def test_no_problem_repeats_the_patient(sources: Sources, headers: list[Dataset]) -> None:
    instances = write(sources, "MR")
    every(PatientName="SECRET^NAME", PatientID="SECRET")(instances)

    problems = check(instances, headers)

    assert problems
    assert not any("SECRET" in p or "PHANTOM" in p for p in problems)
    assert read_bytes(headers[0], "PatientName") == b"PHANTOM^HEAD"
