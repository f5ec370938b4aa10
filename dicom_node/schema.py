"""The ledger's tables: what the node knows, row by row, on SQLite and on PostgreSQL.

A judgement and a plan are documents (JSON columns) because they are always read and written whole;
what is searched or constrained is a column. `event` only grows: it answers "why is this series
here?" for good.
"""

from datetime import UTC, datetime

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Dialect,
    Enum,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
)

from dicom_node.domain import (
    DeliveryState,
    InquiryState,
    NoticeState,
    Role,
    StepState,
    StudyState,
)
from dicom_node.jobs import JobState

SCHEMA_VERSION = 8
"""Raise it with every change of a table, and write the migration in `ledger.migrations`."""


class Utc(TypeDecorator[datetime]):
    """An aware UTC time. SQLite keeps no time zone, so it is taken off there and put back."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Return `value` in UTC, and refuse a naive time.

        Raises:
            ValueError: `value` says no time zone.
        """
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a naive time was given to the ledger; give an aware one")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Return `value` as an aware UTC time."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def _words(
    enumeration: type[
        StudyState | JobState | DeliveryState | Role | InquiryState | NoticeState | StepState
    ],
) -> Enum:
    """Return a column type that holds the words of `enumeration`, checked by the database."""
    return Enum(
        enumeration,
        values_callable=lambda members: [member.value for member in members],
        native_enum=False,
        create_constraint=True,
        length=16,
    )


UID = String(64)
PLAN_ID = String(32)
SHA256 = String(64)
NUMBER = BigInteger().with_variant(Integer, "sqlite")
"""A key that the database counts up for good; SQLite's INTEGER has 64 bits, too."""

metadata = MetaData()

schema_version = Table("schema_version", metadata, Column("version", Integer, primary_key=True))

study = Table(
    "study",
    metadata,
    Column("study_instance_uid", UID, primary_key=True),
    Column("state", _words(StudyState), nullable=False),
    Column("generation", Integer, nullable=False),
    Column("first_received", Utc, nullable=False),
    Column("last_received", Utc, nullable=False),
    Column("judged_at", Utc),
    Column("hold_code", String(64)),
    Column("hold_reason", Text),
    CheckConstraint("(state = 'held') = (hold_code IS NOT NULL)", name="held_has_a_code"),
    Index("study_by_state", "state", "last_received"),
)

instance = Table(
    "instance",
    metadata,
    Column("sequence", NUMBER, primary_key=True),
    Column("sop_instance_uid", UID, nullable=False),
    Column("sha256", SHA256, nullable=False),
    Column("sop_class_uid", UID, nullable=False),
    Column("series_instance_uid", UID, nullable=False),
    Column("study_instance_uid", ForeignKey("study.study_instance_uid"), nullable=False),
    Column("transfer_syntax_uid", UID, nullable=False),
    Column("path", Text, nullable=False, unique=True),
    Column("own", Boolean, nullable=False),
    Column("peer", String(64), nullable=False),
    Column("received_at", Utc, nullable=False),
    Column("forgotten_at", Utc),  # retention took the bytes; the row stays for good
    Column("header", JSON(none_as_null=True)),
    UniqueConstraint("sop_instance_uid", "sha256"),
    Index("instance_by_study", "study_instance_uid", "sop_instance_uid"),
)

# Open associations only; events tell of those that are over. No foreign key ties what is received
# to them: reception never fails for bookkeeping.
association = Table(
    "association",
    metadata,
    Column("association_id", String(64), primary_key=True),
    Column("peer", String(64), nullable=False),
    Column("opened_at", Utc, nullable=False),
    Column("heartbeat", Utc, nullable=False),
)

association_study = Table(
    "association_study",
    metadata,
    Column("association_id", String(64), primary_key=True),
    Column("study_instance_uid", UID, primary_key=True),
    Index("association_study_by_study", "study_instance_uid"),
)

judgement = Table(
    "judgement",
    metadata,
    Column("study_instance_uid", ForeignKey("study.study_instance_uid"), primary_key=True),
    Column("generation", Integer, primary_key=True),
    Column("judged_at", Utc, nullable=False),
    Column("series", JSON, nullable=False),
    Column("slots", JSON, nullable=False),
    Column("gaps", JSON, nullable=False),
    Column("refusals", JSON, nullable=False),
    Column("closing", String(16)),  # why the study was not waited for any longer
    Column("config_digest", String(64)),  # of the rules that it was judged by
)

# What a peer was asked, for the newest generation of a study that wanted it.
inquiry = Table(
    "inquiry",
    metadata,
    Column("study_instance_uid", ForeignKey("study.study_instance_uid"), primary_key=True),
    Column("peer", String(64), primary_key=True),
    Column("generation", Integer, nullable=False),
    Column("state", _words(InquiryState), nullable=False),
    Column("siblings_within_days", Integer),  # none: other studies are not asked for
    Column("fetch", Boolean, nullable=False),
    Column("since", Utc, nullable=False),
    Column("next_attempt", Utc, nullable=False),
    Column("rounds", Integer, nullable=False),  # how often something was fetched
    Column("found", JSON, nullable=False),
    Column("reason", Text),
    Index("inquiry_by_peer", "peer", "state", "next_attempt"),
)

