"""Rendered heads as training people: exact truth without end, contrasts that no scanner gives."""

from collections.abc import Sequence

import numpy as np

from synthesis.patches import bounding_box
from synthesis.phantom import NAMES, render
from synthesis.preprocessing import measure_scale
from synthesis.types import UNITS_PER_NORMALIZED, Anchor, Case, ContrastLabel

CT = ContrastLabel("CT")
LESIONS = ("lesion", "enhancing")


def render_case(
    contrasts: Sequence[ContrastLabel],
    *,
    seed: int,
    spacing_mm: float,
    anchor: Anchor,
    randomization: float = 0.0,
    motion: float = 0.0,
) -> Case:
    """Return a rendered head's brain, normalized as people are; labels are one in lesions.

    Args:
        contrasts: of `phantom.SEQUENCES`; others are left out.
        seed: of the head.
        spacing_mm: of the grid.
        anchor: of the scale.
        randomization: see `phantom.render`.
        motion: see `phantom.render`.
    """
    phantom = render(
        seed=seed,
        spacing=(spacing_mm, spacing_mm, spacing_mm),
        bias=0.0,  # people's images are corrected before
        randomization=randomization,
        motion=motion,
    )
    brain = phantom.brain
    box = bounding_box(brain)
    mask = brain[box]
    images = {}
    for label in contrasts:
        if label in phantom.images:
            image = phantom.images[label][box]
            if label == CT:
                images[label] = (image / UNITS_PER_NORMALIZED).astype(np.float32)
                continue
            scaled = measure_scale(image, mask, anchor).forward(image)
            images[label] = np.where(mask, scaled, 0).astype(np.float32)
    lesion = np.isin(phantom.tissues[box], [NAMES.index(name) for name in LESIONS])
    return Case(
        subject=f"rendered-{seed}",
        images=images,
        mask=mask,
        labels=lesion.astype(np.uint8),
        spacing=phantom.spacing,
    )
