"""One training run: experiment file → cases → fit → gate → brain mask → model folder with card.

Resumable: progress lies in `<work>/<model>/`; a run that was stopped goes on where it was. What
torch trains leaves its curve and pictures there too, see `methods.observation`.
"""

import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field

from synthesis.datasets import cached_cases, cases_folder
from synthesis.errors import TrainingError
from synthesis.methods import build_method
from synthesis.metrics.ours import coverage, peak_signal_to_noise, structural_similarity
from synthesis.people import Manifest, read_manifest
from synthesis.quality import TABLE, fit_table
from synthesis.registry import CARD, CONSTANTS, LEARNT, hash_files
from synthesis.synthesizer import Synthesizer, ask
from synthesis.types import Anchor, Case, ContrastLabel, Precision, Prediction, SynthesisTask

FIGURES = "figures.json"
BANDS = "bands.json"

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
        brain_mask: how the mask of a skull-stripped model is learnt, or the folder of a model that
            has one, beside the experiment file.
        fits_ct: CTs are bent to lie on the MR (`fitting`), and people teach where both have body.
        patience: how often the validation people may be looked at, 20 times in a whole training,
            without a better answer before what torch trains ends; the best weights are kept.
        precision: of the arithmetic with which the model answers, see `backends`.
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
    precision: Precision = "float32"
    people: Path
    datasets: tuple[str, ...]
    fits_ct: bool = False
    seed: int
    patience: int = Field(default=8, ge=1)
    parameters: dict[str, Any] = {}
    brain_mask: BrainMaskTraining | Path | None = None
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
    """Read an experiment file; paths within are made relative to it."""
    experiment = Experiment.model_validate(yaml.safe_load(path.read_text()))
    changes: dict[str, Any] = {"people": path.parent / experiment.people}
    if isinstance(experiment.brain_mask, Path):
        changes["brain_mask"] = path.parent / experiment.brain_mask
    return experiment.model_copy(update=changes)


def read_cases(experiment: Experiment, *, data_folder: Path, work: Path) -> dict[str, list[Case]]:
    """Return the cases of `train` and `validation`, prepared where they are not yet.

    Raises:
        TrainingError: a person is not prepared and there are no images.
    """
    manifest = read_manifest(experiment.people)
    contrasts = frozenset(experiment.sources) | frozenset(experiment.targets)
    cache = cases_folder(work, experiment.spacing_mm, experiment.anchor, fits_ct=experiment.fits_ct)
    return {
        split: [
            case
            for dataset in experiment.datasets
            for case in cached_cases(
                manifest.select(split, contrasts, dataset),
                data_folder,
                cache,
                spacing_mm=experiment.spacing_mm,
                anchor=experiment.anchor,
                fits_ct=experiment.fits_ct,
            )
        ]
        for split in ("train", "validation")
    }


def train(
    experiment: Experiment,
    *,
    data_folder: Path,
    work: Path,
    budget: timedelta | None = None,
    device: str = "auto",
    report: Callable[[float], None] = lambda _: None,
) -> Path:
    """Train a method and return the folder that holds what it learnt.

    Args:
        experiment: what to train.
        data_folder: where images lie.
        work: where progress lies.
        budget: wall-clock time after which to stop training.
        device: see `Synthesizer`.
        report: told how much is over, from 0 to 1, by what torch trains.

    Raises:
        TrainingError: nobody in the manifest can teach this task.
    """
    cases = read_cases(experiment, data_folder=data_folder, work=work)
    checkpoint = work / experiment.model
    method = fit(experiment, cases, checkpoint, budget, device, report)
    learnt = keep(experiment, method, cases, checkpoint)
    if isinstance(experiment.brain_mask, Path):
        from synthesis.methods import brain_mask  # noqa: PLC0415 - torch only where it is needed

        shutil.copy(experiment.brain_mask / LEARNT / brain_mask.WEIGHTS, learnt)
    elif experiment.brain_mask is not None:
        _train_brain_mask(experiment, experiment.brain_mask, data_folder, checkpoint)
    return learnt


