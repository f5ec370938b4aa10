"""The ledger while results go out: one row for each instance and peer, and how it went.

Step 12 of the walk. A row says SENT only when the peer answered so; what the study has outgrown is
parked before it is sent, and nothing goes out while its study receives again or is held.
"""

from datetime import datetime
from typing import Any

from sqlalchemy import Row, Select, or_, select, update

from dicom_node.domain import Delivery, DeliveryState, StudyState
from dicom_node.jobs import JobState
from dicom_node.ledger.database import Database
from dicom_node.ledger.documents import read_derived
from dicom_node.schema import delivery, derived, job, study

TAKEN = (DeliveryState.SENT, DeliveryState.WARNED)
"""The peer has the instance."""


class Outbox(Database):
    """What delivery reads and writes."""

    def due_deliveries(self, peer: str, now: datetime, limit: int) -> list[Delivery]:
        """Return what may go to `peer` now, highest priority first, series kept together."""
        query = (
            _select_deliveries()
            .join(job, delivery.c.plan_id == job.c.plan_id)
            .join(study, job.c.study_instance_uid == study.c.study_instance_uid)
            .where(
                delivery.c.peer == peer,
                delivery.c.state == DeliveryState.PENDING,
                delivery.c.next_attempt <= now,
                job.c.state == JobState.DONE,
                study.c.state == StudyState.JUDGED,
            )
            .order_by(job.c.priority.desc(), job.c.created_at, delivery.c.delivery_id)
            .limit(limit)
        )
        with self._reading() as connection:
            return [_read_delivery(row) for row in connection.execute(query)]

    def record_delivery(
        self,
        delivery_id: int,
        state: DeliveryState,
        status: int | None,
        reason: str | None,
        next_attempt: datetime | None = None,
    ) -> None:
        """Record how one attempt to send one instance went.

        What the peer took stays taken, whatever comes later. A delivery that was parked while it
        was under way goes on only if the peer took it.
        `status` is None when there was no C-STORE response; `next_attempt` None keeps the time.
        """
        open_rows = delivery.c.state == DeliveryState.PENDING
        if state in TAKEN:
            open_rows = or_(open_rows, delivery.c.state == DeliveryState.PARKED)
        values: dict[str, Any] = {
            "state": state,
            "status": status,
            "reason": reason,
            "attempts": delivery.c.attempts + 1,
        }
        if next_attempt is not None:
            values["next_attempt"] = next_attempt
        with self._writing() as connection:
            row = connection.execute(
                update(delivery)
                .where(delivery.c.delivery_id == delivery_id, open_rows)
                .values(**values)
                .returning(delivery.c.plan_id, delivery.c.sop_instance_uid, delivery.c.peer)
            ).one_or_none()
            if row is not None:
                self._note(
                    connection,
                    f"delivery.{state}",
                    plan=row.plan_id,
                    sop_instance_uid=row.sop_instance_uid,
                    peer=row.peer,
                    status=status,
                    reason=reason,
                )

    def park_overdue(self, queued_before: datetime) -> int:
        """Park what was not taken since `queued_before`, for a person to look; return how many."""
        with self._writing() as connection:
            parked = connection.execute(
                update(delivery)
                .where(
                    delivery.c.state == DeliveryState.PENDING,
                    delivery.c.queued_at < queued_before,
                )
                .values(state=DeliveryState.PARKED, reason="not taken in time")
            ).rowcount
            if parked:
                self._note(connection, "delivery.overdue", count=parked)
        return parked

    def deliveries(self, study: str | None = None) -> list[Delivery]:
        """Return the deliveries of a study, or all of them."""
        query = _select_deliveries().order_by(delivery.c.delivery_id)
        if study is not None:
            query = query.join(job, delivery.c.plan_id == job.c.plan_id).where(
                job.c.study_instance_uid == study
            )
        with self._reading() as connection:
            return [_read_delivery(row) for row in connection.execute(query)]


def _select_deliveries() -> Select[Any]:
    return select(
        derived,
        delivery.c.delivery_id,
        delivery.c.peer,
        delivery.c.state,
        delivery.c.attempts,
        delivery.c.status,
        delivery.c.reason,
        delivery.c.queued_at,
        delivery.c.next_attempt,
    ).join_from(delivery, derived, delivery.c.sop_instance_uid == derived.c.sop_instance_uid)


def _read_delivery(row: Row[Any]) -> Delivery:
    return Delivery(
        delivery_id=row.delivery_id,
        plan_id=row.plan_id,
        peer=row.peer,
        instance=read_derived(row),
        state=row.state,
        attempts=row.attempts,
        status=row.status,
        reason=row.reason,
        queued_at=row.queued_at,
        next_attempt=row.next_attempt,
    )
