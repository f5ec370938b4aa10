"""The shipped models: what their cards must state, and whom they must never have met."""

from pathlib import Path

import pytest

from synthesis.people import read_manifest
from synthesis.registry import LEARNT, ModelCard, load_cards

ROOT = Path(__file__).parents[2]
CARDS = load_cards(ROOT / "models")
ACCEPTANCE = {"adi", "openms_long-04", "stroke-1", "sts-015"}
MAXIMUM_BYTES = 20_000_000


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.id)
def test_nobody_of_the_acceptance_ring_was_in_training(card: ModelCard) -> None:
    assert not ACCEPTANCE & {*card.training.subjects, *card.training.validation}


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.id)
def test_no_person_is_in_two_splits_of_a_card(card: ModelCard) -> None:
    training = card.training
    groups = [set(training.subjects), set(training.validation), set(training.test)]

    assert sum(map(len, groups)) == len(set().union(*groups))
    assert groups[2]


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.id)
def test_figures_come_from_test_people_only(card: ModelCard) -> None:
    assert card.metrics
    for metric in card.metrics:
        assert set(metric.subjects) <= set(card.training.test)
        assert metric.n == len(metric.subjects)


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.id)
def test_card_states_research_use_and_the_data_terms(card: ModelCard) -> None:
    assert card.intended_use == "research"
    if {"brats18", "nichart"} & set(card.training.data):
        assert "research only, data terms apply" in card.licence


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.id)
def test_weights_are_small_and_without_pickles(card: ModelCard) -> None:
    files = list((ROOT / "models" / card.id / LEARNT).iterdir())

    assert {f.suffix for f in files} <= {".safetensors", ".json"}
    assert sum(f.stat().st_size for f in files) < MAXIMUM_BYTES


def test_enhancement_is_never_offered_beyond_research() -> None:
    for card in CARDS:
        if "T1c" in card.targets:
            assert card.targets["T1c"].state == "research"


def test_manifest_keeps_the_acceptance_people_for_testing() -> None:
    manifest = read_manifest(ROOT / "config/experiments/people.yaml")

    assert {p.subject for p in manifest.people if p.split == "test"} >= ACCEPTANCE
