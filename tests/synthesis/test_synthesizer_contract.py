"""What every method of the table promises, checked on each of them."""

import itertools
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from doubles.models import write_model
from synthesis.engine import synthesize
from synthesis.errors import MissingSource, SynthesisError, UnusableInput
from synthesis.methods import METHODS, build_method, learner
from synthesis.methods.baselines import MeanImage
from synthesis.metrics.ours import mean_absolute_error
from synthesis.phantom import NAMES, render
from synthesis.preprocessing import measure_scale
from synthesis.registry import load_card
from synthesis.synthesizer import Synthesizer
from synthesis.types import (
    Anchor,
    Case,
    ContrastLabel,
    Prediction,
    SynthesisTask,
    Verdict,
    Volume,
)

T1W, T2W, FLAIR = (ContrastLabel(name) for name in ("T1w", "T2w", "FLAIR"))
TASK = SynthesisTask(sources=(T1W, FLAIR), targets=(T2W,), required=(T1W, FLAIR))
SMALL = {"width": 8, "levels": 2, "crop": 32, "batch": 4, "learning_rate": 5e-3}
LESION = [[NAMES.index("lesion"), NAMES.index("enhancing")]]
QUICK: dict[str, dict[str, Any]] = {
    "forest": {"trees": 10, "voxels_per_person": 3000},
    "boosting": {"trees": 20, "voxels_per_person": 4000},
    "dictionary": {"atoms": 128, "radius": 1, "patches_per_person": 2000},
    "anchored": {"anchors": 32, "radius": 1, "patches_per_person": 3000, "neighbors": 512},
    "cnn": {"width": 16, "steps": 150, "crop": 32, "batch": 4},
    "unet2d": {"width": 8, "levels": 2, "steps": 150, "crop": 32, "batch": 8},
    "unet3d": {"width": 8, "levels": 2, "steps": 100, "crop": 16, "batch": 4, "tile": 32},
    "gan": SMALL | {"steps": 160, "discriminator_width": 8},
    "reggan": SMALL | {"steps": 160, "discriminator_width": 8, "registration_width": 4},
    "cyclegan": SMALL | {"steps": 40, "discriminator_width": 8},
    "task_loss": SMALL | {"steps": 200, "segmenter_width": 4, "regions": LESION},
    "attention": SMALL | {"steps": 200, "edge_weight": 0.1, "regions": LESION},
    "joint": SMALL | {"steps": 160, "segmenter_width": 4, "regions": LESION},
    "diffusion": SMALL | {"steps": 150},
    "bridge": SMALL | {"steps": 150},
    "flow": SMALL | {"steps": 150},
    "unet25d": SMALL | {"steps": 200},
    "ensemble": {
        "members": [
            {"method": "linear"},
            {"method": "boosting", "parameters": {"trees": 10, "voxels_per_person": 2000}},
            {"method": "unet25d", "parameters": SMALL | {"steps": 60}},
        ]
    },
}

BLIND = {"copy", "mean_image", "depth_atlas", "cyclegan"}
"""What others are measured by, and what nothing ties to the truth."""
LEARNERS = ["bridge", "joint", "reggan", "unet25d", "unet3d"]


def make_case(seed: int) -> Case:
    phantom = render(seed=seed, spacing=(6.0, 4.0, 4.0))
    mask = phantom.brain
    images = {}
    for label in (T1W, T2W, FLAIR):
        image = phantom.images[label]
        scaled = measure_scale(image, mask, Anchor()).forward(image)
        images[label] = np.where(mask, scaled, 0).astype(np.float32)
    return Case(
        subject=f"phantom-{seed}",
        images=images,
        mask=mask,
        spacing=phantom.spacing,
        labels=phantom.tissues,
    )


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    return [make_case(seed) for seed in (1, 2)]


