"""A MONAI bundle as a method: TorchScript, or safetensors and a network of MONAI (extra `monai`).

Of the bundle are read `configs/metadata.json`, `configs/inference.json` and the weights. Nothing in
it is executed: expressions (`$...`) and classes other than `monai.networks.nets` are refused, and
its transforms are not run; what they do stands on the card.
"""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file

from synthesis.devices import choose_device, exact
from synthesis.errors import MissingExtra, UntrustedModel
from synthesis.methods.brought import Brought, BroughtParameters
from synthesis.types import FloatArray

METADATA, INFERENCE = "configs/metadata.json", "configs/inference.json"
SCRIPT, WEIGHTS = "models/model.ts", "models/model.safetensors"
NETWORKS = "monai.networks.nets."
DEFINITIONS = ("network_def", "network", "net")
"""Keys of an inference.json under which bundles define their network."""


class MonaiBundle(Brought[BroughtParameters]):
    """A bundle below the folder `learnt`: `configs/` and `models/`."""

    parameters_type = BroughtParameters
    network_: torch.nn.Module

    def open(self, folder: Path) -> None:
        """Read the network and compare what the bundle declares with the card."""
        metadata = _read(folder / METADATA)
        inference = _read(folder / INFERENCE)
        self._check_format(folder / METADATA, metadata)
        self._check_axes(folder / INFERENCE, inference)
        device = choose_device(self.device)
        if (folder / SCRIPT).exists():
            network = _load_script(folder / SCRIPT, device)
        elif (folder / WEIGHTS).exists():
            network = _build(folder / INFERENCE, inference)
            try:
                network.load_state_dict(load_file(folder / WEIGHTS))
            except (RuntimeError, SafetensorError) as error:
                raise UntrustedModel(
                    f"{folder / WEIGHTS}: not the weights of the network in {INFERENCE}: {error}"
                ) from None
        else:
            raise UntrustedModel(f"{folder}: seen no weights, wanted {SCRIPT} or {WEIGHTS}")
        self.network_ = network.eval().to(device)

    def infer(self, tensor: FloatArray, flags: FloatArray) -> NDArray[np.floating]:
        """Run the network in float32; it takes the image, and the flags where the card says so."""
        device = choose_device(self.device)
        given = [torch.from_numpy(array).to(device) for array in (tensor, flags)]
        with torch.inference_mode(), exact():
            try:
                answer = self.network_(*given[: 2 if self.parameters.flags else 1])
            except RuntimeError as error:
                raise UntrustedModel(
                    f"the network does not take a tensor of shape {tensor.shape}: {error}"
                ) from None
        array: NDArray[np.floating] = answer.float().cpu().numpy()
        return array

    def _check_format(self, path: Path, metadata: Mapping[str, Any]) -> None:
        try:
            image = metadata["network_data_format"]["inputs"]["image"]
            channels, shape = image["num_channels"], image["spatial_shape"]
        except (KeyError, TypeError):
            raise UntrustedModel(
                f"{path}: seen no network_data_format.inputs.image with num_channels and "
                "spatial_shape, which MONAI's bundle specification wants"
            ) from None
        if channels != self.channels:
            raise UntrustedModel(
                f"{path}: num_channels: seen {channels}, but the card promises {self.channels}: "
                f"{len(self.task.sources)} sources of {self.parameters.slices} slices"
            )
        if len(shape) != self.parameters.dimensions:
            raise UntrustedModel(
                f"{path}: spatial_shape: seen {shape}, but the card's layout is "
                f"{self.parameters.layout}"
            )

    def _check_axes(self, path: Path, inference: Mapping[str, Any]) -> None:
        """Compare the orientation to which the bundle's own transforms turn with the card's."""
        for transform in _find_transforms(inference):
            axes = transform.get("axcodes")
            if axes is not None and axes != self.parameters.axes:
                raise UntrustedModel(
                    f"{path}: {transform['_target_']} turns to {axes}, but the card's axes are "
                    f"{self.parameters.axes}"
                )


def _read(path: Path) -> Mapping[str, Any]:
    try:
        document = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UntrustedModel(f"{path}: {error}") from None
    if not isinstance(document, dict):
        raise UntrustedModel(f"{path}: seen no object, wanted one")
    return document


def _load_script(path: Path, device: torch.device) -> torch.nn.Module:
    try:
        with warnings.catch_warnings():
            # torch calls TorchScript deprecated, but it is what bundles hold
            warnings.simplefilter("ignore", DeprecationWarning)
            return torch.jit.load(path, device)  # type: ignore[no-untyped-call, no-any-return]
    except RuntimeError as error:
        raise UntrustedModel(f"{path}: not TorchScript: {error}") from None


def _find_transforms(inference: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    preprocessing = inference.get("preprocessing")
    listed = preprocessing.get("transforms") if isinstance(preprocessing, dict) else None
    return [each for each in listed or [] if isinstance(each, dict)]


def _build(path: Path, inference: Mapping[str, Any]) -> torch.nn.Module:
    """Return the network that an inference.json defines, untrained."""
    try:
        from monai.networks import nets  # noqa: PLC0415 - an extra
    except ImportError:
        raise MissingExtra("monai", "monai") from None
    definition = next((inference[key] for key in DEFINITIONS if key in inference), None)
    if not isinstance(definition, dict) or "_target_" not in definition:
        raise UntrustedModel(f"{path}: seen no network, wanted one of {', '.join(DEFINITIONS)}")
    name = str(definition["_target_"]).removeprefix(NETWORKS)
    network = getattr(nets, name, None) if name.isidentifier() else None
    if not (isinstance(network, type) and issubclass(network, torch.nn.Module)):
        raise UntrustedModel(
            f"{path}: _target_: seen {definition['_target_']!r}, wanted a network of {NETWORKS}*"
        )
    arguments = {
        key: _resolve(path, value, inference)
        for key, value in definition.items()
        if not key.startswith("_")
    }
    try:
        return network(**arguments)
    except (TypeError, ValueError) as error:
        raise UntrustedModel(f"{path}: {name} cannot be built so: {error}") from None


def _resolve(path: Path, value: Any, inference: Mapping[str, Any]) -> Any:
    """Return a plain value; `@name` is one of the file's own constants."""
    if isinstance(value, list):
        return [_resolve(path, each, inference) for each in value]
    if isinstance(value, dict):
        raise UntrustedModel(f"{path}: an argument of the network is an object, wanted a value")
    if isinstance(value, str) and value.startswith("$"):
        raise UntrustedModel(f"{path}: {value!r} is an expression, which is not executed")
    if isinstance(value, str) and value.startswith("@"):
        if value[1:] not in inference:
            raise UntrustedModel(f"{path}: {value!r} is no constant of the file")
        return _resolve(path, inference[value[1:]], {})  # a constant refers to no other
    return value
