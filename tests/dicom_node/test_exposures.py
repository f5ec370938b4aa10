"""Radiographs, ultrasound and photographs: read, labelled, written back in their own class."""

from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from dicom_node.conformance import check
from dicom_node.demonstration.validators import find_errors
from dicom_node.domain import ContrastLabel, Role
from dicom_node.errors import UnusableStudy
from dicom_node.exposures import EXPOSURE_CLASSES
from dicom_node.headers import PROBLEM, read_facts
from dicom_node.volumes import read_picture
from doubles.exposures import TARGETS, draw, make_exposure, read_source
from doubles.job import Written, derive
from doubles.series import require_validators, write_files
from doubles.studies import label_study, make_instance

COLORED = {"US": draw(samples=3, top=255), "XC": draw(rows=61, columns=47, samples=3, top=255)}
CASES = [(modality, None) for modality in EXPOSURE_CLASSES] + list(COLORED.items())
NAMES = [*EXPOSURE_CLASSES, "US color", "XC color"]
IN_THE_PATIENT = ("ImagePositionPatient", "ImageOrientationPatient", "FrameOfReferenceUID")


def write_back(image: Dataset, folder: Path) -> Written:
    """Everything that a job writes of one picture."""
    source = read_source(image, folder)
    modality = str(image.Modality)
    return derive({ContrastLabel(modality): source}, TARGETS[modality], modality)


def find_image(written: Written) -> Dataset:
    [image] = [dataset for facts, dataset in written if facts.role == Role.IMAGE]
    return image


def find_problem(image: Dataset) -> str:
    """Return by which name a header is refused, or an empty text."""
    return str((read_facts(image, ExplicitVRLittleEndian).get(PROBLEM) or [""])[0])


@pytest.mark.parametrize(("modality", "pixels"), CASES, ids=NAMES)
def test_picture_is_written_back_in_its_own_class_and_is_valid(modality, pixels, tmp_path):
    image = make_exposure(modality, pixels)
    source = write_files([image], tmp_path / "source")

    written = write_back(image, tmp_path / "read")

    made = find_image(written)
    paths = write_files([dataset for _, dataset in written], tmp_path / "made")
    assert made.SOPClassUID == EXPOSURE_CLASSES[modality]
    assert made.SamplesPerPixel == image.SamplesPerPixel
    assert check([dataset for _, dataset in written], [image]) == []
    assert find_errors(require_validators(), paths, source) == []


@pytest.mark.parametrize("modality", EXPOSURE_CLASSES)
def test_picture_gets_no_place_in_the_patient(modality, tmp_path):
    made = find_image(write_back(make_exposure(modality), tmp_path))

    assert not [keyword for keyword in IN_THE_PATIENT if keyword in made]


@pytest.mark.parametrize("modality", EXPOSURE_CLASSES)
def test_picture_says_what_it_is_and_from_what(modality, tmp_path):
    image = make_exposure(modality)

    made = find_image(write_back(image, tmp_path))

    assert list(made.ImageType) == ["DERIVED", "SECONDARY"]
    assert made.SyntheticData == "YES"
    [source] = made.SourceImageSequence
    assert source.ReferencedSOPInstanceUID == image.SOPInstanceUID
    assert source.SpatialLocationsPreserved == "YES"
    assert made.SeriesDescription.startswith(f"AI SYNTH {TARGETS[modality]}")
    assert len(made.ContributingEquipmentSequence) > 1


def test_radiograph_keeps_detector_spacing_view_and_side(tmp_path):
    image = make_exposure("DX")

    made = find_image(write_back(image, tmp_path))

    for keyword in ("ImagerPixelSpacing", "ViewPosition", "ImageLaterality", "PatientOrientation"):
        assert made[keyword].value == image[keyword].value
    assert "PixelSpacing" not in made
    assert made.PresentationIntentType == "FOR PRESENTATION"


def test_inverted_radiograph_is_turned_round_and_says_so(tmp_path):
    pixels = draw()
    inverted = make_exposure(
        "DX",
        4095 - pixels,
        PhotometricInterpretation="MONOCHROME1",
        PresentationLUTShape="INVERSE",
        PixelIntensityRelationshipSign=1,
    )

    volume, _ = read_picture(write_files([inverted], tmp_path / "in")[0])
    made = find_image(write_back(inverted, tmp_path / "out"))

    np.testing.assert_array_equal(volume.array[0], pixels)
    assert made.PhotometricInterpretation == "MONOCHROME2"
    assert made.PresentationLUTShape == "IDENTITY"
    assert made.PixelIntensityRelationshipSign == -1


def test_color_is_read_plane_by_plane(tmp_path):
    volume, _ = read_picture(write_files([make_exposure("XC", COLORED["XC"])], tmp_path)[0])

    np.testing.assert_array_equal(np.moveaxis(volume.array, 0, -1), COLORED["XC"])


@pytest.mark.parametrize(
    ("modality", "changes", "name"),
    [
        ("US", {"NumberOfFrames": 30}, "multi_frame"),
        ("DX", {"PresentationIntentType": "FOR PROCESSING"}, "presentation_intent"),
        ("US", {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, "picture_class"),
        ("US", {"BurnedInAnnotation": "YES"}, "burned_in"),
        ("US", {"PhotometricInterpretation": "PALETTE COLOR"}, "photometric"),
        ("CR", {"PhotometricInterpretation": "RGB"}, "photometric"),
        ("CR", {"ImagerPixelSpacing": None}, "spacing_missing"),
        ("DX", {"PatientOrientation": None}, "orientation_missing"),
        ("XC", {"BitsStored": 12}, "pixel_geometry"),
        ("XC", {}, ""),
    ],
)
def test_unsuitable_picture_is_refused_by_name(modality, changes, name, tmp_path):
    image = make_exposure(modality, **changes)

    assert find_problem(image) == name
    if name:
        with pytest.raises(UnusableStudy) as error:
            read_picture(write_files([image], tmp_path)[0])
        assert error.value.code == name


@pytest.mark.parametrize(
    ("modality", "description", "label"),
    [
        ("CR", "Thigh AP", "CR"),
        ("DX", "Thigh AP", "DX"),
        ("DX", "Bone age left hand", "DX"),
        ("DX", "Chest PA dual energy bone", "DX bone"),
        ("DX", "Chest PA soft tissue only", "DX soft tissue"),
        ("CR", "Chest bone image", "CR bone"),
        ("US", "Liver", "US"),
        ("XC", "Wound", "XC"),
        ("XC", "Hand near infrared", "XC infrared"),
    ],
)
def test_label_is_the_modality_or_what_the_description_takes_out(modality, description, label):
    facts = read_facts(
        make_exposure(modality, SeriesDescription=description), ExplicitVRLittleEndian
    )

    [series] = label_study([make_instance("1.1.1", facts)]).series

    assert series.label.contrast == label
    assert series.problem is None


def test_label_tells_part_view_and_side():
    facts = read_facts(make_exposure("DX"), ExplicitVRLittleEndian)

    [series] = label_study([make_instance("1.1.1", facts)]).series

    told = series.label.attributes
    assert (told["body_part"], told["view"], told["laterality"]) == ("THIGH", "AP", "R")


def test_each_picture_of_a_series_is_by_itself():
    instances = [
        make_instance(
            f"1.1.{k}", read_facts(make_exposure("DX", ViewPosition=view), ExplicitVRLittleEndian)
        )
        for k, view in enumerate(["AP", "LL"])
    ]

    series = label_study(instances).series

    assert [len(each.instances) for each in series] == [1, 1]
