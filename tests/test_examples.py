"""The examples in config/examples are whole, pass the check, and do what their first lines say."""

import shutil

import pytest

from dicom_node import cli
from dicom_node.headers import AGE
from dicom_node.rules import Mode, Routing
from dicom_node.strict_yaml import read_document
from doubles.studies import (
    ACQUISITIONS,
    CARDS,
    CONFIG,
    NOW,
    label_study,
    make_card,
    make_judge,
    make_series,
)

EXAMPLES = sorted(path.parent.name for path in CONFIG.glob("examples/*/routing.yaml"))
MODELS = CONFIG.parent / "models"
SHIPPED = {path.name for path in MODELS.iterdir()}
CT_CARDS = [
    make_card(model, sources=sources, targets={"CT": "approved"}, anatomy=anatomy)
    for model, sources, anatomy in (
        ("pelvis-ct-of-your-own", ["T2w"], ["PELVIS"]),
        ("head-ct-of-your-own", ["T1w", "T1c"], ["HEAD"]),
    )
]
PET = {"Modality": "PT", "ImageType": ["ORIGINAL", "PRIMARY"], "CorrectedImage": ["ATTN", "DECY"]}
SLICES = 54
SPACING_MM = 3.0


def read_example(name: str) -> Routing:
    path = CONFIG / "examples" / name / "routing.yaml"
    return read_document(path.read_bytes(), "routing.yaml").check(Routing)


def test_there_is_an_example_for_each_use():
    assert [
        *("brain-tumour", "mr-only-radiotherapy", "multiple-sclerosis", "pet-mr", "radiographs")
    ] == EXAMPLES


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_passes_the_check_in_place_of_the_shipped_rules(name, tmp_path, capsys):
    for file in CONFIG.glob("*.yaml"):
        shutil.copy(file, tmp_path)
    shutil.copy(CONFIG / "examples" / name / "routing.yaml", tmp_path)

    with pytest.raises(SystemExit) as end:
        cli.main(["check", "--config", str(tmp_path), "--set", f"models_folder={MODELS}"])

    assert end.value.code in {0, None}
    assert "is valid" in capsys.readouterr().out


@pytest.mark.parametrize("name", EXAMPLES)
def test_rule_whose_model_is_not_shipped_is_off_and_says_so(name):
    for rule in read_example(name).rules:
        shipped = {model for make in rule.makes for model in make.model} <= SHIPPED
        assert (rule.mode is Mode.OFF) == (not shipped), rule.name
        assert ("not shipped" in rule.says) == (not shipped), rule.name


@pytest.mark.parametrize(
    ("name", "series", "facts", "plans"),
    [
        (
            "brain-tumour",
            ["T1w", "T1c", "T2w"],
            {"BodyPartExamined": "BRAIN", "StudyDescription": "Glioblastoma follow-up"},
            {"FLAIR": ["T2w", "T1w", "T1c"]},
        ),
        (
            "brain-tumour",
            ["T1w", "T1c", "T2w"],
            {"BodyPartExamined": "BRAIN", "StudyDescription": "Glioma post op"},
            {},
        ),
        (
            "brain-tumour",
            ["T1w", "T1c", "T2w"],
            {"BodyPartExamined": "BRAIN", "StudyDescription": "Headache"},
            {},
        ),
        (
            "multiple-sclerosis",
            ["T1w", "T2w"],
            {"BodyPartExamined": "BRAIN", "StudyDescription": "MS follow-up"},
            {"FLAIR": ["T2w", "T1w"]},
        ),
        (
            "multiple-sclerosis",
            ["T1w"],
            {"BodyPartExamined": "BRAIN", "StudyDescription": "MS follow-up"},
            {},
        ),
        (
            "mr-only-radiotherapy",
            ["T2w"],
            {"BodyPartExamined": "PROSTATE", "StudyDescription": "MR only RT planning"},
            {"CT": ["T2w"]},
        ),
        (
            "mr-only-radiotherapy",
            ["T1w"],
            {"BodyPartExamined": "BRAIN", "StudyDescription": "RT planning"},
            {"CT": ["T1w"]},
        ),
        ("mr-only-radiotherapy", ["T1w"], {"BodyPartExamined": "THIGH"}, {"CT": ["T1w"]}),
        ("pet-mr", ["T1w 3D", "PET"], {"BodyPartExamined": "HEAD"}, {"CT": ["T1w"]}),
        ("pet-mr", ["T1w", "PET"], {"BodyPartExamined": "THIGH"}, {"CT": ["T1w"]}),
        ("pet-mr", ["T1w"], {"BodyPartExamined": "THIGH"}, {}),
    ],
)
def test_example_plans_what_it_promises(name, series, facts, plans):
    """With every rule on, and models that are not shipped in place."""
    kinds = {**ACQUISITIONS, "PET": PET}
    spacing = 1.5 if name == "pet-mr" else SPACING_MM
    shape = {AGE: 50.0, "Rows": 400.0, "Columns": 400.0}
    instances = [
        instance
        for number, kind in enumerate(series, 1)
        for instance in make_series(
            f"1.{number}", slices=SLICES, step=spacing, **{**shape, **kinds[kind], **facts}
        )
    ]
    routing = read_example(name)
    rules = [
        rule.model_copy(update={"mode": Mode.HOLD if rule.mode is Mode.OFF else rule.mode})
        for rule in routing.rules
    ]
    judge = make_judge(
        routing=routing.model_copy(update={"rules": tuple(rules)}), cards=(*CARDS, *CT_CARDS)
    )

    decision = judge.judge(label_study(instances), NOW)

    assert {plan.target: list(plan.sources) for plan in decision.plans} == plans, decision
