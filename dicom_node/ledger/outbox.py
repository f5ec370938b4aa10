"""The ledger while results go out: one row for each instance and peer, and how it went.

Step 12 of the walk. A row says SENT only when the peer answered so; what the study has outgrown is
parked before it is sent, and nothing goes out while its study receives again or is held. A peer
that does not answer has an outage, which costs the instances that wait for it nothing.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Select,
    case,
    delete,
    func,
    insert,
    or_,
    select,
    update,
)

from dicom_node.domain import Delivery, DeliveryState, Role, StudyState
from dicom_node.jobs import JobState
from dicom_node.ledger.database import Database
from dicom_node.ledger.documents import read_derived
from dicom_node.records import Attempt, Backlog, Outage
from dicom_node.schema import Utc, delivery, derived, job, outage, study

TAKEN = (DeliveryState.SENT, DeliveryState.WARNED, DeliveryState.COMMITTED)
"""The peer has the instance."""

UNCONFIRMED = (DeliveryState.SENT, DeliveryState.WARNED)
"""The peer took the instance and has not said that it keeps it."""


class Outbox(Database):
    """What delivery reads and writes."""

    def due_deliveries(self, peer: str, now: datetime, limit: int) -> list[Delivery]:
        """Return what may go to `peer` now, highest priority first, series kept together.

        What has failed before comes last, so that an instance on which the peer chokes holds up no
        other.
        """
        query = (
            _where_due(select_deliveries(), peer, now)
            .order_by(
                delivery.c.attempts,
                job.c.priority.desc(),
                job.c.created_at,
                delivery.c.delivery_id,
            )
            .limit(limit)
        )
        with self._reading() as connection:
            return [read_delivery(row) for row in connection.execute(query)]

    def find_due_samples(self, peer: str, now: datetime) -> list[tuple[str, str]]:
        """Return SOP class and path of one instance of each class of each job that is due."""
        query = select(derived.c.sop_class_uid, func.min(derived.c.path)).join_from(
            delivery, derived, delivery.c.sop_instance_uid == derived.c.sop_instance_uid
        )
        query = _where_due(query, peer, now).group_by(derived.c.plan_id, derived.c.sop_class_uid)
        with self._reading() as connection:
            return [(row[0], row[1]) for row in connection.execute(query)]

    def record_attempts(self, attempts: Sequence[Attempt]) -> None:
        """Record in one commit how attempts to send instances went.

        What the peer took stays taken, whatever comes later. A delivery that was parked while it
        was under way goes on only if the peer took it.
        """
        groups: dict[tuple[Any, ...], list[int]] = {}
        for each in attempts:
            outcome = (each.state, each.status, each.reason, each.next_attempt)
            groups.setdefault(outcome, []).append(each.delivery_id)
        with self._writing() as connection:
            rows = {
                row.delivery_id: row
                for outcome, delivery_ids in groups.items()
                for row in self._record_outcome(connection, delivery_ids, *outcome)
            }
            self._note_all(
                connection,
                [
                    {
                        "name": f"delivery.{each.state}",
                        "plan_id": rows[each.delivery_id].plan_id,
                        "detail": {
                            "sop_instance_uid": rows[each.delivery_id].sop_instance_uid,
                            "peer": rows[each.delivery_id].peer,
                            "status": each.status,
                            "reason": each.reason,
                        },
                    }
                    for each in attempts
                    if each.delivery_id in rows
                ],
            )

    @staticmethod
    def _record_outcome(
        connection: Connection,
        delivery_ids: Sequence[int],
        state: DeliveryState,
        status: int | None,
        reason: str | None,
        next_attempt: datetime | None,
    ) -> Sequence[Row[Any]]:
        """Record what became of several deliveries alike; return those that were still open."""
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
        return connection.execute(
            update(delivery)
            .where(delivery.c.delivery_id.in_(delivery_ids), open_rows)
            .values(**values)
            .returning(
                delivery.c.delivery_id,
                delivery.c.plan_id,
                delivery.c.sop_instance_uid,
                delivery.c.peer,
            )
        ).all()

    def begin_sending(self, plan_id: str, peer: str) -> None:
        """Record that what `peer` has not taken of a job begins to go there, before it does."""
        waiting = (
            select(derived.c.sop_class_uid, func.count())
            .join(delivery, delivery.c.sop_instance_uid == derived.c.sop_instance_uid)
            .where(
                delivery.c.plan_id == plan_id,
                delivery.c.peer == peer,
                delivery.c.state == DeliveryState.PENDING,
            )
            .group_by(derived.c.sop_class_uid)
        )
        with self._writing() as connection:
            classes = {row[0]: row[1] for row in connection.execute(waiting)}
            self._note(connection, "delivery.begun", plan=plan_id, peer=peer, classes=classes)

    def park_overdue(self, peer: str, queued_before: datetime) -> int:
        """Park what `peer` has not taken since `queued_before`, for a person; return how many."""
        with self._writing() as connection:
            parked = connection.execute(
                update(delivery)
                .where(
                    delivery.c.peer == peer,
                    delivery.c.state == DeliveryState.PENDING,
                    delivery.c.queued_at < queued_before,
                )
                .values(state=DeliveryState.PARKED, reason="not taken in time")
            ).rowcount
            if parked:
                self._note(connection, "delivery.overdue", peer=peer, count=parked)
        return parked

    def deliveries(self, study: str | None = None) -> list[Delivery]:
        """Return the deliveries of a study, or all of them."""
        query = select_deliveries().order_by(delivery.c.delivery_id)
        if study is not None:
            query = query.join(job, delivery.c.plan_id == job.c.plan_id).where(
                job.c.study_instance_uid == study
            )
        with self._reading() as connection:
            return [read_delivery(row) for row in connection.execute(query)]

    def record_outage(self, peer: str, reason: str, next_call: datetime) -> None:
        """Record that an association with `peer` came to nothing; no delivery of it has failed."""
        with self._writing() as connection:
            values = {"reason": reason, "next_call": next_call}
            known = connection.execute(
                update(outage)
                .where(outage.c.peer == peer)
                .values(failures=outage.c.failures + 1, **values)
            ).rowcount
            if not known:
                connection.execute(
                    insert(outage).values(peer=peer, failures=1, since=self._clock(), **values)
                )
            self._note(connection, "outage.failure", peer=peer, reason=reason)

    def end_outage(self, peer: str) -> None:
        """Record that `peer` answers again."""
        with self._writing() as connection:
            if connection.execute(delete(outage).where(outage.c.peer == peer)).rowcount:
                self._note(connection, "outage.over", peer=peer)

    def outages(self) -> dict[str, Outage]:
        """Return the peers that do not answer now."""
        with self._reading() as connection:
            return {row.peer: Outage(**row._mapping) for row in connection.execute(select(outage))}

    def backlogs(self) -> dict[str, Backlog]:
        """Return what is still to be done for each peer for which it may be."""
        pending = delivery.c.state == DeliveryState.PENDING
        parked = (delivery.c.state == DeliveryState.PARKED) & (job.c.state == JobState.DONE)
        unconfirmed = (
            delivery.c.state.in_(UNCONFIRMED)
            & (job.c.state == JobState.DONE)
            & derived.c.forgotten_at.is_(None)
        )
        query = (
            select(
                delivery.c.peer,
                _count_if(pending).label("pending"),
                _oldest_if(pending).label("pending_since"),
                _count_if(parked).label("parked"),
                _count_if(unconfirmed).label("unconfirmed"),
                _oldest_if(unconfirmed).label("unconfirmed_since"),
            )
            .join(job, delivery.c.plan_id == job.c.plan_id)
            .join(derived, delivery.c.sop_instance_uid == derived.c.sop_instance_uid)
            .where(delivery.c.state != DeliveryState.COMMITTED)
            .group_by(delivery.c.peer)
            .order_by(delivery.c.peer)
        )
        with self._reading() as connection:
            return {row.peer: Backlog(**row._mapping) for row in connection.execute(query)}


def _where_due(query: Select[Any], peer: str, now: datetime) -> Select[Any]:
    return (
        query.join(job, delivery.c.plan_id == job.c.plan_id)
        .join(study, job.c.study_instance_uid == study.c.study_instance_uid)
        .where(
            delivery.c.peer == peer,
            delivery.c.state == DeliveryState.PENDING,
            delivery.c.next_attempt <= now,
            or_(job.c.state == JobState.DONE, derived.c.role == Role.WITHDRAWAL),
            study.c.state == StudyState.JUDGED,
        )
    )


def _count_if(condition: ColumnElement[bool]) -> ColumnElement[int]:
    return func.count(case((condition, 1)))


def _oldest_if(condition: ColumnElement[bool]) -> ColumnElement[datetime]:
    return func.min(case((condition, delivery.c.queued_at)), type_=Utc)


def select_deliveries() -> Select[Any]:
    """Return the query whose rows `read_delivery` reads."""
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
        delivery.c.ask_at,
    ).join_from(delivery, derived, delivery.c.sop_instance_uid == derived.c.sop_instance_uid)


def read_delivery(row: Row[Any]) -> Delivery:
    """Return the delivery of a row of `select_deliveries`."""
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
        ask_at=row.ask_at,
    )
