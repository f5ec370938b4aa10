"""The ledger's connection: one transaction at a time for writers, durable when it returns.

What that takes on each database is in `engines`. Every error of SQLAlchemy or of a driver leaves as
`StorageError`, without the values of the statement.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Self

from sqlalchemy import Connection, Engine, Row, Table, insert, inspect, select, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import make_url
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from dicom_node import schema
from dicom_node.errors import StorageError, UnsyncedLedger
from dicom_node.ledger.engines import LEDGER_STATUS, build_engine, check_durable
from dicom_node.ledger.migrations import is_migratable, migrate, read_version

_Insert = sqlite.Insert | postgresql.Insert

_INSERT_NEW: Mapping[str, Callable[[Table], _Insert]] = {
    "sqlite": sqlite.insert,
    "postgresql": postgresql.insert,
}

_UNSYNCED = frozenset({"SQLITE_IOERR_FSYNC", "SQLITE_IOERR_DIR_FSYNC"})
"""What SQLite calls a sync that failed. A PostgreSQL server ends itself then."""

_logger = logging.getLogger(__name__)


class Database:
    """A ledger's engine, its transactions and its event rows."""

    def __init__(self, url: str, clock: Callable[[], datetime]) -> None:
        self._url = make_url(url)
        self._clock = clock
        self._engine: Engine | None = None
        self._number: int | None = None  # of the node for which this writes: see `tenure`

    def open(self, create: bool = True, *, migrate: bool = False) -> Self:
        """Connect, create the tables where there are none, and check that commits are durable.

        Args:
            create: False refuses a ledger that is not there: a node that has worked before must
                not go on with an empty one.
            migrate: bring the ledger of an earlier version to this one; of a file, a copy is kept
                beside it. Only for whoever holds the data folder: nobody else may be using it.

        Raises:
            StorageError: no ledger is there, it is not durable, it lies on a network file system,
                or another version wrote it.
            ConfigurationError: the driver of its database is not installed.
        """
        self._engine = build_engine(self._url, create=create)
        try:
            self._begin(create=create, migrate=migrate)
        except BaseException:
            self.close()
            raise
        return self

    def _begin(self, *, create: bool, migrate: bool) -> None:
        with self._reading() as connection:
            is_there = _has_tables(connection)
        if not is_there:
            if not create:
                raise StorageError("the ledger has no tables: restore it", LEDGER_STATUS)
            self._create()
        if migrate:
            self._migrate()
        self.check()

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
        """Check the ledger's version, and that a commit survives a power cut.

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
            check_durable(connection)

    def _create(self) -> None:
        """Create the tables, unless another process was faster."""
        with self._writing() as connection:
            if not _has_tables(connection):
                schema.metadata.create_all(connection)
                connection.execute(
                    insert(schema.schema_version).values(version=schema.SCHEMA_VERSION)
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
        if self._url.get_backend_name() == "sqlite":
            self._copy_file(version)
        with self._writing() as connection:
            migrate(connection)
            self._note(connection, "ledger.migrated", version=version, to=schema.SCHEMA_VERSION)
        _logger.info("ledger.migrated version=%s to=%s", version, schema.SCHEMA_VERSION)

    def _copy_file(self, version: int | None) -> None:
        """Copy the ledger beside it, as it is before a migration."""
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

    @contextmanager
    def _writing(self, *, fenced: bool = True) -> Iterator[Connection]:
        """Open a transaction that writes; it is durable when the block ends.

        Raises:
            StorageError: another node has followed the one for which this writes.
        """
        with _translated(), self._connected() as connection:
            connection.execution_options(writes=True)
            with connection.begin():
                if fenced and self._number is not None:
                    newest = connection.scalar(select(schema.tenure.c.number))
                    if newest != self._number:
                        raise StorageError("another node has taken over the ledger", LEDGER_STATUS)
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
        try:
            connection = self._engine.connect()
        except OperationalError as error:
            # No statement has been run, so that the driver's words hold none of its values.
            said = " ".join(str(error.orig).split())
            raise StorageError(f"the ledger cannot be reached: {said}", LEDGER_STATUS) from error
        with connection:
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

    def _note_all(self, connection: Connection, events: Sequence[Mapping[str, Any]]) -> None:
        """Write several event rows of a transaction, each with the columns that it needs."""
        if events:
            at = self._clock()
            connection.execute(insert(schema.event), [{"at": at, **each} for each in events])


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


def _has_tables(connection: Connection) -> bool:
    return inspect(connection).has_table(schema.schema_version.name)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except SQLAlchemyError as error:
        orig = getattr(error, "orig", None) or error
        if getattr(orig, "sqlite_errorname", "") in _UNSYNCED:
            raise UnsyncedLedger("a sync of the ledger failed", LEDGER_STATUS) from error
        cause = type(orig).__name__
        raise StorageError(f"the ledger did not answer: {cause}", LEDGER_STATUS) from error
