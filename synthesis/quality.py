"""The quality gate: is this input what the model learnt on, and can this output be looked at?

Each source, normalized on the model grid, is described by a few numbers: its histogram, its
roughness, how intensity changes with depth below the mask's surface, how alike left and right are.
Their distance (Mahalanobis, covariance shrunk after Ledoit and Wolf 2004) to the training people
of the same contrast, and of the other contrasts, tells noise, a swapped pair and another anatomy
from a scan that the model knows. The distances at which it warns and refuses are set from the
training people alone, and lie in the model's folder.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from synthesis.augmentation import happens
from synthesis.types import Case, ContrastLabel, FloatArray, MaskArray, QualityReport, Verdict

TABLE = "quality.json"
WARN_FACTOR, REFUSE_FACTOR = 1.6, 2.5
"""Times the largest distance of any training person (left out of the fit) to its own contrast."""
SWAP_FACTOR = 0.6
"""Another contrast this much nearer than the labelled one means that the label is wrong."""
DRAWS_PER_PERSON = 8
MINIMUM_VOXELS = 2000
NARROW_BAND = 1e-6
FLAT = 0.02
"""Standard deviation below which an output is a uniform gray (median tissue is 0.5)."""
FOREIGN_EDGES = 0.2
"""Correlation of edge strength with the source; people of the training set lie well above."""

Table = Mapping[str, Mapping[str, list[float] | list[list[float]] | float]]


def describe(
    array: FloatArray, mask: MaskArray, spacing: tuple[float, float, float]
) -> NDArray[np.float64]:
    """Return the numbers that describe one normalized source inside its mask."""
    values = array[mask].astype(np.float64)
    p5, p25, p50, p75, p95, p99 = (float(p) for p in np.percentile(values, [5, 25, 50, 75, 95, 99]))
    spread = max(float(values.std()), 1e-6)
    thin = [a for a in range(3) if spacing[a] <= 1.6 * min(spacing)]
    rough_1 = float(np.mean([_roughness(array, mask, a, 1) for a in thin])) / spread
    rough_4 = float(np.mean([_roughness(array, mask, a, 4) for a in thin])) / spread
    depth = ndimage.distance_transform_edt(mask, sampling=spacing)
    shells = np.digitize(depth[mask] / depth.max(), [0.15, 0.35, 0.6])
    means = [float(values[shells == s].mean()) if (shells == s).any() else p50 for s in range(4)]
    return np.array(
        [
            *(p - p50 for p in (p5, p25, p75, p95, p99)),
            np.log(rough_1 + 1e-3),
            np.log(rough_4 + 1e-3),
            np.log(rough_1 / max(rough_4, 1e-3) + 1e-3),
            *(m - p50 for m in means),
            _mirror_correlation(array, mask),
        ]
    )  # fmt: skip


def fit_table(cases: Sequence[Case], labels: Sequence[str], *, seed: int) -> dict[str, object]:
    """Return per contrast the mean, precision and largest left-out distance of the people."""
    from sklearn.covariance import LedoitWolf  # noqa: PLC0415 - training only

    generator = np.random.default_rng(seed)
    draws: dict[str, dict[str, list[NDArray[np.float64]]]] = {}
    for case in cases:
        for label in labels:
            if label in case.images:
                image = case.images[ContrastLabel(label)]
                rows = [describe(*_vary(image, case, generator)) for _ in range(DRAWS_PER_PERSON)]
                draws.setdefault(label, {})[case.subject] = rows
    table: dict[str, object] = {}
    for label, people in draws.items():
        farthest = 0.0
        for subject in people:
            rest = np.array([r for s, rows in people.items() if s != subject for r in rows])
            if len(rest) == 0:
                continue
            model = LedoitWolf().fit(rest)
            distances = np.sqrt(model.mahalanobis(np.array(people[subject])))
            farthest = max(farthest, float(np.median(distances)))
        model = LedoitWolf().fit(np.array([r for rows in people.values() for r in rows]))
        table[label] = {
            "mean": model.location_.tolist(),
            "precision": model.precision_.tolist(),
            "farthest": farthest,
            "people": len(people),
        }
    return table


def check_input(
    sources: Mapping[ContrastLabel, FloatArray],
    mask: MaskArray,
    spacing: tuple[float, float, float],
    folder: Path,
) -> QualityReport:
    """Judge normalized sources on the model grid against the table of the model in `folder`."""
    if int(mask.sum()) < MINIMUM_VOXELS:
        reason = f"only {int(mask.sum())} voxels of the model grid are covered"
        return QualityReport(verdict=Verdict.REFUSE, reasons=(reason,))
    table = json.loads((folder / TABLE).read_text())
    reasons: list[tuple[int, str]] = []
    figures: dict[str, float] = {}
    for label, array in sources.items():
        numbers = describe(array, mask, spacing)
        distances = {other: _distance(numbers, table[other]) for other in table}
        figures[f"distance.{label}"] = distance = distances[label]
        limit = float(table[label]["farthest"])
        nearest = min(distances, key=lambda other: distances[other])
        if distance > limit and distances[nearest] < SWAP_FACTOR * distance:
            reasons.append((2, f"the series labelled {label} looks like {nearest}"))
        elif distance > REFUSE_FACTOR * limit:
            reasons.append(
                (2, f"{label} is unlike the training images (distance {distance:.1f}, "
                    f"refused above {REFUSE_FACTOR * limit:.1f})")
            )  # fmt: skip
        elif distance > WARN_FACTOR * limit:
            reasons.append(
                (1, f"{label} differs from the training images (distance {distance:.1f}, "
                    f"warned above {WARN_FACTOR * limit:.1f})")
            )  # fmt: skip
    return _report(reasons, figures)


def check_output(
    mean: FloatArray,
    half_width: FloatArray | None,
    mask: MaskArray,
    reference: FloatArray,
) -> QualityReport:
    """Judge a prediction in normalized units: finite, varied, and with the edges of its source.

    Args:
        mean: prediction.
        half_width: of the 90 % band, or None.
        mask: where both mean something.
        reference: the reference source, normalized.
    """
    reasons: list[tuple[int, str]] = []
    figures: dict[str, float] = {}
    if not np.isfinite(mean).all():
        return QualityReport(verdict=Verdict.REFUSE, reasons=("the output holds NaN or infinity",))
    spread = float(mean[mask].std())
    figures["output.std"] = spread
    if spread < FLAT:
        reasons.append((2, f"the output is nearly constant (standard deviation {spread:.3f})"))
    edges = _edge_correlation(mean, reference, mask)
    figures["output.edge_correlation"] = edges
    if edges < FOREIGN_EDGES:
        reasons.append((1, f"the edges of the output hardly follow the source ({edges:.2f})"))
    if half_width is not None:
        figures["output.mean_half_width"] = float(half_width[mask].mean())
    return _report(reasons, figures)


def join(*reports: QualityReport) -> QualityReport:
    """Return the gravest verdict with all reasons and figures."""
    order = [Verdict.PASS, Verdict.WARN, Verdict.REFUSE]
    return QualityReport(
        verdict=max((r.verdict for r in reports), key=order.index),
        reasons=tuple(reason for r in reports for reason in r.reasons),
        figures={k: v for r in reports for k, v in r.figures.items()},
    )


def _report(reasons: list[tuple[int, str]], figures: dict[str, float]) -> QualityReport:
    gravest = max((grade for grade, _ in reasons), default=0)
    verdict = (Verdict.PASS, Verdict.WARN, Verdict.REFUSE)[gravest]
    ordered = tuple(text for _, text in sorted(reasons, key=lambda r: -r[0]))
    return QualityReport(verdict=verdict, reasons=ordered, figures=figures)


def _distance(numbers: NDArray[np.float64], entry: Mapping[str, list[float]]) -> float:
    difference = numbers - np.array(entry["mean"])
    return float(np.sqrt(difference @ np.array(entry["precision"]) @ difference))


def _roughness(array: FloatArray, mask: MaskArray, axis: int, step: int) -> float:
    if array.shape[axis] <= step:
        return 0.0
    a = np.take(array, range(array.shape[axis] - step), axis)
    b = np.take(array, range(step, array.shape[axis]), axis)
    both = np.take(mask, range(array.shape[axis] - step), axis) & np.take(
        mask, range(step, array.shape[axis]), axis
    )
    return float(np.abs(a[both] - b[both]).mean()) if both.any() else 0.0


def _mirror_correlation(array: FloatArray, mask: MaskArray) -> float:
    columns = np.flatnonzero(mask.any(axis=(0, 1)))
    low, high = int(columns[0]), int(columns[-1]) + 1
    smooth = ndimage.gaussian_filter(np.where(mask, array, 0), 3)[:, :, low:high]
    both = mask[:, :, low:high] & mask[:, :, low:high][:, :, ::-1]
    if int(both.sum()) < MINIMUM_VOXELS:
        return 0.0
    return float(np.corrcoef(smooth[both], smooth[:, :, ::-1][both])[0, 1])


def _edge_correlation(a: FloatArray, b: FloatArray, mask: MaskArray) -> float:
    inner = ndimage.binary_erosion(mask, iterations=2)
    if int(inner.sum()) < MINIMUM_VOXELS:
        return 1.0
    first = ndimage.gaussian_gradient_magnitude(a, 1.0)[inner]
    second = ndimage.gaussian_gradient_magnitude(b, 1.0)[inner]
    if first.std() < NARROW_BAND or second.std() < NARROW_BAND:
        return 0.0
    return float(np.corrcoef(first, second)[0, 1])


def _vary(
    image: FloatArray, case: Case, generator: np.random.Generator
) -> tuple[FloatArray, MaskArray, tuple[float, float, float]]:
    """Return the image as another scanner might have taken it: thickness, noise, gamma, blur."""
    spacing = list(case.spacing)
    mask = case.mask
    out = image
    thickness = int(generator.choice([1, 1, 2, 3, 4]))
    if thickness > 1 and min(image.shape) > 8 * thickness:
        axis = int(generator.integers(3))
        out = ndimage.uniform_filter1d(out, thickness, axis=axis)
        keep = np.arange(thickness // 2, image.shape[axis], thickness)
        out, mask = np.take(out, keep, axis), np.take(mask, keep, axis)
        spacing[axis] *= thickness
    gamma = np.float32(generator.uniform(0.85, 1.18))
    out = (np.clip(2 * out, 0, None) ** gamma / 2).astype(np.float32)
    if happens(generator, 0.5):
        out = ndimage.gaussian_filter(out, generator.uniform(0.2, 0.8))
    out = out + generator.normal(0, generator.uniform(0, 0.03), out.shape).astype(np.float32)
    return np.where(mask, out, 0).astype(np.float32), mask, (spacing[0], spacing[1], spacing[2])
