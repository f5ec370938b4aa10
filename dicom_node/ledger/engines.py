"""The two databases that a ledger may be in, and what makes each of them safe.

On both, one writer at a time: the order of the sequences is the order of the commits, and what a
transaction has seen of a study still holds when it commits. On SQLite a writer takes its lock at
BEGIN (a later upgrade from reader to writer cannot wait and would fail); on PostgreSQL it first
takes an advisory lock, which goes with the transaction, however that ends. A commit takes
milliseconds, and the recorder puts many rows into one.

On both, a commit is on the disk before it returns: SQLite's WAL with synchronous=FULL (NORMAL loses
acknowledged rows in a power cut), PostgreSQL's synchronous_commit and fsync. All of that is set
here for every connection, and checked.

PostgreSQL may be started again at any time. What was under way then is an error, also a COMMIT of
which nobody knows how it ended, and whoever wrote it writes it again: each method may be repeated.
A connection is tried before it is used, so the next transaction finds the server that is back.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine
from sqlalchemy import event as hooks
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.pool import ConnectionPoolEntry

from dicom_node.errors import ConfigurationError, StorageError
from dicom_node.ledger.documents import encode_json

LEDGER_STATUS = 0xA701
"""DIMSE status when the ledger cannot keep a row (0xA7xx is 'out of resources', PS3.4 B.2.3)."""

BUSY_TIMEOUT_MS = 30_000
"""How long a writer waits for another; after it the sender is told to try again."""

_RETRY_S = 0.01

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

SYNCHRONOUS_FULL = 2

_DURABLE: Mapping[str, Mapping[str, Any]] = {
    "sqlite": {"journal_mode": "wal", "synchronous": SYNCHRONOUS_FULL, "foreign_keys": 1},
    "postgresql": {"synchronous_commit": "on", "fsync": "on", "full_page_writes": "on"},
}
"""What each database must say of a connection, so that a commit survives a power cut."""

_ASK = {"sqlite": "PRAGMA", "postgresql": "SHOW"}

_SQLITE_SESSION = (
    f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}",
    "PRAGMA journal_mode=WAL",
    "PRAGMA synchronous=FULL",
    "PRAGMA foreign_keys=ON",
)
_POSTGRESQL_SESSION = (
    "SET synchronous_commit = on",
    f"SET lock_timeout = {BUSY_TIMEOUT_MS}",
    # A process that is frozen between two statements must not hold up all others.
    f"SET idle_in_transaction_session_timeout = {BUSY_TIMEOUT_MS}",
    "SET timezone = 'UTC'",
)
_POSTGRESQL_CONNECTION = {
    "application_name": "dicom_node",
    "connect_timeout": 10,  # seconds
    # A server whose machine is gone does not say so: some 30 s later it is known.
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 4,
    "tcp_user_timeout": BUSY_TIMEOUT_MS,
}
_WRITERS_LOCK = 0x0D1C03
"""Key of the advisory lock; any number will do that nothing else in the database uses."""


def build_engine(url: URL, *, create: bool) -> Engine:
    """Return an engine for the database of `url`, which is prepared, not yet connected to.

    Raises:
        ConfigurationError: its driver is not installed.
        StorageError: it is a file that is not there, unless it may be created, or that is on a
            network file system.
    """
    if url.get_backend_name() == "sqlite":
        _prepare_file(Path(url.database or ""), create)
        engine = create_engine(url, hide_parameters=True, json_serializer=encode_json)
        prepare, begin = _prepare_sqlite, _begin_sqlite
    else:
        engine = _build_postgresql(url)
        prepare, begin = _prepare_postgresql, _begin_postgresql
    hooks.listen(engine, "connect", prepare)
    hooks.listen(engine, "begin", begin)
    return engine


def check_durable(connection: Connection) -> None:
    """Check that a commit survives a power cut.

    Raises:
        StorageError: with what was seen and what was wanted.
    """
    dialect = connection.dialect.name
    for name, wanted in _DURABLE[dialect].items():
        seen = connection.exec_driver_sql(f"{_ASK[dialect]} {name}").scalar()
        if seen != wanted:
            raise StorageError(f"the ledger says {name}={seen}; wanted {wanted}", LEDGER_STATUS)


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
    # Whoever opens a new file turns it into a WAL, and SQLite answers the others 'locked' at once:
    # its busy timeout does not hold for that change.
    deadline = time.monotonic() + BUSY_TIMEOUT_MS / 1000
    while True:
        try:
            return _execute_all(connection, _SQLITE_SESSION)
        except Exception as error:
            is_busy = getattr(error, "sqlite_errorname", "") == "SQLITE_BUSY"
            if not is_busy or time.monotonic() > deadline:
                raise
            time.sleep(_RETRY_S)


def _begin_sqlite(connection: Connection) -> None:
    options = connection.get_execution_options()
    if not options.get("bare"):  # VACUUM wants no transaction
        connection.exec_driver_sql("BEGIN IMMEDIATE" if options.get("writes") else "BEGIN")


def _build_postgresql(url: URL) -> Engine:
    try:
        return create_engine(
            url.set(drivername="postgresql+psycopg"),
            hide_parameters=True,
            json_serializer=encode_json,
            pool_pre_ping=True,
            connect_args=_POSTGRESQL_CONNECTION,
        )
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"ledger.kind postgresql needs {error.name}: pip install '.[cluster]' in the clone"
        ) from None


def _prepare_postgresql(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
    _execute_all(connection, _POSTGRESQL_SESSION)
    connection.commit()


def _begin_postgresql(connection: Connection) -> None:
    if connection.get_execution_options().get("writes"):
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_WRITERS_LOCK})")
    else:
        connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")


def _execute_all(connection: DBAPIConnection, statements: tuple[str, ...]) -> None:
    cursor = connection.cursor()
    for each in statements:
        cursor.execute(each)
    cursor.close()
