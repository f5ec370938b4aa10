"""The table of the quality gate, set anew from a model's own training and validation people."""

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from synthesis.datasets import cached_cases, cases_folder
from synthesis.opinion import give_opinion, learn_opinion, measure_disagreement
from synthesis.people import Manifest
from synthesis.quality import DISAGREEMENT, TABLE, fit_table
from synthesis.registry import CARD, LEARNT, ModelCard, hash_files, load_method
from synthesis.synthesizer import Synthesizer
from synthesis.types import Case, ContrastLabel

SLAB_MM = 16.0
"""About the middle of each person, that the method is asked for."""

logger = logging.getLogger(__name__)


def write_table(
    card: ModelCard, manifest: Manifest, *, models_folder: Path, data_folder: Path, work: Path
) -> dict[str, Any]:
    """Set the table of a model anew, enter it into the card, and return it.

    Test people are not looked at. The model's digest changes with the table.

    Args:
        card: of the model.
        manifest: with the people whom the card names.
        models_folder: where the model lies.
        data_folder: where images of people lie who are not prepared below `work`.
        work: see `datasets`.
    """
    folder = models_folder / card.id
    trained, watched = (
        list(
            cached_cases(
                [person for person in manifest.people if person.subject in subjects],
                data_folder,
                cases_folder(work, card.spacing_mm, card.anchor),
                spacing_mm=card.spacing_mm,
                anchor=card.anchor,
            )
        )
        for subjects in (card.training.subjects, card.training.validation)
    )
    method = load_method(models_folder, card.id, card.digest)
    table = fit_table(trained, card.sources, seed=card.training.seed)
    table[DISAGREEMENT] = measure_farthest(method, trained, watched)
    (folder / LEARNT / TABLE).write_text(json.dumps(table))
    facts = yaml.safe_load((folder / CARD).read_text())
    facts["files"] = hash_files(folder)
    text = yaml.safe_dump(facts, sort_keys=False, allow_unicode=True, width=100)
    (folder / CARD).write_text(text)
    return table


def measure_farthest(
    method: Synthesizer[Any], trained: Sequence[Case], watched: Sequence[Case]
) -> dict[str, float]:
    """Return for each target the farthest that the method is from the second opinion in a person.

    The opinion is that of the other training people. Every target is made from all else that a
    person has.
    """
    slabs = [_cut_slab(case) for case in (*trained, *watched)]
    table = learn_opinion(slabs)
    farthest: dict[str, float] = {}
    for number, case in enumerate(slabs):
        others = [p for k, p in enumerate(table[: len(trained)]) if k != number]
        for target in (t for t in method.task.targets if t in case.images):
            given = [s for s in method.task.sources if s in case.images and s != target]
            if not given or set(method.task.required) - set(given):
                continue
            disagreement = _disagree(method, case, given, target, others)
            logger.info("%s: %s: %s", case.subject, target, disagreement)
            if disagreement is not None:
                farthest[target] = max(farthest.get(target, 0.0), disagreement)
    return farthest


def _disagree(
    method: Synthesizer[Any],
    case: Case,
    given: Sequence[ContrastLabel],
    target: ContrastLabel,
    table: list[dict[str, dict[str, float]]],
) -> float | None:
    sources = {label: case.images[label] for label in given}
    opinion = give_opinion(table, sources, target=target, mask=case.mask, spacing=case.spacing)
    if opinion is None:
        return None
    made = method.predict(sources, target=target, mask=case.mask, spacing=case.spacing, seed=0).mean
    return round(measure_disagreement(made, opinion, case.mask), 4)


def _cut_slab(case: Case) -> Case:
    slices = np.flatnonzero(case.mask.any(axis=(1, 2)))
    middle, half = int(slices.mean()), max(2, round(SLAB_MM / 2 / case.spacing[0]))
    cut = slice(max(0, middle - half), middle + half)
    images = {label: image[cut] for label, image in case.images.items()}
    return replace(case, images=images, mask=case.mask[cut], labels=None)
