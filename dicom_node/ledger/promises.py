"""The ledger after results went out: what peers were asked to keep, and what they said.

Step 12 of the walk, its end. A request is recorded before it is sent, because the report may be
here before the response. What a peer once said that it keeps stays COMMITTED; what it says that it
lost counts only as the answer to the newest request.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from itertools import groupby
from typing import Any

from sqlalchemy import Connection, exists, insert, select, update

from dicom_node.domain import Delivery, DeliveryState
from dicom_node.jobs import JobState
from dicom_node.ledger.database import Database
from dicom_node.ledger.outbox import UNCONFIRMED, read_delivery, select_deliveries
from dicom_node.records import Attempt, Report, Unconfirmed
from dicom_node.schema import commitment, delivery, derived, job

JudgeLoss = Callable[[Delivery, int], Attempt | None]
"""Delivery and Failure Reason to what becomes of it; None: it stays as it is."""


class Promises(Database):
    """What confirmation and the receiver write when peers say what they keep."""

    def find_unconfirmed(self, peer: str, now: datetime, limit: int) -> list[Unconfirmed]:
        """Return what `peer` took and may be asked about now, job by job.

        A job of which something still has to go to the peer waits until it is there.
        """
        waiting = delivery.alias()
        query = (
            select_deliveries()
            .add_columns(job.c.study_instance_uid)
            .join(job, delivery.c.plan_id == job.c.plan_id)
            .where(
                delivery.c.peer == peer,
                delivery.c.state.in_(UNCONFIRMED),
                delivery.c.ask_at.is_(None) | (delivery.c.ask_at <= now),
                derived.c.forgotten_at.is_(None),
                job.c.state == JobState.DONE,
                ~exists().where(
                    waiting.c.plan_id == delivery.c.plan_id,
                    waiting.c.peer == delivery.c.peer,
                    waiting.c.state == DeliveryState.PENDING,
                ),
            )
            .order_by(delivery.c.plan_id, delivery.c.delivery_id)
            .limit(limit)
        )
        with self._reading() as connection:
            rows = connection.execute(query).all()
        return [
            Unconfirmed(study_instance_uid=study, deliveries=tuple(map(read_delivery, group)))
            for (_, study), group in groupby(
                rows, lambda row: (row.plan_id, row.study_instance_uid)
            )
        ]

    def record_request(
        self, transaction_uid: str, deliveries: Sequence[Delivery], ask_at: datetime
    ) -> None:
        """Record that a peer is about to be asked, and when it is asked again if it says nothing.

        All `deliveries` are of one job to one peer.
        """
        with self._writing() as connection:
            connection.execute(
                insert(commitment).values(
                    transaction_uid=transaction_uid,
                    peer=deliveries[0].peer,
                    instances=len(deliveries),
                    asked_at=self._clock(),
                )
            )
            _change(connection, deliveries, transaction_uid=transaction_uid, ask_at=ask_at)
            self._note(
                connection,
                "commitment.asked",
                plan=deliveries[0].plan_id,
                peer=deliveries[0].peer,
                transaction_uid=transaction_uid,
                count=len(deliveries),
            )

    def find_unanswered(self, transaction_uids: Sequence[str]) -> set[str]:
        """Return those of `transaction_uids` on which no report has come."""
        with self._reading() as connection:
            return set(
                connection.scalars(
                    select(commitment.c.transaction_uid).where(
                        commitment.c.transaction_uid.in_(transaction_uids),
                        commitment.c.answered_at.is_(None),
                    )
                )
            )

    def record_report(self, peer: str, report: Report, judge_loss: JudgeLoss) -> int | None:
        """Record what `peer` says that it keeps and lost.

        Returns:
            How many deliveries that changes, or None when `peer` was not asked under this
            Transaction UID.
        """
        with self._writing() as connection:
            here = (commitment.c.transaction_uid == report.transaction_uid) & (
                commitment.c.peer == peer
            )
            if connection.execute(select(commitment).where(here)).one_or_none() is None:
                return None
            connection.execute(
                update(commitment)
                .where(here, commitment.c.answered_at.is_(None))
                .values(answered_at=self._clock())
            )
            asked = _select_asked(connection, peer, [*report.kept, *report.lost])
            lost = {
                each: report.lost[each.instance.sop_instance_uid]
                for each, transaction_uid in asked
                if each.instance.sop_instance_uid in report.lost
                and transaction_uid == report.transaction_uid
            }
            said_kept = set(report.kept)
            kept = [each for each, _ in asked if each.instance.sop_instance_uid in said_kept]
            self._settle(connection, peer, kept, lost, judge_loss)
        return len(kept) + len(lost)

    def record_finding(
        self,
        peer: str,
        kept: Sequence[Delivery],
        lost: Mapping[Delivery, int],
        later: Sequence[Delivery],
        ask_at: datetime,
        judge_loss: JudgeLoss,
    ) -> None:
        """Record what a query has found at `peer`; it is asked about `later` again at `ask_at`."""
        with self._writing() as connection:
            _change(connection, later, ask_at=ask_at)
            self._settle(connection, peer, kept, lost, judge_loss)

    def _settle(
        self,
        connection: Connection,
        peer: str,
        kept: Sequence[Delivery],
        lost: Mapping[Delivery, int],
        judge_loss: JudgeLoss,
    ) -> None:
        """Write what becomes of what a peer keeps and of what it lost."""
        _change(connection, kept, state=DeliveryState.COMMITTED)
        for each, reason in lost.items():
            attempt = judge_loss(each, reason)
            if attempt is not None:
                _change(
                    connection,
                    [each],
                    state=attempt.state,
                    reason=attempt.reason,
                    next_attempt=attempt.next_attempt,
                    ask_at=None,
                )
        for plan_id in sorted({each.plan_id for each in (*kept, *lost)}):
            self._note(
                connection,
                "delivery.confirmed",
                plan=plan_id,
                peer=peer,
                kept=sum(each.plan_id == plan_id for each in kept),
                lost=sum(each.plan_id == plan_id for each in lost),
                reasons=sorted({f"0x{reason:04X}" for reason in lost.values()}),
            )


def _change(connection: Connection, deliveries: Sequence[Delivery], **values: Any) -> None:
    connection.execute(
        update(delivery)
        .where(
            delivery.c.delivery_id.in_([each.delivery_id for each in deliveries]),
            delivery.c.state.in_(UNCONFIRMED),
        )
        .values(**values)
    )


def _select_asked(
    connection: Connection, peer: str, sop_instance_uids: Sequence[str]
) -> list[tuple[Delivery, str]]:
    """Return what `peer` took and was asked about, each with its newest Transaction UID."""
    rows = connection.execute(
        select_deliveries()
        .add_columns(delivery.c.transaction_uid)
        .where(
            delivery.c.peer == peer,
            delivery.c.sop_instance_uid.in_(sop_instance_uids),
            delivery.c.state.in_(UNCONFIRMED),
            delivery.c.transaction_uid.is_not(None),
        )
    )
    return [(read_delivery(row), row.transaction_uid) for row in rows]
