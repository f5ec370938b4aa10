"""The quality gate: is this input what the model learnt on, and can this output be looked at?

Each source, normalized on the model grid, is described by a few numbers: its histogram, its
roughness near and far, how tissue changes with depth below the mask's surface, how alike left and
right are. Of the input these questions are asked. Is enough of it covered? Is it noise: is the
image as rough between neighbors as between strangers? Is it what its label says: a discriminant
over the contrasts with one covariance for all (Fisher 1936; shrunk after Ledoit and Wolf 2004)
tells a swapped pair. Is it like any training person: the distance to its contrast tells. Is it the
same anatomy, and does it lie upright, see `posture`? Do the sources lie on one another, see
`agreement`, and was one moved far for that? Of the output: is it a picture, does it have the edges
of its source, and is it of one mind with a method of another family, see `opinion`?

All limits are set from the training people, each judged by the others where that is possible, and
lie in the model's folder; what a table does not hold is not judged. `synthesis gates` writes it.
"""

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from synthesis.agreement import measure_agreement
from synthesis.chance import happens
from synthesis.opinion import give_opinion, learn_opinion, measure_disagreement
from synthesis.posture import find_posture, fit_shape
from synthesis.types import (
    Case,
    ContrastLabel,
    FloatArray,
    MaskArray,
    Prediction,
    QualityReport,
    Verdict,
)

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
FARTHEST_MOVE_MM = 5.0
"""A source that registration moved farther is told of: patients move by less between series."""
COVERED, BARELY_COVERED = 0.9, 0.5
"""Share of the reference's mask that all sources cover: warned below the one, refused below the
other. What they do not cover is padding in any case."""
ELSEWHERE = 1.0
"""Sources that agree less than so many times as well as elsewhere do not lie on one another."""
SHAPE_DIGITS = 2
LEAST_ALIKE = 0.85
"""Correlation of a mask with the mean one, as it lies or turned; training brains lie above 0.94,
and with a fifth of their height cut off about 0.9."""
DISAGREEMENT = "disagreement"
"""Key of the table: of each target the farthest training person, see `gates`."""


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
    table: dict[str, object] = {
        "means": {label: mean.tolist() for label, mean in means.items()},
        "precision": precision.tolist(),
        "farthest": farthest,
    }
    return table | fit_references(cases, labels)


def fit_references(cases: Sequence[Case], labels: Sequence[str]) -> dict[str, object]:
    """Return what posture, agreement and output are judged by, as far as it holds for the people.

    A mean shape that does not tell how the people themselves lie, and an agreement that one of
    their own pairs does not have, are left out.
    """
    table: dict[str, object] = {"opinion": learn_opinion(cases)}
    shape = fit_shape([(case.mask, case.spacing) for case in cases])
    if shape is not None:
        table["shape"] = np.round(shape, SHAPE_DIGITS).tolist()
    least = np.inf
    for case in cases:
        known = [case.images[ContrastLabel(label)] for label in labels if label in case.images]
        for first, second in itertools.combinations(known, 2):
            found = measure_agreement(first, second, case.mask, case.spacing)
            if found is not None:
                least = min(least, found.moved, found.mirrored)
    if ELSEWHERE < least < np.inf:
        table["agreement"] = least
    return table


def check_input(
    sources: Mapping[ContrastLabel, FloatArray],
    mask: MaskArray,
    spacing: tuple[float, float, float],
    folder: Path,
    *,
    covered: float = 1.0,
    moved_mm: Mapping[ContrastLabel, float] | None = None,
) -> QualityReport:
    """Judge normalized sources on the model grid against the table of the model in `folder`.

    A model without a table is one that was trained elsewhere: its sources may be anything but
    noise, and the answer is a warning.

    Args:
        sources: the reference first.
        mask: where all of them mean something.
        spacing: of the grid in mm.
        folder: of the model's learnt files.
        covered: share of the reference's mask that all sources cover.
        moved_mm: how far registration moved each of the others.
    """
    if int(mask.sum()) < MINIMUM_VOXELS:
        reason = f"only {int(mask.sum())} voxels of the model grid are covered"
        return QualityReport(verdict=Verdict.REFUSE, reasons=(reason,))
    reasons: list[tuple[int, str]] = []
    figures: dict[str, float] = {"covered": covered}
    if covered < COVERED:
        reasons.append(
            (2 if covered < BARELY_COVERED else 1,
             f"the sources have only {100 * covered:.0f} % of the anatomy in common, refused below "
             f"{100 * BARELY_COVERED:.0f} %")
        )  # fmt: skip
    for label, array in sources.items():
        ratio = noise_ratio(array, mask, spacing)
        figures[f"noise.{label}"] = ratio
        if ratio > NOISE_RATIO:
            reasons.append(
                (2, f"{label} is noise: neighbors differ like strangers (ratio {ratio:.2f}, "
                    f"refused above {NOISE_RATIO})")
            )  # fmt: skip
    for label, distance in (moved_mm or {}).items():
        figures[f"moved_mm.{label}"] = distance
        if distance > FARTHEST_MOVE_MM:
            reasons.append(
                (1, f"{label} lay {distance:.1f} mm from the reference and was moved there")
            )
    if not (folder / TABLE).exists():
        reasons.append((1, "the model has no table of its training images to compare with"))
        return _report(reasons, figures)
    table = json.loads((folder / TABLE).read_text())
    for judge in (_judge_posture, _judge_contrasts, _judge_agreement):
        reasons += judge(sources, mask, spacing, table, figures)
    return _report(reasons, figures)


