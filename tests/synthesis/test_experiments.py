"""The experiment files: one for every method, each of which trains as it stands."""

from pathlib import Path

import pytest

from synthesis.methods import METHODS, build_method
from synthesis.people import read_manifest
from synthesis.registry import LEARNT, TargetCard
from synthesis.training import Experiment, read_experiment

FOLDER = Path(__file__).parents[2] / "config/experiments"
FILES = sorted([*FOLDER.glob("*-*.yaml"), *(FOLDER / "methods").glob("*.yaml")])
EXPERIMENTS = [read_experiment(path) for path in FILES]
BY_NAME = pytest.mark.parametrize("experiment", EXPERIMENTS, ids=[path.stem for path in FILES])


def test_every_method_has_an_experiment() -> None:
    assert {experiment.method for experiment in EXPERIMENTS} == set(METHODS)


def test_no_two_experiments_write_one_model() -> None:
    names = [experiment.model for experiment in EXPERIMENTS]

    assert len(names) == len(set(names))


@BY_NAME
def test_experiment_names_parameters_people_and_a_mask_that_are_there(
    experiment: Experiment,
) -> None:
    method = build_method(experiment.method, experiment.task, experiment.parameters)
    manifest = read_manifest(experiment.people)

    assert method.parameters is not None
    assert experiment.names(manifest, "train")
    assert set(experiment.datasets) | set(experiment.tested_on) <= set(manifest.datasets)
    if isinstance(experiment.brain_mask, Path):
        assert (experiment.brain_mask / LEARNT / "brain_mask.safetensors").exists()


@BY_NAME
def test_card_says_the_state_of_each_target_and_the_data_terms(
    experiment: Experiment,
) -> None:
    targets = {
        target: TargetCard.model_validate(facts)
        for target, facts in experiment.card["targets"].items()
    }
    method = build_method(experiment.method, experiment.task, experiment.parameters)

    assert set(targets) == set(experiment.targets)
    assert experiment.card["intended_use"] == "research"
    if method.research_only:
        assert {facts.state for facts in targets.values()} == {"research"}
    if {"brats18", "nichart"} & set(experiment.datasets):
        assert "research only, data terms apply" in experiment.card["licence"]
