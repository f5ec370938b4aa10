"""One training run: experiment file → cases → fit → gate → brain mask → model folder with card.

Resumable: progress lies in `<work>/<model>/`; a run that was stopped goes on where it was.
"""

import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict

from synthesis.datasets import Manifest, cached_cases, read_manifest
from synthesis.errors import TrainingError
from synthesis.methods import build_method
from synthesis.quality import TABLE, fit_table
from synthesis.registry import CARD, CONSTANTS, LEARNT
from synthesis.types import Anchor, Case, ContrastLabel, SynthesisTask

logger = logging.getLogger(__name__)


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BrainMaskTraining(_Strict):
    """How the brain mask of a skull-stripped model is learnt.

    Attributes:
        anatomy: MINC file of tissue labels, below the data folder, rendered with random contrasts;
            the training people who have a label file for their mask teach too.
        brain_labels: labels of `anatomy` that are brain.
        renderings: random contrasts of the anatomy.
        licence: of the anatomy; stands on the card with those of the people.
    """

    anatomy: Path
    licence: str
    brain_labels: tuple[int, ...]
    renderings: int
    steps: int


class Experiment(_Strict):
    """What to train, on whom, how.

    Attributes:
        people: manifest, beside the experiment file.
        datasets: data sets of the manifest that are learnt from.
        tested_on: further data sets, whose test people judge the model.
        required: sources that the model cannot do without.
        card: what the card says beyond what training knows.
    """

    model: str
    version: str
    method: str
    sources: tuple[str, ...]
    targets: tuple[str, ...]
    required: tuple[str, ...] = ()
    spacing_mm: float
    anchor: Anchor = Anchor()
    people: Path
    datasets: tuple[str, ...]
    seed: int
    parameters: dict[str, Any] = {}
    brain_mask: BrainMaskTraining | None = None
    tested_on: tuple[str, ...] = ()
    card: dict[str, Any]

    def names(self, manifest: Manifest, split: str) -> list[str]:
        """Return the subjects of a split who have what the task needs."""
        contrasts = frozenset(self.sources) | frozenset(self.targets)
        datasets = self.datasets if split != "test" else (*self.datasets, *self.tested_on)
        return [p.subject for d in datasets for p in manifest.select(split, contrasts, d)]

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
    cache = work / f"cases-{experiment.spacing_mm:g}mm-p{experiment.anchor.percentile:g}"
    cases = {
        split: [
            case
            for dataset in experiment.datasets
            for case in cached_cases(
                manifest.select(split, contrasts, dataset),
                data_folder,
                cache,
                spacing_mm=experiment.spacing_mm,
                anchor=experiment.anchor,
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
    learnt = checkpoint / LEARNT
    learnt.mkdir(parents=True, exist_ok=True)
    method.save(learnt)
    (learnt / CONSTANTS).write_text(json.dumps(_measure_constants(cases["train"], experiment)))
    table = fit_table(cases["train"], experiment.sources, seed=experiment.seed)
    (learnt / TABLE).write_text(json.dumps(table))
    if experiment.brain_mask is not None:
        _train_brain_mask(experiment, experiment.brain_mask, manifest, data_folder, checkpoint)
    return learnt


def register(experiment: Experiment, learnt: Path, models_folder: Path) -> Path:
    """Move what was learnt into a model folder and write its card; returns the folder.

    The card's texts come from the experiment file; figures are added by `synthesis evaluate`.
    """
    folder = models_folder / experiment.model
    shutil.copytree(learnt, folder / LEARNT, dirs_exist_ok=True)
    manifest = read_manifest(experiment.people)
    card = experiment.card | {
        "id": experiment.model,
        "version": experiment.version,
        "method": experiment.method,
        "sources": list(experiment.sources),
        "required": list(experiment.required),
        "spacing_mm": experiment.spacing_mm,
        "anchor": asdict(experiment.anchor),
        "parameters": experiment.parameters,
        "training": {
            "subjects": experiment.names(manifest, "train"),
            "validation": experiment.names(manifest, "validation"),
            "test": experiment.names(manifest, "test"),
            "data": {
                name: manifest.datasets[name].licence
                for name in (*experiment.datasets, *experiment.tested_on)
            }
            | (
                {experiment.brain_mask.anatomy.name: experiment.brain_mask.licence}
                if experiment.brain_mask
                else {}
            ),
            "trained_on": datetime.now(tz=UTC).date().isoformat(),
            "seed": experiment.seed,
        },
    }
    path = folder / CARD
    path.write_text(yaml.safe_dump(card, sort_keys=False, allow_unicode=True, width=100))
    return folder


def _measure_constants(cases: Sequence[Case], experiment: Experiment) -> dict[str, float]:
    """Return the training people's median of each target inside the mask: the least baseline."""
    return {
        target: float(
            np.median([np.median(c.images[label][c.mask]) for c in cases if label in c.images])
        )
        for target in experiment.targets
        for label in [ContrastLabel(target)]
    }


def _train_brain_mask(
    experiment: Experiment,
    settings: BrainMaskTraining,
    manifest: Manifest,
    data_folder: Path,
    checkpoint: Path,
) -> None:
    """Train the brain mask once; its weights are kept beside the checkpoint."""
    from synthesis.methods import brain_mask  # noqa: PLC0415 - torch only where it is needed

    kept = checkpoint / "brain-mask"
    if not (kept / brain_mask.WEIGHTS).exists():
        heads = [
            brain_mask.read_head(
                data_folder / next(iter(person.images.values())), data_folder / person.mask
            )
            for person in manifest.people
            if person.split == "train"
            and person.dataset in experiment.datasets
            and manifest.datasets[person.dataset].skull == "whole head"
        ]
        heads += brain_mask.render_heads(
            data_folder / settings.anatomy,
            settings.brain_labels,
            count=settings.renderings,
            seed=experiment.seed,
        )
        brain_mask.train_brain_mask(heads, kept, seed=experiment.seed, steps=settings.steps)
    shutil.copy(kept / brain_mask.WEIGHTS, checkpoint / LEARNT / brain_mask.WEIGHTS)
