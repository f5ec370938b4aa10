"""The table of results: folds without leaks, rows that know when they are stale, the page."""

import fcntl
import importlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from synthesis import results
from synthesis.comparison import bootstrap, compare, compare_shares, decide
from synthesis.datasets import cases_folder, write_case
from synthesis.errors import TrainingError
from synthesis.fingerprint import fingerprint
from synthesis.judging import PET, find_judge, judge
from synthesis.methods import find_method
from synthesis.people import read_manifest
from synthesis.rendered import render_case
from synthesis.results import compute
from synthesis.results_page import write_page
from synthesis.speed import make_head
from synthesis.table import (
    Row,
    is_fresh,
    key_of,
    key_of_fit,
    list_rows,
    make_folds,
    read_table,
    row_path,
)
from synthesis.types import Anchor, Case, ContrastLabel, Prediction

SHIPPED = sorted(Path("config/experiments/results").glob("*.yaml"))
T1W, T2W, FLAIR = (ContrastLabel(name) for name in ("T1w", "T2w", "FLAIR"))
CT = ContrastLabel("CT")
SITES = ("north", "south", "west")


def make_case(subject: str, seed: int) -> Case:
    image, mask = make_head((20, 24, 22), seed=seed)
    other = make_head((20, 24, 22), seed=seed + 100)[0]
    labels = np.zeros(mask.shape, np.uint8)
    labels[8:12, 8:14, 8:14] = 1
    return Case(
        subject=subject,
        images={T1W: image, FLAIR: other, T2W: (image + other) / 2},
        mask=mask,
        labels=labels,
        spacing=(1.0, 1.0, 1.0),
    )


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A table of two rows on people of three sites, all of whom are prepared below `work`."""
    people = [
        {
            "subject": f"{site}-{number}",
            "dataset": "set",
            "site": site,
            "split": {"north": "train", "south": "validation", "west": "test"}[site],
            "mask": "nonzero",
            "images": {"T1w": "none", "T2w": "none", "FLAIR": "none"},
        }
        for site in SITES
        for number in (1, 2)
    ]
    manifest = {"datasets": {"set": {"licence": "none", "skull": "stripped"}}, "people": people}
    (tmp_path / "people.yaml").write_text(yaml.safe_dump(manifest))
    cache = cases_folder(tmp_path / "work", 1.0, Anchor())
    cache.mkdir(parents=True)
    for seed, person in enumerate(people):
        write_case(cache / f"{person['subject']}.npz", make_case(str(person["subject"]), seed))
    path = tmp_path / "toy.yaml"
    facts = {
        "title": "Toy",
        "people": "people.yaml",
        "datasets": ["set"],
        "spacing_mm": 1.0,
        "middle_slices": 16,
        "task_sets": {"all": ["T1w -> T2w", "T1w + FLAIR -> T2w"]},
        "folds": {site: [site] for site in SITES},
        "validation": ["north-1", "south-1"],
        "pictured": "west-1",
        "pictured_tasks": ["T1w -> T2w"],
        "baselines": ["copy"],
        "bars": [{"over": "copy", "figure": "psnr_db", "margin": 1.0}],
    }
    path.write_text(yaml.safe_dump(facts))
    (tmp_path / "toy").mkdir()
    for name in ("copy", "linear"):
        row = {
            "method": name,
            "label": name,
            "tasks": "all",
            "fit": "once",
            "folds": ["fixed", "site"],
            "minutes": 1,
        }
        (tmp_path / "toy" / f"{name}.yaml").write_text(yaml.safe_dump(row))
    return path


def run(table: Path, row: Row) -> Path:
    folder = table.parent
    compute(row, read_table(table), folder / "results", folder / "work", folder / "none", "cpu")
    return row_path(row, folder / "results")


@pytest.mark.parametrize("path", SHIPPED, ids=[path.stem for path in SHIPPED])
def test_shipped_folds_test_everyone_once_and_teach_no_test_person(path: Path) -> None:
    shipped = read_table(path)
    manifest = read_manifest(shipped.people)

    folds = make_folds(shipped, manifest)

    for fold in folds.values():
        parts = [{p.subject for p in part} for part in (fold.train, fold.validation, fold.test)]
        assert all(parts)
        assert not parts[0] & parts[2]
        assert not parts[1] & parts[2]
        assert not parts[0] & parts[1]
    by_site = [fold for name, fold in folds.items() if name != "fixed"]
    tested = [p.subject for fold in by_site for p in fold.test]
    people = [p.subject for p in manifest.people if p.dataset in shipped.datasets]
    assert sorted(tested) == sorted(people)
    for fold in by_site:
        whole = set(shipped.folds[fold.name]) & {p.site for p in manifest.people}
        assert not {p.site for p in fold.train} & whole
        assert not {p.subject for p in fold.train} & set(shipped.test_only)


@pytest.mark.parametrize("path", SHIPPED, ids=[path.stem for path in SHIPPED])
def test_shipped_rows_name_known_methods_and_their_parameters(path: Path) -> None:
    rows = [*list_rows(path), *list_rows(path, on_gpu=True)]

    assert rows
    for row in rows:
        module, _, name = find_method(row.settings.method).partition(":")
        method = getattr(importlib.import_module(module), name)
        method.parameters_type.model_validate(dict(row.recipe.parameters))


def test_brain_rows_judge_at_least_twelve_tasks() -> None:
    brain = next(path for path in SHIPPED if path.stem == "brain")

    assert len({task for row in list_rows(brain) for task in row.tasks}) >= 12


def test_bar_of_an_error_is_the_share_of_it_that_goes(table: Path) -> None:
    facts = yaml.safe_load(table.read_text())
    bars = [{"over": "copy", "figure": "mae", "margin": 0.3, "relative": True}]
    table.write_text(yaml.safe_dump(facts | {"bars": bars}))
    kept = {row.name: run(table, row) for row in list_rows(table) if row.fold.name == "fixed"}
    for name, share in (("copy", 1.0), ("linear", 0.5)):
        document = json.loads(kept[name].read_text())
        for people in document["figures"].values():
            for number, figures in enumerate(people.values(), start=1):
                figures["mae"] = 100.0 * number * share
        kept[name].write_text(json.dumps(document))

    page = table.parent / "page.md"
    write_page([table], table.parent / "results", page)

    assert "MAE share less of copy, bar 0.3" in page.read_text()
    assert "0.50 [0.50, 0.50], n 2: **reached**" in page.read_text()


def test_person_who_is_for_tests_only_teaches_in_no_fold(table: Path) -> None:
    facts = yaml.safe_load(table.read_text())
    folds = {"a": ["north"], "b": ["south", "west-1"], "c": ["west-2"]}
    table.write_text(yaml.safe_dump(facts | {"folds": folds, "test_only": ["west-1"]}))
    shipped = read_table(table)

    made = make_folds(shipped, read_manifest(shipped.people))

    assert [p.subject for p in made["b"].test] == ["south-1", "south-2", "west-1"]
    assert all("west-1" not in {p.subject for p in fold.train} for fold in made.values())
    assert "west-2" in {p.subject for p in made["b"].train}


def test_no_slice_of_a_test_person_reaches_training(
    table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taught: set[bytes] = set()
    build = results.build_method

    def spy(*arguments: Any, **keywords: Any) -> Any:
        method = build(*arguments, **keywords)
        fit = method.fit

        def watched(cases: Any, *, validation: Any = (), **rest: Any) -> Any:
            taught.update(_slices([*cases, *validation]))
            return fit(cases, validation=validation, **rest)

        monkeypatch.setattr(method, "fit", watched)
        return method

    monkeypatch.setattr(results, "build_method", spy)
    for row in list_rows(table):
        taught.clear()
        run(table, row)
        people = results.read_people(
            row.fold, read_table(table), table.parent / "none", table.parent / "work"
        )
        assert taught
        assert taught <= set(_slices([*people["train"], *people["validation"]]))
        assert not taught & set(_slices(people["test"]))


def _slices(cases: list[Case]) -> Iterator[bytes]:
    for case in cases:
        for label, image in case.images.items():
            for number, part in enumerate(image):
                if case.mask[number].any():
                    yield label.encode() + part.tobytes()


def test_site_that_no_fold_tests_is_an_error(table: Path) -> None:
    facts = yaml.safe_load(table.read_text())
    del facts["folds"]["west"]
    table.write_text(yaml.safe_dump(facts))

    with pytest.raises(TrainingError, match="west"):
        list_rows(table)


def test_finished_row_is_fresh_until_its_settings_or_people_change(table: Path) -> None:
    row = list_rows(table)[0]
    kept = table.parent / "results"
    assert not is_fresh(row, read_table(table), kept)

    run(table, row)

    assert is_fresh(row, read_table(table), kept)
    changed = row.model_copy(update={"recipe": row.recipe.model_copy(update={"minutes": 2.0})})
    assert not is_fresh(changed, read_table(table), kept)
    other = row.fold.train[0].model_copy(update={"sha256": "0" * 64})
    fold = row.fold.model_copy(update={"train": (other, *row.fold.train[1:])})
    assert not is_fresh(row.model_copy(update={"fold": fold}), read_table(table), kept)


def test_command_computes_what_is_absent_and_leaves_what_another_computes(table: Path) -> None:
    folder = table.parent
    lock = folder / "work" / "rows" / "toy-north-copy.lock"
    lock.parent.mkdir()

    def run_all() -> dict[str, str]:
        found = results.compute_absent(
            table,
            results=folder / "results",
            work=folder / "work",
            data_folder=folder / "none",
            device="cpu",
            only=["copy"],
            folds=["fixed", "north", "south"],
        )
        return {row.fold.name: outcome for row, outcome in found}

    for row in list_rows(table):
        if row.fold.name in ("south", "west"):
            run(table, row)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        first = run_all()

    assert first == {"fixed": "computed", "north": "is being computed by another process"}
    assert run_all() == {"north": "computed"}
    assert run_all() == {}


PARENT = """
import multiprocessing, os, time
from concurrent.futures import ProcessPoolExecutor
from synthesis.results import end_with_parent
if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=end_with_parent) as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        pool.submit(time.sleep, 600).result()
"""


def test_row_ends_with_the_command_that_was_killed(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    parent = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())

    parent.kill()
    parent.wait()
    parent.stdout.close()

    deadline = time.monotonic() + 60
    while _runs(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _runs(child)


def _runs(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_row_that_is_judged_anew_is_not_learnt_anew(
    table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = next(r for r in list_rows(table) if r.name == "linear")
    first = json.loads(run(table, row).read_text())

    def refuse(*arguments: object, **keywords: object) -> None:
        raise AssertionError("learnt again")

    monkeypatch.setattr("synthesis.methods.baselines.VoxelwiseLinear.fit", refuse)
    again = json.loads(run(table, row).read_text())

    assert again["figures"] == first["figures"]


def add_mean(table: Path, members: list[str], folds: list[str]) -> None:
    row = {
        "method": "ensemble",
        "label": "mean of rows",
        "tasks": "all",
        "fit": "each",
        "folds": folds,
        "members": members,
    }
    (table.parent / "toy" / "mean.yaml").write_text(yaml.safe_dump(row))


def test_row_of_members_answers_with_their_mean_and_learns_nothing(table: Path) -> None:
    add_mean(table, ["copy", "linear"], ["fixed"])
    rows = [row for row in list_rows(table) if row.fold.name == "fixed"]
    assert [row.name for row in rows] == ["copy", "linear", "mean"]
    with pytest.raises(TrainingError, match="copy, fixed, has not been learnt"):
        run(table, rows[-1])

    kept = [json.loads(run(table, row).read_text()) for row in rows]

    errors = [each["figures"]["T1w -> T2w"]["west-1"]["psnr_db"] for each in kept]
    assert errors[2] > min(errors[:2])
    learnt = read_table(table), table.parent / "work", "cpu"
    [case] = [
        c for c in results.read_people(rows[0].fold, learnt[0], table.parent, learnt[1])["test"]
    ][:1]
    answers = [
        results.restore(row, *learnt)["T1w -> T2w"]
        .predict({T1W: case.images[T1W]}, target=T2W, mask=case.mask, spacing=case.spacing, seed=0)
        .mean
        for row in rows
    ]
    np.testing.assert_allclose(answers[2], (answers[0] + answers[1]) / 2, rtol=0, atol=1e-6)
    assert not (table.parent / "work" / "rows" / key_of_fit(rows[2], learnt[0])).exists()
    assert kept[2]["fit_minutes"] == pytest.approx(
        sum(k["fit_minutes"] for k in kept[:2]), abs=0.02
    )


def test_key_of_a_row_of_members_follows_what_they_learn(table: Path) -> None:
    add_mean(table, ["copy", "linear"], ["fixed"])
    toy, row = read_table(table), list_rows(table)[2]
    taught = row.members[1].model_copy(
        update={"settings": row.settings.model_copy(update={"seed": 1})}
    )

    other = row.model_copy(update={"members": (row.members[0], taught)})

    assert key_of_fit(other, toy) != key_of_fit(row, toy)


@pytest.mark.parametrize("members", [["copy", "other"], ["copy", "mean"]])
def test_member_that_is_no_row_that_learns_is_an_error(table: Path, members: list[str]) -> None:
    add_mean(table, members, ["fixed"])

    with pytest.raises(TrainingError, match=f"no member can be {members[1]}"):
        list_rows(table)


def test_row_holds_every_figure_of_every_test_person(table: Path) -> None:
    row = next(r for r in list_rows(table) if r.name == "linear" and r.fold.name == "fixed")

    path = run(table, row)

    kept = json.loads(path.read_text())
    assert kept["people"]["test"] == ["west-1", "west-2"]
    figures = kept["figures"]["T1w + FLAIR -> T2w"]["west-1"]
    assert figures["psnr_db"] > 40  # T2w is the mean of the two sources
    assert figures["lesion_contrast"] == pytest.approx(1, abs=0.05)
    assert {"ssim", "mae", "gradient_ratio", "through_plane_ratio", "tissue_dice"} <= set(figures)
    assert kept["peak_mb"] > 10
    assert path.with_name("linear-T1w-to-T2w.png").exists()


def test_page_pools_the_site_folds_and_says_what_is_not_shown(table: Path) -> None:
    for row in list_rows(table):
        if row.name == "copy" or row.fold.name != "fixed":
            run(table, row)
    page = table.parent / "results.md"

    write_page([table], table.parent / "results", page)

    text = page.read_text()
    assert "Not computed yet: linear (fixed)" in text
    assert "| linear | 6 |" in text
    assert "bar 1" in text
    assert "**reached**" in text
    assert "west-2" in text
    assert "Any subset of the sources" in text


def test_page_tells_how_cts_were_laid_on_mr_and_who_is_answered_badly(table: Path) -> None:
    row = next(r for r in list_rows(table) if r.fold.name == "fixed" and r.name == "linear")
    kept = run(table, row)
    facts = json.loads(kept.read_text())
    [task, *_] = facts["figures"]
    facts["figures"] = {
        task: {
            f"one-{k}": {"psnr_db": 20.0, "mae": 30.0 + k, "band_width": 100.0 + k}
            for k in range(6)
        }
    }
    figures = {"dice": 0.9, "shared": 0.8, "bone_darker": 0.7}
    fit = {f"{name}_before": value for name, value in figures.items()}
    fit |= {f"{name}_after": value + 0.1 for name, value in figures.items()}
    fit |= {"moved_mm": 4.0, "most_moved_mm": 20.0, "least_volume": 0.4, "most_volume": 1.5}
    facts["fits"] = {"one-0": fit, "one-1": None}
    kept.write_text(json.dumps(facts))
    page = table.parent / "results.md"

    write_page([table], table.parent / "results", page)

    text = page.read_text()
    line = "| one-0 | 0.900 to 1.000 | 0.70 to 0.80 | 0.80 to 0.90 | 4.0, 20.0 | 0.40 to 1.50 |"
    assert line in text
    assert "| 1.00 | 6 |" in text


def test_code_that_a_method_does_not_run_changes_no_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "brought_code.py"

    def digest(text: str) -> str:
        source.write_text(text)
        for cached in ("_tree", "_definitions", "_imports"):
            getattr(sys.modules["synthesis.fingerprint"], cached).cache_clear()
        return fingerprint("brought_code:answer")

    monkeypatch.setattr("synthesis.fingerprint.PACKAGE", "brought_code")
    monkeypatch.syspath_prepend(str(tmp_path))
    plain = digest("FACTOR = 2\ndef help(): return FACTOR\ndef answer(): return help()\n")

    same = digest(
        '"""Words."""\nFACTOR = 2\ndef other(): return 3\ndef help():\n    """Word."""\n'
        "    return FACTOR  # word\ndef answer(): return help()\n"
    )
    another = digest("FACTOR = 3\ndef help(): return FACTOR\ndef answer(): return help()\n")

    assert same == plain
    assert another != plain


def test_digest_follows_the_arithmetic_of_a_method_into_other_modules() -> None:
    from synthesis import fingerprint as module

    names = module._names_of(
        module._definitions("synthesis.methods.unet")["EncoderDecoder"], "synthesis.methods.unet"
    )

    assert ("synthesis.losses", "masked_l1") in names
    assert ("synthesis.networks", "ConditionedUNet") in names


def test_rendered_heads_teach_and_make_another_row(table: Path) -> None:
    row, toy = list_rows(table)[0], read_table(table)
    settings = row.settings.model_copy(update={"rendered": 2})
    taught = row.model_copy(update={"settings": settings})

    heads = results.render_heads(taught, toy.model_copy(update={"spacing_mm": 5.0}))

    assert [set(head.images) for head in heads] == [{T1W, T2W, FLAIR}] * 2
    assert {head.mask.shape[0] for head in heads} == {16}
    assert key_of(taught, toy) != key_of(row, toy)


def test_people_with_lesions_put_in_teach_and_make_another_row(table: Path) -> None:
    row, toy = list_rows(table)[0], read_table(table)
    settings = row.settings.model_copy(update={"implanted": 1})
    case = render_case([T1W, T2W, FLAIR], seed=1, spacing_mm=2.0, anchor=toy.anchor)

    changed = results.implant_lesions(case, seed=5)

    rise = {label: changed.images[label] - image for label, image in case.images.items()}
    lesion = rise[FLAIR] > 0.15 * np.abs(case.images[FLAIR])
    assert lesion[case.mask].sum() * 2.0**3 > 1500  # of 15 mm and smaller, of three kinds
    assert (rise[T1W] * case.images[T1W] <= 0)[lesion].all()  # darker, noise may be below zero
    assert (rise[T2W] * case.images[T2W] >= 0)[lesion].all()
    assert (rise[FLAIR] == 0).mean() > 0.8
    assert changed.labels is not None
    assert ((changed.labels == 1) & ~lesion).sum() < 0.2 * lesion.sum()
    assert changed.labels[lesion].mean() > 0.6  # the outer half of an edge belongs to nobody
    assert key_of(row.model_copy(update={"settings": settings}), toy) != key_of(row, toy)


def test_fitted_cts_make_another_row_and_are_judged_where_both_bodies_lie(table: Path) -> None:
    row = list_rows(table)[0]
    plain = read_table(table)
    fitted = plain.model_copy(update={"fits_ct": True})
    assert key_of(row, plain) != key_of(row, fitted)

    truth = np.random.default_rng(0).uniform(-0.1, 0.1, (4, 16, 16)).astype(np.float32)
    truth[:, :8] = -1.0  # the limb lay elsewhere
    mask = np.ones(truth.shape, np.bool_)
    case = Case(
        subject="one",
        images={ContrastLabel("CT"): truth},
        mask=mask,
        judged=truth > -1,
        spacing=(1.0, 1.0, 1.0),
    )
    made = np.where(truth > -1, truth, 0).astype(np.float32) + np.float32(0.05)

    answer = Prediction(mean=made, lower=made - 0.1, upper=made + 0.1)
    figures = results.judge_fitted(case, ContrastLabel("CT"), answer)

    assert figures["mae"] == pytest.approx(50, abs=0.1)
    assert figures["whole_mae"] == pytest.approx(550, abs=0.1)
    assert figures["band_width"] == pytest.approx(200, abs=0.1)


def test_ct_is_judged_by_tissue_and_as_the_challenge_does() -> None:
    image, mask = make_head((20, 24, 22), seed=1)
    hounsfield = np.where(image > 0.55, 0.4, np.where(image > 0.4, 0.05, -0.9)).astype(np.float32)
    case = Case(
        subject="limb", images={T1W: image, CT: hounsfield}, mask=mask, spacing=(1.0, 1.0, 1.0)
    )

    figures = judge(case, CT, Prediction(mean=hounsfield - np.float32(0.1)))

    assert figures["mae"] == pytest.approx(100, abs=0.01)
    assert figures["bone_bias"] == pytest.approx(-100, abs=0.01)
    assert {"air_mae", "soft_mae", "bone_dice", "synthrad2025_ms_ssim"} <= set(figures)
    assert "tissue_dice" not in figures


def test_uptake_is_judged_in_suv_and_by_the_tumor() -> None:
    case = make_case("one", 1)
    tumor = case.labels > 0 if case.labels is not None else case.mask
    truth = np.where(tumor, np.float32(0.8), np.float32(0.1))  # 8 SUV in 1
    answer = np.where(tumor, np.float32(0.45), np.float32(0.1))
    case = replace(case, images={PET: truth})

    figures = find_judge(PET)(case, PET, Prediction(mean=answer))

    assert figures["lesion_suv_bias"] == pytest.approx(-3.5, abs=1e-4)
    assert figures["lesion_suv_max"] == pytest.approx(4.5 / 8, abs=1e-4)
    assert figures["lesion_contrast"] == pytest.approx(0.5, abs=1e-4)
    share = (tumor & case.mask).sum() / case.mask.sum()
    assert figures["suv_mae"] == pytest.approx(3.5 * share, rel=1e-3)
    assert "tissue_dice" not in figures


def test_keys_differ_between_methods_and_folds(table: Path) -> None:
    rows = list_rows(table)

    assert len({key_of(row, read_table(table)) for row in rows}) == len(rows) == 8


def test_interval_is_of_people_and_the_same_every_time() -> None:
    values = [20.0, 21.0, 22.0, 23.0]

    found = bootstrap(values)

    assert found == bootstrap(values)
    assert found.mean == 21.5
    assert found.low is not None
    assert found.high is not None
    assert 20 <= found.low < 21.5 < found.high <= 23
    assert bootstrap([1.0]).low is None


def test_no_paired_test_below_six_people() -> None:
    five = {str(n): float(n) for n in range(5)}
    six = {str(n): float(n) for n in range(6)}

    few = compare({k: v + 1 for k, v in five.items()}, five)
    enough = compare({k: v + 1 for k, v in six.items()}, {**six, "nobody": 1.0})

    assert few is not None
    assert few.p_value is None
    assert enough is not None
    assert enough.p_value is not None
    assert enough.p_value < 0.05
    assert enough.interval.n == 6
    assert compare({"a": 1.0}, {"b": 1.0}) is None


def test_shares_are_of_the_other_method_s_figure() -> None:
    found = compare_shares({"a": 75.0, "b": 25.0, "c": 1.0}, {"a": 100.0, "b": 50.0, "c": 0.0})

    assert found is not None
    assert found.interval.mean == pytest.approx((0.25 + 0.5) / 2)
    assert found.interval.n == 2


def test_interval_that_includes_the_bar_shows_nothing() -> None:
    interval = bootstrap([1.0, 2.0, 3.0, 4.0])

    assert decide(interval, 2.5) == "not shown"
    assert decide(interval, 0.5) == "reached"
    assert decide(interval, 5.0) == "missed"
    assert decide(bootstrap([9.0]), 0.5) == "not shown"
