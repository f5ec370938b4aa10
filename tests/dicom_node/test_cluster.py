"""Jobs on Dask's workers: run once each, lost as told, and nothing that Dask does by itself."""

import os
import signal
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from dicom_node.cluster import DaskCluster
from dicom_node.errors import WorkerLost
from dicom_node.executors import call
from doubles.certificates import make_authority
from doubles.dask import Dask, run_dask, wait_until

pytestmark = pytest.mark.integration

PATIENCE_SECONDS = 60
START_AND = "doubles.dask:start_and"
START_AND_WAIT = "doubles.dask:start_and_wait"


@pytest.fixture(scope="module")
def dask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dask]:
    """A scheduler with one worker, which tests may kill: its nanny starts another."""
    with run_dask(tmp_path_factory.mktemp("dask")) as dask:
        yield dask


@contextmanager
def joined(dask: Dask, **changes: object) -> Iterator[DaskCluster]:
    cluster = dask.executor(**changes)
    try:
        yield cluster
    finally:
        cluster.shutdown()


@pytest.fixture
def cluster(dask: Dask) -> Iterator[DaskCluster]:
    """The node's side, once there is a worker."""
    with joined(dask) as cluster:
        wait_until(lambda: cluster.capacity() == 1)
        yield cluster


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "starts"


def starts(marker: Path) -> list[int]:
    return [int(line) for line in marker.read_text().split()] if marker.exists() else []


def start(
    cluster: DaskCluster, marker: Path, until: float | str = 600.0, function: str = START_AND
) -> Future:
    """Return a job that runs."""
    before = len(starts(marker))
    future = cluster.submit(call, function, str(marker), until)
    wait_until(lambda: len(starts(marker)) > before)
    return future


def find_worker(cluster: DaskCluster) -> int | None:
    """Return the process id of the worker, or None while it is on its way."""
    try:
        return cluster.submit(call, "os:getpid").result(PATIENCE_SECONDS)
    except WorkerLost:
        return None


def test_job_runs_in_another_process_and_its_result_comes_back(cluster, marker):
    pid = cluster.submit(call, START_AND, str(marker), 0).result(PATIENCE_SECONDS)

    assert [pid] == starts(marker) != [os.getpid()]
    assert list(cluster.problems()) == []


def test_jobs_take_turns_at_what_a_worker_offers_once(cluster, marker):
    first = start(cluster, marker, 1.0)
    second = cluster.submit(call, START_AND, str(marker), 0)

    wait([first, second], PATIENCE_SECONDS)

    assert first.result() == second.result()
    assert len(starts(marker)) == 2


def test_killed_worker_is_a_lost_worker_and_its_job_is_not_run_again(cluster, marker):
    future = start(cluster, marker)

    os.kill(starts(marker)[0], signal.SIGKILL)

    with pytest.raises(WorkerLost, match="the worker process ended before its job did"):
        future.result(PATIENCE_SECONDS)
    again = cluster.submit(call, START_AND, str(marker), 0).result(PATIENCE_SECONDS)
    assert starts(marker) == [starts(marker)[0], again]


def test_finished_job_is_not_run_again_when_its_worker_dies(cluster, marker):
    future = cluster.submit(call, START_AND, str(marker), 0)
    pid = future.result(PATIENCE_SECONDS)

    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: find_worker(cluster) not in {pid, None})

    assert starts(marker) == [pid]
    assert future.result() == pid


def test_error_names_class_and_place_and_not_its_text(cluster, dask):
    future = cluster.submit(call, "json:loads", "{Doe^Jane}")

    with pytest.raises(WorkerLost, match=r"^JSONDecodeError at decoder\.py:\d+"):
        future.result(PATIENCE_SECONDS)
    assert "Expecting property name" not in dask.read_logs()


@pytest.mark.parametrize("how", [signal.SIGCONT, signal.SIGSTOP], ids=["hanging", "frozen"])
def test_job_that_is_given_up_frees_its_place(how, cluster, marker):
    future = start(cluster, marker)
    os.kill(starts(marker)[0], how)

    cluster.end(future)

    with pytest.raises(WorkerLost, match="given up"):
        future.result(0)
    assert find_worker(cluster) != starts(marker)[0]
    assert len(starts(marker)) == 1


def test_job_that_takes_too_long_is_lost_at_its_limit(dask, marker):
    with joined(dask, limit=timedelta(seconds=1)) as cluster:
        wait_until(lambda: cluster.capacity() == 1)

        with pytest.raises(WorkerLost):
            cluster.submit(call, START_AND, str(marker), 600).result(PATIENCE_SECONDS)

    assert len(starts(marker)) == 1


def test_resource_that_nobody_offers_is_told_and_nothing_is_handed_out(dask):
    with joined(dask, resources={"GPU": 2.0}) as cluster:
        (problem,) = cluster.problems()

        assert cluster.capacity() == 0
        assert "none that offers GPU=2 (dask worker --resources)" in problem


def test_no_more_jobs_run_than_the_node_allows(cluster, dask):
    dask.add_worker()
    with joined(dask, workers=1) as bounded:
        wait_until(lambda: cluster.capacity() == 2)

        assert bounded.capacity() == 1


def test_scheduler_that_runs_lost_jobs_again_is_refused(tmp_path):
    with run_dask(tmp_path, ALLOWED_FAILURES="3", HTTP__ROUTES="['distributed.http.health']") as at:
        with joined(at) as cluster:
            wait_until(lambda: cluster.capacity() == 0 and len(list(cluster.problems())) == 2)
            failures, routes = cluster.problems()
        assert "allowed-failures 3, wanted 0" in failures
        assert "answers plain HTTP" in routes


def test_scheduler_that_is_away_is_told_and_found_when_it_is_back(tmp_path, marker):
    gate = tmp_path / "gate"
    with run_dask(tmp_path) as dask, joined(dask) as cluster:
        wait_until(lambda: cluster.capacity() == 1)
        future = start(cluster, marker, str(gate), START_AND_WAIT)
        dask.scheduler.stop()

        with pytest.raises(WorkerLost):
            future.result(PATIENCE_SECONDS)
        gate.touch()  # a job that goes on would keep its worker from the next one
        assert cluster.capacity() == 0
        (problem,) = cluster.problems()
        assert f"{dask.address} does not answer" in problem
        with pytest.raises(WorkerLost):
            cluster.submit(call, "os:getpid").result(PATIENCE_SECONDS)
        dask.start()
        wait_until(lambda: cluster.capacity() > 0)
        cluster.submit(call, "os:getpid").result(PATIENCE_SECONDS)


def test_who_is_not_of_the_cluster_stays_outside(dask, tmp_path):
    stranger = make_authority(tmp_path, "stranger")

    outside = dask.add_worker(ca=stranger)
    with joined(dask, tls=dask.tls(stranger, "stranger")) as cluster:
        assert cluster.capacity() == 0
    plain = dask.address.replace("tls", "tcp")
    with joined(dask, scheduler=plain, tls=None) as cluster:
        assert cluster.capacity() == 0
    with joined(dask) as cluster:
        assert cluster.capacity() < 3
    outside.stop()


def test_scheduler_answers_no_plain_http(dask):
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"http://127.0.0.1:{dask.http_port}/health", timeout=10)
