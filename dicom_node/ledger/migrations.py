"""The ledgers of earlier versions, brought to this one: numbered steps, all of them or none.

A step is SQL that never changes again, because the tables of `schema` do. It is written for each
database that may hold its version; version 1 was on SQLite only. On PostgreSQL too the whole way is
one transaction; a copy to go back to is the admin's (`pg_dump`).
"""

from collections.abc import Mapping, Sequence

from sqlalchemy import Connection, select, update

from dicom_node import schema

_TO_2 = (
    # SQLite cannot change a CHECK, and `committed` is a new word in that of the state.
    """
    CREATE TABLE delivery_2 (
        delivery_id INTEGER NOT NULL,
        plan_id VARCHAR(32) NOT NULL,
        sop_instance_uid VARCHAR(64) NOT NULL,
        peer VARCHAR(64) NOT NULL,
        state VARCHAR(16) NOT NULL,
        attempts INTEGER NOT NULL,
        status INTEGER,
        reason TEXT,
        queued_at DATETIME NOT NULL,
        next_attempt DATETIME NOT NULL,
        transaction_uid VARCHAR(64),
        ask_at DATETIME,
        PRIMARY KEY (delivery_id),
        UNIQUE (sop_instance_uid, peer),
        FOREIGN KEY(plan_id) REFERENCES job (plan_id),
        FOREIGN KEY(sop_instance_uid) REFERENCES derived (sop_instance_uid),
        CONSTRAINT deliverystate
            CHECK (state IN ('pending', 'sent', 'warned', 'committed', 'parked'))
    )
    """,
    """
    INSERT INTO delivery_2
    SELECT delivery_id, plan_id, sop_instance_uid, peer, state, attempts, status, reason,
        queued_at, next_attempt, NULL, NULL
    FROM delivery
    """,
    "DROP TABLE delivery",
    "ALTER TABLE delivery_2 RENAME TO delivery",
    "CREATE INDEX ix_delivery_plan_id ON delivery (plan_id)",
    "CREATE INDEX delivery_by_peer ON delivery (peer, state, next_attempt)",
    """
    CREATE TABLE outage (
        peer VARCHAR(64) NOT NULL,
        failures INTEGER NOT NULL,
        since DATETIME NOT NULL,
        next_call DATETIME NOT NULL,
        reason TEXT NOT NULL,
        PRIMARY KEY (peer)
    )
    """,
    """
    CREATE TABLE commitment (
        transaction_uid VARCHAR(64) NOT NULL,
        peer VARCHAR(64) NOT NULL,
        instances INTEGER NOT NULL,
        asked_at DATETIME NOT NULL,
        answered_at DATETIME,
        PRIMARY KEY (transaction_uid)
    )
    """,
)

_TO_3 = (
    "ALTER TABLE judgement ADD COLUMN closing VARCHAR(16)",
    "ALTER TABLE judgement ADD COLUMN config_digest VARCHAR(64)",
    """
    CREATE TABLE inquiry (
        study_instance_uid VARCHAR(64) NOT NULL,
        peer VARCHAR(64) NOT NULL,
        generation INTEGER NOT NULL,
        state VARCHAR(16) NOT NULL,
        siblings_within_days INTEGER,
        "fetch" BOOLEAN NOT NULL,
        since DATETIME NOT NULL,
        next_attempt DATETIME NOT NULL,
        rounds INTEGER NOT NULL,
        found JSON NOT NULL,
        reason TEXT,
        PRIMARY KEY (study_instance_uid, peer),
        FOREIGN KEY(study_instance_uid) REFERENCES study (study_instance_uid),
        CONSTRAINT inquirystate CHECK (state IN ('due', 'answered', 'silent'))
    )
    """,
    "CREATE INDEX inquiry_by_peer ON inquiry (peer, state, next_attempt)",
)

_TO_4_SQLITE = (
    # SQLite cannot change a CHECK, and `withdrawal` is a new word in that of the role. What points
    # to the old table goes first; a new name is followed by what points to the new one.
    """
    CREATE TABLE derived_4 (
        sop_instance_uid VARCHAR(64) NOT NULL,
        plan_id VARCHAR(32) NOT NULL,
        sop_class_uid VARCHAR(64) NOT NULL,
        series_instance_uid VARCHAR(64) NOT NULL,
        role VARCHAR(16) NOT NULL,
        number INTEGER NOT NULL,
        sha256 VARCHAR(64) NOT NULL,
        path TEXT NOT NULL,
        forgotten_at DATETIME,
        PRIMARY KEY (sop_instance_uid),
        FOREIGN KEY(plan_id) REFERENCES job (plan_id),
        CONSTRAINT role CHECK (role IN ('image', 'uncertainty', 'report', 'withdrawal'))
    )
    """,
    "INSERT INTO derived_4 SELECT * FROM derived",
    """
    CREATE TABLE delivery_4 (
        delivery_id INTEGER NOT NULL,
        plan_id VARCHAR(32) NOT NULL,
        sop_instance_uid VARCHAR(64) NOT NULL,
        peer VARCHAR(64) NOT NULL,
        state VARCHAR(16) NOT NULL,
        attempts INTEGER NOT NULL,
        status INTEGER,
        reason TEXT,
        queued_at DATETIME NOT NULL,
        next_attempt DATETIME NOT NULL,
        transaction_uid VARCHAR(64),
        ask_at DATETIME,
        PRIMARY KEY (delivery_id),
        UNIQUE (sop_instance_uid, peer),
        FOREIGN KEY(plan_id) REFERENCES job (plan_id),
        FOREIGN KEY(sop_instance_uid) REFERENCES derived_4 (sop_instance_uid),
        CONSTRAINT deliverystate
            CHECK (state IN ('pending', 'sent', 'warned', 'committed', 'parked'))
    )
    """,
    "INSERT INTO delivery_4 SELECT * FROM delivery",
    "DROP TABLE delivery",
    "DROP TABLE derived",
    "ALTER TABLE derived_4 RENAME TO derived",
    "ALTER TABLE delivery_4 RENAME TO delivery",
    "CREATE INDEX ix_derived_plan_id ON derived (plan_id)",
    "CREATE INDEX ix_delivery_plan_id ON delivery (plan_id)",
    "CREATE INDEX delivery_by_peer ON delivery (peer, state, next_attempt)",
)

