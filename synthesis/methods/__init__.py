"""The method tables: name to import path, so that listing methods loads none of their libraries.

Third parties bring networks by a card alone, see `brought`, and add methods through the entry point
group `synthesis.methods`.
"""

import importlib
from importlib.metadata import entry_points
from typing import Any

from synthesis.errors import SynthesisError
from synthesis.synthesizer import Synthesizer
from synthesis.types import SynthesisTask

METHODS = {
    "mean_image": "synthesis.methods.baselines:MeanImage",
    "copy": "synthesis.methods.baselines:MatchedCopy",
    "linear": "synthesis.methods.baselines:VoxelwiseLinear",
    "depth_atlas": "synthesis.methods.depth_atlas:DepthAtlas",
    "forest": "synthesis.methods.forest:RandomForest",
    "boosting": "synthesis.methods.boosting:Boosting",
    "dictionary": "synthesis.methods.dictionary:CoupledDictionary",
    "anchored": "synthesis.methods.anchored:AnchoredRegression",
    "cnn": "synthesis.methods.cnn:SimpleCNN",
    "unet2d": "synthesis.methods.unet2d:UNet2D",
    "unet3d": "synthesis.methods.unet3d:UNet3D",
    "unet25d": "synthesis.methods.unet:UNet25D",
    "gan": "synthesis.methods.gan:GAN",
    "reggan": "synthesis.methods.reggan:RegGAN",
    "cyclegan": "synthesis.methods.cyclegan:CycleGAN",
    "diffusion": "synthesis.methods.diffusion:Diffusion",
    "bridge": "synthesis.methods.bridge:Bridge",
    "flow": "synthesis.methods.flow:Flow",
    "task_loss": "synthesis.methods.task_loss:TaskLoss",
    "attention": "synthesis.methods.attention:Attention",
    "joint": "synthesis.methods.joint:Joint",
    "ensemble": "synthesis.methods.ensemble:Ensemble",
}
GENERATIVE = frozenset({"gan", "reggan", "cyclegan", "diffusion", "bridge", "flow"})
"""Methods that learn to draw what looks real: a card must show that they make up no lesions."""
BROUGHT = {
    "onnx": "synthesis.methods.onnx_network:OnnxNetwork",
    "monai_bundle": "synthesis.methods.monai_bundle:MonaiBundle",
}
"""Methods that serve what was trained elsewhere."""


def build_method(
    name: str, task: SynthesisTask, parameters: dict[str, Any], *, device: str = "auto"
) -> Synthesizer[Any]:
    """Return an untrained method that computes on a device, see `Synthesizer`.

    Raises:
        SynthesisError: no method has that name, or what an entry point names is not there.
    """
    path = find_method(name)
    module, _, attribute = path.partition(":")
    try:
        method = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise SynthesisError(f"method {name!r} is not at {path}: {error}") from error
    built: Synthesizer[Any] = method(
        task, method.parameters_type.model_validate(parameters), device=device
    )
    return built


def find_method(name: str) -> str:
    """Return where a method's class is, as `module:class`.

    Raises:
        SynthesisError: no method has that name.
    """
    table = METHODS | BROUGHT | {e.name: e.value for e in entry_points(group="synthesis.methods")}
    if name not in table:
        raise SynthesisError(f"unknown method {name!r}; known: {', '.join(sorted(table))}")
    return table[name]
