"""The ledger while jobs run: claim, lease, the fence, and how each attempt ended.

Steps 7 to 11 of the walk. A claim is a compare-and-set: of two claimers one changes the row. Each
claim raises `attempt`, and whatever a worker reports counts only while that number still stands and
the job still runs, so one UID never leaves the node with two sets of pixels.
"""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection, Row, delete, func, insert, select, update

from dicom_node.domain import (
    ContrastLabel,
    DeliveryState,
    DerivedInstance,
    Instance,
    Mode,
    StudyState,
)
from dicom_node.errors import IllegalTransition
from dicom_node.jobs import JobEvent, JobState, next_state
from dicom_node.ledger.conflicts import is_first
from dicom_node.ledger.database import Database
from dicom_node.ledger.documents import read_derived, read_instance, read_plan
from dicom_node.records import Job
from dicom_node.schema import delivery, derived, event, instance, job, study

HOLD_REASON = "rule mode hold"
"""Why a good result waits: its rule wants a person to look first."""


class Queue(Database):
    """What dispatch, the workers and the operator write."""

    def claim(self, limit: int, lease: timedelta) -> list[Job]:
        """Take up to `limit` queued jobs, highest priority first, for as long as `lease`.

        A study that receives again, or is held, keeps its jobs waiting until it is judged.
        """
        now = self._clock()
        claimed: list[Job] = []
        with self._writing() as connection:
            waiting = connection.execute(
                select(job)
                .join(study)
                .where(job.c.state == JobState.QUEUED, study.c.state == StudyState.JUDGED)
                .order_by(job.c.priority.desc(), job.c.created_at, job.c.plan_id)
                .limit(limit)
            ).all()
            for row in waiting:
                taken = self._move(
                    connection,
                    row,
                    JobEvent.CLAIM,
                    attempt=row.attempt + 1,
                    lease_until=now + lease,
                )
                if taken:
                    claimed.append(_select_job(connection, row.plan_id))
        return claimed

    def renew(self, plan_id: str, attempt: int, lease: timedelta) -> bool:
        """Prolong the lease of a running attempt; False when it is no longer the one that runs."""
        with self._writing() as connection:
            return bool(
                connection.execute(
                    update(job)
                    .where(
                        job.c.plan_id == plan_id,
                        job.c.attempt == attempt,
                        job.c.state == JobState.RUNNING,
                    )
                    .values(lease_until=self._clock() + lease)
                ).rowcount
            )

    def return_lost(self, max_attempts: int) -> list[str]:
        """Queue again what has outrun its lease, or fail it after `max_attempts` lost workers.

        Returns:
            The plan ids, returned and failed.
        """
        with self._writing() as connection:
            lost = connection.execute(
                select(job)
                .where(job.c.state == JobState.RUNNING, job.c.lease_until < self._clock())
                .order_by(job.c.plan_id)
            ).all()
            for row in lost:
                self._lose(connection, row, "the lease ran out", max_attempts)
        return [row.plan_id for row in lost]

    def return_running(self) -> list[str]:
        """Queue again, at the start of a node on one machine, what ran when it went down.

        The node's end is no evidence against the job, so it counts as no loss.
        """
        with self._writing() as connection:
            running = connection.execute(
                select(job).where(job.c.state == JobState.RUNNING).order_by(job.c.plan_id)
            ).all()
            for row in running:
                self._move(connection, row, JobEvent.LOSE, reason="the node restarted")
        return [row.plan_id for row in running]

    def record_derived(
        self,
        plan_id: str,
        attempt: int,
        instances: Sequence[DerivedInstance],
        *,
        quality: Mapping[str, Any],
        seconds: Mapping[str, float],
        record: Sequence[Any],
    ) -> bool:
        """Record a good result, and what follows from the rule's mode, in one commit.

        Mode send queues a delivery of each instance to each peer of the plan, hold waits for a
        person, shadow sends nothing.

        Returns:
            False when this attempt is no longer the one that runs; nothing is written.
        """
        with self._writing() as connection:
            row = _running(connection, plan_id, attempt)
            if row is None:
                return False
            mode = Mode(row.plan["mode"])
            _replace_derived(connection, plan_id, instances)
            self._move(
                connection,
                row,
                JobEvent.REFUSE if mode is Mode.HOLD else JobEvent.FINISH,
                reason=HOLD_REASON if mode is Mode.HOLD else None,
                quality=dict(quality),
                seconds=dict(seconds),
                record=list(record),
            )
            if mode is Mode.SEND:
                self._queue_deliveries(connection, row)
        return True

    def refuse_job(
        self,
        plan_id: str,
        attempt: int,
        reasons: Sequence[str],
        instances: Sequence[DerivedInstance] = (),
        *,
        quality: Mapping[str, Any] | None = None,
        seconds: Mapping[str, float] | None = None,
        record: Sequence[Any] = (),
    ) -> bool:
        """Hold a job that the quality gate refused, with what it wrote; False when fenced off."""
        with self._writing() as connection:
            row = _running(connection, plan_id, attempt)
            if row is None:
                return False
            _replace_derived(connection, plan_id, instances)
            return self._move(
                connection,
                row,
                JobEvent.REFUSE,
                reason="; ".join(reasons),
                quality=dict(quality or {}),
                seconds=dict(seconds or {}),
                record=list(record),
            )

    def fail_job(self, plan_id: str, attempt: int, reason: str) -> bool:
        """Fail a job whose input would fail again; False when fenced off."""
        with self._writing() as connection:
            row = _running(connection, plan_id, attempt)
            return row is not None and self._move(connection, row, JobEvent.FAIL, reason=reason)

    def lose_job(self, plan_id: str, attempt: int, reason: str, max_attempts: int) -> bool:
        """Queue again a job whose worker died, or fail it when it has lost `max_attempts` of them.

        Returns:
            False when this attempt is no longer the one that runs; nothing is written.
        """
        with self._writing() as connection:
            row = _running(connection, plan_id, attempt)
            return row is not None and self._lose(connection, row, reason, max_attempts)

    def doubt_job(self, plan_id: str, reason: str) -> None:
        """Hold a done job, and park what peers have not taken of it.

        Raises:
            LookupError: the ledger does not know the plan.
            IllegalTransition: the job is not done.
        """
        with self._writing() as connection:
            self._move(connection, _row(connection, plan_id), JobEvent.DOUBT, reason=reason)
            connection.execute(
                update(delivery)
                .where(delivery.c.plan_id == plan_id, delivery.c.state == DeliveryState.PENDING)
                .values(state=DeliveryState.PARKED, reason=reason)
            )

    def requeue(self, plan_id: str, by: str, why: str) -> None:
        """Let a held or failed job run again, or what peers did not take of a done one go again.

        Raises:
            LookupError: the ledger does not know the plan.
            IllegalTransition: the job is neither held nor failed, and nothing of it is parked; or
                its result was on its way, and would be another one under the same UIDs.
        """
        with self._writing() as connection:
            row = _row(connection, plan_id)
            if row.state == JobState.HELD and _was_on_its_way(connection, plan_id):
                raise IllegalTransition(
                    f"the result of the job {plan_id} was on its way; release or reject it"
                )
            if row.state == JobState.DONE and self._resend(connection, row, by, why):
                return
            self._move(connection, row, JobEvent.REQUEUE, by=by, why=why, losses=0)

    def release(self, plan_id: str, by: str, why: str) -> None:
        """Let the result of a held job go out to the peers of its plan.

        Raises:
            LookupError: the ledger does not know the plan.
            IllegalTransition: the job is not held, or has no result.
        """
        with self._writing() as connection:
            row = _row(connection, plan_id)
            self._move(connection, row, JobEvent.RELEASE, by=by, why=why)
            if _was_on_its_way(connection, plan_id):
                self._resend(connection, row, by, why)
            elif not self._queue_deliveries(connection, row):
                raise IllegalTransition(f"the job {plan_id} has nothing that could be released")

    def reject(self, plan_id: str, by: str, why: str) -> None:
        """Close a held job; its result never goes out.

        Raises:
            LookupError: the ledger does not know the plan.
            IllegalTransition: the job is not held.
        """
        with self._writing() as connection:
            row = _row(connection, plan_id)
            self._move(connection, row, JobEvent.REJECT, by=by, why=why, reason=why)

    def job(self, plan_id: str) -> Job:
        """Return a job.

        Raises:
            LookupError: the ledger does not know the plan.
        """
        with self._reading() as connection:
            return _select_job(connection, plan_id)

    def jobs(self, study: str | None = None) -> list[Job]:
        """Return the jobs of a study, or all of them, in the order of their plans."""
        query = select(job).order_by(job.c.created_at, job.c.plan_id)
        if study is not None:
            query = query.where(job.c.study_instance_uid == study)
        with self._reading() as connection:
            return [read_job(row) for row in connection.execute(query)]

    def derived(self, plan_id: str) -> list[DerivedInstance]:
        """Return what a job wrote, in the order image, report, uncertainty and of the numbers."""
        with self._reading() as connection:
            return [
                read_derived(row)
                for row in connection.execute(
                    select(derived)
                    .where(derived.c.plan_id == plan_id)
                    .order_by(derived.c.role, derived.c.number, derived.c.sop_instance_uid)
                )
            ]

    def read_sources(self, plan_id: str) -> dict[ContrastLabel, tuple[Instance, ...]]:
        """Return the very contents that a plan was made for, by label, in the plan's order.

        Raises:
            LookupError: the ledger does not know the plan or one of its instances.
        """
        with self._reading() as connection:
            plan = _select_job(connection, plan_id).plan
            found = _select_contents(connection, plan.source_instances)
        return {
            label: tuple(each for each in found if each.series_instance_uid == series)
            for label, series in plan.sources.items()
        }

    def find_newest_copy(self, plan_id: str) -> Instance | None:
        """Return what was last received of a plan's study, or None.

        Our own output and other synthetic images do not count, nor contents in quarantine, nor what
        had come when a person released the job.

        Raises:
            LookupError: the ledger does not know the plan.
        """
        with self._reading() as connection:
            row = _row(connection, plan_id)
            released = connection.scalar(
                select(func.max(event.c.at)).where(
                    event.c.study_instance_uid == row.study_instance_uid,
                    event.c.plan_id == plan_id,
                    event.c.name == f"job.{JobEvent.RELEASE}",
                )
            )
            query = (
                select(instance)
                .where(
                    instance.c.study_instance_uid == row.study_instance_uid,
                    instance.c.own.is_(False),
                    instance.c.forgotten_at.is_(None),
                    is_first(),
                )
                .order_by(instance.c.sequence.desc())
            )
            if released is not None:
                query = query.where(instance.c.received_at > released)
            for found in connection.execute(query):
                if (found.header or {}).get("SyntheticData") != "YES":
                    return read_instance(found)
        return None

    def read_truth(self, plan_id: str) -> list[Instance]:
        """Return the contents of the real series that a plan compares its result with, or none.

        Raises:
            LookupError: the ledger does not know the plan or one of the instances.
        """
        with self._reading() as connection:
            plan = _select_job(connection, plan_id).plan
            return _select_contents(connection, plan.truth_instances)

    def _move(
        self,
        connection: Connection,
        row: Row[Any],
        event: JobEvent,
        *,
        by: str | None = None,
        why: str | None = None,
        **values: Any,
    ) -> bool:
        """Take an arrow from where `row` was read; False when somebody else was faster."""
        state = next_state(row.state, event)
        values = {"lease_until": None, "reason": None, **values}
        moved = connection.execute(
            update(job)
            .where(
                job.c.plan_id == row.plan_id,
                job.c.state == row.state,
                job.c.attempt == row.attempt,
            )
            .values(state=state, changed_at=self._clock(), **values)
        ).rowcount
        if moved:
            detail = {"attempt": values.get("attempt", row.attempt), "reason": values["reason"]}
            person = {} if by is None else {"by": by, "why": why}
            self._note(
                connection,
                f"job.{event}",
                study=row.study_instance_uid,
                plan=row.plan_id,
                state=state,
                **detail,
                **person,
            )
        return bool(moved)

    def _lose(self, connection: Connection, row: Row[Any], reason: str, max_attempts: int) -> bool:
        losses = row.losses + 1
        if losses >= max_attempts:
            reason = f"{reason}; {losses} workers were lost"
            return self._move(connection, row, JobEvent.FAIL, reason=reason, losses=losses)
        return self._move(connection, row, JobEvent.LOSE, reason=reason, losses=losses)

    def _resend(self, connection: Connection, row: Row[Any], by: str, why: str) -> int:
        """Queue the parked deliveries of a job again, with all their time before them."""
        now = self._clock()
        again = connection.execute(
            update(delivery)
            .where(delivery.c.plan_id == row.plan_id, delivery.c.state == DeliveryState.PARKED)
            .values(state=DeliveryState.PENDING, attempts=0, queued_at=now, next_attempt=now)
        ).rowcount
        if again:
            self._note(
                connection,
                "delivery.requeue",
                study=row.study_instance_uid,
                plan=row.plan_id,
                count=again,
                by=by,
                why=why,
            )
        return again

    def _queue_deliveries(self, connection: Connection, row: Row[Any]) -> int:
        """Queue every derived instance of a job for every peer of its plan."""
        now = self._clock()
        uids = connection.scalars(
            select(derived.c.sop_instance_uid)
            .where(derived.c.plan_id == row.plan_id)
            .order_by(derived.c.role, derived.c.number)
        ).all()
        rows = [
            {
                "plan_id": row.plan_id,
                "sop_instance_uid": uid,
                "peer": peer,
                "state": DeliveryState.PENDING,
                "attempts": 0,
                "queued_at": now,
                "next_attempt": now,
            }
            for peer in row.plan["deliver_to"]
            for uid in uids
        ]
        if rows:
            connection.execute(insert(delivery), rows)
        return len(rows)