# What peers tell of a study, mostly before it comes: so no foreign key ties it to one.
notice = Table(
    "notice",
    metadata,
    Column("sop_instance_uid", UID, primary_key=True),
    Column("study_instance_uid", UID, primary_key=True, index=True),
    Column("peer", String(64), nullable=False),
    Column("state", _words(NoticeState), nullable=False),
    Column("changed_at", Utc, nullable=False),
    Column("instances", JSON, nullable=False),
    Column("reason", Text),
)

# Unified Procedure Steps that this node has claimed (PS3.4 annex CC). No foreign key ties them to a
# study, which may come later or never.
step = Table(
    "step",
    metadata,
    Column("sop_instance_uid", UID, primary_key=True),
    Column("peer", String(64), primary_key=True),
    Column("study_instance_uid", UID, nullable=False),
    Column("transaction_uid", UID, nullable=False),  # whoever knows it has the step
    Column("workitem", JSON, nullable=False),
    Column("sources", JSON, nullable=False),
    Column("state", _words(StepState), nullable=False),
    Column("since", Utc, nullable=False),
    Column("next_attempt", Utc, nullable=False),
    Column("rounds", Integer, nullable=False),  # how often its sources were asked for
    Column("told", Text),  # how far it is, as the worklist was told
    Column("reason", Text),
    Index("step_by_peer", "peer", "state"),
)

job = Table(
    "job",
    metadata,
    Column("plan_id", PLAN_ID, primary_key=True),
    Column("study_instance_uid", ForeignKey("study.study_instance_uid"), nullable=False),
    Column("generation", Integer, nullable=False),  # the newest one that wants this plan
    Column("priority", Integer, nullable=False),
    Column("created_at", Utc, nullable=False),
    Column("plan", JSON, nullable=False),
    Column("state", _words(JobState), nullable=False),
    Column("attempt", Integer, nullable=False),  # the fence: grows with every claim
    Column("losses", Integer, nullable=False),  # workers lost since a person last queued it
    Column("lease_until", Utc),
    Column("reason", Text),
    Column("quality", JSON, nullable=False),
    Column("seconds", JSON, nullable=False),
    Column("record", JSON, nullable=False),
    Column("changed_at", Utc, nullable=False),
    CheckConstraint("(state = 'running') = (lease_until IS NOT NULL)", name="running_has_a_lease"),
    Index("job_by_state", "state", "priority", "created_at"),
    Index("job_by_study", "study_instance_uid"),
)

derived = Table(
    "derived",
    metadata,
    Column("sop_instance_uid", UID, primary_key=True),
    Column("plan_id", ForeignKey("job.plan_id"), nullable=False, index=True),
    Column("sop_class_uid", UID, nullable=False),
    Column("series_instance_uid", UID, nullable=False),
    Column("role", _words(Role), nullable=False),
    Column("number", Integer, nullable=False),
    Column("sha256", SHA256, nullable=False),
    Column("path", Text, nullable=False),
    Column("forgotten_at", Utc),
)

delivery = Table(
    "delivery",
    metadata,
    Column("delivery_id", NUMBER, primary_key=True),
    Column("plan_id", ForeignKey("job.plan_id"), nullable=False, index=True),
    Column("sop_instance_uid", ForeignKey("derived.sop_instance_uid"), nullable=False),
    Column("peer", String(64), nullable=False),
    Column("state", _words(DeliveryState), nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("status", Integer),
    Column("reason", Text),
    Column("queued_at", Utc, nullable=False),
    Column("next_attempt", Utc, nullable=False),
    Column("transaction_uid", UID),  # of the newest commitment request that names it
    Column("ask_at", Utc),  # when its peer is asked whether it keeps it; none: it may be asked now
    UniqueConstraint("sop_instance_uid", "peer"),
    Index("delivery_by_peer", "peer", "state", "next_attempt"),
)

# Peers that do not answer now; a row goes when its peer answers again.
outage = Table(
    "outage",
    metadata,
    Column("peer", String(64), primary_key=True),
    Column("failures", Integer, nullable=False),  # associations in a row that came to nothing
    Column("since", Utc, nullable=False),
    Column("next_call", Utc, nullable=False),
    Column("reason", Text, nullable=False),
)

# Storage commitment requests (PS3.4 annex J); the deliveries point at the newest one of theirs.
commitment = Table(
    "commitment",
    metadata,
    Column("transaction_uid", UID, primary_key=True),
    Column("peer", String(64), nullable=False),
    Column("instances", Integer, nullable=False),
    Column("asked_at", Utc, nullable=False),
    Column("answered_at", Utc),
)

# One row: which node has the ledger.
tenure = Table(
    "tenure",
    metadata,
    Column("number", NUMBER, primary_key=True, autoincrement=False),  # the fence: grows
    Column("holder", Text, nullable=False),
    Column("lease_until", Utc, nullable=False),
)

# One row: up to which event audit messages have been delivered. None before the first one.
trail = Table(
    "trail",
    metadata,
    Column("told", NUMBER, primary_key=True, autoincrement=False),  # sequence of an event
)

event = Table(
    "event",
    metadata,
    Column("sequence", NUMBER, primary_key=True),
    Column("at", Utc, nullable=False),
    Column("name", String(64), nullable=False),
    Column("study_instance_uid", UID, index=True),
    Column("plan_id", PLAN_ID),
    Column("detail", JSON, nullable=False),
)
