"""Step 7 of the walk: a sweep that claims queued jobs, hands them to workers and sees how they end.

A worker records the outcome of its job itself (`work.run`), so nothing comes back here but the news
that it ended. What ended badly is lost: the ledger queues it again or, after too many losses, fails
it. Jobs carry ids and a folder, never pixels.
"""

import logging
from collections.abc import Sequence
from concurrent.futures import Future, wait
from datetime import timedelta
from pathlib import Path
from typing import Any

from dicom_node.crashpoints import reach
from dicom_node.executors import JobExecutor, call
from dicom_node.ledger import Ledger

WORK = "dicom_node.work:run"
"""What a worker runs. A name and not a function: importing it here would load torch."""

Attempt = tuple[str, int]

logger = logging.getLogger(__name__)


class Dispatch:
    """The jobs that run, and room for more.

    Args:
        executor: where jobs run; it says how many at once.
        lease: for how long a worker may be silent.
        max_attempts: after how many lost workers a job fails.
        config_folder: what a worker reads its settings from.
        overrides: `key=value` settings over those of node.yaml.
        work: name of the function that a worker runs, called with plan id, attempt, folder and
            overrides.
    """

    def __init__(
        self,
        ledger: Ledger,
        executor: JobExecutor,
        *,
        lease: timedelta,
        max_attempts: int,
        config_folder: Path,
        overrides: Sequence[str] = (),
        work: str = WORK,
    ) -> None:
        self._ledger = ledger
        self._executor = executor
        self._lease = lease
        self._max_attempts = max_attempts
        self._arguments = (config_folder, tuple(overrides))
        self._work = work
        self._running: dict[Attempt, Future[Any]] = {}

    def sweep(self) -> int:
        """See which jobs ended, return the lost ones, and start as many as there is room for.

        Returns:
            How many jobs were started.
        """
        self._settle()
        for plan_id in self._ledger.return_lost(self._max_attempts):
            logger.warning("job.lease_ran_out plan=%s", plan_id)
            self._end_silent(plan_id)
        room = self._executor.capacity() - len(self._running)
        claimed = self._ledger.claim(room, self._lease) if room > 0 else []
        for job in claimed:
            reach("dispatch.claimed")
            plan_id, attempt = job.plan.plan_id, job.attempt
            logger.info("job.started plan=%s attempt=%d", plan_id, attempt)
            self._running[plan_id, attempt] = self._executor.submit(
                call, self._work, plan_id, attempt, *self._arguments
            )
        return len(claimed)

    def drain(self, patience: timedelta) -> None:
        """Wait for the jobs that run, end the workers, and queue again what was not done in time.

        That is no loss on the job's account: the node ended it.

        Args:
            patience: how long the jobs that run may go on.
        """
        wait(self._running.values(), patience.total_seconds())
        self._settle()
        self._executor.end_all()
        if self._running:
            wait(self._running.values(), patience.total_seconds())
            for plan_id in self._ledger.return_running():
                logger.info("job.returned plan=%s", plan_id)
            self._running.clear()

    def _end_silent(self, plan_id: str) -> None:
        """End the worker of a job that is no longer its own: frozen, it would hold its place."""
        for (running, _), future in self._running.items():
            if running == plan_id:
                self._executor.end(future)

    def _settle(self) -> None:
        """Forget the jobs that ended, and report those that ended without an outcome."""
        for (plan_id, attempt), future in list(self._running.items()):
            if not future.done():
                continue
            error = future.exception()
            if error is not None:
                self._ledger.lose_job(plan_id, attempt, str(error), self._max_attempts)
                logger.warning("job.lost plan=%s attempt=%d reason=%s", plan_id, attempt, error)
            del self._running[plan_id, attempt]
