"""A model folder that trains in a blink: a matched copy for whole heads, with gate and card."""

import json
from pathlib import Path

import numpy as np
import yaml

from synthesis.methods import build_method
from synthesis.phantom import Phantom, render
from synthesis.preprocessing import Anchor, mask_body, measure_scale
from synthesis.quality import TABLE, fit_table
from synthesis.registry import CARD, CONSTANTS, LEARNT, ModelCard, load_card
from synthesis.types import Case, ContrastLabel, SynthesisTask

LABELS = ("T1w", "T2w", "FLAIR")
MODEL = "small-copy"


def make_case(phantom: Phantom, subject: str) -> Case:
    """Return a phantom as a prepared case with the body as its mask."""
    mask = mask_body(phantom.images[ContrastLabel("T1w")])
    images = {}
    for name in LABELS:
        label = ContrastLabel(name)
        scaled = measure_scale(phantom.images[label], mask, Anchor()).forward(phantom.images[label])
        images[label] = np.where(mask, scaled, 0).astype(np.float32)
    return Case(subject=subject, images=images, mask=mask, spacing=phantom.spacing)


def write_small_model(models_folder: Path) -> ModelCard:
    """Write the model and return its card."""
    cases = [make_case(render(seed=s, spacing=(5.0, 3.0, 3.0)), f"phantom-{s}") for s in (1, 2, 3)]
    task = SynthesisTask(
        sources=tuple(ContrastLabel(name) for name in LABELS),
        targets=tuple(ContrastLabel(name) for name in LABELS),
    )
    folder = models_folder / MODEL
    (folder / LEARNT).mkdir(parents=True)
    build_method("copy", task, {}).fit(cases, seed=0).save(folder / LEARNT)
    (folder / LEARNT / TABLE).write_text(json.dumps(fit_table(cases, LABELS, seed=0)))
    (folder / LEARNT / CONSTANTS).write_text(json.dumps(dict.fromkeys(LABELS, 0.5)))
    card = {
        "id": MODEL,
        "version": "1",
        "method": "copy",
        "sources": list(LABELS),
        "targets": {
            name: {"modality": "MR", "state": "approved", "units": "standard scale"}
            for name in LABELS
        },
        "anatomy": ["HEAD", "BRAIN"],
        "skull": "whole head",
        "spacing_mm": 3.0,
        "description": "A matched copy of phantoms, for tests.",
        "intended_use": "research",
        "licence": "Apache-2.0",
        "training": {
            "subjects": [case.subject for case in cases],
            "data": {"phantom": "rendered"},
            "trained_on": "2026-01-01",
            "seed": 0,
        },
    }
    (folder / CARD).write_text(yaml.safe_dump(card))
    return load_card(models_folder, MODEL)