@pytest.fixture(scope="module", params=sorted(METHODS))
def trained(request: pytest.FixtureRequest, cases: list[Case]) -> Synthesizer[Any]:
    name: str = request.param
    return build_method(name, TASK, QUICK.get(name, {})).fit(cases, seed=3)


def predict(method: Synthesizer[Any], case: Case, seed: int = 0) -> Any:
    sources = {label: case.images[label] for label in TASK.sources}
    return method.predict(sources, target=T2W, mask=case.mask, spacing=case.spacing, seed=seed)


def test_prediction_has_shape_and_type_and_background_stays_background(
    trained: Synthesizer[Any],
) -> None:
    case = make_case(9)

    prediction = predict(trained, case)

    assert prediction.mean.shape == case.mask.shape
    assert prediction.mean.dtype == np.float32
    assert np.isfinite(prediction.mean).all()
    assert (prediction.mean[~case.mask] == 0).all()


def test_inputs_are_untouched_and_the_same_seed_gives_the_same_answer(
    trained: Synthesizer[Any],
) -> None:
    case = make_case(9)
    before = {label: image.copy() for label, image in case.images.items()}

    first, second = predict(trained, case), predict(trained, case)

    np.testing.assert_array_equal(first.mean, second.mean)
    for label, image in case.images.items():
        np.testing.assert_array_equal(image, before[label])


@pytest.mark.parametrize("name", ["diffusion", "flow"])
def test_mean_of_what_can_be_shows_no_noise(name: str, cases: list[Case]) -> None:
    method = build_method(name, TASK, QUICK[name] | {"steps": 20}).fit(cases, seed=3)
    case = make_case(9)

    first, second = predict(method, case, seed=0).mean, predict(method, case, seed=1).mean
    method.parameters = method.parameters.model_copy(update={"sampling_steps": 2})
    drawn, other = predict(method, case, seed=0).mean, predict(method, case, seed=1).mean

    np.testing.assert_array_equal(first, second)
    assert (drawn - other)[case.mask].std() > 0.1 * drawn[case.mask].std()


def test_saving_and_restoring_gives_the_same_answer(
    trained: Synthesizer[Any], tmp_path: Path
) -> None:
    case = make_case(9)
    trained.save(tmp_path)
    restored = type(trained)(trained.task, trained.parameters).restore(tmp_path)

    np.testing.assert_allclose(
        predict(restored, case).mean, predict(trained, case).mean, rtol=0, atol=1e-6
    )
    assert not list(tmp_path.glob("*.pkl"))


def test_band_encloses_the_mean(trained: Synthesizer[Any]) -> None:
    case = make_case(9)

    prediction = predict(trained, case)

    if prediction.lower is not None:
        assert (prediction.lower[case.mask] <= prediction.mean[case.mask] + 1e-6).all()
        assert (prediction.upper[case.mask] >= prediction.mean[case.mask] - 1e-6).all()


def test_band_is_widened_until_it_holds_nine_in_ten(trained: Synthesizer[Any]) -> None:
    case = make_case(9)
    prediction = predict(trained, case)
    if prediction.lower is None:
        assert trained.measure_band([case], seed=1) == {}
        return

    factors = trained.measure_band([make_case(8)], seed=1)

    half = factors[T2W] * (prediction.upper - prediction.lower) / 2
    within = np.abs(case.images[T2W] - prediction.mean) <= half
    assert within[case.mask].mean() > 0.85


def test_missing_source_and_unknown_target_are_refused(trained: Synthesizer[Any]) -> None:
    case = make_case(9)

    with pytest.raises(MissingSource, match="FLAIR"):
        trained.predict(
            {T1W: case.images[T1W]}, target=T2W, mask=case.mask, spacing=case.spacing, seed=0
        )
    with pytest.raises(SynthesisError, match="target PET"):
        trained.check_task([T1W], ContrastLabel("PET"))


