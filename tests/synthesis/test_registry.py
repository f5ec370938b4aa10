"""Model folders that are not what their card says, or that would run code."""

from pathlib import Path

import pytest
import torch
import yaml

from doubles.models import write_copying_model
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
