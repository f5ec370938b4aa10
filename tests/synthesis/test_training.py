"""Training: prepared people, samples drawn from them, people left out, the device, the band."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from synthesis.augmentation import Stock
from synthesis.datasets import UNITS, read_case, write_case
from synthesis.devices import choose_device
from synthesis.errors import SynthesisError, TrainingError
from synthesis.methods import build_method
from synthesis.speed import make_head
from synthesis.training import judge_without, read_cases, read_experiment, register
from synthesis.types import Case, ContrastLabel, SynthesisTask

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


def draw(case: Case, count: int = 6, seed: int = 5) -> Any:
    generator = np.random.default_rng(seed)
    return Stock([case], TASK, CPU).draw(
        count, size=32, slices=5, views=(0, 1, 2), generator=generator
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
    cache = tmp_path / "work" / "cases-1mm-p50-v3"
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
    (tmp_path / "work" / "cases-1mm-p50-v3" / "there-2.npz").unlink()

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
