"""Learning under observation: a curve, pictures, the best weights, and an end when no better come.

It is laid over what torch trains, so that a method and its `fit` know nothing of it. About every
twentieth of a training the averaged weights answer for the middle slices of the validation people.
Those that do best are kept; what was learnt when nothing better comes for a while is not missed.
Below the checkpoint's folder lie

    curve.csv           a line for each look: step, seconds, loss, dB of each target, their mean
    validation.png      source, truth, answer and error of those people, by the best weights
    best.safetensors    the best weights
"""

import csv
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Self, TypeVar, cast

import numpy as np
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from synthesis.augmentation import Batch
from synthesis.methods.learner import STATE, Learner, LearnerParameters, Player
from synthesis.pictures import SheetRow, write_sheet
from synthesis.synthesizer import Synthesizer
from synthesis.types import Case, ContrastLabel

CURVE = "curve.csv"
SHEET = "validation.png"
BEST = "best.safetensors"
LOOKS = 20
"""In a whole training, where that many steps are a multiple of those after which it averages."""
SLICES_LOOKED_AT = 32
LOOK_SPACING = (3.0, 1.0, 1.0)
"""As of thick slices: a method of several views looks along one, in a third of the time."""
PICTURED = (0.3, 0.5, 0.7)
"""Where in the slices looked at those of the sheet lie."""
MOST_PICTURED = 4
"""People on the sheet."""
STEP, PROGRESS, SECONDS, LOSS, MEAN = "step", "progress", "seconds", "loss", "mean"

Report = Callable[[float], None]
"""Is told how much of a training is over, from 0 to 1, after every step."""

L = TypeVar("L", bound=LearnerParameters)

logger = logging.getLogger(__name__)


class _EnoughError(Exception):
    """Nothing better came for as long as patience lasts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """How a training is observed.

    Attributes:
        patience: looks without a better one after which it ends.
        report: told of every step.
    """

    patience: int
    report: Report


def observe(method: Synthesizer[Any], watch: Watch) -> Synthesizer[Any]:
    """Return the method so that its training is observed, if torch trains it."""
    if not isinstance(method, Learner):
        return method
    kind = cast(
        "type[Observed[Any]]",
        type(f"Observed{type(method).__name__}", (Observed, type(method)), {}),
    )
    observed = kind(method.task, method.parameters, device=method.device)
    observed.watch = watch
    return observed


class Observed(Learner[L]):
    """A learner, put before one of the classes that say what is learnt; see `observe`.

    Attributes:
        watch: how it is observed.
        run_: what is known of the training, while it goes on.
    """

    watch: Watch
    run_: "_Run | None" = None

    def fit(
        self,
        cases: Sequence[Case],
        *,
        validation: Sequence[Case] = (),
        seed: int,
        budget: timedelta | None = None,
        checkpoint: Path | None = None,
    ) -> Self:
        """Learn as the method does, and keep the weights that did best on the validation people."""
        if checkpoint is None:
            return super().fit(cases, validation=validation, seed=seed, budget=budget)
        self.run_ = run = _Run(checkpoint, validation, seed)
        run.begin()
        try:
            super().fit(cases, seed=seed, budget=budget, checkpoint=checkpoint)
            if run.last_step != run.step:
                _look(self, run)
        except _EnoughError:
            logger.info("nothing better than step %d for %d looks", run.best, self.watch.patience)
            self.finish(run.players)
        finally:
            self.run_ = None
        if (checkpoint / BEST).exists():
            self.network_ = self._averaged(load_file(checkpoint / BEST))
        return self

    def update(
        self,
        players: Mapping[str, Player],
        batch: Batch,
        progress: float,
        generator: np.random.Generator,
    ) -> Tensor:
        """Take the method's step, and tell of it."""
        loss = super().update(players, batch, progress, generator)
        if self.run_ is not None:
            self.run_.step_taken(players, progress, loss)
            self.watch.report(progress)
        return loss

    def _averaged(self, average: Mapping[str, Tensor]) -> nn.Module:
        network = super()._averaged(average)
        if self.run_ is not None and self.run_.is_due():
            self.network_ = network
            _look(self, self.run_)
            if self.run_.looks_since_best() >= self.watch.patience:
                raise _EnoughError
        return network


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    """What one person's slices gave for one target; dB beside one unit of the normalized scale."""

    subject: str
    target: ContrastLabel
    psnr_db: float
    rows: Sequence[SheetRow]