_TO_4_POSTGRESQL = (
    "ALTER TABLE derived DROP CONSTRAINT role",
    """
    ALTER TABLE derived ADD CONSTRAINT role
        CHECK (role IN ('image', 'uncertainty', 'report', 'withdrawal'))
    """,
)

_TO_5 = (
    """
    CREATE TABLE tenure (
        number INTEGER NOT NULL,
        holder TEXT NOT NULL,
        lease_until DATETIME NOT NULL,
        PRIMARY KEY (number)
    )
    """,
)

_TO_6 = (
    """
    CREATE TABLE notice (
        sop_instance_uid VARCHAR(64) NOT NULL,
        study_instance_uid VARCHAR(64) NOT NULL,
        peer VARCHAR(64) NOT NULL,
        state VARCHAR(16) NOT NULL,
        changed_at DATETIME NOT NULL,
        instances JSON NOT NULL,
        reason TEXT,
        PRIMARY KEY (sop_instance_uid, study_instance_uid),
        CONSTRAINT noticestate
            CHECK (state IN ('in_progress', 'completed', 'discontinued', 'available'))
    )
    """,
    "CREATE INDEX ix_notice_study_instance_uid ON notice (study_instance_uid)",
)

_TO_7 = (
    """
    CREATE TABLE trail (
        told INTEGER NOT NULL,
        PRIMARY KEY (told)
    )
    """,
)

_TO_8 = (
    """
    CREATE TABLE step (
        sop_instance_uid VARCHAR(64) NOT NULL,
        peer VARCHAR(64) NOT NULL,
        study_instance_uid VARCHAR(64) NOT NULL,
        transaction_uid VARCHAR(64) NOT NULL,
        workitem JSON NOT NULL,
        sources JSON NOT NULL,
        state VARCHAR(16) NOT NULL,
        since DATETIME NOT NULL,
        next_attempt DATETIME NOT NULL,
        rounds INTEGER NOT NULL,
        told TEXT,
        reason TEXT,
        PRIMARY KEY (sop_instance_uid, peer),
        CONSTRAINT stepstate CHECK
            (state IN ('claiming', 'claimed', 'performed', 'completed', 'canceled', 'lost'))
    )
    """,
    "CREATE INDEX step_by_peer ON step (peer, state)",
)

_STEPS: Mapping[int, Mapping[str, Sequence[str]]] = {
    1: {"sqlite": _TO_2},
    2: {
        "sqlite": _TO_3,
        "postgresql": [each.replace("DATETIME", "TIMESTAMP WITH TIME ZONE") for each in _TO_3],
    },
    3: {"sqlite": _TO_4_SQLITE, "postgresql": _TO_4_POSTGRESQL},
    4: {
        "sqlite": _TO_5,
        "postgresql": [
            each.replace("DATETIME", "TIMESTAMP WITH TIME ZONE").replace("INTEGER", "BIGINT")
            for each in _TO_5
        ],
    },
    5: {
        "sqlite": _TO_6,
        "postgresql": [each.replace("DATETIME", "TIMESTAMP WITH TIME ZONE") for each in _TO_6],
    },
    6: {
        "sqlite": _TO_7,
        "postgresql": [each.replace("INTEGER", "BIGINT") for each in _TO_7],
    },
    7: {
        "sqlite": _TO_8,
        "postgresql": [each.replace("DATETIME", "TIMESTAMP WITH TIME ZONE") for each in _TO_8],
    },
}
"""Version to the statements that lead to the next one, for each database."""


def read_version(connection: Connection) -> int | None:
    """Return the version that wrote the ledger."""
    return connection.scalar(select(schema.schema_version.c.version))


def is_migratable(version: int | None) -> bool:
    """Say whether steps lead from `version` to this program's."""
    return version is not None and version in _STEPS


def migrate(connection: Connection) -> None:
    """Take every step from the ledger's version on; the caller's transaction holds all of them."""
    for version in range(read_version(connection) or 0, schema.SCHEMA_VERSION):
        for statement in _STEPS[version][connection.dialect.name]:
            connection.exec_driver_sql(statement)
    connection.execute(update(schema.schema_version).values(version=schema.SCHEMA_VERSION))
