import random
import time
from dataclasses import replace
from typing import Any

import pytest
from pydicom.sr.codedict import Collection

from dicom_node import headers
from dicom_node.contrast import describe, find_origin, heed_fluid, wants_a_look
from dicom_node.domain import Label, Origin, Series
from dicom_node.rules import Contrasts
from dicom_node.series import count_voxels
from doubles.studies import (
    ACQUISITIONS,
    label_study,
    load_contrasts,
    make_header,
    make_instance,
    make_series,
)

FACTOR = 5
"""How much slower than it should be a loaded machine may be."""

CONTRASTS = load_contrasts()
SE = {"ScanningSequence": ["SE"]}
IR = {"ScanningSequence": ["SE", "IR"]}
GR = {"ScanningSequence": ["GR"]}
LOW_FIELD = {**IR, "MagneticFieldStrength": 0.064}
PET = {"Modality": "PT", "CorrectedImage": ["DECY", "ATTN"]}
VIBE = {
    **GR,
    "SequenceVariant": ["SP"],
    "ScanOptions": ["FS"],
    "MRAcquisitionType": "3D",
    "RepetitionTime": 5.5,
    "EchoTime": 2.8,
    "FlipAngle": 10.0,
}


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
        ("FDG PET", {**PET, "Radiopharmaceutical": "FDG -- fluorodeoxyglucose"}),
        ("FDG PET", {**PET, "RadiopharmaceuticalCodeSequence": "SCT:35321007"}),
        ("amyloid PET", {**PET, "RadiopharmaceuticalCodeSequence": "SRT:C-E0269"}),
        ("PET", {**PET, "Radiopharmaceutical": "Ga-68 PSMA-11"}),
        ("PET NAC", {"Modality": "PT", "CorrectedImage": ["DECY"]}),
        ("MG", {"Modality": "MG"}),
        ("XC", {"Modality": "XC"}),
        ("CBCT", {**ACQUISITIONS["CT"], "ManufacturerModelName": "XVI R5.0"}),
        ("T1w", {**LOW_FIELD, "RepetitionTime": 1500.0, "EchoTime": 6.0, "InversionTime": 300.0}),
        (
            "FLAIR",
            {**LOW_FIELD, "RepetitionTime": 4000.0, "EchoTime": 180.0, "InversionTime": 1400.0},
        ),
        ("T1c", {**VIBE, "ContrastBolusAgent": "GADOVIST"}),
        ("T2w", {**SE, "MRAcquisitionType": "3D", "RepetitionTime": 3200.0, "EchoTime": 408.0}),
        (
            "MRS",
            {
                "ImageType": ["ORIGINAL", "PRIMARY", "SPECTROSCOPY", "NONE"],
                "ComplexImageComponent": "REAL",
            },
        ),
        (
            "BOLD",
            {
                "ScanningSequence": ["EP"],
                "ImageType": ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"],
                "RepetitionTime": 3000.0,
                "EchoTime": 30.0,
                "FlipAngle": 76.0,
            },
        ),
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
        ("T1w", "T1 W/WO"),
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
        ("T1c", "T1 axial con contraste"),
        ("T1c", "t1 assiale dopo mdc"),
        ("T1c", "T1 axial pós contraste"),
        ("T1c", "T1 TSE axial injecté"),
        ("T1c", "T1 TRA NA CONTRAST"),
        ("T1c", "造影T1強調画像"),
        ("T1c", "T1 增强"),
        ("T1w", "T1 tra nativ"),
        ("T1w", "T1 axial sin contraste"),
        ("T1w", "T1 axial sans injection"),
        ("T1w", "T1 assiale basale"),
        ("T1w", "T1 sem contraste"),
        ("T1w", "T1 zonder contrast"),
        ("T1w", "T1強調 造影前"),
        ("T1w", "T1WI 平扫"),
        ("T2w", "T2強調画像 水平断"),
        ("T2w", "T2加权 横断面"),
        ("FLAIR", "水抑制画像"),
        ("PDw", "Densité protonique sag"),
        ("PDw", "Protonendichte"),
        ("DWI", "Difusión axial"),
        ("DWI", "拡散強調画像"),
        ("DWI", "弥散 b1000"),
        ("MRA", "Angiografia TOF"),
        ("LOC", "Repérage"),
        ("LOC", "Übersicht 3 Ebenen"),
        ("LOC", "T/S/C RF FAST PILOT"),
        ("LOC", "位置決め"),
        ("LOC", "定位像"),
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
        ({**PET, "SeriesDescription": "PET NAC"}, {"PET", "PET NAC"}),
        ({**ACQUISITIONS["CT"], "SeriesDescription": "w/o", "ProtocolName": "CTA"}, {"CT", "CTc"}),
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


