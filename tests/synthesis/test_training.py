"""Training: prepared people, samples drawn from them, people left out, the device, the band.

Then what one sees of it: how far it is, its curve and pictures, how it goes on and when it ends.
"""

import csv
import json
import logging
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from rich.console import Console
from safetensors import safe_open

from synthesis.augmentation import Stock
from synthesis.datasets import UNITS, cases_folder, read_case, write_case
from synthesis.devices import choose_device
from synthesis.errors import SynthesisError, TrainingError
from synthesis.methods import build_method, learner
from synthesis.methods.learner import STATE
from synthesis.methods.observation import BEST, CURVE, SHEET
from synthesis.progress import show_progress
from synthesis.speed import make_head
from synthesis.training import judge_without, read_cases, read_experiment, register, train
from synthesis.types import Anchor, Case, ContrastLabel, SynthesisTask

T1W, T2W, FLAIR = (ContrastLabel(name) for name in ("T1w", "T2w", "FLAIR"))
TASK = SynthesisTask(sources=(T1W, T2W, FLAIR), targets=(T2W,))
TOY: dict[str, Any] = {"width": 8, "levels": 2, "steps": 4, "crop": 32, "batch": 2}
CPU = torch.device("cpu")
LEVELS = 4096


def make_case(subject: str = "here-1", seed: int = 1) -> Case:
    image, mask = make_head((24, 40, 32), seed=seed)
    other = np.where(mask, 0.2 + 0.5 * image, 0).astype(np.float32)
    return Case(
        subject=subject,
        images={T1W: image, FLAIR: other, T2W: 2 * image - other},
        mask=mask,
        spacing=(1.0, 1.0, 1.0),
    )


def draw(case: Case, count: int = 6, seed: int = 5, **further: Any) -> Any:
    generator = np.random.default_rng(seed)
    return Stock([case], TASK, CPU).draw(
        count, size=32, slices=5, views=(0, 1, 2), generator=generator, **further
    )


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    """An experiment file whose people are prepared below `work`, and have no images."""
    people = [
        {
            "subject": f"{place}-{number}",
            "dataset": "set",
            "split": "train",
            "mask": "nonzero",
            "images": {"T1w": "none", "T2w": "none", "FLAIR": "none"},
        }
        for place in ("here", "there")
        for number in (1, 2)
    ]
    manifest = {"datasets": {"set": {"licence": "none", "skull": "stripped"}}, "people": people}
    (tmp_path / "people.yaml").write_text(yaml.safe_dump(manifest))
    cache = cases_folder(tmp_path / "work", 1.0, Anchor())
    cache.mkdir(parents=True)
    for seed, person in enumerate(people):
        subject = str(person["subject"])
        write_case(cache / f"{subject}.npz", make_case(subject, seed))
    path = tmp_path / "experiment.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "model": "line",
                "version": "1",
                "method": "linear",
                "sources": list(TASK.sources),
                "targets": list(TASK.targets),
                "spacing_mm": 1.0,
                "people": "people.yaml",
                "datasets": ["set"],
                "seed": 1,
                "card": {},
            }
        )
    )
    return path


def test_prepared_person_reads_back_within_half_a_unit(tmp_path: Path) -> None:
    case = make_case()

    write_case(tmp_path / "here-1.npz", case)
    again = read_case(tmp_path / "here-1.npz")

    assert again.subject == case.subject
    assert (again.mask == case.mask).all()
    for label, image in case.images.items():
        assert np.abs(again.images[label] - image).max() <= 0.5001 / UNITS


def test_training_needs_no_images_of_people_who_are_prepared(
    experiment: Path, tmp_path: Path
) -> None:
    cases = read_cases(
        read_experiment(experiment), data_folder=tmp_path / "absent", work=tmp_path / "work"
    )

    assert len(cases["train"]) == 4


