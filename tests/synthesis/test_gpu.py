"""Torch methods on a GPU: the pixels of the CPU, the same ones every time, and training.

Run them where there is one: `pytest -m gpu tests/synthesis/test_gpu.py`.
"""

from pathlib import Path

import numpy as np
import pytest

from synthesis.augmentation import Stock
from synthesis.devices import choose_device
from synthesis.methods import build_method
from synthesis.registry import LEARNT, load_card
from synthesis.speed import make_head
from synthesis.synthesizer import Synthesizer
from synthesis.types import Case, ContrastLabel, FloatArray, SynthesisTask

pytestmark = pytest.mark.gpu

MODELS = Path(__file__).parents[2] / "models"
T1W, T2W, FLAIR = (ContrastLabel(name) for name in ("T1w", "T2w", "FLAIR"))
TASK = SynthesisTask(sources=(T1W, FLAIR), targets=(T2W,))
SMALL = {"width": 8, "levels": 3, "steps": 300, "crop": 48, "batch": 4}
LEVELS = 4096


def make_case(seed: int, shape: tuple[int, int, int] = (40, 64, 56)) -> Case:
    image, mask = make_head(shape, seed=seed)
    bright = np.where(mask, np.clip(1.2 - image, 0, None), 0).astype(np.float32)
    images = {T1W: image, T2W: bright, FLAIR: image**2}
    return Case(subject=f"head-{seed}", images=images, mask=mask, spacing=(1.0, 1.0, 1.0))


def restore(device: str) -> Synthesizer:
    card = load_card(MODELS, "brain-any-unet25d")
    method = build_method(card.method, card.task, dict(card.parameters), device=device)
    return method.restore(MODELS / card.id / LEARNT)


def predict(method: Synthesizer, case: Case) -> FloatArray:
    sources = {label: case.images[label] for label in (T1W, FLAIR)}
    return method.predict(sources, target=T2W, mask=case.mask, spacing=case.spacing, seed=0).mean


def test_a_gpu_gives_the_pixels_of_the_cpu() -> None:
    case = make_case(1, shape=(96, 128, 112))

    there, here = predict(restore("cuda"), case), predict(restore("cpu"), case)

    level = (here.max() - here.min()) / LEVELS
    steps = np.abs(there - here)[case.mask] / level
    assert np.mean(steps <= 1) >= 0.999, f"up to {steps.max():.1f} levels"


def test_a_gpu_gives_the_same_bytes_again() -> None:
    case = make_case(1)

    first, second = predict(restore("cuda"), case), predict(restore("cuda"), case)

    assert first.tobytes() == second.tobytes()


def test_a_gpu_draws_the_samples_of_the_cpu() -> None:
    cases = [make_case(1), make_case(2)]

    here, there = (
        Stock(cases, TASK, choose_device(device)).draw(
            8, size=48, slices=5, views=(0, 1, 2), generator=np.random.default_rng(3)
        )
        for device in ("cpu", "cuda")
    )

    assert np.array_equal(here.condition.numpy(), there.condition.cpu().numpy())
    same = np.isclose(here.truth.numpy(), there.truth.cpu().numpy(), rtol=0, atol=1e-3)
    assert same.mean() > 0.999


def test_a_gpu_learns() -> None:
    method = build_method("unet25d", TASK, SMALL, device="cuda")

    method.fit([make_case(1), make_case(2)], seed=3)

    case = make_case(9)
    error = np.abs(predict(method, case) - case.images[T2W])[case.mask].mean()
    assert (
        error
        < 0.7 * np.abs(case.images[T2W][case.mask] - case.images[T2W][case.mask].mean()).mean()
    )


def test_what_a_gpu_learnt_answers_on_a_cpu(tmp_path: Path) -> None:
    method = build_method("unet25d", TASK, SMALL | {"steps": 20}, device="cuda")
    method.fit([make_case(1)], seed=3, checkpoint=tmp_path)
    method.save(tmp_path)

    restored = build_method("unet25d", TASK, SMALL, device="cpu").restore(tmp_path)

    case = make_case(9)
    np.testing.assert_allclose(predict(restored, case), predict(method, case), rtol=0, atol=2e-3)
