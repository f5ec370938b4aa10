"""How fast a model's method answers on a device, and how fast trees can be walked at all."""

import platform
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from synthesis.methods import build_method
from synthesis.registry import LEARNT, ModelCard
from synthesis.types import ContrastLabel, FloatArray, MaskArray

BYTES_PER_MEGABYTE = 1_000_000
KIBIBYTE = 1024
TRAINING_VOXELS = 40_000
LOOKED_UP = 1_000_000


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


@dataclass(frozen=True, slots=True, kw_only=True)
class ForestSpeed:
    """What was measured of one forest, in one thread.

    Attributes:
        visits: nodes that a voxel passes on its way, all trees together.
        ours, scikit_learn: voxels per second.
        bound: voxels per second if walking took nothing but the lookups that no walk can spare (the
            node's threshold, the voxel's feature, the child), each as fast as NumPy's `take` from
            an array of the forest's size.
        largest_difference: between the two answers.
    """

    nodes: int
    visits: float
    ours: float
    scikit_learn: float
    bound: float
    largest_difference: float


LOOKUPS = 3
"""At each node, each of which waits for the one before."""


def measure_forest(*, trees: int, minimum_leaf: int, repeats: int) -> ForestSpeed:
    """Grow a forest on grainy heads and walk it for every voxel of another one.

    Args:
        trees: of the forest.
        minimum_leaf: fewest training voxels in a leaf.
        repeats: timed runs; medians count.
    """
    from sklearn.ensemble import RandomForestRegressor  # noqa: PLC0415 - only to compare

    from synthesis.methods.features import compute_features  # noqa: PLC0415
    from synthesis.methods.forest import read_forest  # noqa: PLC0415

    generator = np.random.default_rng(0)
    tables = []
    for seed in (1, 2):
        image, mask = make_head((64, 80, 72), seed=seed)
        tables.append(compute_features([image], mask, (1.0, 1.0, 1.0)))
    known, new = tables
    truth = known[4] + np.abs(known[-1]) + known[0] * known[-2] / 30
    drawn = generator.choice(known.shape[1], TRAINING_VOXELS, replace=False)
    regressor = RandomForestRegressor(
        trees, min_samples_leaf=minimum_leaf, max_features=1 / 3, random_state=0
    ).fit(known[:, drawn].T, truth[drawn])
    forest = read_forest(regressor)
    rows = np.ascontiguousarray(new.T)
    ours, theirs = forest.predict(new)[0], regressor.predict(rows)
    places = generator.integers(0, len(forest.left), LOOKED_UP)
    paths = sum(int(tree.decision_path(rows[:1000]).sum()) for tree in regressor.estimators_)
    lookup = _time(lambda: forest.left.take(places, mode="clip"), repeats) / LOOKED_UP
    visits = paths / 1000 - trees
    return ForestSpeed(
        nodes=len(forest.left),
        visits=visits,
        ours=len(rows) / _time(lambda: forest.predict(new), repeats),
        scikit_learn=len(rows) / _time(lambda: regressor.predict(rows), repeats),
        bound=1 / (visits * LOOKUPS * lookup),
        largest_difference=float(np.abs(ours - theirs).max()),
    )


def _time(work: Callable[[], object], repeats: int) -> float:
    """Return the median of the processor's seconds."""
    taken = []
    for _ in range(repeats):
        started = time.process_time()
        work()
        taken.append(time.process_time() - started)
    return statistics.median(taken)
