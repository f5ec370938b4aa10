"""One real forward pass of a model on a rendered head, in a worker process.

`doctor` tries every model so, and `warmth` has those of the rules ready before the first job.
"""

import resource
from collections.abc import Sequence
from pathlib import Path

from dicom_node.audit import describe_error
from dicom_node.errors import WorkerLost
from dicom_node.node_settings import read_node
from dicom_node.work import keep_back_ends
from synthesis.engine import synthesize
from synthesis.errors import SynthesisError
from synthesis.flat import make_volume
from synthesis.phantom import Phantom, render
from synthesis.preprocessing import measure_scale
from synthesis.registry import ModelCard, load_card, load_method
from synthesis.types import ContrastLabel, Volume

SPACING_MM = (6.0, 3.0, 3.0)
"""Coarse, so that a trial takes seconds; the verdict on such an image means nothing."""

_ANY = ContrastLabel("T1w")
"""The image that stands for a contrast which the phantom does not have."""

_KIBIBYTES_PER_MEBIBYTE = 1024


def run(models_folder: Path, model_id: str) -> int:
    """Make the model's first target from a phantom; return the most memory so far in MiB.

    A model of pictures is given one slice of it.

    Raises:
        WorkerLost: the model folder is altered, or the model does not work; says why.
    """
    try:
        _try(load_card(models_folder, model_id), models_folder)
    except SynthesisError as error:
        raise WorkerLost(f"{type(error).__name__}: {error}") from None
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / _KIBIBYTES_PER_MEBIBYTE)


def warm(model_id: str, config_folder: Path, overrides: Sequence[str]) -> str | None:
    """Load a model as a job would and let it answer once; return what stands in the way, if any.

    Nothing is raised: a worker that fails is replaced, and with it the models that it has ready.

    Args:
        model_id: of a model that the rules name.
        config_folder: of the node whose worker this is.
        overrides: `key=value` settings over those of its node.yaml.
    """
    try:
        node = read_node(config_folder, overrides)
        keep_back_ends(node)
        run(node.models_folder, model_id)
    except WorkerLost as error:
        return str(error)
    except Exception as error:  # noqa: BLE001 - whatever a library raises, the node goes on
        return describe_error(error)
    return None


def _try(card: ModelCard, models_folder: Path) -> None:
    target = ContrastLabel(next(iter(card.targets)))
    possible = [ContrastLabel(label) for label in card.sources if label != target]
    labels = [ContrastLabel(label) for label in card.required] or possible[:1]
    phantom = render(spacing=SPACING_MM)
    place = _as_picture if card.is_flat else _as_volume
    synthesis = synthesize(
        {label: place(phantom, label) for label in labels},
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


def _as_picture(phantom: Phantom, label: ContrastLabel) -> Volume:
    image = phantom.images.get(label, phantom.images[_ANY])
    return make_volume(image[len(image) // 2][None], SPACING_MM[1:])


def _as_volume(phantom: Phantom, label: ContrastLabel) -> Volume:
    return Volume.from_attributes(
        array=phantom.images.get(label, phantom.images[_ANY]),
        image_position=(0.0, 0.0, 0.0),
        image_orientation=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
        pixel_spacing=SPACING_MM[1:],
        spacing_between_slices=SPACING_MM[0],
        coordinate_system="PATIENT",
    )