@pytest.mark.parametrize(
    "facts",
    [
        pytest.param({**SE, "RepetitionTime": 12.0, "EchoTime": 5.6}, id="spin echo of 12 ms"),
        pytest.param(
            {**ACQUISITIONS["T2w"], "SeriesDescription": "2D 16 echo qT2"}, id="relaxometry"
        ),
        pytest.param({"AcquisitionContrast": "MIXED"}, id="several contrasts"),
        pytest.param(
            {"ImageType": ["ORIGINAL", "PRIMARY", "FAT"], **VIBE, "SeriesDescription": "t1 dixon"},
            id="fat",
        ),
        pytest.param(
            {
                **SE,
                "Manufacturer": "Philips Medical Systems",
                "ScanOptions": ["FS"],
                "EchoTrainLength": 73.0,
                "RepetitionTime": 4242.0,
                "EchoTime": 80.0,
            },
            id="an echo planar that Philips calls spin echo",
        ),
        pytest.param(
            {
                "Modality": "CT",
                "SOPClassUID": "1.2.840.10008.5.1.4.1.1.7",
                "ImageType": ["DERIVED", "SECONDARY", "AXIAL"],
                "KVP": 120.0,
            },
            id="a picture of a screen",
        ),
    ],
)
def test_what_is_no_usual_image_gets_no_label(facts: dict[str, object]) -> None:
    assert label(**facts).contrast is None


def test_short_name_of_a_preparation_is_no_contradiction() -> None:
    assert label(**ACQUISITIONS["FLAIR"], SeriesDescription="AX T2").contrast == "FLAIR"
    assert (
        label(**{**IR, "RepetitionTime": 4000.0, "EchoTime": 60.0, "InversionTime": 160.0},
              SeriesDescription="T2 fs").contrast
        == "STIR"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("facts", "agent"),
    [
        ({}, None),
        ({"ContrastBolusAgent": "NONE"}, False),
        ({"SeriesDescription": "T1 nativ"}, False),
        ({"ContrastBolusAgent": "GADOVIST"}, True),
    ],
)
def test_label_is_sure_only_where_the_agent_is_told(
    facts: dict[str, object], agent: bool | None
) -> None:
    found = label(**{**ACQUISITIONS["T1w"], **facts})

    assert found.attributes.get("contrast_agent") is agent
    assert (found.confidence >= 0.9) == (agent is not None)


def test_post_in_the_name_of_a_pet_is_no_agent() -> None:
    found = label(**PET, SeriesDescription="PET 7S 6IT 6 POST")

    assert "contrast_agent" not in found.attributes


def test_agreement_of_physics_and_description_is_surest() -> None:
    physics = label(**ACQUISITIONS["FLAIR"])
    both = label(**ACQUISITIONS["FLAIR"], SeriesDescription="FLAIR")

    assert both.confidence > physics.confidence > 0.9


def test_description_that_names_an_untold_inversion_is_believed() -> None:
    found = label(**{**SE, "RepetitionTime": 9000.0, "EchoTime": 120.0}, SeriesDescription="FLAIR")

    assert found.contrast == "FLAIR"


def test_image_without_diffusion_of_a_diffusion_series_is_no_t2w() -> None:
    facts = {**SE, "RepetitionTime": 4000.0, "EchoTime": 80.0}  # Philips does not say EP
    plain = make_series(**facts, DiffusionBValue=0.0)
    weighted = [
        make_instance(f"2.{k}", each.header)
        for k, each in enumerate(make_series(**facts, DiffusionBValue=1000.0))
    ]

    labels = [each.label for each in label_study(plain + weighted).series]

    assert [(each.contrast, each.attributes["b_value"]) for each in labels if each] == [
        ("DWI", 0.0),
        ("DWI", 1000.0),
    ]


def test_diffusion_is_no_t2w_whatever_its_description_says() -> None:
    found = label(**ACQUISITIONS["DWI"], SeriesDescription="AX T2")

    assert found.contrast == "DWI"
    assert any("ruled out" in line for line in found.evidence)


