"""The models of the rules are made ready, one after another, and what cannot be is told."""

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from dicom_node.domain import Mode
from dicom_node.errors import WorkerLost
from dicom_node.executors import InlineExecutor, JobExecutor, call
from dicom_node.trial import warm
from dicom_node.warmth import Warmth
from doubles.models import write_copying_model
from doubles.node import CONFIGURATION


@dataclass
class Card:
    id: str
    digest: str = "1"


class Workers(JobExecutor):
    """Two workers that are at what they were given until the test says how it ends."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.futures: list[Future] = []

    def submit_to_each(self, fn: Callable, /, *args: object, **kwargs: object) -> list[Future]:
        assert fn is call
        self.asked.append(str(args[1]))
        self.futures = [Future(), Future()]
        return self.futures

    def end_both(self, problem: str | None = None) -> None:
        for future in self.futures:
            future.set_result(problem)


def make_routing(*rules: tuple[Mode, list[str]]) -> SimpleNamespace:
    made = tuple(
        SimpleNamespace(mode=mode, makes=(SimpleNamespace(model=tuple(models)),))
        for mode, models in rules
    )
    return SimpleNamespace(in_order=lambda: made)


@pytest.fixture
def workers() -> Workers:
    return Workers()


@pytest.fixture
def warmth(workers: Workers) -> Warmth:
    return Warmth(workers, Path("config"), ["a=1"])


def test_models_are_made_ready_one_after_another(warmth: Warmth, workers: Workers) -> None:
    routing, cards = make_routing((Mode.SEND, ["a", "b"])), [Card("b"), Card("a")]

    warmth.sweep(routing, cards)
    warmth.sweep(routing, cards)
    assert workers.asked == ["a"]
    workers.end_both()
    warmth.sweep(routing, cards)
    workers.end_both()
    warmth.sweep(routing, cards)
    warmth.sweep(routing, cards)

    assert workers.asked == ["a", "b"]
    assert list(warmth.problems()) == []


def test_model_of_no_rule_that_holds_is_left_alone(warmth: Warmth, workers: Workers) -> None:
    routing = make_routing((Mode.OFF, ["a"]), (Mode.SHADOW, ["absent"]))

    warmth.sweep(routing, [Card("a"), Card("c")])

    assert workers.asked == []


def test_model_of_another_digest_is_made_ready_anew(warmth: Warmth, workers: Workers) -> None:
    routing = make_routing((Mode.SEND, ["a"]))
    warmth.sweep(routing, [Card("a", "1")])
    workers.end_both("it is altered")
    warmth.sweep(routing, [Card("a", "1")])
    assert list(warmth.problems()) == [
        "model a does not answer: it is altered (run `dicom-node doctor`)"
    ]

    warmth.sweep(routing, [Card("a", "2")])
    workers.end_both()
    warmth.sweep(routing, [Card("a", "2")])

    assert workers.asked == ["a", "a"]
    assert list(warmth.problems()) == []


def test_worker_that_ends_meanwhile_is_told_of(warmth: Warmth, workers: Workers) -> None:
    routing = make_routing((Mode.SEND, ["a"]))
    warmth.sweep(routing, [Card("a")])
    workers.futures[0].set_result(None)
    workers.futures[1].set_exception(WorkerLost("the worker process ended before its job did"))
    warmth.sweep(routing, [Card("a")])

    assert "the worker process ended" in next(warmth.problems())


def test_where_no_worker_is_ours_nothing_is_asked() -> None:
    warmth = Warmth(InlineExecutor(), Path("config"), ())

    warmth.sweep(make_routing((Mode.SEND, ["a"])), [Card("a")])
    warmth.sweep(make_routing((Mode.SEND, ["a"])), [Card("a")])

    assert list(warmth.problems()) == []


@pytest.mark.integration
def test_worker_says_what_stands_in_the_way_and_raises_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SYNTHESIS_CACHE", str(tmp_path))
    write_copying_model(tmp_path / "models")
    overrides = (f"models_folder={tmp_path / 'models'}", f"data_folder={tmp_path / 'data'}")

    assert warm("brain-any-unet25d", CONFIGURATION, overrides) is None
    problem = warm("absent", CONFIGURATION, overrides)

    assert problem is not None
    assert problem.startswith("UntrustedModel: no model 'absent'")
