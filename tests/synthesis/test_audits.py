"""Audits of methods with known answers: what they are asked, what is counted, where it is kept."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy import ndimage
from typer.testing import CliRunner

from synthesis import faithfulness, memorization, robustness, trade_off, usefulness
from synthesis.audits import audit_path, find_model, find_row, run
from synthesis.cli import app
from synthesis.datasets import cases_folder, write_case
from synthesis.errors import TrainingError
from synthesis.methods.baselines import MatchedCopy
from synthesis.rendered import render_case
from synthesis.results import compute
from synthesis.synthesizer import Parameters
from synthesis.table import list_rows, read_table
from synthesis.types import (
    Anchor,
    Case,
    ContrastLabel,
    FloatArray,
    Prediction,
    SynthesisTask,
)

T1W, T2W, FLAIR, CT = (ContrastLabel(name) for name in ("T1w", "T2w", "FLAIR", "CT"))
ANCHOR = Anchor()
TASK = "T1w + T2w -> FLAIR"


@pytest.fixture(scope="module")
def head() -> Case:
    """A rendered head, whose FLAIR is its T2w: what the second source shows is the truth."""
    case = render_case([T1W, T2W], seed=5, spacing_mm=4.0, anchor=ANCHOR)
    return replace(case, images={**case.images, FLAIR: case.images[T2W]}, labels=None)


@pytest.fixture(scope="module")
def person() -> Case:
    """A ball of one tissue with little texture, the same in every contrast."""
    side = np.arange(56) - 27.5
    mask = np.add.outer(np.add.outer(side**2, side**2), side**2) < 26**2
    texture = ndimage.gaussian_filter(np.random.default_rng(1).normal(0, 1, mask.shape), 2)
    image = np.where(mask, 0.5 + 0.02 * texture / texture.std(), 0).astype(np.float32)
    return Case(
        subject="ball",
        images=dict.fromkeys((T1W, T2W, FLAIR), image),
        mask=mask,
        spacing=(1.0, 1.0, 1.0),
    )


class Answering(MatchedCopy):
    """Answers with its second source as it comes, or with what a function makes of it."""

    def __init__(self, change: Any = lambda image: image) -> None:
        task = SynthesisTask(sources=(T1W, T2W), targets=(FLAIR,))
        super().__init__(task, Parameters())
        self.change = change
        self.asked: list[tuple[float, float, float]] = []

    def predict(self, sources: Any, **request: Any) -> Prediction:
        self.asked.append(request["spacing"])
        return Prediction(mean=self.change(sources[T2W]))


def measure(audit: Any, method: Answering, case: Case) -> dict[str, float]:
    found: dict[str, float] = audit.measure(
        method, case, (T1W, T2W), FLAIR, anchor=ANCHOR, seed=2026
    )
    return found


def test_disturbed_sources_cost_an_answer_that_repeats_them(head: Case) -> None:
    method = Answering()

    found = measure(robustness, method, head)

    assert set(found) == {
        "clean",
        "bias ±40 %",
        "bias ±40 %, no N4",
        "noise, SNR 15",
        "gamma 0.7",
        "gamma 1.4",
        "slices of 6 mm",
        "3 mm off",
        "3 mm off, not registered",
    }
    # N4 undoes most of a field, registration most of a move
    assert found["bias ±40 %"] < 0.7 * found["bias ±40 %, no N4"]
    assert found["3 mm off"] < 0.7 * found["3 mm off, not registered"]
    assert found["clean"] < min(found["gamma 0.7"], found["gamma 1.4"], found["noise, SNR 15"])
    # thick slices are compared with truth that is as thick
    assert found["slices of 6 mm"] < 0.5 * found["3 mm off, not registered"]
    assert (8.0, 4.0, 4.0) in method.asked


def test_lesion_that_the_answer_repeats_is_kept_and_one_that_it_blurs_away_is_erased(
    person: Case,
) -> None:
    kept = measure(faithfulness, Answering(), person)
    erased = measure(faithfulness, Answering(lambda image: np.full_like(image, 0.5)), person)

    assert kept["shown"] >= 6
    assert kept["kept"] == kept["shown"] == erased["erased"]
    assert kept["erased"] == kept["false"] == erased["kept"] == 0
    assert sum(kept[f"shown_{d:g}mm"] for d in faithfulness.DIAMETERS_MM) == kept["shown"]


def test_spots_that_nothing_shows_are_counted_as_false(person: Case) -> None:
    def spot(image: FloatArray) -> FloatArray:
        middle = [size // 2 for size in image.shape]
        z, y, x = np.ogrid[tuple(slice(0, size) for size in image.shape)]
        made = image.copy()
        for away in (-10, 10):
            center = (middle[0], middle[1] + away, middle[2] + 8)
            near = sum((a - c) ** 2 for a, c in zip((z, y, x), center, strict=True)) <= 4**2
            made[near] = 1.0
        return made

    assert measure(faithfulness, Answering(spot), person)["false"] == 2
    # an error of level everywhere is an error and no lesion
    assert measure(faithfulness, Answering(lambda image: image + 0.3), person)["false"] == 0


class Seeing:
    """A segmenter to which all that is bright in FLAIR is lesion."""

    def find(self, images: Any, mask: Any) -> FloatArray:
        found: FloatArray = images.get(FLAIR, np.zeros(mask.shape, np.float32)) > 0.62
        return found.astype(np.float32)

    def distance(self, label: Any, made: FloatArray, real: FloatArray, mask: Any) -> float:
        return float(np.abs(made - real)[mask].mean())


def test_answer_that_is_the_truth_is_as_good_as_the_truth(person: Case) -> None:
    def use(method: Answering) -> dict[str, float]:
        return usefulness.measure(
            method,
            labelled,
            (T1W, T2W),
            FLAIR,
            seed=2026,
            segmenter=Seeing(),  # type: ignore[arg-type]
        )

    labelled = replace(person, labels=np.zeros(person.mask.shape, np.uint8))
    as_good, useless = use(Answering()), use(Answering(np.zeros_like))

    assert as_good["lesions"] == 5
    assert as_good["found_made"] == as_good["found_real"] == 1
    # T2w and FLAIR of an implant are not of one factor
    assert as_good["dice_made"] == pytest.approx(as_good["dice_real"], abs=0.15)
    assert as_good["dice_real"] > 0.5
    assert useless["found_made"] == useless["dice_made"] == 0
    # nothing of the study shows one
    assert useless["found_missing"] == useless["dice_missing"] == 0


def test_own_lesions_of_a_person_without_labels_are_no_false_alarms(person: Case) -> None:
    image = person.images[FLAIR].copy()
    image[26:32, 26:32, 26:32] = 1.0  # his own, which nobody has labelled
    own = replace(person, images={**person.images, FLAIR: image})
    request: dict[str, Any] = {"seed": 2026, "segmenter": Seeing()}

    found = usefulness.measure(Answering(), own, (T1W, T2W), FLAIR, **request)
    without = usefulness.measure(Answering(), person, (T1W, T2W), FLAIR, **request)

    assert found["dice_real"] == pytest.approx(without["dice_real"], abs=0.02)
    assert "found_real" not in found


def test_study_without_anybody_labelled_cannot_be_judged(person: Case) -> None:
    with pytest.raises(TrainingError, match="nobody in the table has labels"):
        usefulness.measure(Answering(), person, (T1W, T2W), FLAIR, seed=1, segmenter=None)


class DrawingParameters(Parameters):
    sampling_steps: int = 1
    samples: int = 1
    times: int = 10


class Drawing(Answering):
    """Draws the truth with grain, less of it the more steps it takes."""

    def __init__(self) -> None:
        super().__init__()
        self.parameters: Any = DrawingParameters()

    def predict(self, sources: Any, **request: Any) -> Prediction:
        grain = np.random.default_rng(request["seed"]).normal(0, 1, sources[T2W].shape)
        strength = 0.1 / self.parameters.sampling_steps
        return Prediction(mean=(sources[T2W] + strength * grain).astype(np.float32))


def test_more_steps_and_more_draws_are_measured_apart(person: Case) -> None:
    request: dict[str, Any] = {"seed": 1, "segmenter": Seeing()}

    found = trade_off.measure(Drawing(), person, (T1W, T2W), FLAIR, **request)

    # four steps are no part of a bridge of ten
    assert {name for name in found if name.startswith("psnr_db")} == {
        f"psnr_db, {steps} steps, {draws} draws" for steps in (1, 2, 10) for draws in (1, 8)
    }
    by_steps = [found[trade_off.name_of("psnr_db", steps, 1)] for steps in (1, 2, 10)]
    assert np.diff(by_steps) == pytest.approx([6.02, 13.98], abs=0.2)
    # the mean of eight has an eighth of the grain's energy
    mean = found[trade_off.name_of("psnr_db", 1, 8)]
    assert mean - by_steps[0] == pytest.approx(10 * np.log10(8), abs=0.2)
    assert found[trade_off.name_of("detail", 1, 1)] > found[trade_off.name_of("detail", 1, 8)] > 1
    assert found["features, 10 steps, 8 draws"] < 0.1 * found["features, 1 steps, 1 draws"]
    assert found["seconds, 1 steps, 8 draws"] == pytest.approx(
        8 * found["seconds, 1 steps, 1 draws"]
    )
    with pytest.raises(TrainingError, match="has one answer"):
        trade_off.measure(Answering(), person, (T1W, T2W), FLAIR, **request)


def test_moved_ct_finds_its_place_on_a_ct_made_of_the_mr() -> None:
    case = render_case([T1W, CT], seed=5, spacing_mm=5.0, anchor=ANCHOR)
    method = Answering()
    method.predict = lambda sources, **_: Prediction(mean=case.images[CT])  # type: ignore[method-assign]

    found = usefulness.measure(method, case, [T1W], CT, seed=2026, segmenter=None)

    assert found["tre_real"] < 2
    assert found["tre_made"] < 3
    assert set(found) == {"tre_real", "tre_made", "tre_missing"}


def test_answer_that_is_a_training_person_is_told_from_one_that_is_not(head: Case) -> None:
    other = render_case([T1W, T2W], seed=6, spacing_mm=4.0, anchor=ANCHOR)
    other = replace(other, images={**other.images, FLAIR: other.images[T2W]})
    shape = head.mask.shape
    crop = tuple(slice(0, size) for size in shape)
    wide = np.zeros([max(a, b) for a, b in zip(shape, other.mask.shape, strict=True)], np.float32)
    wide[tuple(slice(0, n) for n in other.mask.shape)] = other.images[FLAIR]

    def judge(method: Answering) -> dict[str, float]:
        return memorization.measure(method, head, [T1W, T2W], FLAIR, seed=1, trained=[other])

    copied, honest = judge(Answering(lambda _: wide[crop])), judge(Answering())

    assert honest["copied"] == 0
    assert honest["own"] == pytest.approx(1)
    assert honest["nearest_made"] == honest["nearest_real"]
    assert copied["copied"] > 0.5
    assert copied["nearest_made"] > honest["nearest_made"] + 0.1


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A table of one row that was learnt, and its people below `work`."""
    people = [
        {
            "subject": name,
            "dataset": "set",
            "site": name,
            "split": split,
            "mask": "nonzero",
            "images": {"T1w": "none", "T2w": "none", "FLAIR": "none"},
        }
        for name, split in (("one", "train"), ("two", "validation"), ("three", "test"))
    ]
    manifest = {"datasets": {"set": {"licence": "none", "skull": "stripped"}}, "people": people}
    (tmp_path / "people.yaml").write_text(yaml.safe_dump(manifest))
    cache = cases_folder(tmp_path / "work", 4.0, ANCHOR)
    cache.mkdir(parents=True)
    for seed, each in enumerate(people):
        case = render_case([T1W, T2W, FLAIR], seed=seed, spacing_mm=4.0, anchor=ANCHOR)
        write_case(cache / f"{each['subject']}.npz", case)
    facts = {
        "title": "Toy",
        "people": "people.yaml",
        "datasets": ["set"],
        "spacing_mm": 4.0,
        "task_sets": {"all": [TASK, "T1w -> T2w"]},
        "folds": {name: [name] for name in ("one", "two", "three")},
        "validation": ["two", "one"],
        "audited": [TASK],
        "baselines": ["copy"],
    }
    path = tmp_path / "toy.yaml"
    path.write_text(yaml.safe_dump(facts))
    (tmp_path / "toy").mkdir()
    row = {
        "method": "copy",
        "label": "Copy",
        "tasks": "all",
        "fit": "once",
        "folds": ["fixed"],
        "minutes": 1,
    }
    (tmp_path / "toy" / "copy.yaml").write_text(yaml.safe_dump(row))
    return path


