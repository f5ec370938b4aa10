"""The models that the rules name, made ready in every worker before the first job asks for one.

A worker that begins loads libraries and weights, chooses a back end and lets the model answer once,
one model after another: a job that comes meanwhile waits for the one at hand at most. Nothing waits
for it: neither the start, nor reception. Models that a change of the rules or of a folder brings
follow; a worker that replaces a dead one loads them with its first job.
"""

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from dicom_node.domain import Mode
from dicom_node.errors import WorkerLost
from dicom_node.executors import JobExecutor, call
from dicom_node.rules import Routing
from synthesis.registry import KEPT_WARM, ModelCard

WARM = "dicom_node.trial:warm"
"""What a worker runs. A name and not a function: importing it here would load torch."""

_Model = tuple[str, str]

logger = logging.getLogger(__name__)


class Warmth:
    """Which models are ready, and why others are not.

    Args:
        executor: whose workers are meant.
        config_folder: what a worker reads its settings from.
        overrides: `key=value` settings over those of node.yaml.
    """

    def __init__(
        self, executor: JobExecutor, config_folder: Path, overrides: Sequence[str]
    ) -> None:
        self._executor = executor
        self._arguments = (config_folder, tuple(overrides))
        self._problems: dict[_Model, str | None] = {}
        self._at: _Model | None = None
        self._running: Sequence[Future[str | None]] = ()

    def sweep(self, routing: Routing, cards: Sequence[ModelCard]) -> None:
        """See how the last model came off, and begin with the next one."""
        if not all(future.done() for future in self._running):
            return
        if self._at is not None:
            self._settle(self._at)
        wanted = find_wanted(routing, cards)
        self._problems = {m: p for m, p in self._problems.items() if m in wanted}
        self._at = next((model for model in wanted if model not in self._problems), None)
        if self._at is not None:
            self._running = self._executor.submit_to_each(call, WARM, self._at[0], *self._arguments)

    def problems(self) -> Iterator[str]:
        """Yield a sentence for the admin on each model that is not ready."""
        for (model_id, _), problem in dict(self._problems).items():
            if problem is not None:
                yield f"model {model_id} does not answer: {problem} (run `dicom-node doctor`)"

    def _settle(self, model: _Model) -> None:
        found = [_read_problem(future) for future in self._running]
        problem = next((each for each in found if each is not None), None)
        self._problems[model] = problem
        if problem is not None:
            logger.error("model.broken model=%s", model[0])
        elif found:
            logger.info("model.ready model=%s workers=%d", model[0], len(found))
        self._running = ()


def find_wanted(routing: Routing, cards: Sequence[ModelCard]) -> list[_Model]:
    """Return id and digest of the models of the rules that hold, as many as a worker keeps."""
    digests = {card.id: card.digest for card in cards}
    named = dict.fromkeys(
        model_id
        for rule in routing.in_order()
        if rule.mode is not Mode.OFF
        for make in rule.makes
        for model_id in make.model
        if model_id in digests
    )
    return [(model_id, digests[model_id]) for model_id in named][:KEPT_WARM]


def _read_problem(future: Future[Any]) -> str | None:
    """Return what a worker says stands in the way; one that ended says so too."""
    try:
        problem: str | None = future.result()
    except WorkerLost as error:
        return str(error)
    return problem
