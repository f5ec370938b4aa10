"""How fast a model answers here, beside MONAI, and how fast trees can be walked at all."""

import platform
import resource
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from synthesis.engine import synthesize
from synthesis.methods import build_method
from synthesis.patches import THICK_FROM, usable_views
from synthesis.phantom import render
from synthesis.preprocessing import measure_scale
from synthesis.registry import LEARNT, ModelCard
from synthesis.synthesizer import Synthesizer
from synthesis.types import ContrastLabel, FloatArray, MaskArray, Volume

BYTES_PER_MEGABYTE = 1_000_000
KIBIBYTE = 1024
TRAINING_VOXELS = 40_000
LOOKED_UP = 1_000_000
SPACING = (1.0, 1.0, 1.0)
WHOLE_PATH_SOURCES = 2
"""So that one series is registered to another."""
SLICES_AT_ONCE = 4

T = TypeVar("T")
N = TypeVar("N", bound=np.generic)


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """What was measured on a rendered head of 1 mm voxels.

    Attributes:
        shape: slices, rows, columns.
        network_seconds: of the network, all sources given: median of the repeats, after one that
            warms up.
        whole_seconds: of the whole path of two sources: orientation, mask, registration, bias
            field, gates, network, error band and the way back.
        steps: of which each took so many seconds.
        peak_mb: most memory of the process until then; on a GPU what torch allocated there.
        monai_seconds: of the same network and views run by MONAI's SlidingWindowInferer in float32
            over the whole volume, or None where MONAI is not installed or the method is another.
        monai_psnr_db: between the two answers inside the brain.
        backend: how the network was run.
        machine: device, torch build and, on a CPU, threads.
    """

    model: str
    shape: tuple[int, int, int]
    network_seconds: float
    whole_seconds: float
    steps: Mapping[str, float]
    peak_mb: float
    monai_seconds: float | None
    monai_psnr_db: float | None
    backend: Mapping[str, Any]
    machine: str

    def as_dict(self) -> dict[str, Any]:
        """Return JSON types."""
        return asdict(self)


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
    """Time a model's first target on a rendered head.

    Args:
        card: of the model.
        models_folder: where it lies.
        shape: slices, rows, columns of the volume; the head is cut or padded to it.
        device: see `Synthesizer`; the whole path takes the one that `auto` does.
        repeats: timed runs.
    """
    import torch  # noqa: PLC0415 - only this command asks for the build

    from synthesis.devices import choose_device  # noqa: PLC0415

    phantom = render(spacing=SPACING)
    mask = _fit(phantom.brain, shape)
    images = {label: _fit(image, shape) for label, image in phantom.images.items()}
    method = build_method(card.method, card.task, dict(card.parameters), device=device)
    method.restore(models_folder / card.id / LEARNT)
    method.accelerate(card.precision)
    target = method.task.targets[0]
    labels = [label for label in method.task.sources if label != target and label in images]
    sources = {
        label: np.where(
            mask, measure_scale(images[label], mask, card.anchor).forward(images[label]), 0
        ).astype(np.float32)
        for label in labels
    }

    def predict() -> FloatArray:
        return method.predict(sources, target=target, mask=mask, spacing=SPACING, seed=0).mean

    used = dict.fromkeys([*card.required, *labels][: max(WHOLE_PATH_SOURCES, len(card.required))])

    def walk() -> Mapping[str, float]:
        return synthesize(
            {ContrastLabel(label): _place(images[ContrastLabel(label)]) for label in used},
            target=target,
            reference=ContrastLabel(next(iter(used))),
            model_id=card.id,
            model_digest=card.digest,
            models_folder=models_folder,
            seed=0,
        ).seconds

    network_seconds, answer = _time_answer(predict, repeats)
    whole_seconds, steps = _time_answer(walk, repeats)
    where = choose_device(device)
    if where.type == "cuda":
        peak = torch.cuda.max_memory_allocated(where)
        machine = torch.cuda.get_device_name(where)
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIBIBYTE
        machine = f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    reference = _infer_with_monai(method, sources, target)
    return Speed(
        model=card.id,
        shape=shape,
        network_seconds=network_seconds,
        whole_seconds=whole_seconds,
        steps=steps,
        peak_mb=peak / BYTES_PER_MEGABYTE,
        monai_seconds=None if reference is None else reference[0],
        monai_psnr_db=None if reference is None else _compare(reference[1], answer, mask),
        backend=method.backend,
        machine=f"{machine}, torch {torch.__version__}",
    )


def _time_answer(do: Callable[[], T], repeats: int) -> tuple[float, T]:
    """Return the median of the seconds, after one run that warms up, and the last answer."""
    taken, answer = [], do()
    for _ in range(repeats):
        began = time.monotonic()
        answer = do()
        taken.append(time.monotonic() - began)
    return statistics.median(taken), answer


