import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import wait
from datetime import timedelta
from pathlib import Path

import pytest

from dicom_node.errors import WorkerLost
from dicom_node.executors import InlineExecutor, ProcessPool, call

PATIENCE_SECONDS = 30
LIMIT = timedelta(minutes=10)


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPool]:
    pool = ProcessPool(workers=1, threads=3, limit=LIMIT)
    yield pool
    pool.shutdown()


def test_inline_runs_where_it_is_called() -> None:
    future = InlineExecutor().submit(call, "os:getpid")

    assert future.result() == os.getpid()


def test_inline_error_is_a_lost_worker() -> None:
    future = InlineExecutor().submit(call, "os:remove", "/nowhere/at/all")

    assert isinstance(future.exception(), WorkerLost)


def test_error_names_class_and_place_and_not_its_text() -> None:
    with pytest.raises(WorkerLost) as caught:
        call("json:loads", "{Doe^Jane}")

    assert str(caught.value).startswith("JSONDecodeError at decoder.py:")


@pytest.mark.integration
def test_worker_has_the_thread_limit_before_it_imports_anything(pool: ProcessPool) -> None:
    future = pool.submit(call, "os:getenv", "OMP_NUM_THREADS")

    assert future.result(PATIENCE_SECONDS) == "3"


@pytest.mark.integration
def test_what_machine_code_prints_in_a_worker_goes_nowhere(
    capfd: pytest.CaptureFixture[str],
) -> None:
    """A codec quotes the pixels that it cannot decode, past the filter of the log."""
    pool = ProcessPool(workers=1, threads=1, limit=LIMIT)
    for descriptor in (1, 2):
        printed = pool.submit(call, "os:write", descriptor, b"Not a JPEG file: DOE^JANE")
        printed.result(PATIENCE_SECONDS)
    pool.submit(call, "logging:error", "a record").result(PATIENCE_SECONDS)
    pool.shutdown()

    told = capfd.readouterr()
    assert told.out == ""
    assert "ERROR root message withheld" in told.err
    assert "JANE" not in told.err


@pytest.mark.integration
def test_killed_worker_is_replaced_and_its_job_reported_lost(pool: ProcessPool) -> None:
    first = pool.submit(call, "os:getpid").result(PATIENCE_SECONDS)

    lost = pool.submit(call, "os:kill", first, 9)
    with pytest.raises(WorkerLost):
        lost.result(PATIENCE_SECONDS)

    assert pool.submit(call, "os:getpid").result(PATIENCE_SECONDS) != first


@pytest.mark.integration
def test_worker_is_replaced_after_an_error(pool: ProcessPool) -> None:
    first = pool.submit(call, "os:getpid").result(PATIENCE_SECONDS)

    with pytest.raises(WorkerLost):
        pool.submit(call, "json:loads", "no").result(PATIENCE_SECONDS)

    assert pool.submit(call, "os:getpid").result(PATIENCE_SECONDS) != first


@pytest.mark.integration
def test_dying_worker_takes_no_other_job_with_it() -> None:
    pool = ProcessPool(workers=2, threads=1, limit=LIMIT)

    slow = pool.submit(call, "time:sleep", 2.0)
    poison = pool.submit(call, "os:_exit", 137)
    wait([slow, poison], PATIENCE_SECONDS)
    pool.shutdown()

    assert slow.exception() is None
    assert isinstance(poison.exception(), WorkerLost)


@pytest.mark.integration
def test_killed_pool_reports_its_job_lost(pool: ProcessPool) -> None:
    pool.submit(call, "os:getpid").result(PATIENCE_SECONDS)
    future = pool.submit(call, "time:sleep", 600)

    pool.end_all()

    assert isinstance(future.exception(PATIENCE_SECONDS), WorkerLost)


@pytest.mark.integration
def test_frozen_worker_is_ended_and_replaced(pool: ProcessPool) -> None:
    frozen = pool.submit(call, "os:getpid").result(PATIENCE_SECONDS)
    future = pool.submit(call, "os:kill", frozen, signal.SIGSTOP)

    pool.end(future)

    assert isinstance(future.exception(PATIENCE_SECONDS), WorkerLost)
    assert pool.submit(call, "os:getpid").result(PATIENCE_SECONDS) != frozen


@pytest.mark.integration
def test_hanging_job_is_lost_at_its_limit() -> None:
    pool = ProcessPool(workers=1, threads=1, limit=timedelta(seconds=0.5))

    future = pool.submit(call, "time:sleep", 600)

    assert isinstance(future.exception(PATIENCE_SECONDS), WorkerLost)
    pool.shutdown()


@pytest.mark.integration
def test_worker_ends_when_its_node_is_killed() -> None:
    program = (
        "from datetime import timedelta\n"
        "from dicom_node.executors import ProcessPool, call\n"
        "if __name__ == '__main__':\n"
        "    pool = ProcessPool(workers=1, threads=1, limit=timedelta(minutes=10))\n"
        "    print(pool.submit(call, 'os:getpid').result(), flush=True)\n"
        "    pool.submit(call, 'time:sleep', 600).result()\n"
    )
    node = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert node.stdout is not None
    worker = int(node.stdout.readline())

    node.kill()
    node.wait()
    node.stdout.close()

    assert _ends(worker)


def _ends(process: int) -> bool:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return True
        if _is_zombie(process):
            return True
        time.sleep(0.02)
    return False


def _is_zombie(process: int) -> bool:
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except FileNotFoundError:
        return True
    return stat.rsplit(")", 1)[1].split()[0] == "Z"
