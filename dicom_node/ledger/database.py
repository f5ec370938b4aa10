"""The ledger's connection: one transaction at a time for writers, durable when it returns.

The only place that knows which database it is. On SQLite a writer takes its lock at BEGIN (a later
upgrade from reader to writer cannot wait and would fail), commits reach the disk before they return
(WAL with synchronous=FULL: NORMAL loses acknowledged rows in a power cut), and foreign keys hold.
Every error of SQLAlchemy or of a driver leaves as `StorageError`, without the values of the
statement.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Self

from sqlalchemy import Connection, Engine, Row, Table, create_engine, insert, inspect, text
from sqlalchemy import event as hooks
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import ConnectionPoolEntry

from dicom_node import schema
from dicom_node.errors import StorageError
from dicom_node.ledger.migrations import is_migratable, migrate, read_version

LEDGER_STATUS = 0xA701
"""DIMSE status when the ledger cannot keep a row (0xA7xx is 'out of resources', PS3.4 B.2.3)."""

BUSY_TIMEOUT_MS = 30_000
"""How long a writer waits for another; after it the sender is told to try again."""

SYNCHRONOUS_FULL = 2

NETWORK_FILE_SYSTEMS = frozenset(
    (
        "nfs",
        "nfs4",
        "cifs",
        "smb3",
        "smbfs",
        "afs",
        "ceph",
        "glusterfs",
        "fuse.sshfs",
        "fuse.glusterfs",
    )
)
"""Where SQLite's locks and shared memory do not hold (sqlite.org/wal.html)."""

_Insert = sqlite.Insert | postgresql.Insert

_INSERT_NEW: Mapping[str, Callable[[Table], _Insert]] = {
    "sqlite": sqlite.insert,
    "postgresql": postgresql.insert,
}

_logger = logging.getLogger(__name__)


class Database:
    """A ledger's engine, its transactions and its event rows."""

    def __init__(self, url: str, clock: Callable[[], datetime]) -> None:
        self._url = make_url(url)
        self._clock = clock
        self._engine: Engine | None = None

    def open(self, create: bool = True, *, migrate: bool = False) -> Self:
        """Connect, create the tables where there are none, and check that commits are durable.

        Args:
            create: False refuses a ledger that is not there: a node that has worked before must
                not go on with an empty one.
            migrate: bring the ledger of an earlier version to this one, which keeps a copy of it
                beside it. Only for whoever holds the data folder: nobody else may be using it.

        Raises:
            StorageError: no ledger is there, it is not durable, it lies on a network file system,
                or another version wrote it.
        """
        engine = create_engine(self._url, hide_parameters=True)
        if engine.dialect.name == "sqlite":
            hooks.listen(engine, "connect", _prepare_sqlite)
            hooks.listen(engine, "begin", _begin_sqlite)
            _prepare_file(Path(self._url.database or ""), create)
        self._engine = engine
        with self._writing() as connection:
            if not inspect(connection).has_table(schema.schema_version.name):
                if not create:
                    raise StorageError("the ledger has no tables: restore it", LEDGER_STATUS)
                schema.metadata.create_all(connection)
                connection.execute(
                    insert(schema.schema_version).values(version=schema.SCHEMA_VERSION)
                )
        if migrate:
            self._migrate()
        self.check()
        return self

    def close(self) -> None:
        """Give the connections back."""
        if self._engine is not None:
            self._engine.dispose()
            self._engine = None

    def __enter__(self) -> Self:
        return self if self._engine is not None else self.open()

    def __exit__(self, *_: object) -> None:
        self.close()

    def check(self) -> None:
        """Check the ledger's version and, on SQLite, that a commit survives a power cut.

        Raises:
            StorageError: with what was seen and what was wanted.
        """
        with self._reading() as connection:
            version = read_version(connection)
            if version != schema.SCHEMA_VERSION:
                advice = ": a start of the node migrates it" if is_migratable(version) else ""
                raise StorageError(
                    f"the ledger has version {version}; this program wants "
                    f"{schema.SCHEMA_VERSION}{advice}",
                    LEDGER_STATUS,
                )
            if connection.dialect.name != "sqlite":
                return
            for pragma, wanted in {
                "journal_mode": "wal",
                "synchronous": SYNCHRONOUS_FULL,
                "foreign_keys": 1,
            }.items():
                seen = connection.exec_driver_sql(f"PRAGMA {pragma}").scalar()
                if seen != wanted:
                    raise StorageError(
                        f"the ledger says {pragma}={seen}; wanted {wanted}", LEDGER_STATUS
                    )

    def _migrate(self) -> None:
        """Bring the ledger of an earlier version to this one; a crash leaves the one or the other.

        Raises:
            StorageError: the disk has no room for the copy, or the ledger does not answer.
        """
        with self._reading() as connection:
            version = read_version(connection)
        if not is_migratable(version):
            return
        path = Path(self._url.database or "")
        copy = path.with_name(f"{path.name}.version-{version}")
        try:
            copy.unlink(missing_ok=True)  # of an attempt that was cut short
            copy.touch(mode=0o600)
        except OSError as error:
            raise StorageError(f"the ledger's copy: {error.strerror}", LEDGER_STATUS) from error
        with _translated(), self._connected() as connection:
            connection.execution_options(bare=True)
            connection.execute(text("VACUUM INTO :copy"), {"copy": str(copy)})
            connection.commit()
        with self._writing() as connection:
            migrate(connection)
            self._note(connection, "ledger.migrated", version=version, to=schema.SCHEMA_VERSION)
        _logger.info("ledger.migrated version=%s to=%s", version, schema.SCHEMA_VERSION)

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        """Open a transaction that writes; it is durable when the block ends."""
        with _translated(), self._connected() as connection:
            connection.execution_options(writes=True)
            with connection.begin():
                yield connection

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        """Open a transaction that reads one snapshot and never waits for a writer."""
        with _translated(), self._connected() as connection, connection.begin():
            yield connection

    @contextmanager
    def _connected(self) -> Iterator[Connection]:
        if self._engine is None:
            raise StorageError("the ledger is not open", LEDGER_STATUS)
        with self._engine.connect() as connection:
            yield connection

    def _note(
        self,
        connection: Connection,
        name: str,
        *,
        study: str | None = None,
        plan: str | None = None,
        **detail: Any,
    ) -> None:
        """Write the event row of a transaction."""
        connection.execute(
            insert(schema.event).values(
                at=self._clock(), name=name, study_instance_uid=study, plan_id=plan, detail=detail
            )
        )


