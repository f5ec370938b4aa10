"""The ledger where a result that went out is taken back.

After a judgement has superseded its job. A withdrawal is one more instance of the job, for the
peers that took any of the others; its job stays superseded for good.
"""

from collections.abc import Sequence

from sqlalchemy import exists, select, update

from dicom_node.domain import DeliveryState, DerivedInstance, Origin, Role
from dicom_node.jobs import JobState
from dicom_node.ledger.database import Database, add_new
from dicom_node.ledger.documents import read_derived, read_plan, read_series
from dicom_node.ledger.outbox import TAKEN
from dicom_node.records import Outdated
from dicom_node.schema import delivery, derived, job, judgement


class Withdrawals(Database):
    """What the withdrawal sweep reads and writes."""

    def find_outdated(self, plan_id: str | None = None) -> list[Outdated]:
        """Return the results that peers took and nobody wants, of one job or of all."""
        told = delivery.alias()
        withdrawal = derived.alias()
        is_told = exists().where(
            told.c.plan_id == delivery.c.plan_id,
            told.c.peer == delivery.c.peer,
            told.c.sop_instance_uid == withdrawal.c.sop_instance_uid,
            withdrawal.c.role == Role.WITHDRAWAL,
        )
        query = (
            select(job.c.plan_id, delivery.c.peer)
            .distinct()  # of words only: PostgreSQL cannot compare JSON
            .join_from(job, delivery, job.c.plan_id == delivery.c.plan_id)
            .where(job.c.state == JobState.SUPERSEDED, delivery.c.state.in_(TAKEN), ~is_told)
            .order_by(job.c.plan_id, delivery.c.peer)
        )
        if plan_id is not None:
            query = query.where(job.c.plan_id == plan_id)
        with self._reading() as connection:
            rows = connection.execute(query).all()
            found = []
            for each in dict.fromkeys(row.plan_id for row in rows):
                row = connection.execute(select(job).where(job.c.plan_id == each)).one()
                plan = read_plan(row.plan, row.generation)
                instances = tuple(
                    read_derived(row)
                    for row in connection.execute(
                        select(derived)
                        .where(
                            derived.c.plan_id == each,
                            derived.c.role != Role.WITHDRAWAL,
                            derived.c.forgotten_at.is_(None),
                        )
                        .order_by(derived.c.role, derived.c.number)
                    )
                )
                series = connection.scalars(
                    select(judgement.c.series)
                    .where(judgement.c.study_instance_uid == plan.study_instance_uid)
                    .order_by(judgement.c.generation.desc())
                    .limit(1)
                ).first()
                came = any(
                    judged.origin is Origin.ACQUIRED
                    and judged.label is not None
                    and judged.label.contrast == plan.target
                    for judged in map(read_series, series or ())
                )
                because = (
                    f"the real {plan.target} came" if came else "what it was made of has changed"
                )
                if instances:
                    found.append(
                        Outdated(
                            plan=plan,
                            instances=instances,
                            peers=tuple(took.peer for took in rows if took.plan_id == each),
                            because=because,
                            since=row.changed_at,
                        )
                    )
        return found

    def record_withdrawal(
        self, plan_id: str, instance: DerivedInstance, peers: Sequence[str], *, by: str, why: str
    ) -> None:
        """Queue a withdrawal for `peers`; the job says from now on why it was withdrawn."""
        now = self._clock()
        with self._writing() as connection:
            row = {
                "sop_instance_uid": instance.sop_instance_uid,
                "plan_id": plan_id,
                "sop_class_uid": instance.sop_class_uid,
                "series_instance_uid": instance.series_instance_uid,
                "role": instance.role,
                "number": instance.number,
                "sha256": instance.sha256,
                "path": instance.path,
            }
            add_new(connection, derived, [row])
            add_new(
                connection,
                delivery,
                [
                    {
                        "plan_id": plan_id,
                        "sop_instance_uid": instance.sop_instance_uid,
                        "peer": peer,
                        "state": DeliveryState.PENDING,
                        "attempts": 0,
                        "queued_at": now,
                        "next_attempt": now,
                    }
                    for peer in peers
                ],
                ("sop_instance_uid", "peer"),
            )
            connection.execute(
                update(job)
                .where(job.c.plan_id == plan_id)
                .values(reason=f"withdrawn by {by}: {why}")
            )
            self._note(connection, "job.withdrawn", plan=plan_id, by=by, why=why, peers=list(peers))
