"""Models made at once: one of no worth under a shipped one's name, and those of a method.

The walk does not care how good a model is, and a crash at thirteen steps is not worth thirteen runs
of a network. They take every image; the first copies the best source with a matched histogram.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from synthesis.quality import TABLE as QUALITY_TABLE
from synthesis.quality import describe
from synthesis.registry import CARD, LEARNT, hash_files
from synthesis.synthesizer import Synthesizer
from synthesis.types import SynthesisTask

CONTRASTS = ("T1w", "T1c", "T2w", "FLAIR")


def write_copying_model(
    models_folder: Path,
    model_id: str = "brain-any-unet25d",
    *,
    targets: tuple[str, ...] = ("T1w", "T2w", "FLAIR"),
    modality: str = "MR",
    units: str = "standard scale",
) -> None:
    """Write a model of whole heads, and of limbs, that makes its targets as a matched copy."""
    learnt = models_folder / model_id / LEARNT
    learnt.mkdir(parents=True)
    card = {
        "id": model_id,
        "version": "test",
        "method": "copy",
        "sources": list(CONTRASTS),
        "targets": {
            target: {"modality": modality, "state": "approved", "units": units}
            for target in targets
        },
        "anatomy": ["BRAIN", "HEAD", "EXTREMITY"],
        "skull": "whole head",
        "spacing_mm": 3.0,
        "description": "A copy with a matched histogram, for tests.",
        "intended_use": "research",
        "licence": "Apache-2.0",
        "training": {"subjects": [], "data": {}, "trained_on": "2026-01-01", "seed": 0},
    }
    landmarks = [round(0.05 + number * 0.06, 3) for number in range(15)]
    order = {target: [one for one in CONTRASTS if one != target] for target in targets}
    table = {"landmarks": dict.fromkeys(targets, landmarks), "order": order}
    (learnt / "table.json").write_text(json.dumps(table))
    (learnt / QUALITY_TABLE).write_text(json.dumps(welcome_all(CONTRASTS)))
    write_card(models_folder / model_id, card)


def write_copying_picture_model(
    models_folder: Path, model_id: str, source: str, target: str, modality: str
) -> None:
    """Write a model of pictures that makes `target` of `source` as a matched copy."""
    learnt = models_folder / model_id / LEARNT
    learnt.mkdir(parents=True)
    units = "standard scale" if modality in {"CR", "DX"} else "display"
    card = {
        "id": model_id,
        "version": "test",
        "method": "copy",
        "sources": [source],
        "targets": {target: {"modality": modality, "state": "research", "units": units}},
        "anatomy": ["EXTREMITY", "CHEST", "ABDOMEN", "SKIN"],
        "skull": "none",
        "bias_field": False,
        "source_units": {source: units} if units == "display" else {},
        "spacing_mm": 1.0,
        "description": "A copy with a matched histogram, for tests.",
        "intended_use": "research",
        "licence": "Apache-2.0",
        "training": {"subjects": [], "data": {}, "trained_on": "2026-01-01", "seed": 0},
    }
    landmarks = [round(0.05 + number * 0.06, 3) for number in range(15)]
    table = {"landmarks": {target: landmarks}, "order": {target: [source]}}
    (learnt / "table.json").write_text(json.dumps(table))
    (learnt / QUALITY_TABLE).write_text(json.dumps(welcome_all([source])))
    write_card(models_folder / model_id, card)


def write_model(
    models_folder: Path, method: str, trained: Synthesizer[Any], task: SynthesisTask
) -> None:
    """Write a whole-head model of a trained method, under the method's name."""
    learnt = models_folder / method / LEARNT
    learnt.mkdir(parents=True)
    trained.save(learnt)
    (learnt / QUALITY_TABLE).write_text(json.dumps(welcome_all(CONTRASTS)))
    card = {
        "id": method,
        "version": "test",
        "method": method,
        "sources": list(task.sources),
        "required": list(task.required),
        "targets": {
            target: {"modality": "MR", "state": "approved", "units": "standard scale"}
            for target in task.targets
        },
        "anatomy": ["BRAIN", "HEAD"],
        "skull": "whole head",
        "spacing_mm": 4.0,
        "parameters": trained.parameters.model_dump(mode="json"),
        "description": "Made by a test.",
        "intended_use": "research",
        "licence": "Apache-2.0",
        "training": {"subjects": [], "data": {}, "trained_on": "2026-01-01", "seed": 0},
    }
    write_card(models_folder / method, card)


def write_card(folder: Path, card: dict[str, Any]) -> None:
    """Write the card of a model folder, whose learnt files lie there already."""
    (folder / CARD).write_text(yaml.safe_dump({**card, "files": hash_files(folder)}))


def welcome_all(contrasts: Iterable[str]) -> dict[str, object]:
    """Return a table of the gate at no distance from any image."""
    block = np.add.outer(np.add.outer(np.arange(24.0), np.arange(24.0)), np.arange(24.0))
    count = len(describe(block.astype(np.float32), np.ones(block.shape, bool), (1.0, 1.0, 1.0)))
    means = {label: [0.0] * count for label in contrasts}
    return {"means": means, "precision": [[0.0] * count] * count, "farthest": 1.0}