def _row(connection: Connection, plan_id: str) -> Row[Any]:
    row = connection.execute(select(job).where(job.c.plan_id == plan_id)).one_or_none()
    if row is None:
        raise LookupError(f"the ledger has no plan {plan_id}")
    return row


def _running(connection: Connection, plan_id: str, attempt: int) -> Row[Any] | None:
    """Return the job's row if `attempt` is the one that runs: the fence."""
    row = _row(connection, plan_id)
    return row if row.state == JobState.RUNNING and row.attempt == attempt else None


def _select_job(connection: Connection, plan_id: str) -> Job:
    return read_job(_row(connection, plan_id))


def _was_on_its_way(connection: Connection, plan_id: str) -> bool:
    """Say whether anything of a job was ever queued for a peer."""
    query = select(delivery.c.delivery_id).where(delivery.c.plan_id == plan_id).limit(1)
    return connection.scalar(query) is not None


def _select_contents(connection: Connection, contents: Sequence[tuple[str, str]]) -> list[Instance]:
    """Return the instances that have these UIDs and digests, in the order of arrival."""
    wanted = set(contents)
    rows = connection.execute(
        select(instance)
        .where(instance.c.sop_instance_uid.in_([uid for uid, _ in contents]))
        .order_by(instance.c.sequence)
    )
    found = [read_instance(row) for row in rows if (row.sop_instance_uid, row.sha256) in wanted]
    if len(found) != len(wanted):
        raise LookupError(f"{len(wanted) - len(found)} instances of the plan are gone")
    return found


def read_job(row: Row[Any]) -> Job:
    """Return the job of a row of its table."""
    return Job(
        plan=read_plan(row.plan, row.generation),
        state=row.state,
        attempt=row.attempt,
        losses=row.losses,
        lease_until=row.lease_until,
        reason=row.reason,
        quality=row.quality,
        seconds=row.seconds,
        record=tuple(row.record),
        changed_at=row.changed_at,
    )


def _replace_derived(
    connection: Connection, plan_id: str, instances: Sequence[DerivedInstance]
) -> None:
    """Write what an attempt made in the place of what an earlier attempt, never sent, made."""
    connection.execute(delete(derived).where(derived.c.plan_id == plan_id))
    if instances:
        connection.execute(
            insert(derived),
            [
                {
                    "sop_instance_uid": each.sop_instance_uid,
                    "plan_id": plan_id,
                    "sop_class_uid": each.sop_class_uid,
                    "series_instance_uid": each.series_instance_uid,
                    "role": each.role,
                    "number": each.number,
                    "sha256": each.sha256,
                    "path": each.path,
                }
                for each in instances
            ],
        )
