"""What a server adds to the ways in which a ledger may fail: restarts, lost and frozen clients."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dicom_node.errors import ConfigurationError, StorageError
from dicom_node.ledger import Ledger, engines
from dicom_node.ledger.engines import LEDGER_STATUS
from doubles.ledger import PEER, STUDY, make_instance
from doubles.postgresql import PostgreSQL, run_postgresql

pytestmark = pytest.mark.integration

WRITER = """
import sys, time
from datetime import UTC, datetime
from dicom_node.ledger import Ledger, engines

engines._POSTGRESQL_SESSION = sys.argv[2:]
ledger = Ledger(sys.argv[1], lambda: datetime.now(UTC)).open()
with ledger._writing():
    print("in", flush=True)
    time.sleep(600)
"""

OWNER = """
import time
from doubles.postgresql import run_postgresql

with run_postgresql() as server:
    print(server.folder, flush=True)
    time.sleep(600)
"""
PATIENCE_SECONDS = 60


@pytest.fixture(scope="module")
def mortal() -> Iterator[PostgreSQL]:
    """A server that a test may crash, and bring back."""
    with run_postgresql() as server:
        yield server


def receive(ledger: Ledger, number: int) -> None:
    ledger.record_instances([make_instance(number)], PEER, None)


def test_commits_are_there_after_a_crash_and_the_ledger_heals_by_itself(mortal, clock):
    with Ledger(mortal.make_url(), clock).open() as ledger:
        receive(ledger, 1)
        mortal.stop()

        with pytest.raises(StorageError, match="cannot be reached") as refused:
            receive(ledger, 2)

        assert refused.value.status == LEDGER_STATUS
        mortal.start()
        receive(ledger, 2)
        assert ledger.study_row(STUDY).seen == 2


def test_crash_in_a_transaction_is_a_status_and_leaves_nothing(mortal, clock):
    with Ledger(mortal.make_url(), clock).open() as ledger:
        with pytest.raises(StorageError, match="did not answer") as refused:
            ledger.record_receipts([], closed=crash(mortal))

        assert refused.value.status == LEDGER_STATUS
        assert ledger.events() == []


def crash(server: PostgreSQL) -> Iterator[str]:
    """Restart the server while a transaction asks what it should write next."""
    server.restart()
    yield "an association"


def test_commit_of_unknown_outcome_may_be_repeated(postgresql, clock, monkeypatch):
    with Ledger(postgresql.make_url(), clock).open() as ledger:
        commit = ledger._engine.dialect.do_commit

        def commit_and_lose_the_answer(connection: Any) -> None:
            commit(connection)
            connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")

        monkeypatch.setattr(ledger._engine.dialect, "do_commit", commit_and_lose_the_answer)
        with pytest.raises(StorageError):
            receive(ledger, 1)
        monkeypatch.undo()

        receive(ledger, 1)

        assert ledger.study_row(STUDY).seen == 1


def test_killed_writer_holds_nobody_up(postgresql, clock):
    url = postgresql.make_url()
    with hold_writer(url) as writer:
        writer.kill()

        with Ledger(url, clock).open() as ledger:
            receive(ledger, 1)


def test_writer_that_waits_too_long_is_told(postgresql, clock, monkeypatch):
    url = postgresql.make_url()
    with hold_writer(url):
        monkeypatch.setattr(engines, "_POSTGRESQL_SESSION", ("SET lock_timeout = 200",))

        with (
            pytest.raises(StorageError, match="LockNotAvailable") as refused,
            Ledger(url, clock) as ledger,
        ):
            receive(ledger, 1)

        assert refused.value.status == LEDGER_STATUS


def test_frozen_writer_is_thrown_out(postgresql, clock):
    url = postgresql.make_url()
    with hold_writer(url, "SET idle_in_transaction_session_timeout = 500") as writer:
        os.kill(writer.pid, signal.SIGSTOP)

        with Ledger(url, clock).open() as ledger:
            receive(ledger, 1)

    assert "SET idle_in_transaction_session_timeout = 30000" in engines._POSTGRESQL_SESSION


def test_missing_driver_is_told_with_the_remedy(monkeypatch, clock):
    monkeypatch.setitem(sys.modules, "psycopg", None)

    with pytest.raises(ConfigurationError, match=r"psycopg: pip install '\.\[cluster\]'"):
        Ledger("postgresql://localhost/ledger", clock).open()


class hold_writer:  # noqa: N801 - reads as what it does
    """A process that is in a writing transaction, and is killed at the end."""

    def __init__(self, url: str, *session: str) -> None:
        command = [sys.executable, "-c", WRITER, url, *session]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> subprocess.Popen[str]:
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "in\n"
        return self._process

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()


def test_server_and_its_folder_go_with_whoever_is_killed():
    paths = {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", OWNER], env=os.environ | paths, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        folder = Path(owner.stdout.readline().strip())
        server = Path("/proc") / (folder / "data" / "postmaster.pid").read_text().split()[0]
        owner.kill()

    deadline = time.monotonic() + PATIENCE_SECONDS
    while server.exists() or folder.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
