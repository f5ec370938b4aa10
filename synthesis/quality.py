"""The quality gate: is this input what the model learnt on, and can this output be looked at?

Each source, normalized on the model grid, is described by a few numbers: its histogram, its
roughness near and far, how tissue changes with depth below the mask's surface, how alike left and
right are. Three questions follow. Is it noise: is the image as rough between neighbors as between
strangers? Is it what its label says: a discriminant over the contrasts with one covariance for all
(Fisher 1936; shrunk after Ledoit and Wolf 2004) tells a swapped pair. Is it like any training
person: the distance to the nearest contrast tells another anatomy. All limits are set from the
training people, each judged by the others, and lie in the model's folder.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from synthesis.chance import happens
from synthesis.types import Case, ContrastLabel, FloatArray, MaskArray, QualityReport, Verdict

TABLE = "quality.json"
WARN_FACTOR, REFUSE_FACTOR = 1.3, 1.8
"""Times the farthest training person's distance, judged by the others."""
SWAP_LOG_ODDS = 6.0
"""Another contrast this much likelier than the labelled one (natural logarithm) is refused."""
SAME_LOOK = ({"T1w", "T1c"},)
"""Contrasts that differ by an agent only: never called swapped by their looks."""
NOISE_RATIO = 0.8
"""Roughness between neighbors over roughness at four voxels; 1 is noise, brains lie near 0.4."""
DRAWS_PER_PERSON = 6
MINIMUM_VOXELS = 2000
NARROW_BAND = 1e-6
FLAT = 0.02
"""Standard deviation below which an output is a uniform gray (median tissue is 0.5)."""
FOREIGN_EDGES = 0.2
"""Correlation of edge strength with the source; people of the training set lie well above."""
COARSE_MM = 2.0


def describe(
    array: FloatArray, mask: MaskArray, spacing: tuple[float, float, float]
) -> NDArray[np.float64]:
    """Return the numbers that describe one normalized source inside its mask."""
    values = array[mask].astype(np.float64)
    p5, p10, p25, p50, p75, p90, p95, p99 = (
        float(p) for p in np.percentile(values, [5, 10, 25, 50, 75, 90, 95, 99])
    )
    steps = tuple(slice(None, None, max(1, round(COARSE_MM / s))) for s in spacing)
    coarse, coarse_mask = array[steps], mask[steps]
    apart = [s * (step.step or 1) for s, step in zip(spacing, steps, strict=True)]
    depth = ndimage.distance_transform_edt(coarse_mask, sampling=apart)[coarse_mask]
    inside = coarse[coarse_mask]
    tissue = (inside > p10) & (inside < p90)
    shells = np.digitize(depth / depth.max(), [0.12, 0.3, 0.6])
    profile = []
    for shell in range(4):
        here = inside[(shells == shell) & tissue]
        profile.append(float(np.median(here)) - p50 if here.size else 0.0)
    deep = inside[depth > 0.6 * depth.max()]
    ratio = noise_ratio(array, mask, spacing)
    return np.array(
        [
            *(p - p50 for p in (p5, p10, p25, p75, p90, p95, p99)),
            *profile,
            float(np.percentile(deep, 5)) - p50,
            float(np.percentile(deep, 95)) - p50,
            np.log(ratio),
            _mirror_correlation(coarse, coarse_mask),
        ]
    )


def noise_ratio(array: FloatArray, mask: MaskArray, spacing: tuple[float, float, float]) -> float:
    """Return the roughness between neighbors over that at four voxels, along the fine axes."""
    fine = [a for a in range(3) if spacing[a] <= 1.6 * min(spacing)]
    near = float(np.mean([_roughness(array, mask, a, 1) for a in fine]))
    far = float(np.mean([_roughness(array, mask, a, 4) for a in fine]))
    return near / far if far > 0 else 1.0