def test_engine_serves_it_as_any_other(trained: Synthesizer[Any], tmp_path: Path) -> None:
    phantom = render(seed=9, spacing=(6.0, 4.0, 4.0))
    affine = np.eye(4)
    # slices run towards the head, rows towards the back, columns towards the left
    affine[:3, :3] = np.array([[0, 0, 4.0], [0, 4.0, 0], [6.0, 0, 0]])
    volumes = {
        label: Volume(array=phantom.images[label], affine=affine, coordinate_system="PATIENT")
        for label in TASK.sources
    }
    name = next(n for n, where in METHODS.items() if where.endswith(f":{type(trained).__name__}"))
    write_model(tmp_path, name, trained, TASK)

    answer = synthesize(
        volumes,
        target=T2W,
        reference=T1W,
        model_id=name,
        model_digest=load_card(tmp_path, name).digest,
        models_folder=tmp_path,
        seed=0,
    )

    [predicted] = [step for step in answer.record if step["step"] == "predict"]
    assert {"backend", "precision", "threads"} <= set(predicted)
    values = answer.volume.array[answer.covered.array > 0]
    # a picture of one value is none, and the gate says so
    is_refused = answer.quality.verdict is Verdict.REFUSE
    assert is_refused == isinstance(trained, MeanImage), answer.quality.reasons
    if is_refused:
        return
    assert answer.units == "standard scale"
    assert 200 < np.median(values) < 800
    assert (answer.volume.array[answer.covered.array == 0] == answer.pad_value).all()


@pytest.mark.parametrize("trained", sorted(set(METHODS) - BLIND), indirect=True)
def test_learning_beats_the_matched_copy(trained: Synthesizer[Any], cases: list[Case]) -> None:
    case = make_case(9)
    copy = build_method("copy", TASK, {}).fit(cases, seed=3)

    errors = [
        mean_absolute_error(case.images[T2W], predict(method, case).mean, case.mask)
        for method in (copy, trained)
    ]

    assert errors[1] < 0.9 * errors[0]


@pytest.mark.parametrize("name", LEARNERS)
def test_training_that_is_cut_off_goes_on_to_the_same_weights(
    name: str, cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learner, "SAVE_EVERY", 2)
    parameters = QUICK[name] | {"steps": 4}
    whole = build_method(name, TASK, parameters, device="cpu").fit(cases, seed=3)

    cut_off = build_method(name, TASK, parameters, device="cpu")
    update, done = cut_off.update, itertools.count()

    def lose_power(*arguments: Any) -> Any:
        if next(done) == 3:
            raise KeyboardInterrupt
        return update(*arguments)

    monkeypatch.setattr(cut_off, "update", lose_power)
    with pytest.raises(KeyboardInterrupt):
        cut_off.fit(cases, seed=3, checkpoint=tmp_path)
    again = build_method(name, TASK, parameters, device="cpu")
    again.fit(cases, seed=3, checkpoint=tmp_path)

    assert next(done) == 4
    for key, value in whole.network_.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), again.network_.state_dict()[key].numpy())


@pytest.mark.parametrize("name", LEARNERS)
def test_batch_norm_keeps_its_statistics_in_the_last_part_of_a_training(
    name: str, cases: list[Case]
) -> None:
    parameters = QUICK[name] | {"steps": 5, "live_statistics": 0.6}
    method = build_method(name, TASK, parameters, device="cpu").fit(cases, seed=3)

    state = method.network_.state_dict()
    batches = [int(state[key]) for key in state if key.endswith("num_batches_tracked")]
    assert batches
    assert set(batches) == {3}