def _infer_with_monai(
    method: Synthesizer[Any], sources: Mapping[ContrastLabel, FloatArray], target: ContrastLabel
) -> tuple[float, FloatArray] | None:
    """Return the seconds and the answer of MONAI's inferer, slice by slice along each view."""
    import torch  # noqa: PLC0415

    from synthesis.methods.unet import UNet25D  # noqa: PLC0415

    try:
        from monai.inferers.inferer import SlidingWindowInferer  # noqa: PLC0415 - an extra
    except ImportError:
        return None
    if not isinstance(method, UNet25D):
        return None
    network = getattr(method.network_, "plain", method.network_)
    task, count = method.task, method.parameters.slices
    volume = torch.from_numpy(np.stack([sources.get(s, _absent(sources)) for s in task.sources]))
    condition = torch.tensor(
        [float(s in sources) for s in task.sources] + [float(t == target) for t in task.targets]
    )

    def answer(window: torch.Tensor) -> torch.Tensor:
        stack = window.reshape(len(window), len(task.sources), count, *window.shape[2:])
        mean: torch.Tensor = network(stack, condition.expand(len(window), -1))[:, :1]
        return mean

    began = time.monotonic()
    views = usable_views(SPACING, THICK_FROM)
    total = torch.zeros(volume.shape[1:])
    with torch.inference_mode():
        for axis in views:
            moved = volume.movedim(axis + 1, 1)
            half = count // 2
            wide = torch.cat([moved[:, :1]] * half + [moved] + [moved[:, -1:]] * half, dim=1)
            stacks = wide.unfold(1, count, 1).permute(1, 0, 4, 2, 3).flatten(1, 2)
            inferer = SlidingWindowInferer(tuple(stacks.shape[2:]), SLICES_AT_ONCE)
            made = inferer(stacks, answer)
            total += torch.as_tensor(made)[:, 0].movedim(0, axis)
    mean: NDArray[np.float32] = (total / len(views)).numpy()
    return time.monotonic() - began, mean


def _absent(sources: Mapping[ContrastLabel, FloatArray]) -> FloatArray:
    return np.zeros_like(next(iter(sources.values())))


def _compare(one: FloatArray, other: FloatArray, mask: MaskArray) -> float:
    """Return the peak signal-to-noise ratio between two answers, over the range of the first."""
    error = float(np.mean((one[mask] - other[mask]) ** 2))
    return float(10 * np.log10(np.ptp(one[mask]) ** 2 / max(error, 1e-20)))


def _fit(array: NDArray[N], shape: tuple[int, int, int]) -> NDArray[N]:
    """Return the array cut or padded with zeros to a shape, its middle in the middle."""
    out = np.zeros(shape, array.dtype)
    into, of = [], []
    for size, wanted in zip(array.shape, shape, strict=True):
        length = min(size, wanted)
        into.append(slice((wanted - length) // 2, (wanted - length) // 2 + length))
        of.append(slice((size - length) // 2, (size - length) // 2 + length))
    out[tuple(into)] = array[tuple(of)]
    return out


def _place(image: FloatArray) -> Volume:
    return Volume.from_attributes(
        array=image,
        image_position=(0.0, 0.0, 0.0),
        image_orientation=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
        pixel_spacing=SPACING[1:],
        spacing_between_slices=SPACING[0],
        coordinate_system="PATIENT",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ForestSpeed:
    """What was measured of one forest, in one thread.

    Attributes:
        visits: nodes that a voxel passes on its way, all trees together.
        ours, scikit_learn: voxels per second.
        in_order: of scikit-learn, when voxels that end in the same leaf of a tree lie side by side:
            what better use of the caches and of branch prediction could give.
        bound: voxels per second if walking took nothing but the lookups that no walk can spare (the
            node's threshold, the voxel's feature, the child), each as fast as NumPy's `take` from
            an array of the forest's size.
        largest_difference: between the two answers.
    """

    nodes: int
    visits: float
    ours: float
    scikit_learn: float
    in_order: float
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
    in_order = rows[np.argsort(regressor.estimators_[0].apply(rows), kind="stable")]
    places = generator.integers(0, len(forest.left), LOOKED_UP)
    paths = sum(int(tree.decision_path(rows[:1000]).sum()) for tree in regressor.estimators_)
    lookup = _time(lambda: forest.left.take(places, mode="clip"), repeats) / LOOKED_UP
    visits = paths / 1000 - trees
    return ForestSpeed(
        nodes=len(forest.left),
        visits=visits,
        ours=len(rows) / _time(lambda: forest.predict(new), repeats),
        scikit_learn=len(rows) / _time(lambda: regressor.predict(rows), repeats),
        in_order=len(rows) / _time(lambda: regressor.predict(in_order), repeats),
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