def learn(table: Path) -> None:
    (row,) = list_rows(table)
    folder = table.parent
    compute(row, read_table(table), folder / "results", folder / "work", folder / "none", "cpu")


def run_lesions(table: Path) -> list[str]:
    folder = table.parent
    return list(
        run(
            "lesions",
            find_row("copy", table, folder / "work", "cpu"),
            results=folder / "results",
            work=folder / "work",
            data_folder=folder / "none",
        )
    )


def test_row_is_audited_once_by_what_it_has_learnt(table: Path) -> None:
    with pytest.raises(TrainingError, match="has not been learnt"):
        run_lesions(table)
    learn(table)

    assert run_lesions(table) == [f"lesions, copy, {TASK}: three"]
    assert run_lesions(table) == []

    path = audit_path("lesions", find_row("copy", table, Path("work"), "cpu"), Path("results"))
    assert path == Path("results/audits/lesions/toy/copy.json")
    kept = json.loads((table.parent / path).read_text())
    assert set(kept["figures"]) == {TASK}  # and no other task of the row
    assert set(kept["figures"][TASK]) == {"three"}  # nobody whom it has learnt from


def test_audit_of_a_row_that_has_changed_is_made_anew(table: Path) -> None:
    learn(table)
    run_lesions(table)
    facts = yaml.safe_load((table.parent / "toy" / "copy.yaml").read_text())
    (table.parent / "toy" / "copy.yaml").write_text(yaml.safe_dump(facts | {"seed": 1}))
    learn(table)

    assert run_lesions(table) == [f"lesions, copy, {TASK}: three"]


