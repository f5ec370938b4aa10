"""One training run: experiment file → cases → fit → model folder with weights.

Resumable: progress lies in `<work>/<model>/`; a run that was stopped goes on where it was.
"""

import logging
from datetime import timedelta
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict

from synthesis.datasets import cached_cases, read_manifest
from synthesis.errors import TrainingError
from synthesis.methods import build_method
from synthesis.types import ContrastLabel, SynthesisTask

logger = logging.getLogger(__name__)


class Experiment(BaseModel):
    """What to train, on whom, how.

    Attributes:
        people: manifest, beside the experiment file.
        datasets: data sets of the manifest that are used.
        required: sources that the model cannot do without.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    version: str
    method: str
    sources: tuple[str, ...]
    targets: tuple[str, ...]
    required: tuple[str, ...] = ()
    spacing_mm: float
    people: Path
    datasets: tuple[str, ...]
    seed: int
    parameters: dict[str, Any] = {}

    @property
    def task(self) -> SynthesisTask:
        """The task that the method learns."""
        return SynthesisTask(
            sources=tuple(ContrastLabel(s) for s in self.sources),
            targets=tuple(ContrastLabel(t) for t in self.targets),
            required=tuple(ContrastLabel(r) for r in self.required),
        )


def read_experiment(path: Path) -> Experiment:
    """Read an experiment file; the manifest's path is made relative to it."""
    experiment = Experiment.model_validate(yaml.safe_load(path.read_text()))
    return experiment.model_copy(update={"people": path.parent / experiment.people})


def train(
    experiment: Experiment, *, data_folder: Path, work: Path, budget: timedelta | None = None
) -> Path:
    """Train a method and return the folder that holds what it learnt.

    Raises:
        TrainingError: nobody in the manifest can teach this task.
    """
    manifest = read_manifest(experiment.people)
    contrasts = frozenset(experiment.sources) | frozenset(experiment.targets)
    cache = work / f"cases-{experiment.spacing_mm:g}mm"
    cases = {
        split: [
            case
            for dataset in experiment.datasets
            for case in cached_cases(
                manifest.select(split, contrasts, dataset),
                data_folder,
                cache,
                spacing_mm=experiment.spacing_mm,
            )
        ]
        for split in ("train", "validation")
    }
    if not cases["train"]:
        raise TrainingError(f"{experiment.people}: nobody to train {experiment.model} on")
    logger.info("training on %d people", len(cases["train"]))
    method = build_method(experiment.method, experiment.task, experiment.parameters)
    checkpoint = work / experiment.model
    method.fit(
        cases["train"],
        validation=cases["validation"],
        seed=experiment.seed,
        budget=budget,
        checkpoint=checkpoint,
    )
    learnt = checkpoint / "learnt"
    learnt.mkdir(parents=True, exist_ok=True)
    method.save(learnt)
    return learnt
