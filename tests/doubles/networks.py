"""Networks of known weights as others bring them: an ONNX file, a MONAI bundle."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file

from doubles.models import write_card
from synthesis.registry import LEARNT

SOURCES = ("T1w", "FLAIR")
WEIGHTS, OFFSET = (0.5, 0.25), 0.125
"""T2w is a half of T1w, a quarter of FLAIR and an eighth, in normalized units."""


def write_onnx_model(
    models_folder: Path,
    model_id: str = "brought-onnx",
    *,
    kernel: NDArray[np.float32] | None = None,
    **changes: Any,
) -> Path:
    """Write a model folder whose ONNX network is one convolution; return its learnt folder.

    Args:
        models_folder: where models lie.
        model_id: its folder.
        kernel: of the convolution, (1, channels, ...), its sides odd; the weighted sum of the two
            sources when it is left out.
        changes: of the card; `parameters` are added to its own.
    """
    learnt = models_folder / model_id / LEARNT
    learnt.mkdir(parents=True)
    parameters = {"layout": "2d", "outputs": {"T2w": {"multiply": 1000}}}
    parameters |= changes.pop("parameters", {})
    dimensions = 3 if parameters["layout"] == "3d" else 2
    if kernel is None:
        kernel = np.array(WEIGHTS, np.float32).reshape(1, 2, *[1] * dimensions)
    if parameters.get("flags"):
        onnx.save(_build_mean(), learnt / "model.onnx")
    else:
        onnx.save(_build_convolution(kernel), learnt / "model.onnx")
    write_card(learnt.parent, make_card(model_id, "onnx", parameters=parameters, **changes))
    return learnt


def write_bundle_model(
    models_folder: Path, model_id: str = "brought-bundle", *, weights: str, **changes: Any
) -> Path:
    """Write a model folder with a 3-D MONAI bundle; return its learnt folder.

    TorchScript is the weighted sum of the card's sources, safetensors are of a network of MONAI.

    Args:
        models_folder: where models lie.
        model_id: its folder.
        weights: `model.ts` or `model.safetensors`.
        changes: of the card; `inference` and `metadata` are those of the bundle.
    """
    learnt = models_folder / model_id / LEARNT
    (learnt / "configs").mkdir(parents=True)
    (learnt / "models").mkdir()
    count = len(changes.get("sources", SOURCES))
    image = {"num_channels": count, "spatial_shape": [16, 16, 16], "format": "magnitude"}
    metadata = {"network_data_format": {"inputs": {"image": image}}}
    inference = {
        "channels": count,
        "network_def": {
            "_target_": "BasicUNet",
            "spatial_dims": 3,
            "in_channels": "@channels",
            "out_channels": 1,
            "features": [4, 4, 4, 4, 4, 4],
        },
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [{"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"}],
        },
    }
    metadata |= changes.pop("metadata", {})
    inference |= changes.pop("inference", {})
    (learnt / "configs" / "metadata.json").write_text(json.dumps(metadata))
    (learnt / "configs" / "inference.json").write_text(json.dumps(inference))
    if weights == "model.ts":
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", DeprecationWarning
            )  # bundles have TorchScript all the same
            script = torch.jit.trace(_make_sum(count), torch.zeros(1, count, 4, 4, 4))
            script.save(learnt / "models" / weights)
    else:
        from monai.networks.nets import BasicUNet

        torch.manual_seed(0)
        network = BasicUNet(spatial_dims=3, in_channels=count, out_channels=1, features=[4] * 6)
        save_file(network.state_dict(), learnt / "models" / weights)
    parameters = {
        "layout": "3d",
        "axes": "RAS",
        "multiple": 16,
        "outputs": {"T2w": {"multiply": 1000}},
        "thick_slices": True,
    } | changes.pop("parameters", {})
    write_card(learnt.parent, make_card(model_id, "monai_bundle", parameters=parameters, **changes))
    return learnt


def make_card(model_id: str, method: str, **changes: Any) -> dict[str, Any]:
    """Return the card of a whole-head model of T2w, without its files."""
    target = {"modality": "MR", "state": "approved", "units": "standard scale"}
    return {
        "id": model_id,
        "version": "1",
        "method": method,
        "sources": list(SOURCES),
        "required": list(SOURCES),
        "targets": {"T2w": target},
        "anatomy": ["BRAIN", "HEAD"],
        "skull": "whole head",
        "spacing_mm": 3.0,
        "description": "A weighted sum, for tests.",
        "intended_use": "research",
        "licence": "Apache-2.0",
        "training": {"subjects": [], "data": {}, "trained_on": "2026-01-01", "seed": 0},
    } | changes


def _build_convolution(kernel: NDArray[np.float32]) -> onnx.ModelProto:
    space = ["slices", "rows", "columns"][5 - kernel.ndim :]
    sides = [size // 2 for size in kernel.shape[2:]]
    weights = {"weight": kernel, "offset": np.array([OFFSET], np.float32)}
    node = helper.make_node("Conv", ["image", "weight", "offset"], ["answer"], pads=sides * 2)
    return _build([node], {"image": ["batch", kernel.shape[1], *space]}, space, weights)


def _build_mean() -> onnx.ModelProto:
    """Return the mean of those of two sources that the flags name."""
    nodes = [
        helper.make_node("ReduceSum", ["image", "channels"], ["sum"]),
        helper.make_node("ReduceSum", ["flags", "channels"], ["count"]),
        helper.make_node("Reshape", ["count", "shape"], ["divisor"]),
        helper.make_node("Div", ["sum", "divisor"], ["answer"]),
    ]
    inputs = {"image": ["batch", 2, "rows", "columns"], "flags": ["batch", 2]}
    constants = {"channels": np.array([1]), "shape": np.array([-1, 1, 1, 1])}
    return _build(nodes, inputs, ["rows", "columns"], constants)


def _build(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, list[Any]],
    space: list[str],
    constants: dict[str, NDArray[Any]],
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info("answer", TensorProto.FLOAT, ["batch", 1, *space])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    return model


def _make_sum(channels: int) -> torch.nn.Module:
    network = torch.nn.Conv3d(channels, 1, 1)
    with torch.no_grad():
        network.weight.copy_(torch.tensor(WEIGHTS[:channels]).reshape(network.weight.shape))
        network.bias.fill_(OFFSET)
    return network.eval().requires_grad_(False)