def test_localizer_is_what_it_is_called_and_not_what_it_looks_like() -> None:
    assert label(**ACQUISITIONS["T1w"], SeriesDescription="SAG LOC").contrast == "LOC"


def make_absurd_facts(chance: random.Random) -> dict[str, Any]:
    """Return anything that `headers` may tell of a file."""

    def number() -> float:
        return chance.choice([0.0, -1.0, 1.0, 30.0, 1e9, -1e9, 1e-9, chance.uniform(-1e3, 1e4)])

    def text() -> str:
        return chance.choice(
            ["T1", "FLAIR", "\\", "\0", "脳", "İ", "ß", "*", "+", "SE", "IR", "MOSAIC"]
        )

    facts: dict[str, Any] = {}
    for keyword in chance.sample(headers.TEXTS, 9):
        facts[keyword] = text()
    for keyword in chance.sample(headers.LISTS, 3):
        facts[keyword] = [text() for _ in range(chance.randint(1, 4))]
    for keyword in chance.sample(headers.NUMBERS, 9):
        facts[keyword] = number() if chance.random() < 0.7 else [number(), number()]
    for keyword, count in headers.VECTORS.items():
        facts[keyword] = [number() for _ in range(count)]
    return facts


@pytest.mark.parametrize("seed", range(300))
def test_no_header_stops_the_labeller(seed: int) -> None:
    chance = random.Random(seed)
    modality = chance.choice(["MR", "CT", "PT", "US"])
    instances = [
        make_instance(f"1.{k}", {**make_absurd_facts(chance), "Modality": modality})
        for k in range(chance.randint(1, 4))
    ]

    for series in label_study(instances).series:
        count_voxels(series)
        assert series.label is not None
        assert series.label.contrast is None or series.label.confidence >= 0.7


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


@pytest.mark.parametrize(("written", "tesla"), [(3.0, 3.0), (0.064, 0.064), (15000.0, 1.5)])
def test_field_strength_is_in_tesla(written: float, tesla: float) -> None:
    assert label(MagneticFieldStrength=written).attributes["field_strength"] == tesla


@pytest.mark.parametrize(
    ("orientation", "plane"),
    [
        ([1.0, 0.0, 0.0, 0.0, 1.0, 0.0], "axial"),
        ([0.0, 1.0, 0.0, 0.0, 0.0, -1.0], "sagittal"),
        ([1.0, 0.0, 0.0, 0.0, 0.0, -1.0], "coronal"),
        ([0.7071, 0.7071, 0.0, -0.4082, 0.4082, 0.8165], "oblique"),
        ([0.0] * 6, None),
        ([2.0, 0.0, 0.0, 0.0, 1.0, 0.0], None),
    ],
)
def test_plane_is_read_off_the_orientation(orientation: list[float], plane: str | None) -> None:
    assert label(ImageOrientationPatient=orientation).attributes.get("plane") == plane


def test_every_contrast_has_a_meaning_that_the_standard_knows() -> None:
    without = {"STIR", "SSFP", "DIR", "PSIR", "T2 fluid", "DTI map", "PHASE", "CAL", "MR map"}
    without |= {"CR bone", "CR soft tissue", "DX bone", "DX soft tissue"}
    without |= {"US despeckled", "XC infrared"}

    for name, contrast in CONTRASTS.contrasts.items():
        if contrast.meaning is None:
            assert name in without
            continue
        known = Collection(contrast.meaning.scheme).concepts.values()
        assert tuple(contrast.meaning.model_dump().values()) in {
            (code.value, code.scheme_designator, code.meaning) for code in known
        }


@pytest.mark.parametrize(("series", "seconds"), [(50, 0.05), (5000, 2.0)])
def test_labels_of_a_study_take_no_longer_than_they_may(series: int, seconds: float) -> None:
    instances = [
        instance
        for k in range(series)
        for instance in make_series(
            f"1.{k}",
            slices=1,
            SeriesDescription=f"series {k} t1 tra",
            **list(ACQUISITIONS.values())[k % len(ACQUISITIONS)],
        )
    ]
    label_study(instances[:9])  # compiles the vocabulary, once in the life of a process

    start = time.process_time()
    study = label_study(instances)

    assert len(study.series) == series
    assert time.process_time() - start < FACTOR * seconds