def _judge_contrasts(
    sources: Mapping[ContrastLabel, FloatArray],
    mask: MaskArray,
    spacing: tuple[float, float, float],
    table: Mapping[str, Any],
    figures: dict[str, float],
) -> list[tuple[int, str]]:
    """Judge each source by its label and by its distance to the training people."""
    reasons: list[tuple[int, str]] = []
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
    return reasons


def _judge_posture(
    _: Mapping[ContrastLabel, FloatArray],
    mask: MaskArray,
    spacing: tuple[float, float, float],
    table: Mapping[str, Any],
    figures: dict[str, float],
) -> list[tuple[int, str]]:
    """Judge whether this is the anatomy, and upright, by the mask: that of the reference."""
    if "shape" not in table:
        return []
    posture = find_posture(mask, spacing, np.array(table["shape"]))
    figures["posture.upright"], figures["posture.turned"] = posture.upright, posture.turned
    if max(posture.upright, posture.turned) < LEAST_ALIKE:
        alike = max(posture.upright, posture.turned)
        return [
            (2, f"this is another anatomy: its shape is alike to that of the training people to "
                f"{alike:.3f}, refused below {LEAST_ALIKE}")
        ]  # fmt: skip
    if posture.upright > posture.turned:
        return []
    return [
        (2, f"the anatomy lies {posture.how}: so it is alike to the training people's to "
            f"{posture.turned:.3f}, as its header says to {posture.upright:.3f}")
    ]  # fmt: skip


def _judge_agreement(
    sources: Mapping[ContrastLabel, FloatArray],
    mask: MaskArray,
    spacing: tuple[float, float, float],
    table: Mapping[str, Any],
    figures: dict[str, float],
) -> list[tuple[int, str]]:
    """Judge whether the sources lie on the first of them."""
    if "agreement" not in table:
        return []
    reasons: list[tuple[int, str]] = []
    (reference, fixed), *others = sources.items()
    for label, moving in others:
        found = measure_agreement(fixed, moving, mask, spacing)
        if found is None:
            reasons.append((1, f"too little is covered to see whether {label} lies on {reference}"))
            continue
        figures[f"agreement.moved.{label}"] = found.moved
        figures[f"agreement.mirrored.{label}"] = found.mirrored
        if found.moved < ELSEWHERE:
            reasons.append(
                (2, f"{label} does not lie on {reference}: 10 mm away the two agree "
                    f"{1 / found.moved:.1f} times as well")
            )  # fmt: skip
        if found.mirrored < ELSEWHERE:
            reasons.append(
                (2, f"left and right are exchanged in {label} or in {reference}: mirrored, the two "
                    f"agree {1 / found.mirrored:.1f} times as well")
            )  # fmt: skip
    return reasons


def _unlike(label: str, distance: float, what: str, limit: float) -> str:
    return (
        f"{label} is unlike the training images (distance {distance:.1f}, {what} above {limit:.1f})"
    )


def check_output(
    prediction: Prediction,
    half_width: FloatArray | None,
    sources: Mapping[ContrastLabel, FloatArray],
    mask: MaskArray,
    spacing: tuple[float, float, float],
    folder: Path,
    *,
    target: ContrastLabel,
) -> QualityReport:
    """Judge a prediction: finite, varied, with the edges of its source, and of a second opinion.

    Args:
        prediction: in normalized units.
        half_width: of the 90 % band, or None.
        sources: normalized, the reference first.
        mask: where all mean something.
        spacing: of the grid in mm.
        folder: of the model's learnt files.
        target: what was predicted.
    """
    reasons: list[tuple[int, str]] = []
    figures: dict[str, float] = {}
    mean = prediction.mean
    if not np.isfinite(mean).all():
        return QualityReport(verdict=Verdict.REFUSE, reasons=("the output holds NaN or infinity",))
    spread = float(mean[mask].std())
    figures["output.std"] = spread
    if spread < FLAT:
        reasons.append((2, f"the output is nearly constant (standard deviation {spread:.3f})"))
    edges = _edge_correlation(mean, next(iter(sources.values())), mask)
    figures["output.edge_correlation"] = edges
    if edges < FOREIGN_EDGES:
        reasons.append((1, f"the edges of the output hardly follow the source ({edges:.2f})"))
    if half_width is not None:
        figures["output.mean_half_width"] = float(half_width[mask].mean())
    table = json.loads((folder / TABLE).read_text()) if (folder / TABLE).exists() else {}
    farthest = table.get(DISAGREEMENT, {}).get(target)
    if farthest is not None:
        opinion = give_opinion(table["opinion"], sources, target=target, mask=mask, spacing=spacing)
        if opinion is not None:
            reasons += _judge_disagreement(
                measure_disagreement(mean, opinion, mask), farthest, figures
            )
    return _report(reasons, figures)


def _judge_disagreement(
    disagreement: float, farthest: float, figures: dict[str, float]
) -> list[tuple[int, str]]:
    """Warn beyond the farthest training person, refuse halfway from there to nothing in common."""
    figures["output.disagreement"] = disagreement
    limit = (1 + farthest) / 2
    if disagreement <= farthest:
        return []
    return [
        (2 if disagreement > limit else 1,
         f"a method of another family sees something else: disagreement {disagreement:.2f}, that "
         f"of training people up to {farthest:.2f}, refused above {limit:.2f}")
    ]  # fmt: skip


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
