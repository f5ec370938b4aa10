"""Where torch computes: one choice of device, and arithmetic that agrees between devices."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from synthesis.errors import SynthesisError


def choose_device(name: str = "auto") -> torch.device:
    """Return the device of that name; `auto` is the first GPU that torch sees, else the CPU.

    `CUDA_VISIBLE_DEVICES` hides GPUs, as for every program.

    Raises:
        SynthesisError: a GPU is asked for by name and torch sees none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SynthesisError(f"device {name}: torch {torch.__version__} sees no GPU")
    return device


@contextmanager
def exact() -> Iterator[None]:
    """Compute convolutions in full float32 and always by the same algorithm.

    By default cuDNN rounds the factors of a float32 convolution to 10 bits of mantissa (TF32),
    which moves some voxels by several units of the pictures that are written.
    """
    with torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    ):
        yield


def name_gpu() -> str:
    """Return what the GPU in use calls itself."""
    return torch.cuda.get_device_name()