def test_person_without_images_and_not_prepared_is_named(experiment: Path, tmp_path: Path) -> None:
    (cases_folder(tmp_path / "work", 1.0, Anchor()) / "there-2.npz").unlink()

    with pytest.raises(TrainingError, match="there-2 is not prepared"):
        read_cases(
            read_experiment(experiment), data_folder=tmp_path / "absent", work=tmp_path / "work"
        )


def test_people_left_out_are_judged_by_what_the_others_taught(
    experiment: Path, tmp_path: Path
) -> None:
    settings = read_experiment(experiment)

    rows = judge_without(settings, "there", data_folder=tmp_path, work=tmp_path / "work")

    assert {row["subject"] for row in rows} == {"there-1", "there-2"}
    full = [row for row in rows if len(row["sources"]) == 2]
    # T2w is a linear map of the two others, but for the rounding of prepared cases
    assert all(row["psnr_db"] > 40 and row["ssim"] > 0.95 for row in full)
    kept = json.loads((tmp_path / "work" / "line-without-there" / "figures.json").read_text())
    assert len(kept) == len(rows)


def test_people_teach_and_are_judged_only_where_their_images_are_known_to_agree(
    experiment: Path, tmp_path: Path
) -> None:
    settings = read_experiment(experiment).model_copy(update={"fits_ct": True})
    cache = cases_folder(tmp_path / "work", 1.0, Anchor(), fits_ct=True)
    cache.mkdir()
    for seed, person in enumerate(("here-1", "here-2", "there-1", "there-2")):
        case = make_case(person, seed)
        known = case.mask & (np.arange(case.mask.shape[2]) < 16)
        moved = np.where(known, case.images[T2W], 3).astype(np.float32)
        write_case(
            cache / f"{person}.npz",
            replace(case, images={**case.images, T2W: moved}, judged=known),
        )

    rows = judge_without(settings, "there", data_folder=tmp_path, work=tmp_path / "work")

    full = [row for row in rows if len(row["sources"]) == 2]
    assert all(row["psnr_db"] > 40 for row in full)


def test_method_for_research_only_is_never_offered_for_more(
    experiment: Path, tmp_path: Path
) -> None:
    target = {"modality": "MR", "state": "candidate", "units": "standard scale"}
    settings = read_experiment(experiment).model_copy(
        update={"method": "cyclegan", "card": {"targets": {"T2w": target}}}
    )

    with pytest.raises(TrainingError, match="research only"):
        register(settings, tmp_path, tmp_path / "models")


def test_leaving_nobody_out_is_an_error(experiment: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="begins with 'elsewhere'"):
        judge_without(
            read_experiment(experiment), "elsewhere", data_folder=tmp_path, work=tmp_path / "work"
        )


def test_sample_holds_only_the_sources_that_its_condition_names() -> None:
    batch = draw(make_case())

    given = batch.condition[:, :3]
    assert batch.stack.shape == (6, 3, 5, 32, 32)
    assert ((batch.stack.abs().amax(dim=(2, 3, 4)) > 0) == (given > 0)).all()
    assert (given[:, 1] == 0).all()  # the target is no source
    assert (given.sum(dim=1) >= 1).all()


def test_target_never_shows_in_the_sources() -> None:
    case = make_case()
    loud = replace(case, images={**case.images, T2W: 100 * case.mask.astype(np.float32)})

    batches = [draw(loud, seed=seed) for seed in range(4)]

    assert max(float(batch.stack.max()) for batch in batches) < 10
    assert all(float(batch.truth.max()) == pytest.approx(100, rel=1e-3) for batch in batches)


def test_the_same_seed_draws_the_same_samples() -> None:
    first, second = draw(make_case()), draw(make_case())

    assert torch.equal(first.stack, second.stack)
    assert torch.equal(first.truth, second.truth)


