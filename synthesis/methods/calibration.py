"""By how much a method's band must be widened: the conformal rule over whole answers."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from synthesis.synthesizer import Synthesizer
from synthesis.types import Case

BAND = 0.9
"""Share of voxels that the band promises to hold."""
NARROWEST = 1e-4
FEWEST_VOXELS = 50


def widen_by_slices(
    method: Synthesizer[Any], cases: Sequence[Case], *, seed: int
) -> dict[str, float]:
    """Return the factors by the conformal rule (Vovk 2005) over axial slices.

    A slice's score is the factor that covers 90 % of its voxels; the kept one is the score of rank
    (n + 1) 0.9. People who lack a source of the method are left out.
    """
    scores: dict[str, list[float]] = {}
    for case in cases:
        sources = {s: case.images[s] for s in method.task.sources if s in case.images}
        for target in (t for t in method.task.targets if t in case.images):
            given = {label: image for label, image in sources.items() if label != target}
            if not given or not set(method.task.required) <= set(given):
                continue
            answer = method.predict(
                given, target=target, mask=case.mask, spacing=case.spacing, seed=seed
            )
            if answer.lower is None or answer.upper is None:
                continue
            half = np.maximum((answer.upper - answer.lower) / 2, NARROWEST)
            ratio = np.abs(case.images[target] - answer.mean) / half
            for values, inside in zip(ratio, case.mask, strict=True):
                if inside.sum() >= FEWEST_VOXELS:
                    score = float(np.percentile(values[inside], 100 * BAND))
                    scores.setdefault(target, []).append(score)
    ranks = {t: min(len(s), int(np.ceil((len(s) + 1) * BAND))) for t, s in scores.items()}
    return {t: round(sorted(s)[ranks[t] - 1], 3) for t, s in scores.items()}