def insert_new(
    connection: Connection,
    table: Table,
    rows: Sequence[Mapping[str, Any]],
    key: Sequence[str] | None = None,
) -> Sequence[Row[Any]]:
    """Insert those of `rows` whose key is new, and return them as inserted.

    The key is the primary key, or the columns of a unique constraint. Breaking any other
    constraint is an error.
    """
    if not rows:
        return ()
    return connection.execute(_insert_new(connection, table, key).returning(table), rows).all()


def add_new(
    connection: Connection,
    table: Table,
    rows: Sequence[Mapping[str, Any]],
    key: Sequence[str] | None = None,
) -> None:
    """Insert those of `rows` whose key is new; as `insert_new`, and faster."""
    if rows:
        connection.execute(_insert_new(connection, table, key), rows)


def _insert_new(connection: Connection, table: Table, key: Sequence[str] | None) -> _Insert:
    return _INSERT_NEW[connection.dialect.name](table).on_conflict_do_nothing(
        index_elements=key or [column.name for column in table.primary_key]
    )


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except SQLAlchemyError as error:
        cause = type(getattr(error, "orig", None) or error).__name__
        raise StorageError(f"the ledger did not answer: {cause}", LEDGER_STATUS) from error


def find_file_system(path: Path, mounts: str) -> str:
    """Return the type of the file system that holds `path`, after the text of /proc/self/mounts."""
    under = [
        (len(place), kind)
        for _, place, kind, *_ in map(str.split, mounts.splitlines())
        if path.is_relative_to(place.encode().decode("unicode_escape"))
    ]
    return max(under, default=(0, "unknown"))[1]


def _prepare_file(path: Path, create: bool) -> None:
    """Refuse a place where SQLite is not safe; let the file be nobody else's to read."""
    if not path.is_file() and not create:
        raise StorageError("the ledger's file is not there: restore it", LEDGER_STATUS)
    try:
        mounts = Path("/proc/self/mounts")
        kind = find_file_system(path.resolve(), mounts.read_text() if mounts.exists() else "")
        path.touch(mode=0o600)
    except OSError as error:
        raise StorageError(f"the ledger's file: {error.strerror}", LEDGER_STATUS) from error
    if kind in NETWORK_FILE_SYSTEMS:
        raise StorageError(
            f"the ledger is on a network file system ({kind}); it wants a disk of this machine",
            LEDGER_STATUS,
        )


def _prepare_sqlite(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
    """Take BEGIN out of the driver's hands and set what makes a commit durable."""
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in (
        f"busy_timeout={BUSY_TIMEOUT_MS}",
        "journal_mode=WAL",
        "synchronous=FULL",
        "foreign_keys=ON",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    options = connection.get_execution_options()
    if not options.get("bare"):  # VACUUM wants no transaction
        connection.exec_driver_sql("BEGIN IMMEDIATE" if options.get("writes") else "BEGIN")
