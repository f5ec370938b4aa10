import json
from pathlib import Path

import pytest
from pydicom import Dataset, config
from pydicom.uid import JPEG2000Lossless

from dicom_node.elements import encode
from dicom_node.headers import (
    AGE,
    BIRTH,
    FRAME_FACTS,
    FRAME_POSITIONS,
    IDENTITY,
    PROBLEM,
    SEX,
    read_header,
)
from doubles.series import make_series


@pytest.fixture
def image() -> Dataset:
    return make_series("T1w")[0]


def write(image: Dataset, folder: Path) -> Path:
    path = folder / "image.dcm"
    path.write_bytes(encode(image))
    return path


def make_group(name: str, **facts: object) -> Dataset:
    """Return functional groups that hold the one of this name."""
    inner, outer = Dataset(), Dataset()
    for keyword, value in facts.items():
        setattr(inner, keyword, value)
    setattr(outer, name, [inner])
    return outer


def test_facts_are_json_types(image: Dataset, tmp_path: Path) -> None:
    header = read_header(write(image, tmp_path))

    assert json.loads(json.dumps(header)) == header
    assert header["Modality"] == "MR"
    assert header["ScanningSequence"] == ["GR", "IR"]
    assert header["InversionTime"] == 900
    assert len(header["ImagePositionPatient"]) == 3
    assert PROBLEM not in header


def test_patient_is_a_digest_only(image: Dataset, tmp_path: Path) -> None:
    header = read_header(write(image, tmp_path))

    assert image.PatientID not in json.dumps(header)
    assert header[IDENTITY]


def test_two_patients_have_different_digests(image: Dataset, tmp_path: Path) -> None:
    one = read_header(write(image, tmp_path))[IDENTITY]
    image.PatientID = "SOMEBODY-ELSE"

    assert read_header(write(image, tmp_path))[IDENTITY] != one


def test_padding_is_no_difference_between_patients(image: Dataset, tmp_path: Path) -> None:
    image.PatientID = "ODD"
    one = read_header(write(image, tmp_path))[IDENTITY]
    image.PatientID = "ODD "

    assert read_header(write(image, tmp_path))[IDENTITY] == one


@pytest.mark.parametrize(
    ("facts", "age"),
    [
        ({"PatientAge": "034Y"}, 34),
        ({"PatientAge": "018M"}, 1.5),
        ({"PatientAge": "026W"}, 0.5),
        ({"PatientAge": "old"}, None),
        ({"PatientBirthDate": "19800102", "StudyDate": "20200102"}, 40),
        ({"PatientBirthDate": "20210102", "StudyDate": "20200102"}, None),
        ({"PatientAge": "034Y", "PatientBirthDate": "20100102", "StudyDate": "20200102"}, 34),
    ],
)
def test_age_is_read_in_years(
    image: Dataset, tmp_path: Path, facts: dict[str, str], age: float | None
) -> None:
    image.PatientBirthDate = ""
    with config.disable_value_validation():
        for keyword, value in facts.items():
            setattr(image, keyword, value)
        path = write(image, tmp_path)

    assert read_header(path).get(AGE) == (None if age is None else pytest.approx(age, abs=0.01))


def test_birth_date_and_sex_are_digests_only(image: Dataset, tmp_path: Path) -> None:
    image.PatientBirthDate, image.PatientSex = "19800102", ""

    header = read_header(write(image, tmp_path))

    assert header[BIRTH]
    assert SEX not in header
    assert "19800102" not in json.dumps(header)


def test_empty_patient_id_is_empty(image: Dataset, tmp_path: Path) -> None:
    image.PatientID = ""

    assert read_header(write(image, tmp_path))[IDENTITY] == ""


@pytest.mark.parametrize("keyword", ["RepetitionTime", "ImagePositionPatient"])
def test_number_that_is_none_is_left_out(image: Dataset, tmp_path: Path, keyword: str) -> None:
    del image[keyword]
    image.private_block(0x0099, "TEST", create=True).add_new(1, "LO", "noise")

    assert keyword not in read_header(write(image, tmp_path))


@pytest.mark.parametrize(
    ("creator", "group", "element", "vr", "value", "b_value"),
    [
        ("SIEMENS MR HEADER", 0x0019, 0x0C, "IS", "800", 800),
        ("GEMS_PARM_01", 0x0043, 0x39, "IS", ["1000001000", "0", "0", "0"], 1000),
        ("Philips Imaging DD 001", 0x2001, 0x03, "FL", 600.0, 600),
    ],
)
def test_private_b_value_is_read(
    image: Dataset,
    tmp_path: Path,
    creator: str,
    group: int,
    element: int,
    vr: str,
    value: object,
    b_value: float,
) -> None:
    image.private_block(group, creator, create=True).add_new(element, vr, value)

    assert read_header(write(image, tmp_path))["DiffusionBValue"] == b_value


def test_pixel_format_that_cannot_be_read_is_a_problem(image: Dataset, tmp_path: Path) -> None:
    image.BitsStored = 0

    assert read_header(write(image, tmp_path))[PROBLEM][0] == "pixel_geometry"


