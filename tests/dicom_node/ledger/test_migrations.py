"""Ledgers that earlier versions wrote, opened by this one."""

import re
import sqlite3
import stat
from pathlib import Path

import pytest
from sqlalchemy import create_engine

from dicom_node.domain import DeliveryState, NoticeState, Question, Role
from dicom_node.errors import StorageError
from dicom_node.ledger import Ledger, Notice
from doubles import ledger as doubles
from doubles.ledger import STUDY, Clock, record

VERSION_1 = Path(doubles.__file__).with_name("ledger_version_1.sql").read_text()


@pytest.fixture
def old(tmp_path: Path) -> Path:
    path = tmp_path / "ledger.sqlite"
    with sqlite3.connect(path) as connection:
        connection.executescript(VERSION_1)
    connection.close()
    return path


def read_tables(path: Path) -> dict[str, object]:
    """Return what makes the tables of a ledger: columns, constraints and indices."""
    with sqlite3.connect(path) as connection:
        rows = connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL")
        tables = {name: set(re.split(r",?\s+", sql.replace('"', ""))) for name, sql in rows}
    connection.close()
    return tables


def test_migrated_ledger_has_the_tables_of_a_new_one(old, tmp_path, clock):
    Ledger(f"sqlite:///{old}", clock).open(migrate=True).close()
    Ledger(f"sqlite:///{tmp_path / 'new.sqlite'}", clock).open().close()

    assert read_tables(old) == read_tables(tmp_path / "new.sqlite")


def test_migration_keeps_what_was_known(old, clock):
    with Ledger(f"sqlite:///{old}", clock).open(migrate=True) as ledger:
        states = [each.state for each in ledger.deliveries(STUDY)]
        statuses = [each.status for each in ledger.deliveries(STUDY)]

        assert states == [DeliveryState.SENT, DeliveryState.WARNED, DeliveryState.PENDING]
        assert statuses == [0, 0xB000, None]
        assert ledger.job("a" * 32).plan.deliver_to == ("pacs",)
        assert ledger.events()[-1].name == "ledger.migrated"


def test_migrated_ledger_goes_on(old, clock):
    with Ledger(f"sqlite:///{old}", clock).open(migrate=True) as ledger:
        [due] = ledger.due_deliveries("pacs", clock.now, 10)
        record(ledger, due.delivery_id, DeliveryState.SENT, 0, None)

    with Ledger(f"sqlite:///{old}", clock).open(migrate=True) as ledger:
        assert ledger.due_deliveries("pacs", clock.now, 10) == []


def test_old_ledger_stays_beside_the_migrated_one(old, tmp_path, clock):
    (tmp_path / "ledger.sqlite.version-1").write_text("half a copy")

    Ledger(f"sqlite:///{old}", clock).open(migrate=True).close()

    copy = tmp_path / "ledger.sqlite.version-1"
    with sqlite3.connect(copy) as connection:
        assert connection.execute("SELECT version FROM schema_version").fetchone() == (1,)
    connection.close()
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600


def test_only_the_node_migrates(old, clock):
    with pytest.raises(StorageError, match=r"version 1; .* a start of the node migrates it"):
        Ledger(f"sqlite:///{old}", clock).open(create=False)


def test_migration_that_fails_changes_nothing(old, tmp_path):
    broken = sqlite3.connect(old)
    broken.execute("CREATE TABLE outage (peer TEXT)")
    broken.close()
    before = read_tables(old)

    with pytest.raises(StorageError, match="OperationalError"):
        Ledger(f"sqlite:///{old}", Clock()).open(migrate=True)

    assert read_tables(old) == before


def read_postgresql_tables(url: str) -> set[tuple[str, ...]]:
    """Return columns, constraints and indices of a ledger, each as the server writes it."""
    engine = create_engine(url)
    with engine.connect() as connection:
        rows = [
            row
            for query in (
                "SELECT table_name, column_name, data_type, is_nullable, "
                "coalesce(character_maximum_length, 0)::text FROM information_schema.columns "
                "WHERE table_schema = 'public'",
                "SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) "
                "FROM pg_constraint WHERE connamespace = 'public'::regnamespace",
                "SELECT tablename, indexdef FROM pg_indexes WHERE schemaname = 'public'",
            )
            for row in connection.exec_driver_sql(query)
        ]
    engine.dispose()
    return {tuple(row) for row in rows}


@pytest.mark.integration
def test_ledger_of_version_2_in_postgresql_is_brought_here(postgresql, clock):
    url = postgresql.make_url()
    with Ledger(url, clock).open() as ledger:
        doubles.receive_and_judge(ledger, [doubles.make_plan()])
        doubles.finish(ledger)
    new = read_postgresql_tables(url)
    engine = create_engine(url)
    with engine.begin() as connection:
        for statement in (
            # What later versions brought: a new step is undone here.
            "DROP TABLE inquiry, tenure, notice, trail, step",
            "ALTER TABLE judgement DROP COLUMN closing, DROP COLUMN config_digest",
            "ALTER TABLE derived DROP CONSTRAINT role",
            "ALTER TABLE derived ADD CONSTRAINT role "
            "CHECK (role IN ('image', 'uncertainty', 'report'))",
            "UPDATE schema_version SET version = 2",
        ):
            connection.exec_driver_sql(statement)
    engine.dispose()

    with Ledger(url, clock).open(migrate=True) as ledger:
        withdrawal = doubles.make_derived(1, Role.WITHDRAWAL, path="w.dcm")
        ledger.record_withdrawal("a" * 32, withdrawal, ["pacs"], by="a test", why="to see it")
        ledger.ask(STUDY, 1, [Question(peer="pacs", siblings_within_days=None, fetch=True)])
        available = NoticeState.AVAILABLE
        notice = Notice(sop_instance_uid="1.2", studies=(STUDY,), state=available, instances=())
        ledger.record_notice("pacs", notice)

        assert ledger.read_judgement(STUDY).closing is None
        assert [each.question.peer for each in ledger.inquiries(STUDY)] == ["pacs"]
    assert read_postgresql_tables(url) == new
