"""A synthesis beside the real series: a known error gives known figures."""

from datetime import date

import numpy as np
import pytest

from synthesis.errors import UnusableInput
from synthesis.evaluation import align, compare_with_truth, place_truth
from synthesis.metrics.ours import measure_range
from synthesis.phantom import render
from synthesis.registry import ModelCard, TargetCard, TrainingCard
from synthesis.types import (
    UNITS_PER_NORMALIZED,
    ContrastLabel,
    FloatArray,
    QualityReport,
    Synthesis,
    Verdict,
    Volume,
)

PHANTOM = render(seed=8, spacing=(5.0, 3.0, 3.0))
SHIFT_MM = np.array([6.0, -4.0, 5.0])
CARD = ModelCard(
    id="toy",
    version="1",
    method="copy",
    sources=("T1w",),
    targets={"T2w": TargetCard(modality="MR", state="approved", units="standard scale")},
    anatomy=("BRAIN",),
    skull="whole head",
    spacing_mm=3.0,
    description="",
    intended_use="research",
    licence="CC0",
    training=TrainingCard(subjects=(), data={}, trained_on=date(2026, 1, 1), seed=0),
    files={},
    digest="0" * 64,
)


def place(label: str, shift: np.ndarray | None = None) -> Volume:
    affine = np.zeros((4, 4))
    affine[[2, 1, 0, 3], [0, 1, 2, 3]] = *PHANTOM.spacing, 1
    affine[:3, 3] = np.array([-90, -110, -70]) + (0 if shift is None else shift)
    array = PHANTOM.images[ContrastLabel(label)].astype(np.float32)
    return Volume(array=array, affine=affine, coordinate_system="PATIENT")


def synthesize(array: FloatArray, reference: Volume, units: str = "standard scale") -> Synthesis:
    return Synthesis(
        volume=reference.with_array(array),
        half_width=None,
        covered=reference.with_array(PHANTOM.brain.astype(np.uint8)),
        pad_value=0.0,
        units=units,
        description="",
        quality=QualityReport(verdict=Verdict.PASS),
        record=[],
        seconds={},
    )


@pytest.fixture(scope="module")
def perfect() -> Synthesis:
    """What a model without any error would make of T1w: the real T2w, as it is compared."""
    blank = synthesize(np.zeros(PHANTOM.brain.shape, np.float32), place("T1w"))
    transform = align(place("T2w"), place("T1w")).transform
    pair = place_truth(blank, place("T2w"), card=CARD, transform=transform)
    return synthesize(pair.truth, place("T1w"))


def test_perfect_result_has_no_error(perfect: Synthesis) -> None:
    figures = compare_with_truth(perfect, place("T2w"), place("T1w"), card=CARD)

    assert figures["mae"] == 0
    assert figures["ssim"] == pytest.approx(1)


def test_known_error_has_known_figures(perfect: Synthesis) -> None:
    truth, mask = perfect.volume.array, PHANTOM.brain
    wrong = synthesize((truth + 50).astype(np.float32), place("T1w"))

    figures = compare_with_truth(wrong, place("T2w"), place("T1w"), card=CARD)

    assert figures["mae"] == pytest.approx(50, abs=0.01)
    wanted = 20 * np.log10(measure_range(truth, mask) / 50)
    assert figures["psnr_db"] == pytest.approx(wanted, abs=0.01)


def test_scale_of_the_scanner_does_not_count(perfect: Synthesis) -> None:
    brighter = place("T2w").with_array(place("T2w").array * 7)

    figures = compare_with_truth(perfect, brighter, place("T1w"), card=CARD)

    assert figures["mae"] < 0.02 * UNITS_PER_NORMALIZED


def test_real_series_that_lies_elsewhere_is_aligned_first(perfect: Synthesis) -> None:
    moved = place("T2w", SHIFT_MM)
    unaligned = place_truth(perfect, moved, card=CARD, transform=None)

    figures = compare_with_truth(perfect, moved, place("T1w"), card=CARD)

    error = np.abs(unaligned.truth - perfect.volume.array)[unaligned.mask].mean()
    assert figures["mae"] < error / 2


def test_another_body_is_not_compared(perfect: Synthesis) -> None:
    noise = np.random.default_rng(0).random(PHANTOM.brain.shape).astype(np.float32)

    with pytest.raises(UnusableInput, match="aligned"):
        compare_with_truth(perfect, place("T2w").with_array(noise), place("T1w"), card=CARD)


def make_uptake(frame: str, shift: np.ndarray | None = None) -> Volume:
    """Return the T2w as if it were a PET of 0 to 8 SUV."""
    image = place("T2w", shift)
    values = image.array * np.float32(8 / image.array.max())
    return Volume(
        array=values,
        affine=image.affine,
        coordinate_system="PATIENT",
        frame_of_reference_uid=frame,
    )


def test_uptake_is_compared_in_suv() -> None:
    reference, real = make_uptake("1.2.3"), make_uptake("1.2.3")
    made = synthesize(real.array + np.float32(0.25), reference, "SUVbw")

    figures = compare_with_truth(made, real, reference, card=CARD)

    assert figures["mae"] == pytest.approx(0.25, abs=1e-4)
    wanted = 20 * np.log10(measure_range(real.array, PHANTOM.brain) / 0.25)
    assert figures["psnr_db"] == pytest.approx(wanted, abs=0.01)


def test_scale_of_uptake_counts() -> None:
    reference = make_uptake("1.2.3")
    real = reference.with_array(reference.array * np.float32(2))
    made = synthesize(reference.array, reference, "SUVbw")

    figures = compare_with_truth(made, real, reference, card=CARD)

    assert figures["mae"] == pytest.approx(reference.array[PHANTOM.brain].mean(), rel=1e-3)


@pytest.mark.parametrize(("frame", "is_moved"), [("1.2.3", False), ("1.2.4", True)])
def test_uptake_is_registered_unless_one_machine_made_both(frame: str, *, is_moved: bool) -> None:
    reference = make_uptake("1.2.3")
    real = make_uptake(frame, SHIFT_MM)
    made = synthesize(reference.array, reference, "SUVbw")
    where_it_lies = place_truth(made, real, card=CARD, transform=None)

    figures = compare_with_truth(made, real, reference, card=CARD)

    error = np.abs(where_it_lies.truth - reference.array)[where_it_lies.mask].mean()
    assert (figures["mae"] < error / 2) == is_moved
    if not is_moved:
        assert figures["mae"] == pytest.approx(error, rel=1e-4)