@pytest.mark.parametrize(
    ("randomized", "least", "most"), [(0, 1, 1), (0.5, 0.35, 0.65), (1, 0, 0.1)]
)
def test_only_a_share_of_the_samples_comes_as_of_another_scanner(
    randomized: float, least: float, most: float
) -> None:
    batch = draw(make_case(), count=120, randomized=randomized)

    # T2w is 1.5 T1w - 0.2, unless T1w was disturbed
    alone = (batch.condition[:, :3] == torch.tensor([1, 0, 0])).all(dim=1)
    error = (batch.truth[:, 0] - 1.5 * batch.stack[:, 0, 2] + 0.2).abs() * batch.weight[:, 0]
    plain = (error.amax(dim=(1, 2)) < 1e-3)[alone]
    assert len(plain) > 20
    assert least <= plain.float().mean() <= most


def test_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    assert choose_device("auto").type == "cpu"
    with pytest.raises(SynthesisError, match="sees no GPU"):
        choose_device("cuda")


def test_number_of_threads_moves_no_voxel_by_more_than_a_level() -> None:
    case = make_case()
    method = build_method("unet25d", TASK, TOY, device="cpu").fit([case], seed=3)
    threads = torch.get_num_threads()
    answers = []
    for count in (1, 2):
        torch.set_num_threads(count)
        answers.append(
            method.predict(
                {T1W: case.images[T1W]}, target=T2W, mask=case.mask, spacing=case.spacing, seed=0
            ).mean
        )
    torch.set_num_threads(threads)

    steps = np.abs(answers[0] - answers[1]) / (np.ptp(answers[0]) / LEVELS)
    assert np.mean(steps[case.mask] <= 1) >= 0.999


def test_band_is_widened_until_it_holds_the_people_who_were_not_learnt_from() -> None:
    case = make_case()
    method = build_method("unet25d", TASK, TOY, device="cpu").fit([case], seed=3)

    factors = method.measure_band([make_case("there-1", seed=8)], seed=2)

    assert set(factors) == {T2W}
    batch = draw(make_case("there-1", seed=8), seed=11)
    mean, lower, upper = method.network_(batch.stack, batch.condition).chunk(3, dim=1)
    within = (batch.truth - mean).abs() <= factors[T2W] * (upper - lower) / 2
    assert within[batch.weight > 0].float().mean() > 0.85


KILLED = """
import sys
from pathlib import Path
from synthesis.cli import app
from synthesis.methods import learner
learner.LOG_EVERY, learner.SAVE_EVERY = 2, 4
app(["train", sys.argv[1], "--work", sys.argv[2], "--models", sys.argv[3], "--device", "cpu"])
"""
MANY_STEPS = 16
LIMIT_SECONDS = 120


@pytest.fixture
def observed(
    experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, Path]:
    """An experiment that torch trains in `MANY_STEPS`, where one person validates; and `work`."""
    manifest = yaml.safe_load((tmp_path / "people.yaml").read_text())
    manifest["people"][-1]["split"] = "validation"
    (tmp_path / "people.yaml").write_text(yaml.safe_dump(manifest))
    settings = yaml.safe_load(experiment.read_text())
    settings |= {"model": "net", "method": "unet25d", "parameters": TOY | {"steps": MANY_STEPS}}
    experiment.write_text(yaml.safe_dump(settings))
    monkeypatch.setattr(learner, "LOG_EVERY", 2)
    monkeypatch.setattr(learner, "SAVE_EVERY", 4)
    return experiment, tmp_path / "work"


def read_curve(folder: Path) -> list[dict[str, str]]:
    with (folder / CURVE).open(newline="") as file:
        return list(csv.DictReader(file))


