"""A second opinion: a simple family of methods that answers beside the one that is asked.

The target as a weighted sum of each source's value, its square, its surroundings and the product of
the two, voxel by voxel, for any subset of the sources. It is much poorer than a network and cannot
invent: where the two have little in common, one of them is wrong.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from scipy import ndimage

from synthesis.errors import MissingSource
from synthesis.methods.baselines import ONE, VoxelwiseLinear
from synthesis.synthesizer import Parameters
from synthesis.types import Case, ContrastLabel, FloatArray, MaskArray, SynthesisTask

NEAR_MM = 3.0
"""Standard deviation of the Gaussian that surroundings are."""
TALLEST = 3.0
"""Values are squared up to here: median tissue is 0.5, and vessels have no limit."""
DIGITS = 6

Table = list[dict[str, dict[str, float]]]
"""Of each person the mean products of all terms inside the mask, see `VoxelwiseLinear`."""


def learn_opinion(cases: Sequence[Case]) -> Table:
    """Return what is learnt from people, as JSON types."""
    table: Table = []
    for case in cases:  # one by one: the terms of all people at once would not fit into memory
        method = _build(case.images)
        terms = _derive(case.images, case.mask, case.spacing)
        [person] = method.fit([replace(case, images=terms)], seed=0).people_
        table.append(
            {
                row: {k: round(v, DIGITS) for k, v in columns.items()}
                for row, columns in person.items()
            }
        )
    return table


def give_opinion(
    table: Table,
    sources: Mapping[ContrastLabel, FloatArray],
    *,
    target: ContrastLabel,
    mask: MaskArray,
    spacing: tuple[float, float, float],
) -> FloatArray | None:
    """Return the target in normalized units, or None where nobody in the table had these."""
    method = _build({row for person in table for row in person if "." not in row and row != ONE})
    method.people_ = table
    try:
        return method.predict(
            _derive(sources, mask, spacing), target=target, mask=mask, spacing=spacing, seed=0
        ).mean
    except MissingSource:
        return None


def measure_disagreement(answer: FloatArray, opinion: FloatArray, mask: MaskArray) -> float:
    """Return 1 less the correlation of two answers inside the mask: 0 of one mind, 1 of none."""
    a, b = answer[mask].astype(np.float64), opinion[mask].astype(np.float64)
    if not (a.std() > 0 and b.std() > 0):
        return 1.0
    return 1.0 - float(np.corrcoef(a, b)[0, 1])


def _build(labels: Iterable[str]) -> VoxelwiseLinear:
    names = sorted(labels)
    terms = [ContrastLabel(term) for label in names for term in _name_terms(label)]
    targets = tuple(ContrastLabel(label) for label in names)
    return VoxelwiseLinear(SynthesisTask(sources=tuple(terms), targets=targets), Parameters())


def _name_terms(label: str) -> tuple[str, str, str, str]:
    return label, f"{label}.square", f"{label}.near", f"{label}.product"


def _derive(
    images: Mapping[Any, FloatArray], mask: MaskArray, spacing: tuple[float, float, float]
) -> dict[ContrastLabel, FloatArray]:
    """Return the terms of each contrast, zero outside the mask."""
    width = [NEAR_MM / s for s in spacing]
    weight = np.maximum(ndimage.gaussian_filter(mask.astype(np.float32), width), 1e-3)
    terms: dict[ContrastLabel, FloatArray] = {}
    for label, image in images.items():
        value = np.where(mask, np.minimum(image, TALLEST), 0).astype(np.float32)
        near = np.where(mask, ndimage.gaussian_filter(value, width) / weight, 0)
        arrays = (np.where(mask, image, 0), value**2, near, value * near)
        names = map(ContrastLabel, _name_terms(label))
        terms |= {name: array.astype(np.float32) for name, array in zip(names, arrays, strict=True)}
    return terms