class _Run:
    """One run of a training: where it is, and what the looks showed, also those before a stop.

    Attributes:
        players: the networks under training.
        step: steps taken, in earlier runs too.
        best: step of the best weights.
        best_mean: what they reached in dB.
    """

    def __init__(self, folder: Path, validation: Sequence[Case], seed: int) -> None:
        self.folder = folder
        self.validation = validation
        self.seed = seed
        self.players: Mapping[str, Player] = {}
        self.step = 0
        self.best = 0
        self.best_mean = -float("inf")
        self._rows: list[dict[str, float]] = []
        self._progress = 0.0
        self._looked_at = 0.0
        self._losses: Tensor | None = None
        self._counted = 0
        self._seconds = 0.0
        self._started = time.monotonic()

    @property
    def last_step(self) -> int:
        """The step of the last look, or -1."""
        return int(self._rows[-1][STEP]) if self._rows else -1

    def begin(self) -> None:
        """Take up what an earlier run left; looks after its last saved state are taken again."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / STATE).exists():
            for name in (CURVE, BEST, SHEET):
                (self.folder / name).unlink(missing_ok=True)
            return
        with safe_open(self.folder / STATE, framework="pt") as state:
            self.step = int(state.get_tensor("step"))
        if (self.folder / CURVE).exists():
            with (self.folder / CURVE).open(newline="") as file:
                rows = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]
            self._rows = [row for row in rows if row[STEP] <= self.step]
        if self._rows:
            self._looked_at, self._seconds = self._rows[-1][PROGRESS], self._rows[-1][SECONDS]
        if (self.folder / BEST).exists():
            with safe_open(self.folder / BEST, framework="pt") as kept:
                facts = kept.metadata()
            self.best, self.best_mean = int(facts[STEP]), float(facts[MEAN])

    def step_taken(self, players: Mapping[str, Player], progress: float, loss: Tensor) -> None:
        """Count a step of the players; `progress` is that at its begin."""
        self.players = players
        self.step += 1
        self._progress = progress
        # it is less than before where the next run has more time
        self._looked_at = min(self._looked_at, progress)
        self._losses = loss if self._losses is None else self._losses + loss
        self._counted += 1

    def is_due(self) -> bool:
        """Whether it is time to look."""
        return self._counted > 0 and self._progress - self._looked_at >= 1 / LOOKS

    def add(self, figures: Mapping[str, float]) -> bool:
        """Write down a look; return whether no other was as good."""
        row = {
            STEP: float(self.step),
            PROGRESS: self._progress,
            SECONDS: round(self._seconds + time.monotonic() - self._started, 1),
        }
        if self._losses is not None:
            row[LOSS] = float(self._losses) / self._counted
        if figures:
            row |= figures
            row[MEAN] = float(np.mean(list(figures.values())))
        self._losses, self._counted, self._looked_at = None, 0, self._progress
        self._rows.append(row)
        names = dict.fromkeys([STEP, PROGRESS, SECONDS, LOSS, *(k for r in self._rows for k in r)])
        temporary = self.folder / f"{CURVE}.part"
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(names), lineterminator="\n")
            writer.writeheader()
            writer.writerows(
                {k: f"{v:.6g}" if k != STEP else str(int(v)) for k, v in each.items()}
                for each in self._rows
            )
        temporary.rename(self.folder / CURVE)
        if not figures or not row[MEAN] > self.best_mean:
            return False
        self.best, self.best_mean = self.step, row[MEAN]
        return True

    def looks_since_best(self) -> int:
        """Return how many looks there were after the best; none where nobody validates."""
        if not self.validation:
            return 0
        return sum(row[STEP] > self.best for row in self._rows)


def _look(method: Observed[Any], run: _Run) -> None:
    """Let the averaged weights answer, and keep them where they do best."""
    answers = [answer for case in run.validation for answer in _answer(method, case, run.seed)]
    figures: dict[str, float] = {}
    for target in method.task.targets:
        found = [answer.psnr_db for answer in answers if answer.target == target]
        if found:
            figures[target] = float(np.mean(found))
    if run.add(figures):
        pictured = [case.subject for case in run.validation[:MOST_PICTURED]]
        save_file(
            {k: v.contiguous() for k, v in method.network_.state_dict().items()},
            run.folder / BEST,
            metadata={STEP: str(run.step), MEAN: str(run.best_mean)},
        )
        write_sheet(
            run.folder / SHEET,
            [row for each in answers if each.subject in pictured for row in each.rows],
        )


def _answer(method: Observed[Any], case: Case, seed: int) -> list[_Answer]:
    """Return the answers for the middle slices of a person, one for each target."""
    middle = case.mask.shape[0] // 2
    half = SLICES_LOOKED_AT // 2
    cut = slice(max(0, middle - half), middle + half)
    mask = case.mask[cut]
    answers = []
    for target in (t for t in method.task.targets if t in case.images):
        sources = {
            label: case.images[label][cut]
            for label in method.task.sources
            if label in case.images and label != target
        }
        truth = case.images[target][cut]
        made = method.predict(sources, target=target, mask=mask, spacing=LOOK_SPACING, seed=seed)
        error = float(np.mean((made.mean.astype(np.float64) - truth)[mask] ** 2))
        psnr_db = float(-10 * np.log10(max(error, 1e-12)))
        shown = next(iter(sources))
        rows = [
            SheetRow(
                caption=f"{case.subject}: {', '.join(sources)} to {target}, {psnr_db:.1f} dB",
                source=sources[shown][number],
                truth=np.where(mask, truth, 0)[number],
                answer=made.mean[number],
            )
            for number in dict.fromkeys(int(share * len(mask)) for share in PICTURED)
        ]
        answers.append(_Answer(subject=case.subject, target=target, psnr_db=psnr_db, rows=rows))
    return answers