def fit_table(cases: Sequence[Case], labels: Sequence[str], *, seed: int) -> dict[str, object]:
    """Return the means per contrast, their common precision and the farthest training person."""
    generator = np.random.default_rng(seed)
    rows: list[tuple[str, str, NDArray[np.float64]]] = []
    for case in cases:
        for label in labels:
            if label in case.images:
                image = case.images[ContrastLabel(label)]
                for _ in range(DRAWS_PER_PERSON):
                    rows.append((case.subject, label, describe(*_vary(image, case, generator))))
    farthest = 0.0
    for subject in {subject for subject, _, _ in rows}:
        rest = [(label, numbers) for s, label, numbers in rows if s != subject]
        means, precision = _fit(rest)
        for label in means:
            distances = [
                _distance(numbers, means[label], precision)
                for s, own, numbers in rows
                if s == subject and own == label
            ]
            if distances:
                farthest = max(farthest, float(np.median(distances)))
    means, precision = _fit([(label, numbers) for _, label, numbers in rows])
    return {
        "means": {label: mean.tolist() for label, mean in means.items()},
        "precision": precision.tolist(),
        "farthest": farthest,
    }


def check_input(
    sources: Mapping[ContrastLabel, FloatArray],
    mask: MaskArray,
    spacing: tuple[float, float, float],
    folder: Path,
) -> QualityReport:
    """Judge normalized sources on the model grid against the table of the model in `folder`.

    A model without a table is one that was trained elsewhere: its sources may be anything but
    noise, and the answer is a warning.
    """
    if int(mask.sum()) < MINIMUM_VOXELS:
        reason = f"only {int(mask.sum())} voxels of the model grid are covered"
        return QualityReport(verdict=Verdict.REFUSE, reasons=(reason,))
    reasons: list[tuple[int, str]] = []
    figures: dict[str, float] = {}
    for label, array in sources.items():
        ratio = noise_ratio(array, mask, spacing)
        figures[f"noise.{label}"] = ratio
        if ratio > NOISE_RATIO:
            reasons.append(
                (2, f"{label} is noise: neighbors differ like strangers (ratio {ratio:.2f}, "
                    f"refused above {NOISE_RATIO})")
            )  # fmt: skip
    if not (folder / TABLE).exists():
        reasons.append((1, "the model has no table of its training images to compare with"))
        return _report(reasons, figures)
    table = json.loads((folder / TABLE).read_text())
    precision, farthest = np.array(table["precision"]), float(table["farthest"])
    for label, array in sources.items():
        numbers = describe(array, mask, spacing)
        distances = {
            other: _distance(numbers, np.array(mean), precision)
            for other, mean in table["means"].items()
        }
        nearest = min(distances, key=lambda other: distances[other])
        odds = (distances[label] ** 2 - distances[nearest] ** 2) / 2
        figures[f"distance.{label}"] = distances[label]
        alike = any({label, nearest} <= group for group in SAME_LOOK)
        if odds > SWAP_LOG_ODDS and not alike:
            reasons.append((2, f"the series labelled {label} looks like {nearest}"))
        elif distances[label] > REFUSE_FACTOR * farthest:
            reasons.append(
                (2, _unlike(label, distances[label], "refused", REFUSE_FACTOR * farthest))
            )
        elif distances[label] > WARN_FACTOR * farthest:
            reasons.append((1, _unlike(label, distances[label], "warned", WARN_FACTOR * farthest)))
    return _report(reasons, figures)


def _unlike(label: str, distance: float, what: str, limit: float) -> str:
    return (
        f"{label} is unlike the training images (distance {distance:.1f}, {what} above {limit:.1f})"
    )


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


def _fit(
    rows: Sequence[tuple[str, NDArray[np.float64]]],
) -> tuple[dict[str, NDArray[np.float64]], NDArray[np.float64]]:
    from sklearn.covariance import LedoitWolf  # noqa: PLC0415 - training only

    labels = sorted({label for label, _ in rows})
    means = {
        label: np.mean([numbers for own, numbers in rows if own == label], axis=0)
        for label in labels
    }
    residuals = np.array([numbers - means[label] for label, numbers in rows])
    spread = residuals.std(axis=0) + 1e-6
    shrunk = LedoitWolf(assume_centered=True).fit(residuals / spread)
    return means, np.asarray(shrunk.precision_ / np.outer(spread, spread))


def _distance(
    numbers: NDArray[np.float64], mean: NDArray[np.float64], precision: NDArray[np.float64]
) -> float:
    difference = numbers - mean
    return float(np.sqrt(difference @ precision @ difference))


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
    smooth = ndimage.gaussian_filter(np.where(mask, array, 0), 1.5)[:, :, low:high]
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
