"""The table of the quality gate, as `synthesis gates` sets it from a model's own people."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from doubles.models import write_model
from synthesis.cli import app
from synthesis.datasets import cases_folder, write_case
from synthesis.methods import build_method
from synthesis.phantom import render
from synthesis.preprocessing import measure_scale
from synthesis.quality import TABLE
from synthesis.registry import CARD, LEARNT, load_card
from synthesis.types import Anchor, Case, ContrastLabel, SynthesisTask

T1W, T2W, FLAIR = (ContrastLabel(name) for name in ("T1w", "T2w", "FLAIR"))
TASK = SynthesisTask(sources=(T1W, T2W, FLAIR), targets=(T1W, T2W, FLAIR))
SPLITS = {"one": "train", "two": "train", "three": "train", "four": "validation", "five": "test"}


def make_case(subject: str, seed: int) -> Case:
    phantom = render(seed=seed, spacing=(4.0, 4.0, 4.0))
    images = {
        label: measure_scale(phantom.images[label], phantom.brain, Anchor()).forward(
            np.where(phantom.brain, phantom.images[label], 0)
        )
        for label in (T1W, T2W, FLAIR)
    }
    return Case(subject=subject, images=images, mask=phantom.brain, spacing=phantom.spacing)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of a model, its people and their prepared cases; nobody tests."""
    folder = tmp_path_factory.mktemp("gates")
    cases = [make_case(name, seed) for seed, name in enumerate(SPLITS) if name != "five"]
    write_model(
        folder / "models", "linear", build_method("linear", TASK, {}).fit(cases, seed=0), TASK
    )
    path = folder / "models" / "linear" / CARD
    card = yaml.safe_load(path.read_text())
    for split, key in (("train", "subjects"), ("validation", "validation"), ("test", "test")):
        card["training"][key] = [name for name, own in SPLITS.items() if own == split]
    path.write_text(yaml.safe_dump(card))
    prepared = cases_folder(folder / "work", card["spacing_mm"], Anchor())
    prepared.mkdir(parents=True)
    for case in cases:
        write_case(prepared / f"{case.subject}.npz", case)
    people = [
        {"subject": name, "dataset": "heads", "split": split, "mask": "nonzero", "images": {}}
        for name, split in SPLITS.items()
    ]
    manifest = {"datasets": {"heads": {"licence": "none", "skull": "stripped"}}, "people": people}
    (folder / "people.yaml").write_text(yaml.safe_dump(manifest))
    return folder


def test_command_sets_the_table_and_its_digest_without_a_look_at_test_people(folder: Path) -> None:
    before = load_card(folder / "models", "linear").digest

    done = CliRunner().invoke(
        app,
        [
            "gates",
            *("--model", "linear"),
            *("--models", str(folder / "models")),
            *("--manifest", str(folder / "people.yaml")),
            *("--work", str(folder / "work")),
        ],
        env={"DICOM_NODE_DATA": str(folder / "nowhere")},
    )

    assert done.exit_code == 0, done.output
    table = json.loads((folder / "models" / "linear" / LEARNT / TABLE).read_text())
    assert set(table["means"]) == {"T1w", "T2w", "FLAIR"}
    assert table["agreement"] > 1
    assert set(table["disagreement"]) == {"T1w", "T2w", "FLAIR"}
    assert all(0 <= farthest < 1 for farthest in table["disagreement"].values())
    assert len(table["opinion"]) == 3
    assert load_card(folder / "models", "linear").digest != before