def test_training_that_was_killed_goes_on_to_what_an_unbroken_one_learns(
    observed: tuple[Path, Path], tmp_path: Path
) -> None:
    path, work = observed
    settings = read_experiment(path)
    unbroken = train(settings, data_folder=tmp_path, work=work, device="cpu")
    whole = read_curve(work / "net")
    unbroken.parent.rename(tmp_path / "unbroken")

    victim = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(path), str(work), str(tmp_path / "models")],
        env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())},  # for the same bytes
    )
    deadline = time.monotonic() + LIMIT_SECONDS
    while not (work / "net" / STATE).exists():
        assert victim.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    with safe_open(work / "net" / STATE, framework="pt") as state:
        reached = int(state.get_tensor("step"))
    shares: list[float] = []
    again = train(settings, data_folder=tmp_path, work=work, device="cpu", report=shares.append)

    assert 0 < reached < MANY_STEPS
    assert len(shares) == MANY_STEPS - reached  # the steps before are not taken again
    kept = tmp_path / "unbroken" / again.name / "weights.safetensors"
    assert (again / "weights.safetensors").read_bytes() == kept.read_bytes()
    figures = [{k: v for k, v in row.items() if k not in ("seconds", "loss")} for row in whole]
    assert [
        {k: v for k, v in row.items() if k not in ("seconds", "loss")}
        for row in read_curve(work / "net")
    ] == figures


def test_training_leaves_a_curve_and_pictures_and_keeps_the_best_weights(
    observed: tuple[Path, Path], tmp_path: Path
) -> None:
    path, work = observed

    learnt = train(read_experiment(path), data_folder=tmp_path, work=work, device="cpu")

    rows = read_curve(work / "net")
    assert [int(row["step"]) for row in rows] == sorted({int(row["step"]) for row in rows})
    assert int(rows[-1]["step"]) == MANY_STEPS
    assert len(rows) == MANY_STEPS / 2
    assert all(float(row["loss"]) > 0 and float(row["T2w"]) == float(row["mean"]) for row in rows)
    best = max(rows, key=lambda row: float(row["mean"]))
    with safe_open(work / "net" / BEST, framework="pt") as kept:
        assert kept.metadata()["step"] == best["step"]
        name = next(iter(kept.keys()))
        with safe_open(learnt / "weights.safetensors", framework="pt") as used:
            assert torch.equal(used.get_tensor(name), kept.get_tensor(name))
    sheet = np.asarray(Image.open(work / "net" / SHEET))
    # three slices of one person; source, truth, answer and error side by side
    assert sheet.shape[1] == 4 * 32
    assert sheet.shape[0] > 3 * 40
    panels = sheet.reshape(len(sheet), 4, 32)
    assert all(panels[:, number].std() > 10 for number in range(4))


def test_training_ends_when_the_validation_people_gain_no_more(
    observed: tuple[Path, Path], tmp_path: Path
) -> None:
    path, work = observed
    settings = read_experiment(path)
    idle = settings.model_copy(
        update={"patience": 2, "parameters": {**settings.parameters, "learning_rate": 0.0}}
    )

    learnt = train(idle, data_folder=tmp_path, work=work, device="cpu")

    rows = read_curve(work / "net")
    assert len(rows) == 3  # one that counts, and two that are no better
    assert (learnt / "weights.safetensors").exists()


def test_remaining_time_is_told_where_no_terminal_is(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)

    with show_progress("net", Console(force_terminal=False)) as report:
        for step in range(101):
            report(step / 100)

    assert len(caplog.messages) == 20
    assert all(message.startswith("net: ") and "left" in message for message in caplog.messages)
    assert caplog.messages[-1] == "net: 100 %, 0:00:00 left"


def test_terminal_shows_a_bar_with_the_remaining_time(tmp_path: Path) -> None:
    with (tmp_path / "terminal").open("w+") as file:
        console = Console(file=file, force_terminal=True, width=100)
        with show_progress("net", console) as report:
            for step in range(4):
                report(step / 4)
                logging.getLogger("x").warning("a line above the bar")
        file.seek(0)
        shown = file.read()

    assert "net" in shown
    assert "75%" in shown
    assert "left:" in shown
    assert "a line above the bar" in shown
