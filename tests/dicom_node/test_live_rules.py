"""Rules change while the node runs: whole, when they are right, and not before they are settled."""

import shutil
from pathlib import Path

import pytest

from dicom_node.live_rules import LiveRules
from dicom_node.settings import FILES, load
from doubles.models import write_copying_model
from doubles.studies import CONFIG


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small configuration, to be changed."""
    folder = tmp_path / "config"
    folder.mkdir()
    for name in FILES:
        shutil.copy(CONFIG / name, folder)
    write_copying_model(tmp_path / "models")
    change(folder, "routing.yaml", "priority: 50", "priority: 51")
    return folder


def change(folder: Path, name: str, old: str, new: str) -> None:
    path = folder / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def priority(rules: LiveRules) -> int:
    return rules.look().configuration.routing.rules[0].priority


def test_change_is_taken_when_it_has_lasted_from_one_look_to_the_next(folder: Path) -> None:
    rules = LiveRules(load(folder))
    first = rules.look().configuration.digest
    change(folder, "routing.yaml", "priority: 51", "priority: 99")

    assert priority(rules) == 51
    assert priority(rules) == 99
    assert rules.look().configuration.digest == load(folder).digest != first


def test_change_is_taken_at_once_where_somebody_asks_for_it(folder: Path) -> None:
    rules = LiveRules(load(folder))
    change(folder, "routing.yaml", "priority: 51", "priority: 99")

    rules.refresh(at_once=True)

    assert priority(rules) == 99


@pytest.mark.parametrize(
    ("name", "old", "new", "told"),
    [
        ("routing.yaml", "priority: 51", "priority: high", "priority : seen"),
        ("routing.yaml", "send_to: [pacs]", "send_to: [nobody]", "'nobody' is no peer"),
        ("models.yaml", "never_make: [T1c]", "never_make: [T9]", "seen 'T9', wanted a contrast"),
        ("contrasts.yaml", "minimum_confidence: 0.7", "minimum_confidence: [", "line"),
    ],
)
def test_last_good_rules_hold_while_the_files_are_wrong(
    folder: Path, name: str, old: str, new: str, told: str
) -> None:
    rules = LiveRules(load(folder))
    good = rules.look().configuration
    change(folder, name, old, new)

    rules.refresh(at_once=True)

    assert rules.look().configuration.routing is good.routing
    assert rules.look().configuration.digest == good.digest
    assert told in str(rules.problem)

    change(folder, name, new, old)
    rules.refresh(at_once=True)
    assert rules.problem is None


def test_file_that_is_gone_changes_nothing(folder: Path) -> None:
    rules = LiveRules(load(folder))
    good = rules.look().configuration.digest
    (folder / "models.yaml").unlink()

    rules.refresh(at_once=True)

    assert rules.look().configuration.digest == good
    assert "models.yaml" in str(rules.problem)
