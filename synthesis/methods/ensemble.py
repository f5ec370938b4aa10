"""Ensemble: the plain mean of methods of different families.

Where families err differently, a part of the errors cancels (Krogh 1995): the mean is at least as
near to the truth as they are on average, and the nearer, the less their errors have in common. No
weight is learnt, so that none is fitted to the scanners that taught it. A voxel's band is the mean
of the members' bands, laid about the common mean.
"""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator

from synthesis.methods import GENERATIVE, build_method
from synthesis.methods.calibration import widen_by_slices
from synthesis.synthesizer import Parameters, Synthesizer
from synthesis.types import Case, ContrastLabel, FloatArray, MaskArray, Precision, Prediction

ENSEMBLE = "ensemble"


class Member(BaseModel):
    """A method that takes part, with its own parameters."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str
    parameters: Mapping[str, Any] = {}

    @field_validator("method")
    @classmethod
    def _is_plain(cls, method: str) -> str:
        # a card's lock and figures on lesions go by the name of its method
        if method in GENERATIVE or method == ENSEMBLE:
            raise ValueError(f"{method} takes part in no ensemble: its card could not say so")
        return method


class EnsembleParameters(Parameters):
    """Hyper-parameters of `Ensemble`."""

    members: tuple[Member, ...] = Field(min_length=2)


class Ensemble(Synthesizer[EnsembleParameters]):
    """The mean of the members' answers to the same request."""

    parameters_type = EnsembleParameters
    members_: Sequence[Synthesizer[Any]]

    def fit(
        self,
        cases: Sequence[Case],
        *,
        validation: Sequence[Case] = (),
        seed: int,
        budget: timedelta | None = None,
        checkpoint: Path | None = None,
    ) -> Self:
        """Let each member learn; each has the same part of the budget."""
        members = self._build()
        for number, member in enumerate(members):
            member.fit(
                cases,
                validation=validation,
                seed=seed,
                budget=None if budget is None else budget / len(members),
                checkpoint=None if checkpoint is None else checkpoint / str(number),
            )
        return self.gather(members)

    def gather(self, members: Sequence[Synthesizer[Any]]) -> Self:
        """Take members that have learnt already; they may answer for more than this task."""
        self.members_ = members
        return self

    def predict(
        self,
        sources: Mapping[ContrastLabel, FloatArray],
        *,
        target: ContrastLabel,
        mask: MaskArray,
        spacing: tuple[float, float, float],
        seed: int,
    ) -> Prediction:
        """Average the members' answers, and the bands of those that have one."""
        self.check_request(sources, target, mask)
        answers = [
            member.predict(sources, target=target, mask=mask, spacing=spacing, seed=seed)
            for member in self.members_
        ]
        mean = _average([answer.mean for answer in answers])
        below = [a.mean - a.lower for a in answers if a.lower is not None]
        above = [a.upper - a.mean for a in answers if a.upper is not None]
        if not below or not above:
            return Prediction(mean=mean)
        return Prediction(mean=mean, lower=mean - _average(below), upper=mean + _average(above))

    def measure_band(self, cases: Sequence[Case], *, seed: int) -> dict[str, float]:
        """Return the factors of `calibration`."""
        return widen_by_slices(self, cases, seed=seed)

    def save(self, folder: Path) -> None:
        """Let each member write below a folder of its own."""
        for number, member in enumerate(self.members_):
            own = folder / str(number)
            own.mkdir(parents=True, exist_ok=True)
            member.save(own)

    def restore(self, folder: Path) -> Self:
        """Read the members."""
        return self.gather(
            [each.restore(folder / str(number)) for number, each in enumerate(self._build())]
        )

    def accelerate(self, precision: Precision) -> None:
        """Let each member choose."""
        for member in self.members_:
            member.accelerate(precision)

    @property
    def backend(self) -> Mapping[str, Any]:
        """What the members say, each word once."""
        told = [member.backend for member in self.members_]
        merged: dict[str, Any] = {}
        for name in dict.fromkeys(key for each in told for key in each):
            values = list(dict.fromkeys(each[name] for each in told if name in each))
            merged[name] = values[0] if len(values) == 1 else " + ".join(map(str, values))
        return merged

    def _build(self) -> list[Synthesizer[Any]]:
        return [
            build_method(each.method, self.task, dict(each.parameters), device=self.device)
            for each in self.parameters.members
        ]


def _average(arrays: Sequence[FloatArray]) -> FloatArray:
    mean: FloatArray = np.mean(arrays, axis=0, dtype=np.float32)
    return mean