def write_brain(models: Path, subjects: Sequence[str]) -> None:
    (models / "brain" / "learnt").mkdir(parents=True)
    card = yaml.safe_load(Path("models/brain-any-unet25d/card.yaml").read_text())
    card |= {"id": "brain", "files": {}, "training": {**card["training"], "subjects": subjects}}
    (models / "brain" / "card.yaml").write_text(yaml.safe_dump(card))


def test_model_is_not_audited_on_whom_it_has_learnt_from(table: Path) -> None:
    write_brain(table.parent / "models", ["three"])

    with pytest.raises(TrainingError, match="brain has learnt from three"):
        find_model("brain", table, table.parent / "models")


def test_model_is_not_audited_on_people_of_another_scale(table: Path) -> None:
    write_brain(table.parent / "models", [])
    facts = yaml.safe_load(table.read_text()) | {"anchor": {"percentile": 95.0, "value": 1.0}}
    table.write_text(yaml.safe_dump(facts))

    with pytest.raises(
        TrainingError, match=r"brain answers on 1 mm and .*percentile=50.*of its own"
    ):
        find_model("brain", table, table.parent / "models")


def test_command_writes_what_is_kept_to_the_page(table: Path) -> None:
    learn(table)
    folder = table.parent
    options = {
        "--row": "copy",
        "--table": str(table),
        "--out": str(folder / "results"),
        "--page": str(folder / "audits.md"),
        "--work": str(folder / "work"),
        "--models": str(folder / "none"),
    }
    given = [part for pair in options.items() for part in pair]

    told = CliRunner().invoke(app, ["audit", "lesions", *given])
    assert told.exit_code == 0, told.output
    assert f"lesions, copy, {TASK}: three" in told.output

    page = (folder / "audits.md").read_text()
    assert "### T1w + T2w → FLAIR" in page
    assert "| copy | " in page
    assert "Stale" not in page
