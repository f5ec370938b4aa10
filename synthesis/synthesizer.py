"""The plugin interface: what every synthesis method is.

A method works on normalized float32 arrays that lie on one grid; it sees no DICOM, no files of
images and no affines. It learns from `Case`s and answers with a `Prediction`.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict
from threadpoolctl import threadpool_info

from synthesis.errors import MissingSource, SynthesisError, UnusableInput
from synthesis.types import (
    Case,
    ContrastLabel,
    FloatArray,
    MaskArray,
    Precision,
    Prediction,
    SynthesisTask,
)


class Parameters(BaseModel):
    """A method's hyper-parameters; each method subclasses it."""

    model_config = ConfigDict(frozen=True, extra="forbid")


P = TypeVar("P", bound=Parameters)


class Synthesizer(ABC, Generic[P]):
    """One synthesis method.

    The constructor stores its arguments and does nothing else. `fit` forgets earlier fits.

    Args:
        task: what is learnt.
        parameters: the method's own hyper-parameters.
        device: where a method that can use a GPU computes: `auto`, `cpu`, `cuda`, `cuda:1`. It
            changes no pixel by more than rounding, and so is no parameter.
    """

    parameters_type: ClassVar[type[Parameters]]
    research_only: ClassVar[bool] = False
    """Whether no card may offer the method for more than research, however well it scores."""

    def __init__(self, task: SynthesisTask, parameters: P, *, device: str = "auto") -> None:
        self.task = task
        self.parameters = parameters
        self.device = device

    @abstractmethod
    def fit(
        self,
        cases: Sequence[Case],
        *,
        validation: Sequence[Case] = (),
        seed: int,
        budget: timedelta | None = None,
        checkpoint: Path | None = None,
    ) -> Self:
        """Learn from the cases.

        Args:
            cases: training people; the arrays are not changed.
            validation: watched, never learnt from.
            seed: of every random draw.
            budget: time of work after which to stop with a valid model, see `time_worked`.
            checkpoint: folder from which to resume and into which to save progress.
        """

    @abstractmethod
    def predict(
        self,
        sources: Mapping[ContrastLabel, FloatArray],
        *,
        target: ContrastLabel,
        mask: MaskArray,
        spacing: tuple[float, float, float],
        seed: int,
    ) -> Prediction:
        """Synthesize one target.

        Args:
            sources: normalized arrays (slices, rows, columns) on one grid; an absent key is an
                absent contrast. Not changed.
            target: one of the task's targets.
            mask: where the sources mean something; outside it the answer is zero.
            spacing: (slices, rows, columns) in mm.
            seed: of every random draw; the same seed gives the same answer.

        Raises:
            MissingSource: a contrast that the method needs is absent.
            UnusableInput: the arrays are no image, see `check_request`.
        """

    def measure_band(self, cases: Sequence[Case], *, seed: int) -> dict[str, float]:
        """Return for each target by how much its band must be widened to hold what it promises.

        Args:
            cases: people who were not learnt from.
            seed: of every random draw.
        """
        return {}

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write what was learnt below `folder`, without pickles."""

    @abstractmethod
    def restore(self, folder: Path) -> Self:
        """Read what `save` wrote."""

    def accelerate(self, precision: Precision) -> None:
        """Choose, once restored, how to compute on this machine; see `backends`."""

    @property
    def backend(self) -> Mapping[str, Any]:
        """How it computes here, for the record: what may change the last bit of a pixel.

        A method that chooses no way of its own takes its libraries as they come.
        """
        threads = max((pool["num_threads"] for pool in threadpool_info()), default=1)
        return {"backend": "plain", "precision": "float32", "threads": threads}

    def check_request(
        self,
        sources: Mapping[ContrastLabel, FloatArray],
        target: ContrastLabel,
        mask: MaskArray,
    ) -> None:
        """Check that the task covers the sources and the target, and that there is an image.

        Raises:
            MissingSource: a required source is absent, or none is there.
            SynthesisError: a contrast that the task does not know.
            UnusableInput: `shape`, `mask` or `not_finite`.
        """
        self.check_task(sources, target)
        for label, array in sources.items():
            if array.shape != mask.shape or array.ndim != 3:  # noqa: PLR2004 - a volume
                raise UnusableInput(
                    "shape", f"{label} measures {array.shape} and the mask {mask.shape}"
                )
            if not np.isfinite(array).all():
                raise UnusableInput("not_finite", f"{label} holds NaN or infinity")
        if not mask.any():
            raise UnusableInput("mask", "the mask is empty")

    def check_task(self, sources: Collection[ContrastLabel], target: ContrastLabel) -> None:
        """Check that the task covers the contrasts.

        Raises:
            MissingSource: a required source is absent, or none is there.
            SynthesisError: a contrast that the task does not know.
        """
        known = set(self.task.sources)
        unknown = set(sources) - known
        if unknown:
            raise SynthesisError(f"sources {sorted(unknown)} are not among {sorted(known)}")
        if target not in self.task.targets:
            raise SynthesisError(f"target {target} is not among {self.task.targets}")
        missing = set(self.task.required) - set(sources)
        if missing or not sources:
            wanted = sorted(missing) if missing else f"any of {sorted(known)}"
            raise MissingSource(f"the method needs {wanted}; given: {sorted(sources)}")


def ask(
    method: Synthesizer[Any],
    case: Case,
    sources: Collection[ContrastLabel],
    target: ContrastLabel,
    *,
    seed: int,
) -> Prediction:
    """Return what the method answers for a person who has been prepared, given some contrasts."""
    given = {label: case.images[label] for label in sources}
    return method.predict(given, target=target, mask=case.mask, spacing=case.spacing, seed=seed)