def test_evidence_repeats_no_text_but_the_words_of_the_vocabulary() -> None:
    found = label(SeriesDescription="Doe T1Jane 1970-01-01")

    assert found.contrast == "T1w"
    assert "jane" not in " ".join(found.evidence).casefold()


def describe_head(description: str, **facts: object) -> Series:
    return describe_facts(BodyPartExamined="BRAIN", SeriesDescription=description, **facts)


@pytest.mark.parametrize(
    ("wanted", "series"),
    [
        (True, describe_head("AX T2")),
        (True, describe_head("series 4")),
        (False, describe_head("AX T2", **ACQUISITIONS["T2w"])),
        (False, describe_head("3-plane localizer")),
        (False, describe_head("AX T2", ImageType=["DERIVED", "SECONDARY", "MPR"])),
        (False, describe_facts(BodyPartExamined="KNEE", SeriesDescription="AX T2")),
        (False, replace(describe_head("AX T2"), problem=("slice_gap", "a slice is missing"))),
    ],
)
def test_pixels_are_looked_at_only_where_words_alone_speak(wanted: bool, series: Series) -> None:
    assert wants_a_look(series, CONTRASTS) is wanted


def test_dark_fluid_withdraws_a_t2w_that_words_alone_named() -> None:
    named = describe_head("AX T2").label
    assert named is not None

    withdrawn = heed_fluid(named, "dark", CONTRASTS)

    assert withdrawn.contrast is None
    assert {"T2w", "T1w", "FLAIR"} <= set(withdrawn.candidates)
    assert "the pixels show dark fluid" in withdrawn.evidence[0]
    assert heed_fluid(named, "bright", CONTRASTS).contrast == "T2w"


def test_bright_fluid_leaves_fewer_candidates_and_names_none() -> None:
    silent = describe_head("series 4").label
    assert silent is not None

    seen = heed_fluid(silent, "bright", CONTRASTS)

    assert seen.contrast is None
    assert "T2w" in seen.candidates
    assert {"T1w", "T1c", "FLAIR"}.isdisjoint(seen.candidates)


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
        (
            Origin.DERIVED,
            "motion corrected",
            {"ImageType": ["ORIGINAL", "PRIMARY", "M", "ND", "MOCO", "MOSAIC"]},
        ),
        (Origin.ACQUIRED, "", {"SeriesDescription": "mocoMEMPRAGE RMS"}),
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


HEART = {**ACQUISITIONS["CT"], "BodyPartExamined": "HEART"}


@pytest.mark.parametrize(
    ("expected", "facts"),
    [
        pytest.param(None, {}, id="nothing told"),
        pytest.param("CT", {"SeriesDescription": "Calcium Score 3.0"}, id="without"),
        pytest.param("CTc", {"SeriesDescription": "CTA 0.75 B26f"}, id="with"),
        pytest.param("CTc", {"ContrastBolusAgent": "IOHEXOL"}, id="header"),
    ],
)
def test_heart_of_which_no_agent_is_told_has_no_label(
    expected: str | None, facts: dict[str, object]
) -> None:
    found = label(**{**HEART, **facts})

    assert found.contrast == expected
    assert expected or found.candidates == ("CT", "CTc")


def test_phase_of_the_heart_beat_tells_of_a_heart() -> None:
    assert label(**{**ACQUISITIONS["CT"], "ScanOptions": ["TP70PC1165"]}).contrast is None


@pytest.mark.parametrize("code", ["time_series", "duplicate_position"])
def test_place_that_is_imaged_again_and_again_has_no_label_without_word_of_an_agent(
    code: str,
) -> None:
    def tell(**facts: object) -> Label | None:
        series = replace(describe_facts(**{**ACQUISITIONS["CT"], **facts}), problem=(code, "why"))
        return describe(series, CONTRASTS).label

    silent, given = tell(), tell(ContrastBolusAgent="IOHEXOL")

    assert silent is not None
    assert (silent.contrast, silent.candidates) == (None, ("CT", "CTc"))
    assert given is not None
    assert given.contrast == "CTc"


def test_code_of_the_scanner_alone_names_no_t1w() -> None:
    coded = {"AcquisitionContrast": "T1", "SeriesDescription": None}

    alone, described = label(**coded), label(**{**coded, "SeriesDescription": "T1 sag"})

    assert (alone.contrast, alone.candidates) == (None, ("T1w", "T1c"))
    assert described.contrast == "T1w"


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
