"""The segmenter that judges: what it finds in any of a study's contrasts, and what it compares."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from synthesis import segmenter as module
from synthesis.faithfulness import implant_many
from synthesis.segmentation import dice
from synthesis.segmenter import Segmenter, learn_segmenter, load_segmenter, save_segmenter
from synthesis.types import Case, ContrastLabel, MaskArray

T1W, FLAIR = ContrastLabel("T1w"), ContrastLabel("FLAIR")


def with_lesions(seed: int) -> tuple[Case, MaskArray]:
    """Return a ball of one tissue in which lesions are, and where they are."""
    side = np.arange(56) - 27.5
    mask = np.add.outer(np.add.outer(side**2, side**2), side**2) < 26**2
    grain = np.random.default_rng(seed).normal(0, 0.02, mask.shape)
    image = np.where(mask, 0.5 + grain, 0).astype(np.float32)
    plain = Case(
        subject="ball", images={T1W: image, FLAIR: image}, mask=mask, spacing=(1.0, 1.0, 1.0)
    )
    case, lesions = implant_many(plain, "demyelination", seed)
    where = np.any([lesion for _, lesion in lesions], axis=0)
    return replace(case, labels=where.astype(np.uint8)), where


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "STEPS", 80)
        patch.setattr(module, "CROP", 64)
        found = learn_segmenter([with_lesions(seed)[0] for seed in (1, 2)], [T1W, FLAIR], seed=1)
    assert found is not None
    return found


def test_lesions_of_somebody_else_are_found_in_what_there_is(segmenter: Segmenter) -> None:
    case, where = with_lesions(3)

    by_both = segmenter.find(case.images, case.mask)
    by_flair = segmenter.find({FLAIR: case.images[FLAIR]}, case.mask)

    assert dice(where, by_both > 0.5) > 0.4
    assert dice(where, by_flair > 0.5) > 0.4
    assert not by_both[~case.mask].any()


def test_distance_is_of_what_the_segmenter_sees(segmenter: Segmenter) -> None:
    case, _ = with_lesions(3)
    real, generator = case.images[FLAIR], np.random.default_rng(1)
    grain = generator.normal(0, 0.05, real.shape).astype(np.float32)

    def distance(made: object) -> float:
        return segmenter.distance(FLAIR, made, real, case.mask)  # type: ignore[arg-type]

    assert distance(real) == 0
    assert 0 < distance(real + grain) < distance(real + 3 * grain)


def test_segmenter_is_kept_as_it_is(segmenter: Segmenter, tmp_path: Path) -> None:
    case, _ = with_lesions(3)
    save_segmenter(segmenter, tmp_path)

    again = load_segmenter(tmp_path)

    assert again.contrasts == (T1W, FLAIR)
    found, kept = (each.find(case.images, case.mask) for each in (again, segmenter))
    assert np.array_equal(found, kept)


def test_nobody_with_labels_teaches_nothing() -> None:
    case, _ = with_lesions(1)

    assert learn_segmenter([replace(case, labels=None)], [T1W, FLAIR], seed=1) is None