def test_budget_is_of_work_and_what_was_spent_before_a_cut_counts(
    cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learner, "SAVE_EVERY", 2)
    # each step is one second of work, however long the machine takes for it
    clock = itertools.count()
    monkeypatch.setattr(learner, "time_worked", lambda device: float(next(clock)))
    parameters, budget = QUICK["cnn"] | {"steps": 100}, timedelta(seconds=6)
    whole = build_method("cnn", TASK, parameters, device="cpu")
    taken = itertools.count()

    def count(method: Any, last: int) -> Any:
        update = method.update

        def counted(*arguments: Any) -> Any:
            if next(taken) == last:
                raise KeyboardInterrupt
            return update(*arguments)

        monkeypatch.setattr(method, "update", counted)
        return method

    count(whole, -1).fit(cases, seed=3, budget=budget)
    steps, taken = next(taken), itertools.count()

    with pytest.raises(KeyboardInterrupt):
        count(build_method("cnn", TASK, parameters, device="cpu"), 4).fit(
            cases, seed=3, budget=budget, checkpoint=tmp_path
        )
    taken = itertools.count()
    again = count(build_method("cnn", TASK, parameters, device="cpu"), -1)
    again.fit(cases, seed=3, budget=budget, checkpoint=tmp_path)

    assert (steps, next(taken)) == (6, 2)
    for key, value in whole.network_.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), again.network_.state_dict()[key].numpy())


def test_importing_synthesis_loads_no_torch() -> None:
    code = "import sys, synthesis.registry; print('torch' in sys.modules)"

    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )

    assert answer.stdout.strip() == "False"


def ask(method: Synthesizer[Any], image: np.ndarray, mask: np.ndarray) -> Prediction:
    sources = dict.fromkeys(TASK.sources, image.astype(np.float32))
    return method.predict(sources, target=T2W, mask=mask, spacing=(4.0, 4.0, 4.0), seed=0)


SHAPE = (9, 20, 18)
IMAGE = np.random.default_rng(0).uniform(0.2, 0.8, SHAPE)


@pytest.mark.parametrize(
    ("code", "image", "mask"),
    [
        ("not_finite", np.where(np.indices(SHAPE)[0] == 4, np.nan, IMAGE), np.ones(SHAPE, bool)),
        ("not_finite", np.where(np.indices(SHAPE)[0] == 4, np.inf, IMAGE), np.ones(SHAPE, bool)),
        ("mask", IMAGE, np.zeros(SHAPE, bool)),
        ("shape", IMAGE, np.ones((9, 20, 17), bool)),
        ("shape", IMAGE[0], np.ones(SHAPE[1:], bool)),
        ("mask", np.zeros((0, 4, 4)), np.zeros((0, 4, 4), bool)),
    ],
)
def test_what_is_no_image_is_refused_by_name(
    trained: Synthesizer[Any], code: str, image: np.ndarray, mask: np.ndarray
) -> None:
    with pytest.raises(UnusableInput) as refusal:
        ask(trained, image, mask)

    assert refusal.value.code == code


@pytest.mark.parametrize("count", [0, 1, 3])
def test_wrong_number_of_sources_is_refused(trained: Synthesizer[Any], count: int) -> None:
    labels = (T1W, FLAIR, ContrastLabel("CT"))[:count]
    sources = dict.fromkeys(labels, IMAGE.astype(np.float32))

    with pytest.raises(SynthesisError):
        trained.predict(
            sources, target=T2W, mask=np.ones(SHAPE, bool), spacing=(4.0, 4.0, 4.0), seed=0
        )


@pytest.mark.parametrize(
    "image",
    [
        pytest.param(np.full(SHAPE, 0.5), id="constant"),
        pytest.param(np.zeros(SHAPE), id="empty"),
        pytest.param(IMAGE[:1], id="one slice"),
        pytest.param(IMAGE[:, :1, :1], id="one column"),
        pytest.param(IMAGE * 1e6, id="enormous values"),
    ],
)
def test_odd_image_has_a_finite_answer_within_the_mask(
    trained: Synthesizer[Any], image: np.ndarray
) -> None:
    mask = np.ones(image.shape, bool)
    mask[:, -1] = image.shape[1] == 1

    mean = ask(trained, image, mask).mean

    assert mean.shape == image.shape
    assert np.isfinite(mean).all()
    assert (mean[~mask] == 0).all()
