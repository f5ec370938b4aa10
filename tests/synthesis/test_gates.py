"""The gates of the shipped brain model, through the engine: what must not pass, and who must."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from doubles.tools import find_data
from gates.faults import (
    BRAIN_MODEL,
    FAULTS,
    MODELS,
    ROOT,
    T1W,
    T2W,
    Outcome,
    Subject,
    Volumes,
    find_failures,
    judge,
    read_limb,
    read_subject,
    render_limb,
    render_subject,
    shift,
)
from synthesis.engine import synthesize
from synthesis.people import read_manifest
from synthesis.quality import check_input, check_output
from synthesis.registration import Registration, register_rigid
from synthesis.registry import LEARNT, load_card
from synthesis.types import ContrastLabel, FloatArray, Prediction, Synthesis, Verdict

pytestmark = pytest.mark.integration

PERSON = "openms_cs-26"
"""Of the card's test people: T1w, T2w and FLAIR, brain only."""
LEARNT_FOLDER = MODELS / BRAIN_MODEL / LEARNT


@pytest.fixture(scope="module")
def subject() -> Subject:
    """Return a person whom the model never met, with thick slices; a rendered head without data."""
    data = find_data()
    if data is None:
        return render_subject()
    people = read_manifest(ROOT / "config/experiments/people.yaml").people
    [person] = [p for p in people if p.subject == PERSON]
    return read_subject(person, data, thick=True)


@pytest.fixture(scope="module")
def clean(subject: Subject) -> Synthesis:
    return run(subject.sources, subject.target)


def run(volumes: Volumes, target: ContrastLabel) -> Synthesis:
    card = load_card(MODELS, BRAIN_MODEL)
    return synthesize(
        volumes,
        target=target,
        reference=next(iter(volumes)),
        model_id=card.id,
        model_digest=card.digest,
        models_folder=MODELS,
        seed=0,
    )


def test_person_whom_the_model_never_met_is_not_refused(clean: Synthesis) -> None:
    assert clean.quality.verdict is not Verdict.REFUSE, clean.quality.reasons


@pytest.mark.parametrize("name", [name for name in FAULTS if name != "10 mm shift"])
def test_fault_is_refused_for_its_own_reason(subject: Subject, name: str) -> None:
    fault = FAULTS[name]

    outcome = judge(fault.spoil(subject.sources), subject.target)

    assert outcome.verdict is Verdict.REFUSE
    assert fault.is_told(outcome), outcome.reasons


@pytest.mark.parametrize("rendered", [False, True])
def test_another_anatomy_is_refused(rendered: bool) -> None:
    data = find_data()
    if data is None and not rendered:
        pytest.skip("DICOM_NODE_DATA does not lead to a limb")
    limb = render_limb() if rendered or data is None else read_limb(data)

    outcome = judge({T1W: limb}, T2W)

    assert outcome.verdict is Verdict.REFUSE
    assert outcome.reasons[0].startswith(("this is another anatomy", "mask:"))


def test_shift_of_one_source_is_undone_and_told(subject: Subject, clean: Synthesis) -> None:
    again = run(shift(subject.sources), subject.target)

    assert again.quality.verdict is Verdict.WARN
    assert FAULTS["10 mm shift"].is_told(
        Outcome(verdict=again.quality.verdict, reasons=again.quality.reasons)
    )
    both = (clean.covered.array > 0) & (again.covered.array > 0)
    made, wanted = (each.volume.array[both] for each in (again, clean))
    assert np.corrcoef(made, wanted)[0, 1] > 0.95


def test_shift_that_registration_does_not_see_is_refused(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    def see_nothing(*images: object, seed: int) -> Registration:
        found = register_rigid(*images, seed=seed)  # type: ignore[arg-type]
        found.transform.SetIdentity()
        return replace(found, shift_mm=0.0, distinctness=9.0)

    monkeypatch.setattr("synthesis.engine.register_rigid", see_nothing)

    outcome = judge(shift(subject.sources), subject.target)

    assert outcome.verdict is Verdict.REFUSE
    assert "does not lie on" in outcome.reasons[0]


@pytest.mark.parametrize("verdict", [Verdict.PASS, Verdict.REFUSE])
def test_a_constant_verdict_fails_the_suite(subject: Subject, verdict: Verdict) -> None:
    every_word = "looks like, upside down, back to front, noise, left and right are exchanged"

    failures = find_failures(lambda *_: Outcome(verdict=verdict, reasons=(every_word,)), [subject])

    assert failures
    assert any("refused" in failure for failure in failures) == (verdict is Verdict.REFUSE)


def drift(wanted: FloatArray, mask: FloatArray) -> FloatArray:
    return np.roll(wanted, 25, axis=2) * mask


def invent(wanted: FloatArray, mask: FloatArray) -> FloatArray:
    grain = np.random.default_rng(0).normal(0.5, 0.15, wanted.shape)
    return (grain * mask).astype(np.float32)


def invert(wanted: FloatArray, mask: FloatArray) -> FloatArray:
    return (1 - wanted) * mask


@pytest.mark.parametrize("spoil", [drift, invent, invert])
def test_answer_that_another_family_contradicts_is_refused(
    spoil: Callable[[FloatArray, FloatArray], FloatArray], subject: Subject, clean: Synthesis
) -> None:
    mask = clean.covered.array > 0
    sources = {
        label: np.where(mask, volume.array / np.median(volume.array[mask]) / 2, 0).astype(
            np.float32
        )
        for label, volume in subject.sources.items()
    }
    made = spoil((clean.volume.array / 1000).astype(np.float32), mask.astype(np.float32))

    report = check_output(
        Prediction(mean=made),
        None,
        sources,
        mask,
        (4.0, 1.0, 1.0),
        LEARNT_FOLDER,
        target=subject.target,
    )

    assert report.verdict is Verdict.REFUSE
    assert any("another family" in reason for reason in report.reasons), report.figures


def test_sources_with_little_in_common_are_refused(tmp_path: Path) -> None:
    ramp = np.add.outer(np.add.outer(np.arange(24.0), np.arange(24.0)), np.arange(24.0))
    everywhere = np.ones(ramp.shape, np.bool_)

    report = check_input(
        {T1W: ramp.astype(np.float32)}, everywhere, (1.0, 1.0, 1.0), tmp_path, covered=0.4
    )

    assert report.verdict is Verdict.REFUSE
    assert "40 % of the anatomy" in report.reasons[0]
