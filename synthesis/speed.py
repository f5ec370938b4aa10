"""How fast a model's method answers on a device, and whether it answers as on the CPU."""

import platform
import resource
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from synthesis.methods import build_method
from synthesis.registry import LEARNT, ModelCard
from synthesis.types import ContrastLabel, FloatArray, MaskArray

BYTES_PER_MEGABYTE = 1_000_000
KIBIBYTE = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """What was measured.

    Attributes:
        seconds: median of the repeats, after one that warms up.
        peak_mb: memory of the process on a CPU, allocated by torch on a GPU.
        machine: device, torch build and, on a CPU, threads.
    """

    shape: tuple[int, int, int]
    seconds: float
    peak_mb: float
    machine: str


def make_head(shape: tuple[int, int, int], *, seed: int) -> tuple[FloatArray, MaskArray]:
    """Return a normalized, grainy ellipsoid that fills the array as a brain does, and its mask."""
    axes = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in shape), indexing="ij")
    mask = np.sqrt(sum((x / 0.9) ** 2 for x in axes)) < 1
    grain = np.random.default_rng(seed).normal(0.5, 0.1, shape).astype(np.float32)
    return np.where(mask, grain, 0).astype(np.float32), np.asarray(mask)


def measure_speed(
    card: ModelCard,
    *,
    models_folder: Path,
    shape: tuple[int, int, int],
    device: str,
    repeats: int,
) -> Speed:
    """Time `predict` of the first target given all other sources, on 1 mm voxels.

    Args:
        card: of the model.
        models_folder: where it lies.
        shape: slices, rows, columns.
        device: see `Synthesizer`.
        repeats: timed runs.
    """
    import torch  # noqa: PLC0415 - only this command asks for the build

    from synthesis.devices import choose_device  # noqa: PLC0415

    method = build_method(card.method, card.task, dict(card.parameters), device=device)
    method.restore(models_folder / card.id / LEARNT)
    target = method.task.targets[0]
    sources = {
        label: make_head(shape, seed=number)[0]
        for number, label in enumerate(method.task.sources)
        if label != target
    }
    mask = make_head(shape, seed=0)[1]
    taken = []
    for _ in range(repeats + 1):
        started = time.monotonic()
        method.predict(
            sources, target=ContrastLabel(target), mask=mask, spacing=(1.0, 1.0, 1.0), seed=0
        )
        taken.append(time.monotonic() - started)
    where = choose_device(device)
    if where.type == "cuda":
        peak = torch.cuda.max_memory_allocated(where)
        machine = torch.cuda.get_device_name(where)
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIBIBYTE
        machine = f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    return Speed(
        shape=shape,
        seconds=statistics.median(taken[1:]),
        peak_mb=peak / BYTES_PER_MEGABYTE,
        machine=f"{machine}, torch {torch.__version__}",
    )
