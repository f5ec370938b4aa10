"""One real forward pass of each model on a rendered head, in a worker process, for `doctor`."""

import resource
import time
from pathlib import Path

from dicom_node.errors import WorkerLost
from synthesis.engine import synthesize
from synthesis.errors import SynthesisError
from synthesis.phantom import Phantom, render
from synthesis.preprocessing import measure_scale
from synthesis.registry import ModelCard, load_card, load_method
from synthesis.types import ContrastLabel, Volume

SPACING_MM = (6.0, 3.0, 3.0)
"""Coarse, so that a trial takes seconds; the verdict on such an image means nothing."""

_ANY = ContrastLabel("T1w")
"""The image that stands for a contrast which the phantom does not have."""

_KIBIBYTES_PER_MEBIBYTE = 1024


def run(models_folder: Path, model_id: str) -> dict[str, float]:
    """Make the model's first target from a phantom; return `seconds` and `peak_rss_mb`.

    Raises:
        WorkerLost: the model folder is altered, or the model does not work; says why.
    """
    began = time.monotonic()
    try:
        _try(load_card(models_folder, model_id), models_folder)
    except SynthesisError as error:
        raise WorkerLost(f"{type(error).__name__}: {error}") from None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / _KIBIBYTES_PER_MEBIBYTE
    return {"seconds": round(time.monotonic() - began, 1), "peak_rss_mb": round(peak)}


def _try(card: ModelCard, models_folder: Path) -> None:
    target = ContrastLabel(next(iter(card.targets)))
    possible = [ContrastLabel(label) for label in card.sources if label != target]
    labels = [ContrastLabel(label) for label in card.required] or possible[:1]
    phantom = render(spacing=SPACING_MM)
    synthesis = synthesize(
        {label: _as_volume(phantom, label) for label in labels},
        target=target,
        reference=labels[0],
        model_id=card.id,
        model_digest=card.digest,
        models_folder=models_folder,
        seed=0,
    )
    if not any(step["step"] == "predict" for step in synthesis.record):  # refused by its gate
        image = phantom.images[_ANY]
        scaled = measure_scale(image, phantom.brain, card.anchor).forward(image)
        load_method(models_folder, card.id, card.digest).predict(
            dict.fromkeys(labels, scaled),
            target=target,
            mask=phantom.brain,
            spacing=SPACING_MM,
            seed=0,
        )


def _as_volume(phantom: Phantom, label: ContrastLabel) -> Volume:
    return Volume.from_attributes(
        array=phantom.images.get(label, phantom.images[_ANY]),
        image_position=(0.0, 0.0, 0.0),
        image_orientation=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
        pixel_spacing=SPACING_MM[1:],
        spacing_between_slices=SPACING_MM[0],
        coordinate_system="PATIENT",
    )
