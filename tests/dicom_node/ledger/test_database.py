import stat
from datetime import datetime
from pathlib import Path

import pytest
from sqlalchemy import text, update

from dicom_node import schema
from dicom_node.errors import StorageError
from dicom_node.ledger import Ledger
from dicom_node.ledger.database import LEDGER_STATUS, find_file_system
from doubles.ledger import PEER, STUDY, Clock, make_instance

MOUNTS = """
/dev/vda / ext4 rw 0 0
server:/export /srv/images nfs4 rw 0 0
tmpfs /srv tmpfs rw 0 0
/dev/vdb /data\\040disk xfs rw 0 0
""".strip()


def test_commits_survive_a_power_cut(ledger):
    with ledger._reading() as connection:
        pragmas = [
            connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        ]

    assert pragmas == ["wal", 2, 1, 30_000]


def test_less_durable_ledger_is_refused(ledger):
    with ledger._reading() as connection:
        connection.rollback()
        connection.connection.dbapi_connection.execute("PRAGMA synchronous=NORMAL")

    with pytest.raises(StorageError, match="synchronous=1; wanted 2"):
        ledger.check()


def test_ledger_is_there_after_a_restart(tmp_path: Path, clock: Clock):
    url = f"sqlite:///{tmp_path / 'ledger.sqlite'}"
    with Ledger(url, clock).open() as ledger:
        ledger.record_instances([make_instance()], PEER, None)

    with Ledger(url, clock).open(create=False) as ledger:
        assert ledger.read_instances(STUDY) == (make_instance(),)


def test_missing_ledger_is_not_replaced_by_an_empty_one(tmp_path, clock):
    with pytest.raises(StorageError, match="restore"):
        Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}", clock).open(create=False)

    assert list(tmp_path.iterdir()) == []


def test_empty_ledger_is_not_taken_for_the_old_one(tmp_path, clock):
    (tmp_path / "ledger.sqlite").touch()

    with pytest.raises(StorageError, match="no tables"):
        Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}", clock).open(create=False)


def test_ledger_of_another_version_is_refused(ledger, tmp_path, clock):
    with ledger._writing() as connection:
        connection.execute(update(schema.schema_version).values(version=99))

    with pytest.raises(StorageError, match="version 99"):
        Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}", clock).open()


def test_file_that_is_no_ledger_is_refused_with_the_status_of_the_ledger(tmp_path, clock):
    (tmp_path / "ledger.sqlite").write_bytes(b"not a database" * 1000)

    with pytest.raises(StorageError, match="DatabaseError") as refused:
        Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}", clock).open()

    assert refused.value.status == LEDGER_STATUS


def test_ledger_is_for_its_owner_only(ledger, tmp_path):
    assert stat.S_IMODE((tmp_path / "ledger.sqlite").stat().st_mode) == 0o600


def test_closed_ledger_says_so(ledger):
    ledger.close()

    with pytest.raises(StorageError, match="not open"):
        ledger.counts()


def test_error_says_nothing_of_the_values(ledger):
    with pytest.raises(StorageError) as failed, ledger._writing() as connection:
        connection.execute(text("INSERT INTO nowhere VALUES (:name)"), {"name": "DOE^JANE"})

    assert str(failed.value) == "the ledger did not answer: OperationalError"
    assert "DOE" not in str(failed.value.__cause__)


def test_failed_transaction_leaves_nothing(ledger):
    with pytest.raises(StorageError):
        ledger.record_instances(
            [make_instance(1), make_instance(2, sop_class_uid=None)], PEER, None
        )

    assert ledger.studies() == []
    assert ledger.events() == []


def test_naive_time_is_refused(tmp_path):
    naive = Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}", lambda: datetime(2026, 1, 1))  # noqa: DTZ001

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


def test_network_file_system_is_refused(tmp_path, clock, monkeypatch):
    monkeypatch.setattr("dicom_node.ledger.database.find_file_system", lambda *_: "cifs")

    with pytest.raises(StorageError, match="cifs"):
        Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}", clock).open()
