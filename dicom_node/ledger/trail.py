"""The ledger read for the audit trail: which events have been told, and what they are about.

One writer at a time numbers the events, so that none appears later below one that was read.
"""

from collections.abc import Collection, Mapping
from datetime import datetime

from sqlalchemy import func, insert, select, update

from dicom_node.ledger.database import Database
from dicom_node.records import Event
from dicom_node.schema import derived, event, instance, job, trail

_FIRST = "tenure.begun"


class Trail(Database):
    """What the audit trail reads, and how far it has come."""

    def begin_trail(self) -> None:
        """Begin with the newest start of the node, unless the trail has begun before."""
        with self._writing() as connection:
            if connection.scalar(select(trail.c.told)) is None:
                begun = select(func.max(event.c.sequence)).where(event.c.name == _FIRST)
                first = connection.scalar(begun) or 1
                connection.execute(insert(trail).values(told=first - 1))

    def read_untold(self, limit: int) -> list[Event]:
        """Return the oldest events that have not been told, in order."""
        told = select(trail.c.told).scalar_subquery()
        query = select(event).where(event.c.sequence > told).order_by(event.c.sequence)
        with self._reading() as connection:
            return [Event(**row._mapping) for row in connection.execute(query.limit(limit))]

    def tell_through(self, sequence: int) -> None:
        """Keep that every event up to this one has been told."""
        with self._writing() as connection:
            connection.execute(update(trail).where(trail.c.told < sequence).values(told=sequence))

    def find_untold_since(self) -> datetime | None:
        """Return when the oldest event happened that has not been told, or None."""
        oldest = self.read_untold(1)
        return oldest[0].at if oldest else None

    def find_studies(self, plan_ids: Collection[str]) -> Mapping[str, str]:
        """Return the Study Instance UID of each of these plans."""
        query = select(job.c.plan_id, job.c.study_instance_uid).where(job.c.plan_id.in_(plan_ids))
        with self._reading() as connection:
            return {row[0]: row[1] for row in connection.execute(query)}

    def find_classes(self, sop_instance_uids: Collection[str]) -> Mapping[str, str]:
        """Return the SOP Class UID of each of these derived instances."""
        query = select(derived.c.sop_instance_uid, derived.c.sop_class_uid).where(
            derived.c.sop_instance_uid.in_(sop_instance_uids)
        )
        with self._reading() as connection:
            return {row[0]: row[1] for row in connection.execute(query)}

    def find_sample(
        self, study_instance_uid: str
    ) -> tuple[Mapping[str, object], str | None] | None:
        """Return the header of the first instance of a study, and its path while it has a file."""
        query = (
            select(instance.c.header, instance.c.path, instance.c.forgotten_at)
            .where(instance.c.study_instance_uid == study_instance_uid, ~instance.c.own)
            .order_by(instance.c.sequence)
            .limit(1)
        )
        with self._reading() as connection:
            row = connection.execute(query).one_or_none()
        if row is None:
            return None
        return row.header or {}, row.path if row.forgotten_at is None else None
