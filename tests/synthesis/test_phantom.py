"""Rendered heads: known signals, motion, random contrasts, and lesions that are put in."""

import numpy as np
import pytest

from synthesis.errors import UnusableInput
from synthesis.lesions import SIGNATURES, count_false, implant, is_kept
from synthesis.phantom import NAMES, SEQUENCES, TISSUES, Phantom, render
from synthesis.rendered import render_case
from synthesis.types import Anchor, Case, ContrastLabel

SPACING = (6.0, 3.0, 3.0)
T1W, T1C, T2W, FLAIR = (ContrastLabel(name) for name in ("T1w", "T1c", "T2w", "FLAIR"))


def signal(phantom: Phantom, label: str, tissue: str) -> float:
    image = phantom.images[ContrastLabel(label)]
    return float(np.median(image[phantom.tissues == NAMES.index(tissue)]))


@pytest.fixture(scope="module")
def plain() -> Phantom:
    return render(seed=5, spacing=SPACING, noise=0.0, bias=0.0)


@pytest.fixture(scope="module")
def person() -> Case:
    return render_case([T1W, T1C, T2W, FLAIR], seed=9, spacing_mm=2.5, anchor=Anchor())


def test_signals_follow_the_spin_echo_equation(plain: Phantom) -> None:
    tr, te = SEQUENCES["T2w"].tr, SEQUENCES["T2w"].te
    white, gray = (
        t.density * (1 - np.exp(-tr / t.t1)) * np.exp(-te / t.t2)
        for t in (TISSUES["white"], TISSUES["gray"])
    )

    found = signal(plain, "T2w", "gray") / signal(plain, "T2w", "white")

    assert found == pytest.approx(gray / white, rel=0.05)


def test_lesions_look_as_their_kind_does_on_every_contrast(plain: Phantom) -> None:
    for label, brighter in (("T1w", False), ("T2w", True), ("FLAIR", True)):
        assert (signal(plain, label, "lesion") > signal(plain, label, "white")) is brighter
    rise = signal(plain, "T1c", "enhancing") / signal(plain, "T1w", "enhancing")
    assert rise > 1.3 * signal(plain, "T1c", "white") / signal(plain, "T1w", "white")


def test_moved_head_has_the_same_tissues_and_ghosts(plain: Phantom) -> None:
    moved = render(seed=5, spacing=SPACING, noise=0.0, bias=0.0, motion=6.0)

    assert (moved.tissues == plain.tissues).all()
    outside = plain.tissues == NAMES.index("air")
    assert moved.images[T1W][outside].mean() > 3 * plain.images[T1W][outside].mean()


def test_random_contrasts_differ_and_anatomy_stays(plain: Phantom) -> None:
    varied = render(seed=5, spacing=SPACING, noise=0.0, bias=0.0, randomization=0.3)

    assert (varied.tissues == plain.tissues).all()
    ratios = [
        signal(varied, "T1w", "gray") / signal(varied, "T1w", "white"),
        signal(plain, "T1w", "gray") / signal(plain, "T1w", "white"),
    ]
    assert abs(ratios[0] - ratios[1]) > 0.02


def test_rendered_person_is_normalized_as_people_are(person: Case) -> None:
    assert set(person.images) == {T1W, T1C, T2W, FLAIR}
    for image in person.images.values():
        assert np.median(image[person.mask]) == pytest.approx(0.5, abs=0.01)
        assert not image[~person.mask].any()
    assert person.labels is not None
    assert person.labels[person.mask].any()


@pytest.mark.parametrize("kind", SIGNATURES)
@pytest.mark.parametrize("diameter", [6.0, 15.0])
def test_implanted_lesion_has_its_signature_and_size(
    person: Case, kind: str, diameter: float
) -> None:
    found = implant(person, kind=kind, diameter_mm=diameter, seed=3)

    volume = float(found.lesion.sum()) * 2.5**3
    assert volume == pytest.approx(np.pi / 6 * diameter**3, rel=0.75)
    deep = found.lesion & (np.abs(found.case.images[T2W] - person.images[T2W]) > 0)
    for label, factor in found.factors.items():
        low, high = SIGNATURES[kind][label]
        assert low <= factor <= high
        changed = found.case.images[label][deep].sum() / person.images[label][deep].sum()
        assert (changed > 1) == (factor > 1)
    outside = ~np.asarray(found.case.labels, bool) & ~person.mask
    assert (found.case.images[T2W][outside] == person.images[T2W][outside]).all()


def test_lesion_is_counted_as_kept_or_erased(person: Case) -> None:
    found = implant(person, kind="demyelination", diameter_mm=15, seed=4)
    truth = found.case.images[FLAIR]

    assert is_kept(truth, truth, found.lesion, person.mask)
    assert not is_kept(truth, person.images[FLAIR], found.lesion, person.mask)


def test_lesion_that_nobody_put_there_is_counted_as_false(person: Case) -> None:
    found = implant(person, kind="demyelination", diameter_mm=15, seed=4)
    truth, made = person.images[FLAIR], found.case.images[FLAIR]

    assert count_false(truth, truth, person.mask, contrast=0.05) == 0
    assert count_false(truth, made, person.mask, contrast=0.05, smallest=10) == 1


def test_lesion_larger_than_the_person_is_an_error(person: Case) -> None:
    with pytest.raises(UnusableInput, match="no room"):
        implant(person, kind="oedema", diameter_mm=400, seed=0)
