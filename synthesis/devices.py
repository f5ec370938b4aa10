"""Where torch computes: one choice of device, and arithmetic that agrees between devices."""

import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

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


def time_worked(device: torch.device) -> float:
    """Return seconds of work, from any start, of which a budget of training is spent.

    On a CPU that is the time of its cores over the threads: a machine that is busy with other work
    trains for longer and not for less.
    """
    if device.type == "cpu":
        return time.process_time() / torch.get_num_threads()
    return time.monotonic()


def is_quick_in_bfloat16(device: torch.device) -> bool:
    """Tell whether the device computes in bfloat16 about as fast as in float32, or faster.

    On a CPU without AVX-512 (or Arm's bfloat16) torch has only a plain loop for it: a convolution
    takes 20 to 70 times as long as in float32.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def mixed_precision(device: torch.device) -> torch.autocast:
    """Return the context in which networks learn: bfloat16 where that is quick, else float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=is_quick_in_bfloat16(device))


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


def memory_that_ran_out(error: BaseException) -> Literal["cpu", "gpu"] | None:
    """Return whose memory an error says was too small, or None where it says something else.

    torch's allocator on the CPU has no class of its own for that.
    """
    if isinstance(error, torch.OutOfMemoryError):
        return "gpu"
    if isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error):
        return "cpu"
    return None


def release_memory() -> None:
    """Give back to the GPU, where there is one in use, what torch keeps for later."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()


def name_gpu() -> str:
    """Return what the GPU in use calls itself."""
    return torch.cuda.get_device_name()


def name_cpu() -> str:
    """Return the CPU's kind and the widest instructions that torch uses on it."""
    return f"{platform.machine()} CPU with {torch.backends.cpu.get_cpu_capability()}"
