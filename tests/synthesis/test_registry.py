"""Model folders that are not what their card says, or that would run code."""

from pathlib import Path

import pytest
import torch
import yaml
from typer.testing import CliRunner

from doubles.models import write_copying_model
from synthesis.cli import app
from synthesis.errors import UntrustedModel
from synthesis.registry import CARD, LEARNT, hash_files, load_card, load_cards, load_method


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_copying_model(tmp_path, "copying")
    return tmp_path / "copying"


def read_refusal(folder: Path) -> str:
    with pytest.raises(UntrustedModel) as refusal:
        load_cards(folder.parent)
    return str(refusal.value)


def edit_card(folder: Path, **changes: object) -> None:
    card = yaml.safe_load((folder / CARD).read_text())
    (folder / CARD).write_text(yaml.safe_dump(card | changes))


def test_file_that_is_not_the_one_of_the_card_is_refused(folder: Path) -> None:
    (folder / LEARNT / "table.json").write_text("{}")

    assert "table.json is not the file of the card" in read_refusal(folder)


def test_file_that_the_card_does_not_list_is_refused_with_the_line_to_add(folder: Path) -> None:
    (folder / LEARNT / "more.json").write_text("{}")

    line = f"more.json: {hash_files(folder)['more.json']}"
    assert f"more.json is not listed, wanted `{line}`" in read_refusal(folder)


def test_file_that_is_gone_is_named(folder: Path) -> None:
    (folder / LEARNT / "table.json").unlink()

    assert "table.json is listed and not there" in read_refusal(folder)


@pytest.mark.parametrize("name", ["model.pt", "model.ts", "part.data"])
def test_pickled_weights_are_refused_whatever_they_are_called(folder: Path, name: str) -> None:
    torch.save({"weight": torch.zeros(3)}, folder / LEARNT / name)

    told = read_refusal(folder)

    assert f"{name}: pickled weights run code as they are read" in told
    assert "docs/models.md tells how to convert them" in told


def test_file_below_a_folder_is_listed_by_its_path(folder: Path) -> None:
    before = load_card(folder.parent, "copying").digest
    (folder / LEARNT / "configs").mkdir()
    (folder / LEARNT / "configs" / "metadata.json").write_text("{}")
    edit_card(folder, files=hash_files(folder))

    card = load_card(folder.parent, "copying")

    assert "configs/metadata.json" in card.files
    assert card.digest != before


def test_parameters_that_the_method_does_not_have_are_told_with_the_card(folder: Path) -> None:
    edit_card(folder, parameters={"depth": 3})
    card = load_card(folder.parent, "copying")

    with pytest.raises(UntrustedModel, match=r"card\.yaml: parameters: .*\n?depth"):
        load_method(folder.parent, "copying", card.digest)


def test_a_figure_or_a_text_of_the_card_does_not_change_the_digest(folder: Path) -> None:
    before = load_card(folder.parent, "copying").digest
    edit_card(folder, description="another text")

    assert load_card(folder.parent, "copying").digest == before


def say_of_lesions(**figures: float) -> list[dict[str, object]]:
    common = {"target": "FLAIR", "sources": ["T1w"], "n": 1, "subjects": ["somebody"]}
    return [{**common, "name": name, "value": value} for name, value in figures.items()]


@pytest.mark.parametrize(
    ("figures", "state"),
    [
        ({}, "research"),
        ({"lesion_recall": 0.95}, "research"),
        ({"lesion_recall": 0.89, "false_lesions": 0.0}, "research"),
        ({"lesion_recall": 0.95, "false_lesions": 0.11}, "research"),
        ({"lesion_recall": 0.9, "false_lesions": 0.1}, "approved"),
    ],
)
@pytest.mark.parametrize("how", [{"method": "gan"}, {"method": "onnx", "generative": True}])
def test_generative_model_is_for_research_unless_its_figures_on_lesions_are_good(
    folder: Path, how: dict[str, object], figures: dict[str, float], state: str
) -> None:
    edit_card(folder, metrics=say_of_lesions(**figures), **how)

    card = load_card(folder.parent, folder.name)

    assert card.targets["FLAIR"].state == state
    assert card.targets["T2w"].state == "research"  # no figure of another target counts for it
    assert bool(card.targets["FLAIR"].lock) == (state == "research")


def test_regression_needs_no_figures_on_lesions(folder: Path) -> None:
    edit_card(folder, metrics=say_of_lesions(lesion_recall=0.5, false_lesions=3))

    assert load_card(folder.parent, folder.name).targets["FLAIR"].state == "approved"


def test_locked_target_cannot_be_approved_at_the_command_line(folder: Path) -> None:
    targets = yaml.safe_load((folder / CARD).read_text())["targets"]
    candidates = {name: {**facts, "state": "candidate"} for name, facts in targets.items()}
    edit_card(folder, method="gan", targets=candidates)

    told = CliRunner().invoke(
        app, ["approve", folder.name, "--by", "A. Admin", "--models", str(folder.parent)]
    )

    assert "FLAIR is for research: it is generative" in told.stdout
    assert "nothing to approve" in told.stdout
    assert load_card(folder.parent, folder.name).targets["FLAIR"].state == "research"