def judge_without(
    experiment: Experiment,
    without: str,
    *,
    data_folder: Path,
    work: Path,
    budget: timedelta | None = None,
    device: str = "auto",
    report: Callable[[float], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """Train without some of the training people, judge on them, and return a row for each task.

    It steers: recipes are compared on people of a site that the network never saw, and the test
    people stay unseen. The rows are also kept in the run's folder.

    Args:
        experiment: what to train.
        without: how the subjects begin who are left out, such as a data set or a site in it.
        data_folder: where images lie.
        work: where progress lies.
        budget: wall-clock time after which to stop training.
        device: see `Synthesizer`.
        report: see `train`.

    Raises:
        TrainingError: nobody is left out, or nobody is left.
    """
    cases = read_cases(experiment, data_folder=data_folder, work=work)
    everyone = [case for split in cases.values() for case in split]
    out = [case for case in everyone if case.subject.startswith(without)]
    if not out:
        raise TrainingError(f"no subject of {experiment.people} begins with {without!r}")
    left = {
        split: [case for case in members if not case.subject.startswith(without)]
        for split, members in cases.items()
    }
    folder = work / f"{experiment.model}-without-{without}"
    method = fit(experiment, left, folder, budget, device, report)
    rows = [row for case in out for row in _judge(method, case)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FIGURES).write_text(json.dumps(rows, indent=2))
    return rows


def fit(
    experiment: Experiment,
    cases: Mapping[str, Sequence[Case]],
    checkpoint: Path,
    budget: timedelta | None,
    device: str,
    report: Callable[[float], None],
) -> Synthesizer[Any]:
    """Return the experiment's method, learnt from `train` and watched on `validation`.

    Args:
        experiment: what to train.
        cases: of each split.
        checkpoint: where progress lies.
        budget: wall-clock time after which to stop training.
        device: see `Synthesizer`.
        report: see `train`.

    Raises:
        TrainingError: there is nobody to learn from.
    """
    from synthesis.methods.observation import Watch, observe  # noqa: PLC0415 - loads torch

    if not cases["train"]:
        raise TrainingError(f"{experiment.people}: nobody to train {experiment.model} on")
    logger.info("training on %d cases", len(cases["train"]))
    method = build_method(experiment.method, experiment.task, experiment.parameters, device=device)
    watch = Watch(patience=experiment.patience, report=report)
    return observe(method, watch).fit(
        [case.known for case in cases["train"]],
        validation=[case.known for case in cases["validation"]],
        seed=experiment.seed,
        budget=budget,
        checkpoint=checkpoint,
    )


def keep(
    experiment: Experiment,
    method: Synthesizer[Any],
    cases: Mapping[str, Sequence[Case]],
    checkpoint: Path,
    *,
    every: int = 1,
) -> Path:
    """Write what was learnt, with the band's factors, constants and gate; return its folder.

    Args:
        experiment: that was trained.
        method: that has learnt.
        cases: of each split.
        checkpoint: where progress lies; the folder lies below.
        every: the table of the gate is fitted to one in so many of the training cases.
    """
    learnt = checkpoint / LEARNT
    learnt.mkdir(parents=True, exist_ok=True)
    method.save(learnt)
    scales = method.measure_band([case.known for case in cases["validation"]], seed=experiment.seed)
    table = fit_table(cases["train"][::every], experiment.sources, seed=experiment.seed)
    for path, document in (
        (checkpoint / BANDS, scales),
        (learnt / CONSTANTS, _measure_constants(cases["train"], experiment)),
        (learnt / TABLE, table),
    ):
        path.write_text(json.dumps(document))
    return learnt


def _judge(method: Synthesizer[Any], case: Case) -> list[dict[str, Any]]:
    """Return a row for each target of a person, given all others and given the first alone."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        rows = []
        for target in (t for t in method.task.targets if t in case.images):
            others = [s for s in method.task.sources if s in case.images and s != target]
            for given in dict.fromkeys([tuple(others), (others[0],)]):
                answer = ask(method, case, given, target, seed=0)
                rows.append(pool.submit(_compare, case, target, given, answer))
        return [row.result() for row in rows]


def _compare(
    case: Case, target: ContrastLabel, given: Sequence[ContrastLabel], answer: Prediction
) -> dict[str, Any]:
    truth, made, mask = case.images[target], answer.mean, case.known.mask
    # what is lost to level and contrast alone, which differ between scanners
    slope, offset = np.polyfit(made[mask].astype(float), truth[mask].astype(float), 1)
    fitted = (slope * made + offset).astype(np.float32)
    row: dict[str, Any] = {
        "subject": case.subject,
        "target": target,
        "sources": given,
        "psnr_db": peak_signal_to_noise(truth, made, mask),
        "psnr_db_after_linear_fit": peak_signal_to_noise(truth, fitted, mask),
        "ssim": structural_similarity(truth, made, mask),
    }
    if answer.lower is not None and answer.upper is not None:
        row["band_coverage"] = coverage(truth, answer.lower, answer.upper, mask)
    return row


def register(experiment: Experiment, learnt: Path, models_folder: Path) -> Path:
    """Move what was learnt into a model folder and write its card; returns the folder.

    The card's texts come from the experiment file; figures are added by `synthesis evaluate`.

    Raises:
        TrainingError: the card offers a method for more than research that is only for that.
    """
    method = build_method(experiment.method, experiment.task, experiment.parameters)
    offered = {
        t: f["state"] for t, f in experiment.card["targets"].items() if f["state"] != "research"
    }
    if method.research_only and offered:
        raise TrainingError(
            f"{experiment.model}: {experiment.method} is for research only; the card says {offered}"
        )
    folder = models_folder / experiment.model
    shutil.copytree(learnt, folder / LEARNT, dirs_exist_ok=True)
    manifest = read_manifest(experiment.people)
    scales = json.loads((learnt.parent / BANDS).read_text())
    targets = {
        target: facts | ({"band_scale": scales[target]} if target in scales else {})
        for target, facts in experiment.card["targets"].items()
    }
    card = experiment.card | {
        "targets": targets,
        "id": experiment.model,
        "version": experiment.version,
        "method": experiment.method,
        "sources": list(experiment.sources),
        "required": list(experiment.required),
        "spacing_mm": experiment.spacing_mm,
        "anchor": asdict(experiment.anchor),
        "precision": experiment.precision,
        "parameters": experiment.parameters,
        "training": {
            "subjects": experiment.names(manifest, "train"),
            "validation": experiment.names(manifest, "validation"),
            "test": experiment.names(manifest, "test"),
            "data": {
                name: manifest.datasets[name].licence
                for name in (*experiment.datasets, *experiment.tested_on)
            }
            | _name_teachers_of_brain_mask(experiment),
            "trained_on": datetime.now(tz=UTC).date().isoformat(),
            "seed": experiment.seed,
        },
        "files": hash_files(folder),
    }
    path = folder / CARD
    path.write_text(yaml.safe_dump(card, sort_keys=False, allow_unicode=True, width=100))
    return folder


def _name_teachers_of_brain_mask(experiment: Experiment) -> dict[str, str]:
    """Return whom the brain mask was learnt from, beside the people, and under which licence."""
    settings = experiment.brain_mask
    if settings is None:
        return {}
    if isinstance(settings, Path):
        card = yaml.safe_load((settings / CARD).read_text())
        return {f"brain mask of {card['id']}": "; ".join(card["training"]["data"].values())}
    return {settings.anatomy.name: settings.licence}


def _measure_constants(cases: Sequence[Case], experiment: Experiment) -> dict[str, float]:
    """Return the training people's median of each target inside the mask: the least baseline."""
    return {
        target: float(
            np.median(
                [np.median(c.images[label][c.known.mask]) for c in cases if label in c.images]
            )
        )
        for target in experiment.targets
        for label in [ContrastLabel(target)]
    }


def _train_brain_mask(
    experiment: Experiment,
    settings: BrainMaskTraining,
    data_folder: Path,
    checkpoint: Path,
) -> None:
    """Train the brain mask once; its weights are kept beside the checkpoint."""
    from synthesis.methods import brain_mask  # noqa: PLC0415 - torch only where it is needed

    manifest = read_manifest(experiment.people)
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