def test_missing_codec_is_a_problem(
    image: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pydicom.pixels.decoders import JPEG2000LosslessDecoder

    monkeypatch.setattr(JPEG2000LosslessDecoder, "_available", {})
    image.file_meta.TransferSyntaxUID = JPEG2000Lossless
    path = tmp_path / "image.dcm"
    image.PixelData = b"\xfe\xff\x00\xe0\x00\x00\x00\x00"
    image["PixelData"].is_undefined_length = True
    path.write_bytes(encode(image))

    assert read_header(path)[PROBLEM][0] == "codec_missing"


@pytest.mark.parametrize("content", [b"", b"not DICOM", b"\0" * 128 + b"DICM" + b"\x01" * 9])
def test_file_that_is_not_dicom_is_a_problem(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)

    header = read_header(path)

    assert header[PROBLEM][0] == "unreadable"


def test_file_that_is_gone_is_a_problem(tmp_path: Path) -> None:
    assert read_header(tmp_path / "gone")[PROBLEM][0] == "unreadable"


def test_multi_frame_image_is_flattened(image: Dataset, tmp_path: Path) -> None:
    shared = make_group("MREchoSequence", EffectiveEchoTime=90.0)
    shared.update(make_group("PixelMeasuresSequence", PixelSpacing=[1, 2]))
    shared.update(
        make_group("MRModifierSequence", InversionRecovery="YES", InversionTimes=[2200.0])
    )
    image.SharedFunctionalGroupsSequence = [shared]
    image.PerFrameFunctionalGroupsSequence = [
        make_group("PlanePositionSequence", ImagePositionPatient=[0, 0, k]) for k in range(3)
    ]
    image.EchoPulseSequence = "SPIN"
    for keyword in ("ScanningSequence", "EchoTime", "InversionTime", "PixelSpacing"):
        del image[keyword]

    header = read_header(write(image, tmp_path))

    assert header["EchoTime"] == 90
    assert header["InversionTime"] == 2200
    assert header["PixelSpacing"] == [1, 2]
    assert header["ScanningSequence"] == ["SE", "IR"]
    assert header[FRAME_POSITIONS] == [[0, 0, 0], [0, 0, 1], [0, 0, 2]]
    assert FRAME_FACTS not in header


def test_what_differs_among_frames_is_kept_for_each(image: Dataset, tmp_path: Path) -> None:
    image.SharedFunctionalGroupsSequence = [
        make_group("PixelMeasuresSequence", PixelSpacing=[1, 2])
    ]
    image.PerFrameFunctionalGroupsSequence = [
        make_group("MREchoSequence", EffectiveEchoTime=echo) for echo in (12.0, 90.0)
    ]
    image.AcquisitionContrast = "MIXED"
    for frame, contrast in zip(
        image.PerFrameFunctionalGroupsSequence, ("PROTON_DENSITY", "T2"), strict=True
    ):
        frame.update(make_group("MRImageFrameTypeSequence", AcquisitionContrast=contrast))

    header = read_header(write(image, tmp_path))

    assert header[FRAME_FACTS] == {
        "EchoTime": [12, 90],
        "AcquisitionContrast": ["PROTON_DENSITY", "T2"],
    }
    assert header["AcquisitionContrast"] == "MIXED"


def test_phases_of_frames_are_read_as_of_single_frame_images(
    image: Dataset, tmp_path: Path
) -> None:
    image.PerFrameFunctionalGroupsSequence = [
        make_group("FrameContentSequence", TemporalPositionIndex=phase, FrameAcquisitionNumber=3)
        for phase in (1, 2)
    ]
    for frame, delay in zip(image.PerFrameFunctionalGroupsSequence, (50.0, 450.0), strict=True):
        frame.update(
            make_group("CardiacSynchronizationSequence", NominalCardiacTriggerDelayTime=delay)
        )

    header = read_header(write(image, tmp_path))

    assert header[FRAME_FACTS] == {"TemporalPositionIdentifier": [1, 2], "TriggerTime": [50, 450]}
    assert header["AcquisitionNumber"] == 3


@pytest.mark.parametrize("keyword", ["RepetitionTime", "EchoTime", "InversionTime"])
def test_time_below_zero_is_left_out(image: Dataset, tmp_path: Path, keyword: str) -> None:
    setattr(image, keyword, -5)

    assert keyword not in read_header(write(image, tmp_path))


def test_tracer_is_known_by_its_code(image: Dataset, tmp_path: Path) -> None:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator = "35321007", "SCT"
    code.CodeMeaning = "Fluorodeoxyglucose F^18^"
    tracer = Dataset()
    tracer.RadiopharmaceuticalCodeSequence = [code]
    image.RadiopharmaceuticalInformationSequence = [tracer]

    header = read_header(write(image, tmp_path))

    assert header["RadiopharmaceuticalCodeSequence"] == "SCT:35321007"
    assert header["Radiopharmaceutical"] == "Fluorodeoxyglucose F^18^"


def test_side_is_read_of_the_image_where_the_series_is_silent(image, tmp_path):
    image.ImageLaterality = "R"

    assert read_header(write(image, tmp_path))["Laterality"] == "R"

    image.Laterality = "L"

    assert read_header(write(image, tmp_path))["Laterality"] == "L"


def test_side_of_a_multi_frame_image_is_that_of_its_frames(image, tmp_path):
    image.SharedFunctionalGroupsSequence = [make_group("FrameAnatomySequence", FrameLaterality="L")]
    image.PerFrameFunctionalGroupsSequence = [
        make_group("PlanePositionSequence", ImagePositionPatient=[0, 0, 0])
    ]

    assert read_header(write(image, tmp_path))["Laterality"] == "L"
