"""What every method of the table promises, checked on each of them."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from synthesis.errors import MissingSource, SynthesisError
from synthesis.methods import METHODS, build_method
from synthesis.metrics import mean_absolute_error
from synthesis.phantom import render
from synthesis.preprocessing import measure_scale
from synthesis.synthesizer import Synthesizer
from synthesis.types import Anchor, Case, ContrastLabel, SynthesisTask

T1W, T2W, FLAIR = (ContrastLabel(name) for name in ("T1w", "T2w", "FLAIR"))
TASK = SynthesisTask(sources=(T1W, FLAIR), targets=(T2W,), required=(T1W, FLAIR))
QUICK: dict[str, dict[str, Any]] = {
    "boosting": {"trees": 20, "voxels_per_person": 4000},
    "unet25d": {"width": 8, "levels": 3, "steps": 60, "crop": 48, "batch": 4},
}


def make_case(seed: int) -> Case:
    phantom = render(seed=seed, spacing=(6.0, 4.0, 4.0))
    mask = phantom.brain
    images = {}
    for label in (T1W, T2W, FLAIR):
        image = phantom.images[label]
        scaled = measure_scale(image, mask, Anchor()).forward(image)
        images[label] = np.where(mask, scaled, 0).astype(np.float32)
    return Case(subject=f"phantom-{seed}", images=images, mask=mask, spacing=phantom.spacing)


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


def test_missing_source_and_unknown_target_are_refused(trained: Synthesizer[Any]) -> None:
    case = make_case(9)

    with pytest.raises(MissingSource, match="FLAIR"):
        trained.predict(
            {T1W: case.images[T1W]}, target=T2W, mask=case.mask, spacing=case.spacing, seed=0
        )
    with pytest.raises(SynthesisError, match="target PET"):
        trained.check_request({T1W: case.images[T1W]}, ContrastLabel("PET"))


@pytest.mark.parametrize("name", ["boosting", "unet25d"])
def test_learning_beats_the_mean_image(name: str, cases: list[Case]) -> None:
    case = make_case(9)
    parameters = QUICK[name] | ({"steps": 250} if name == "unet25d" else {})
    mean = build_method("mean_image", TASK, {}).fit(cases, seed=3)
    learnt = build_method(name, TASK, parameters).fit(cases, seed=3)

    errors = [
        mean_absolute_error(case.images[T2W], predict(method, case).mean, case.mask)
        for method in (mean, learnt)
    ]

    assert errors[1] < 0.7 * errors[0]


def test_training_resumes_where_it_was_stopped(cases: list[Case], tmp_path: Path) -> None:
    parameters = QUICK["unet25d"] | {"steps": 8}
    whole = build_method("unet25d", TASK, parameters).fit(
        cases, seed=3, checkpoint=tmp_path / "whole"
    )
    again = build_method("unet25d", TASK, parameters).fit(
        cases, seed=3, checkpoint=tmp_path / "whole"
    )

    np.testing.assert_array_equal(predict(whole, cases[0]).mean, predict(again, cases[0]).mean)


def test_importing_synthesis_loads_no_torch() -> None:
    code = "import sys, synthesis.registry; print('torch' in sys.modules)"

    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )

    assert answer.stdout.strip() == "False"
