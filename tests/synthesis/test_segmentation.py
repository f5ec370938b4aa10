"""Overlap scores, and the plain tissue classifier."""

import math

import numpy as np
import pytest

from synthesis.phantom import render
from synthesis.segmentation import classify, dice, mean_dice, measure_cuts
from synthesis.types import ContrastLabel


def test_known_overlap_has_a_known_score() -> None:
    truth = np.array([1, 1, 0, 0, 2], np.uint8)

    assert dice(truth == 1, np.array([1, 0, 0, 0, 0]) == 1) == pytest.approx(2 / 3)
    assert mean_dice(truth, truth) == 1
    assert mean_dice(truth, np.array([1, 0, 0, 0, 0], np.uint8)) == pytest.approx(1 / 3)
    assert math.isnan(mean_dice(0 * truth, truth))


def test_classes_of_a_phantom_are_its_tissues() -> None:
    phantom = render(seed=3, spacing=(6.0, 3.0, 3.0), lesions=0, bias=0.0)
    image, brain = phantom.images[ContrastLabel("T1w")], phantom.brain

    found = classify(image, brain, measure_cuts(image, brain))

    fluid = brain & (phantom.tissues == 1)
    white = brain & (phantom.tissues == 3)
    assert dice(fluid, found == 1) > 0.7
    assert dice(white, found == 3) > 0.7


def test_error_of_brightness_costs_overlap() -> None:
    phantom = render(seed=3, spacing=(6.0, 3.0, 3.0), lesions=0)
    image, brain = phantom.images[ContrastLabel("T1w")], phantom.brain
    cuts = measure_cuts(image, brain)

    truth = classify(image, brain, cuts)

    assert mean_dice(truth, classify(image * np.float32(1.3), brain, cuts)) < 0.8
