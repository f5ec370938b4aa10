"""Lesions kept, erased and made up: what becomes of implanted and of real ones in an answer.

Lesions of 4 to 15 mm with a known effect on every contrast are put into ordinary tissue of a
person, one of each size at a time; a lesion counts where the truth and a source show it. Real ones
are the connected parts of the person's labels. Made up is what stands out of the answer for the
person without implants and not of his truth, away from his real lesions.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from scipy import ndimage

from synthesis.errors import UnusableInput
from synthesis.lesions import (
    KEPT_CONTRAST,
    SEEN_FROM,
    SIGNATURES,
    SURROUNDINGS,
    count_false,
    implant,
    is_erased,
    is_kept,
    measure_visibility,
)
from synthesis.synthesizer import Synthesizer, ask
from synthesis.types import Anchor, Case, ContrastLabel, FloatArray, MaskArray

DIAMETERS_MM = (15.0, 11.0, 8.0, 6.0, 4.0)
"""The largest first: it finds the fewest places."""
SMALLEST_REAL_MM3 = 33.0
"""A ball of 4 mm."""
ENHANCING, T1C = "enhancing", ContrastLabel("T1c")

Sources = Sequence[ContrastLabel]


def measure(
    method: Synthesizer[Any],
    case: Case,
    sources: Sources,
    target: ContrastLabel,
    *,
    anchor: Anchor,
    seed: int,
) -> dict[str, float]:
    """Return how many lesions are shown, kept, erased and made up, implanted and real apart.

    `kept_4mm` of `shown_4mm` and so on are of implants of that size. `false` counts in the person
    without implants; where the truth has no contrast at all of a kind, it makes no lesion of it.

    Args:
        method: that answers.
        case: a person whom it did not learn from.
        sources: what it is given.
        target: what it is asked for.
        anchor: of the scale: its value is that of ordinary tissue.
        seed: of the places and of the answer.
    """
    plain = ask(method, case, sources, target, seed=seed).mean
    figures = {"shown": 0.0, "kept": 0.0, "erased": 0.0}
    for number, kind in enumerate(_kinds(sources, target)):
        changed, lesions = implant_many(case, kind, seed + 100 * number)
        made = ask(method, changed, sources, target, seed=seed).mean
        for diameter, lesion in lesions:
            found = _follow(changed, made, lesion, sources, target)
            for name, count in found.items():
                figures[name] += count
                if name != "erased":
                    size = f"{name}_{diameter:g}mm"
                    figures[size] = figures.get(size, 0.0) + count
    real = case.labels > 0 if case.labels is not None else np.zeros_like(case.mask)
    for lesion in split_lesions(real & case.mask, case.spacing):
        for name, count in _follow(case, plain, lesion, sources, target).items():
            figures[f"real_{name}"] = figures.get(f"real_{name}", 0.0) + count
    away = case.mask & ~ndimage.binary_dilation(real, iterations=SURROUNDINGS)
    low, high = SIGNATURES["demyelination"][target]
    half = KEPT_CONTRAST * ((low + high) / 2 - 1) * anchor.value
    figures["false"] = float(count_false(case.images[target], plain, away, contrast=half))
    return figures


def implant_many(case: Case, kind: str, seed: int) -> tuple[Case, list[tuple[float, MaskArray]]]:
    """Return the case with a lesion of each size that it has room for, and where they are."""
    changed, lesions = case, []
    taken = np.zeros_like(case.mask) if case.labels is None else case.labels > 0
    for number, diameter in enumerate(DIAMETERS_MM):
        apart = ndimage.binary_dilation(taken, iterations=2 * SURROUNDINGS)
        try:
            put = implant(
                replace(changed, labels=apart.astype(np.uint8)),
                kind=kind,
                diameter_mm=diameter,
                seed=seed + number,
            )
        except UnusableInput:
            continue
        changed, taken = put.case, taken | put.lesion
        lesions.append((diameter, put.lesion))
    return replace(changed, labels=case.labels), lesions


def split_lesions(labels: MaskArray, spacing: tuple[float, float, float]) -> Iterator[MaskArray]:
    """Yield the connected parts of at least the volume of a ball of 4 mm."""
    parts, count = ndimage.label(labels)
    sizes = np.bincount(parts.ravel(), minlength=count + 1)
    fewest = SMALLEST_REAL_MM3 / float(np.prod(spacing))
    for number in range(1, count + 1):
        if sizes[number] >= fewest:
            yield parts == number


def _kinds(sources: Sources, target: ContrastLabel) -> list[str]:
    """Return the kinds whose effect on the target is known; enhancement needs its contrast."""
    kinds = [kind for kind, factors in SIGNATURES.items() if target in factors]
    return [kind for kind in kinds if kind != ENHANCING or T1C in {*sources, target}]


def _follow(
    case: Case, made: FloatArray, lesion: MaskArray, sources: Sources, target: ContrastLabel
) -> dict[str, float]:
    """Return counts of zero or one: whether a lesion is shown, and then kept or erased."""
    truth = case.images[target]
    is_shown = all(
        max(abs(measure_visibility(case.images[s], lesion, case.mask)) for s in labels) >= SEEN_FROM
        for labels in (sources, [target])
    )
    if not is_shown:
        return {"shown": 0.0, "kept": 0.0, "erased": 0.0}
    return {
        "shown": 1.0,
        "kept": float(is_kept(truth, made, lesion, case.mask)),
        "erased": float(is_erased(truth, made, lesion, case.mask)),
    }
