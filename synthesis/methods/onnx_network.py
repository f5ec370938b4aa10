"""An ONNX file as a method, run by ONNX Runtime (the extra `onnx`)."""

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synthesis.errors import MissingExtra, UntrustedModel
from synthesis.methods.brought import Brought, BroughtParameters
from synthesis.types import FloatArray

THREADS = "OMP_NUM_THREADS"
"""What bounds the threads of a worker; ONNX Runtime does not read it itself."""
NO_MEMORY = "Failed to allocate memory"
"""ONNX Runtime's words for it."""


class OnnxParameters(BroughtParameters):
    """What the card says of an ONNX network.

    Attributes:
        file: its name below the folder `learnt`.
    """

    file: str = "model.onnx"


class OnnxNetwork(Brought[OnnxParameters]):
    """An ONNX network: its first input is the image, its second the flags."""

    parameters_type = OnnxParameters
    session_: Any
    names_: list[str]

    def open(self, folder: Path) -> None:
        """Start a session and compare what the file declares with the card."""
        try:
            import onnxruntime  # noqa: PLC0415 - an extra
        except ImportError:
            raise MissingExtra("onnxruntime", "onnx") from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(os.environ.get(THREADS, "0"))
        options.log_severity_level = 3  # errors: machine code prints past every filter
        providers = ["CPUExecutionProvider"]
        if (
            self.device != "cpu"
            and "CUDAExecutionProvider" in onnxruntime.get_available_providers()
        ):
            providers.insert(0, "CUDAExecutionProvider")
        path = folder / self.parameters.file
        try:
            self.session_ = onnxruntime.InferenceSession(path, options, providers=providers)
        except Exception as error:  # noqa: BLE001 - its errors have no class in common
            raise UntrustedModel(f"{path}: ONNX Runtime cannot read it: {error}") from None
        inputs = self.session_.get_inputs()
        self.names_ = [each.name for each in inputs]
        wanted = 2 if self.parameters.flags else 1
        if len(inputs) != wanted:
            raise UntrustedModel(
                f"{path}: seen {len(inputs)} inputs {self.names_}, wanted {wanted}: the image"
                f"{' and the flags' if self.parameters.flags else ', its channels the sources'}"
            )
        shape = inputs[0].shape
        if len(shape) != 2 + self.parameters.dimensions:
            raise UntrustedModel(
                f"{path}: seen an image of shape {shape}, wanted {2 + self.parameters.dimensions} "
                f"axes in the layout {self.parameters.layout}"
            )
        if isinstance(shape[1], int) and shape[1] != self.channels:
            raise UntrustedModel(
                f"{path}: seen an image of {shape[1]} channels, wanted {self.channels}: "
                f"{len(self.task.sources)} sources of {self.parameters.slices} slices"
            )

    def infer(self, tensor: FloatArray, flags: FloatArray) -> NDArray[np.floating]:
        """Run the session; the first output is the answer."""
        given = dict(zip(self.names_, (tensor, flags), strict=False))
        try:
            answer: NDArray[np.floating] = self.session_.run(None, given)[0]
        except Exception as error:  # noqa: BLE001 - as above
            if NO_MEMORY in str(error):
                raise MemoryError(f"{self.parameters.file}: {NO_MEMORY}") from None
            raise UntrustedModel(
                f"{self.parameters.file}: does not take a tensor of shape {tensor.shape}: {error}"
            ) from None
        return answer
