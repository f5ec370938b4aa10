"""Measure the two forms beside each other: rows and jobs a second, of ledger and workers alone.

    PYTHONPATH=.:tests .venv/bin/python -m benchmarks.forms

Rows: one in each commit, as `durability: strict` does for one sender, then 50 in each. Jobs do
nothing but open the ledger and record a result, so that what is measured is claiming, handing out
and recording. PostgreSQL and Dask run on this machine, the database on the same disk as SQLite's
file, every commit synced in both.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import wait
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

from dicom_node.dispatch import Dispatch
from dicom_node.executors import JobExecutor, ProcessPool, call
from dicom_node.jobs import JobState
from dicom_node.ledger import Ledger
from doubles.dask import run_dask
from doubles.ledger import PEER, make_derived, make_instance, make_plan, receive_and_judge
from doubles.postgresql import run_postgresql

COMMITS = 100
ROWS_IN_A_GROUP = 50
JOBS = 60
WORKERS = 2
LIMIT = timedelta(minutes=5)
PAUSE_SECONDS = 0.01
WORK = "benchmarks.forms:do_next_to_nothing"


def main() -> None:
    """Measure and print a table."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        for title, form in (("SQLite, embedded", embedded), ("PostgreSQL, Dask", scaled)):
            with form(folder) as (url, executor), Ledger(url, now).open() as ledger:
                wait_for(lambda ex=executor: ex.capacity() == WORKERS)
                jobs = JOBS / run_jobs(ledger, executor, url)
                single = COMMITS / measure(lambda k=ledger: record(k, 1))
                rows = COMMITS * ROWS_IN_A_GROUP
                group = rows / measure(lambda k=ledger: record(k, ROWS_IN_A_GROUP))
            sys.stdout.write(
                f"{title}: {single:.0f} rows/s alone, {group:.0f} in groups, {jobs:.1f} jobs/s\n"
            )


@contextmanager
def embedded(folder: Path) -> Iterator[tuple[str, JobExecutor]]:
    """Give the form in which the node comes."""
    pool = ProcessPool(WORKERS, 1, LIMIT)
    yield f"sqlite:///{folder / 'ledger.sqlite'}", pool
    pool.shutdown()


@contextmanager
def scaled(folder: Path) -> Iterator[tuple[str, JobExecutor]]:
    """Give the form for many machines, all of it on this one."""
    with ExitStack() as stack:
        server = stack.enter_context(run_postgresql(in_memory=False))
        dask = stack.enter_context(run_dask(folder, workers=WORKERS))
        cluster = dask.executor()
        stack.callback(cluster.shutdown)
        yield server.make_url(), cluster


def record(ledger: Ledger, rows: int) -> None:
    """Record new instances, so many in a commit."""
    series = f"1.2.{rows}"
    for commit in range(COMMITS):
        uids = [f"{series}.{number}" for number in range(commit * rows, (commit + 1) * rows)]
        ledger.record_instances([make_instance(sop_instance_uid=uid) for uid in uids], PEER, None)


def run_jobs(ledger: Ledger, executor: JobExecutor, url: str) -> float:
    """Run jobs through dispatch, once the workers are warm, and return the seconds."""
    wait([executor.submit(call, "time:sleep", 1.0) for _ in range(WORKERS)])
    receive_and_judge(ledger, [make_plan(f"{number:032x}") for number in range(JOBS)])
    dispatch = Dispatch(
        ledger,
        executor,
        lease=timedelta(minutes=1),
        max_attempts=3,
        config_folder=Path(),
        overrides=[url],
        work=WORK,
    )
    return measure(lambda: finish(dispatch, ledger))


def finish(dispatch: Dispatch, ledger: Ledger) -> None:
    """Sweep without a pause worth the name until every job is done."""
    while ledger.counts()[f"jobs.{JobState.DONE}"] < JOBS:
        dispatch.sweep()
        time.sleep(PAUSE_SECONDS)


def do_next_to_nothing(plan_id: str, attempt: int, _: Path, overrides: Sequence[str]) -> None:
    """Record a result: what a worker runs here."""
    with Ledger(overrides[0], now).open(create=False) as ledger:
        made = make_derived(sop_instance_uid=f"2.25.{int(plan_id, 16)}")
        ledger.record_derived(plan_id, attempt, [made], quality={}, seconds={}, record=[])


def measure(act: Callable[[], None]) -> float:
    began = time.monotonic()
    act()
    return time.monotonic() - began


def wait_for(holds: Callable[[], bool]) -> None:
    while not holds():
        time.sleep(0.1)


def now() -> datetime:
    return datetime.now(UTC)


if __name__ == "__main__":
    os.umask(0o077)
    main()
