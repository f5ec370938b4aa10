from typing import Any

import pytest

from dicom_node.contrast import describe, find_origin
from dicom_node.domain import Label, Origin, Series
from dicom_node.rules import Contrasts
from doubles.studies import ACQUISITIONS, load_contrasts, make_header, make_instance

CONTRASTS = load_contrasts()
SE = {"ScanningSequence": ["SE"]}
IR = {"ScanningSequence": ["SE", "IR"]}
GR = {"ScanningSequence": ["GR"]}


def label(contrasts: Contrasts = CONTRASTS, **facts: object) -> Label:
    described = describe_facts(contrasts, **facts).label
    assert described is not None
    return described


def describe_facts(contrasts: Contrasts = CONTRASTS, **facts: Any) -> Series:
    header = make_header(**facts)
    series = Series(
        series_instance_uid="1.1",
        modality=header["Modality"],
        origin=Origin.ACQUIRED,
        instances=(make_instance("1", header),),
    )
    return describe(series, contrasts, creator_uid="2.25.7")


@pytest.mark.parametrize(
    ("expected", "facts"),
    [
        ("T1w", ACQUISITIONS["T1w"]),
        ("T1w", ACQUISITIONS["T1w 3D"]),
        ("T1w", {**IR, "RepetitionTime": 2200.0, "EchoTime": 12.0, "InversionTime": 860.0}),
        (
            "T1w",
            {
                **GR,
                "MRAcquisitionType": "2D",
                "RepetitionTime": 250.0,
                "EchoTime": 2.5,
                "FlipAngle": 70.0,
            },
        ),
        ("T1c", ACQUISITIONS["T1c"]),
        ("T2w", ACQUISITIONS["T2w"]),
        ("T2w", {**SE, "EchoTrainLength": 120.0, "RepetitionTime": 1200.0, "EchoTime": 90.0}),
        ("PDw", ACQUISITIONS["PDw"]),
        ("FLAIR", ACQUISITIONS["FLAIR"]),
        ("FLAIR", {"AcquisitionContrast": "FLUID_ATTENUATED"}),
        ("STIR", {**IR, "RepetitionTime": 4000.0, "EchoTime": 60.0, "InversionTime": 160.0}),
        (
            "T2*w",
            {
                **GR,
                "MRAcquisitionType": "2D",
                "RepetitionTime": 700.0,
                "EchoTime": 20.0,
                "FlipAngle": 20.0,
            },
        ),
        ("SWI", {**GR, "ImageType": ["ORIGINAL", "PRIMARY", "M", "SWI"]}),
        ("DWI", ACQUISITIONS["DWI"]),
        ("ADC", {"ImageType": ["DERIVED", "PRIMARY", "DIFFUSION", "ADC"]}),
        ("PERF", {"ImageType": ["ORIGINAL", "PRIMARY", "ASL", "NONE"]}),
        ("BOLD", {"ImageType": ["ORIGINAL", "PRIMARY", "FMRI", "NONE"]}),
        ("MRA", {**GR, "AngioFlag": "Y"}),
        ("LOC", {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}),
        ("CT", ACQUISITIONS["CT"]),
        ("CTc", {**ACQUISITIONS["CT"], "ContrastBolusAgent": "IOHEXOL"}),
        ("SCOUT", {"Modality": "CT", "ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}),
        ("PET", {"Modality": "PT", "CorrectedImage": ["DECY", "ATTN"]}),
        ("PET NAC", {"Modality": "PT", "CorrectedImage": ["DECY"]}),
        ("MG", {"Modality": "MG"}),
    ],
)
def test_physics_alone_name_the_contrast(expected: str, facts: dict[str, object]) -> None:
    found = label(**facts)

    assert found.contrast == expected
    assert found.confidence >= 0.8
    assert found.evidence


@pytest.mark.parametrize(
    ("expected", "description"),
    [
        ("T1w", "AX T1"),
        ("T1w", "t1_mpr_ns_sag_p2_iso"),
        ("T1w", "T1 FLAIR SAG"),
        ("T1c", "AX T1 POST GD"),
        ("T1c", "T1+C"),
        ("T1c", "t1 tra nach KM"),
        ("T1w", "t1 tra vor KM"),
        ("T1w", "T1 without contrast"),
        ("T1w", "T1 post op"),
        ("T2w", "AX T2 TSE"),
        ("T2w", "t2_haste_cor"),
        ("FLAIR", "AX T2 FLAIR"),
        ("FLAIR", "t2_tirm_tra_dark-fluid"),
        ("FLAIR", "T2 FLAIR axial"),
        ("T2*w", "AX T2* GRE"),
        ("PDw", "PD TSE SAG"),
        ("STIR", "STIR cor"),
        ("SWI", "SWI_Images"),
        ("DWI", "ep2d_diff_3scan"),
        ("ADC", "ep2d_diff_3scan_ADC"),
        ("MRA", "TOF_3D_multi-slab"),
        ("BOLD", "ep2d_bold_rest"),
        ("LOC", "3-plane localizer"),
        ("T1w", "IBSI_1_STS_015_MR_T1_image"),
    ],
)
def test_description_names_what_a_silent_header_leaves_open(
    expected: str, description: str
) -> None:
    found = label(SeriesDescription=description)

    assert found.contrast == expected
    assert found.confidence == 0.8


@pytest.mark.parametrize(
    ("facts", "candidates"),
    [
        ({}, {"T1w", "T1c", "T2w", "FLAIR", "PDw"}),
        ({"SeriesDescription": "series 4"}, {"T1w", "T2w", "FLAIR"}),
        ({"SeriesDescription": "T1", **ACQUISITIONS["T2w"]}, {"T1w", "T2w"}),
        ({"SeriesDescription": "T2", **ACQUISITIONS["T1w"]}, {"T1w", "T2w"}),
        ({"SeriesDescription": "T1 T2"}, {"T1w", "T2w"}),
        ({"SeriesDescription": "T1 pre and post GD"}, {"T1w", "T1c"}),
        ({**ACQUISITIONS["T1c"], "SeriesDescription": "T1 nativ"}, {"T1w", "T1c"}),
        ({**SE, "RepetitionTime": 4000.0, "EchoTime": 55.0}, {"T2w", "PDw"}),
        ({**SE, "RepetitionTime": 1400.0, "EchoTime": 20.0}, {"T1w", "PDw"}),
        ({**ACQUISITIONS["T2w"], "InversionTime": 0.0, "SeriesDescription": "FLAIR"}, {"FLAIR"}),
    ],
)
def test_labeller_abstains_and_says_what_it_could_be(
    facts: dict[str, object], candidates: set[str]
) -> None:
    found = label(**facts)

    assert found.contrast is None
    assert found.confidence == 0
    assert candidates <= set(found.candidates)


def test_abstention_on_an_echo_planar_series_leaves_the_plain_slots_alone() -> None:
    found = label(ScanningSequence=["EP"], RepetitionTime=6100.0, EchoTime=60.0)

    assert found.contrast is None
    assert found.candidates == ()


def test_agreement_of_physics_and_description_is_surest() -> None:
    physics = label(**ACQUISITIONS["FLAIR"])
    both = label(**ACQUISITIONS["FLAIR"], SeriesDescription="FLAIR")

    assert both.confidence > physics.confidence > 0.9


def test_description_that_names_an_untold_inversion_is_believed() -> None:
    found = label(**{**SE, "RepetitionTime": 9000.0, "EchoTime": 120.0}, SeriesDescription="FLAIR")

    assert found.contrast == "FLAIR"


def test_diffusion_is_no_t2w_whatever_its_description_says() -> None:
    found = label(**ACQUISITIONS["DWI"], SeriesDescription="AX T2")

    assert found.contrast == "DWI"
    assert any("ruled out" in line for line in found.evidence)


def test_localizer_is_what_it_is_called_and_not_what_it_looks_like() -> None:
    assert label(**ACQUISITIONS["T1w"], SeriesDescription="SAG LOC").contrast == "LOC"


@pytest.mark.parametrize(
    "facts",
    [
        {"RepetitionTime": -1.0, "EchoTime": 1e9, "ScanningSequence": ["SE"]},
        {"ImageType": ["", "\\"], "SeriesDescription": "Ω 脳 頭部"},
        {"DiffusionBValue": [0.0, 1000.0], "EchoTime": [10.0, 90.0]},
        {"ImageOrientationPatient": [0.0] * 6},
        {"MagneticFieldStrength": 15000.0},
    ],
)
def test_absurd_header_never_crashes(facts: dict[str, object]) -> None:
    assert label(**facts).contrast in {None, "DWI"}


def test_label_carries_attributes() -> None:
    found = label(
        **ACQUISITIONS["T2w"], ScanOptions=["FS"], MRAcquisitionType="2D", BodyPartExamined="HEAD"
    )

    assert found.attributes["fat_suppression"] is True
    assert found.attributes["plane"] == "axial"
    assert found.attributes["dimension"] == "2D"
    assert found.attributes["body_part"] == "HEAD"


def test_evidence_repeats_no_text_but_the_words_of_the_vocabulary() -> None:
    found = label(SeriesDescription="Doe T1Jane 1970-01-01")

    assert found.contrast == "T1w"
    assert "jane" not in " ".join(found.evidence).casefold()


@pytest.mark.parametrize(
    ("origin", "kind", "facts"),
    [
        (Origin.ACQUIRED, "", {}),
        (Origin.ACQUIRED, "", {"ImageType": ["DERIVED", "PRIMARY", "AXIAL"]}),
        (
            Origin.ACQUIRED,
            "",
            {
                "ImageType": ["DERIVED", "SECONDARY"],
                "DerivationDescription": "Lossless JPEG compression",
            },
        ),
        (Origin.ACQUIRED, "", {"SeriesDescription": "t1_mpr_sag"}),
        (Origin.DERIVED, "processed", {"ImageType": ["DERIVED", "SECONDARY"]}),
        (Origin.DERIVED, "reformat", {"ImageType": ["DERIVED", "SECONDARY", "MPR"]}),
        (Origin.DERIVED, "map", {"ImageType": ["DERIVED", "PRIMARY", "ADC"]}),
        (Origin.DERIVED, "synthetic", {"SyntheticData": "YES"}),
        (Origin.DERIVED, "synthetic", {"ImageType": ["DERIVED", "SECONDARY", "SYNTHETIC"]}),
        (Origin.DERIVED, "synthetic", {"SeriesDescription": "SyMRI T2 FLAIR"}),
        (Origin.DERIVED, "synthetic", {"SeriesDescription": "MAGiC T1"}),
        (Origin.OWN, "synthetic", {"InstanceCreatorUID": "2.25.7"}),
        (Origin.OWN, "synthetic", {"SeriesDescription": "AI SYNTH FLAIR from T1w"}),
    ],
)
def test_origin_is_seen(origin: Origin, kind: str, facts: dict[str, object]) -> None:
    found = find_origin(make_header(**facts), CONTRASTS, creator_uid="2.25.7")

    assert found[:2] == (origin, kind)


def test_series_that_the_ledger_knows_is_our_own() -> None:
    origin, _, why = find_origin(make_header(), CONTRASTS, is_own=True)

    assert origin is Origin.OWN
    assert "ledger" in why


def test_problem_of_a_series_stands_in_its_evidence() -> None:
    series = Series(
        series_instance_uid="1",
        modality="MR",
        origin=Origin.ACQUIRED,
        instances=(make_instance("1", make_header(**ACQUISITIONS["T2w"])),),
        problem=("slice_gap", "slices are 5 to 10 mm apart"),
    )

    described = describe(series, CONTRASTS).label

    assert described is not None
    assert "slice_gap" in described.evidence[-1]
