"""What a voxel is told by to a method that answers voxel by voxel (REPLICA, Jog 2017).

Its value, its neighbors, rings farther out, Gaussians at several scales, gradient magnitude, depth
below the mask's surface and position in the mask.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from synthesis.types import Case, ContrastLabel, FloatArray, MaskArray, SynthesisTask

RINGS_MM = (3.0, 6.0, 10.0)
SIGMAS_MM = (1.0, 2.5, 5.0)
LEFT_RIGHT = 2


def draw_voxels(
    cases: Sequence[Case],
    task: SynthesisTask,
    target: ContrastLabel,
    count: int,
    generator: np.random.Generator,
    *,
    lesion_share: float = 0.0,
) -> tuple[FloatArray, FloatArray]:
    """Return features (voxels, features) and truths of `count` voxels of each person who has all.

    They are drawn evenly: seeing bone more often than it is would bias every doubtful voxel. Only
    lesions are so few that an even draw teaches nothing of them.

    Args:
        cases: people; those who lack a contrast are passed over.
        task: whose sources tell the features.
        target: whose voxels are the truths.
        count: of voxels of a person; all of the mask where it has fewer.
        generator: of the draw.
        lesion_share: share of a person's voxels that is drawn from what is labeled, whatever the
            label and whether the lesion is real or was put in; all of it where it is less. The rest
            is drawn evenly from what is left, as is everything of a person without labels.
    """
    rows, values = [], []
    for case in _teachers(cases, task, target):
        picked = _pick(case, count, lesion_share, generator)
        features = compute_features([case.images[s] for s in task.sources], case.mask, case.spacing)
        rows.append(features[:, picked].T)
        values.append(case.images[target][case.mask][picked])
    return np.concatenate(rows), np.concatenate(values)


def _pick(
    case: Case, count: int, lesion_share: float, generator: np.random.Generator
) -> NDArray[np.intp]:
    """Return which voxels of the mask, in C order, are drawn; none twice."""
    everything = np.arange(np.count_nonzero(case.mask))
    count = min(count, everything.size)
    lesion = everything[:0] if case.labels is None else np.flatnonzero(case.labels[case.mask])
    wanted = min(round(lesion_share * count), lesion.size)
    first = generator.choice(lesion, wanted, replace=False)
    rest = generator.choice(np.delete(everything, first), count - wanted, replace=False)
    return np.concatenate([first, rest])


def _teachers(cases: Sequence[Case], task: SynthesisTask, target: ContrastLabel) -> Iterator[Case]:
    for case in cases:
        if {target, *task.sources} <= set(case.images):
            yield case


def compute_features(
    images: Sequence[FloatArray], mask: MaskArray, spacing: tuple[float, float, float]
) -> FloatArray:
    """Return (features, voxels of the mask in C order), float32.

    Distances are in millimetres, so that a feature means the same on every grid.
    """
    depth = ndimage.distance_transform_edt(mask, sampling=spacing).astype(np.float32)
    columns = [depth[mask]]
    for axis, _ in enumerate(mask.shape):
        where = np.nonzero(mask)[axis].astype(np.float32)
        half = max(1.0, float(where.max() - where.min()) / 2)
        place = (where - where.mean()) / half
        columns.append(np.abs(place) if axis == LEFT_RIGHT else place)
    for image in images:
        inside = np.where(mask, image, 0).astype(np.float32)
        columns.append(inside[mask])
        for offset in _neighbors():
            columns.append(_shifted(inside, offset)[mask])
        for ring in RINGS_MM:
            for axis in range(3):
                steps = max(1, round(ring / spacing[axis]))
                for sign in (-1, 1):
                    move = [0, 0, 0]
                    move[axis] = sign * steps
                    columns.append(_shifted(inside, (move[0], move[1], move[2]))[mask])
        weight = mask.astype(np.float32)
        for sigma in SIGMAS_MM:
            sigmas = [sigma / s for s in spacing]
            smooth = ndimage.gaussian_filter(inside, sigmas, truncate=3)
            smooth = smooth / np.maximum(ndimage.gaussian_filter(weight, sigmas, truncate=3), 1e-3)
            columns.append(smooth[mask])
        gradient = ndimage.gaussian_gradient_magnitude(inside, [1.0 / s for s in spacing])
        columns.append(gradient[mask])
    return np.stack(columns).astype(np.float32)


def _neighbors() -> list[tuple[int, int, int]]:
    return [(-1, 0, 0), (1, 0, 0), (0, -1, 0), (0, 1, 0), (0, 0, -1), (0, 0, 1)]


def _shifted(array: FloatArray, offset: tuple[int, int, int]) -> FloatArray:
    out = np.zeros_like(array)
    target, source = [], []
    for step, size in zip(offset, array.shape, strict=True):
        target.append(slice(max(0, -step), min(size, size - step)))
        source.append(slice(max(0, step), min(size, size + step)))
    out[tuple(target)] = array[tuple(source)]
    return out
