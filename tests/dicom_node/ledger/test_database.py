import math
import sqlite3
import stat
import threading
import time
from datetime import datetime
from pathlib import Path

import pytest
from sqlalchemy import text, update

from dicom_node import schema
from dicom_node.errors import StorageError
from dicom_node.ledger import Ledger
from dicom_node.ledger.engines import LEDGER_STATUS, find_file_system
from doubles.ledger import PEER, STUDY, Clock, make_instance

PATIENCE_SECONDS = 60
MOUNTS = """
/dev/vda / ext4 rw 0 0
server:/export /srv/images nfs4 rw 0 0
tmpfs /srv tmpfs rw 0 0
/dev/vdb /data\\040disk xfs rw 0 0
""".strip()


@pytest.fixture
def sqlite(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'ledger.sqlite'}"


SETTINGS = {
    "sqlite": ("PRAGMA", {"journal_mode": "wal", "synchronous": 2, "busy_timeout": 30_000}),
    "postgresql": ("SHOW", {"synchronous_commit": "on", "fsync": "on", "lock_timeout": "30s"}),
}


def test_commits_survive_a_power_cut(ledger):
    with ledger._reading() as connection:
        ask, settings = SETTINGS[connection.dialect.name]
        seen = {name: connection.exec_driver_sql(f"{ask} {name}").scalar() for name in settings}

    assert seen == settings


def test_less_durable_ledger_is_refused(ledger):
    set_it = {"sqlite": "PRAGMA synchronous=NORMAL", "postgresql": "SET synchronous_commit = local"}
    with ledger._reading() as connection:
        connection.rollback()
        driver = connection.connection.dbapi_connection
        driver.execute(set_it[connection.dialect.name])
        driver.commit()

    with pytest.raises(StorageError, match=r"synchronous=1; wanted 2|=local; wanted on"):
        ledger.check()


@pytest.mark.integration
@pytest.mark.parametrize("setting", ["fsync", "full_page_writes"])
def test_server_that_does_not_sync_is_refused(setting, postgresql, clock):
    url = postgresql.make_url()
    postgresql.execute(f"ALTER SYSTEM SET {setting} = off")
    postgresql.execute("SELECT pg_reload_conf()")
    try:
        with pytest.raises(StorageError, match=f"{setting}=off; wanted on"):
            wait_for_refusal(url, clock)
    finally:
        postgresql.execute(f"ALTER SYSTEM RESET {setting}")
        postgresql.execute("SELECT pg_reload_conf()")


def wait_for_refusal(url: str, clock: Clock) -> None:
    """Open a ledger until that is refused: a server takes its time to read its settings."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        Ledger(url, clock).open().close()


def test_ledger_is_there_after_a_restart(url: str, clock: Clock):
    with Ledger(url, clock).open() as ledger:
        ledger.record_instances([make_instance()], PEER, None)

    with Ledger(url, clock).open(create=False) as ledger:
        assert ledger.read_instances(STUDY) == (make_instance(),)


def test_missing_ledger_is_not_replaced_by_an_empty_one(url, tmp_path, clock):
    with pytest.raises(StorageError, match="restore"):
        Ledger(url, clock).open(create=False)

    assert list(tmp_path.iterdir()) == []


def test_empty_ledger_is_not_taken_for_the_old_one(sqlite, tmp_path, clock):
    (tmp_path / "ledger.sqlite").touch()

    with pytest.raises(StorageError, match="no tables"):
        Ledger(sqlite, clock).open(create=False)


def test_ledger_of_another_version_is_refused(ledger, url, clock):
    with ledger._writing() as connection:
        connection.execute(update(schema.schema_version).values(version=99))

    with pytest.raises(StorageError, match="version 99"):
        Ledger(url, clock).open()


def test_file_that_is_no_ledger_is_refused_with_the_status_of_the_ledger(sqlite, tmp_path, clock):
    (tmp_path / "ledger.sqlite").write_bytes(b"not a database" * 1000)

    with pytest.raises(StorageError, match="DatabaseError") as refused:
        Ledger(sqlite, clock).open()

    assert refused.value.status == LEDGER_STATUS


def test_new_file_that_another_is_writing_is_waited_for(sqlite, tmp_path, clock):
    other = sqlite3.connect(
        tmp_path / "ledger.sqlite", isolation_level=None, check_same_thread=False
    )
    other.execute("CREATE TABLE another (number INTEGER)")
    other.execute("BEGIN IMMEDIATE")
    done = threading.Timer(0.3, other.rollback)
    done.start()
    try:
        with Ledger(sqlite, clock).open() as ledger:
            ledger.check()
    finally:
        done.join()
        other.close()


def test_ledger_is_for_its_owner_only(sqlite, tmp_path, clock):
    Ledger(sqlite, clock).open().close()

    assert stat.S_IMODE((tmp_path / "ledger.sqlite").stat().st_mode) == 0o600


def test_closed_ledger_says_so(ledger):
    ledger.close()

    with pytest.raises(StorageError, match="not open"):
        ledger.counts()


def test_error_says_nothing_of_the_values(ledger):
    with pytest.raises(StorageError) as failed, ledger._writing() as connection:
        connection.execute(text("INSERT INTO nowhere VALUES (:name)"), {"name": "DOE^JANE"})

    errors = ("OperationalError", "UndefinedTable")
    assert str(failed.value) in {f"the ledger did not answer: {error}" for error in errors}
    assert "DOE" not in str(failed.value.__cause__)


def test_failed_transaction_leaves_nothing(ledger):
    with pytest.raises(StorageError):
        ledger.record_instances(
            [make_instance(1), make_instance(2, sop_class_uid=None)], PEER, None
        )

    assert ledger.studies() == []
    assert ledger.events() == []


def test_numbers_that_json_does_not_know_are_none(ledger):
    figures = {"ratio": math.nan, "all": [1.5, math.inf], "verdict": "pass"}
    with ledger._writing() as connection:
        ledger._note(connection, "measured", figures=figures)

    kept = {"ratio": None, "all": [1.5, None], "verdict": "pass"}
    assert ledger.events()[-1].detail == {"figures": kept}


def test_naive_time_is_refused(url):
    naive = Ledger(url, lambda: datetime(2026, 1, 1))  # noqa: DTZ001

    with naive.open() as ledger, pytest.raises(StorageError, match="ValueError"):
        ledger.record_instances([make_instance()], PEER, "one")


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/var/lib/ledger.sqlite", "ext4"),
        ("/srv/images/ledger.sqlite", "nfs4"),
        ("/srv/imagesque/ledger.sqlite", "tmpfs"),
        ("/data disk/ledger.sqlite", "xfs"),
    ],
)
def test_file_system_is_that_of_the_nearest_mount(path, kind):
    assert find_file_system(Path(path), MOUNTS) == kind


def test_network_file_system_is_refused(sqlite, clock, monkeypatch):
    monkeypatch.setattr("dicom_node.ledger.engines.find_file_system", lambda *_: "cifs")

    with pytest.raises(StorageError, match="cifs"):
        Ledger(sqlite, clock).open()
