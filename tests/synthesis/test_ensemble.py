"""The mean of methods: what may take part, and what is said of it."""

import numpy as np
import pytest
from pydantic import ValidationError

from synthesis.methods import build_method
from synthesis.methods.baselines import MeanImage
from synthesis.methods.ensemble import Ensemble
from synthesis.synthesizer import Parameters
from synthesis.types import ContrastLabel, Prediction, SynthesisTask

T1W, T2W = (ContrastLabel(name) for name in ("T1w", "T2w"))
TASK = SynthesisTask(sources=(T1W,), targets=(T2W,))
MASK = np.ones((2, 3, 3), bool)


class Told(MeanImage):
    """Answers what it was told to."""

    def __init__(self, mean: float, half: float | None, way: str) -> None:
        super().__init__(TASK, Parameters())
        self.way = way
        middle = np.full(MASK.shape, mean, np.float32)
        self.answer = Prediction(mean=middle)
        if half is not None:
            width = np.float32(half)
            self.answer = Prediction(mean=middle, lower=middle - width, upper=middle + width)

    def predict(self, *_: object, **__: object) -> Prediction:
        return self.answer

    @property
    def backend(self) -> dict[str, object]:
        return {"backend": self.way, "threads": 2}


def gather(*members: Told) -> Ensemble:
    known = {"members": [{"method": "linear"}, {"method": "copy"}]}
    ensemble = build_method("ensemble", TASK, known)
    assert isinstance(ensemble, Ensemble)
    return ensemble.gather(members)


def ask(ensemble: Ensemble) -> Prediction:
    image = {T1W: np.zeros(MASK.shape, np.float32)}
    return ensemble.predict(image, target=T2W, mask=MASK, spacing=(1.0, 1.0, 1.0), seed=0)


def test_band_is_the_mean_of_those_there_are_about_the_common_mean() -> None:
    answer = ask(gather(Told(0.2, 0.1, "a"), Told(0.4, 0.3, "a"), Told(0.9, None, "a")))

    assert answer.lower is not None
    assert answer.upper is not None
    np.testing.assert_allclose(answer.mean, 0.5, rtol=1e-6)
    np.testing.assert_allclose(answer.lower, 0.3, rtol=1e-6)
    np.testing.assert_allclose(answer.upper, 0.7, rtol=1e-6)


def test_members_without_a_band_have_none_together() -> None:
    answer = ask(gather(Told(0.2, None, "a"), Told(0.4, None, "a")))

    assert answer.lower is None
    assert answer.upper is None


def test_record_names_each_way_that_the_members_compute_once() -> None:
    ensemble = gather(Told(0, None, "plain"), Told(0, None, "openvino"), Told(0, None, "plain"))

    assert ensemble.backend == {"backend": "plain + openvino", "threads": 2}


@pytest.mark.parametrize("method", ["gan", "diffusion", "cyclegan", "ensemble"])
def test_what_invents_pictures_is_no_member(method: str) -> None:
    with pytest.raises(ValidationError, match=f"{method} takes part in no ensemble"):
        build_method("ensemble", TASK, {"members": [{"method": "copy"}, {"method": method}]})


def test_one_member_is_no_ensemble() -> None:
    with pytest.raises(ValidationError, match="members"):
        build_method("ensemble", TASK, {"members": [{"method": "copy"}]})
