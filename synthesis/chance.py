"""Draws that several modules make."""

import numpy as np


def happens(generator: np.random.Generator, probability: float) -> bool:
    """Return True with the probability given."""
    return bool(generator.random() < probability)
