"""One real forward pass of each model on a rendered head, in a worker process, for `doctor`."""

import resource
import time
from collections.abc import Mapping
from pathlib import Path

from synthesis.engine import synthesize
from synthesis.phantom import render
from synthesis.registry import load_card
from synthesis.types import ContrastLabel, FloatArray, Volume

SPACING_MM = (6.0, 3.0, 3.0)
"""Coarse, so that a trial takes seconds; the verdict on such an image means nothing."""

_KIBIBYTES_PER_MEBIBYTE = 1024


def run(models_folder: Path, model_id: str) -> dict[str, float]:
    """Make the model's first target from a phantom; return `seconds` and `peak_rss_mb`.

    Raises:
        SynthesisError: the model folder is altered, or the model does not work.
    """
    began = time.monotonic()
    card = load_card(models_folder, model_id)
    target = ContrastLabel(next(iter(card.targets)))
    possible = [ContrastLabel(label) for label in card.sources if label != target]
    labels = [ContrastLabel(label) for label in card.required] or possible[:1]
    phantom = render(spacing=SPACING_MM)
    synthesize(
        {label: _as_volume(phantom.images, label) for label in labels},
        target=target,
        reference=labels[0],
        model_id=card.id,
        model_digest=card.digest,
        models_folder=models_folder,
        seed=0,
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / _KIBIBYTES_PER_MEBIBYTE
    return {"seconds": round(time.monotonic() - began, 1), "peak_rss_mb": round(peak)}


def _as_volume(images: Mapping[ContrastLabel, FloatArray], label: ContrastLabel) -> Volume:
    return Volume.from_attributes(
        array=images[label],
        image_position=(0.0, 0.0, 0.0),
        image_orientation=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
        pixel_spacing=SPACING_MM[1:],
        spacing_between_slices=SPACING_MM[0],
        coordinate_system="PATIENT",
    )
