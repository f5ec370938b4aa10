"""The ledger read back: what happened, how much there is, and which bytes may go.

Step 13 of the walk. Retention deletes a file first and forgets it here second: a crash in between
leaves a row without a file, which the next sweep, finding it expired still, puts right.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from datetime import datetime

from sqlalchemy import ColumnElement, exists, func, or_, select, update

from dicom_node.domain import UID_CONFLICT, DeliveryState, StepState, StudyState
from dicom_node.jobs import JobState
from dicom_node.ledger.database import Database
from dicom_node.ledger.outbox import TAKEN, UNCONFIRMED
from dicom_node.records import Event
from dicom_node.schema import delivery, derived, event, instance, job, outage, step, study

_NEEDS_SOURCES = (JobState.QUEUED, JobState.RUNNING, JobState.HELD)
_IS_OVER = (JobState.DONE, JobState.REJECTED, JobState.SUPERSEDED)


class Chronicle(Database):
    """What status, metrics, explanation and retention ask."""

    def events(self, study: str | None = None) -> list[Event]:
        """Return what happened to a study and its jobs, or all that happened, in order."""
        query = select(event).order_by(event.c.sequence)
        if study is not None:
            plans = select(job.c.plan_id).where(job.c.study_instance_uid == study)
            query = query.where(
                or_(event.c.study_instance_uid == study, event.c.plan_id.in_(plans))
            )
        with self._reading() as connection:
            return [Event(**row._mapping) for row in connection.execute(query)]

    def find_last_received(self) -> dict[str, datetime]:
        """Return when each peer stored a new instance here, the last time."""
        query = select(instance.c.peer, func.max(instance.c.received_at)).group_by(instance.c.peer)
        with self._reading() as connection:
            return {row[0]: row[1] for row in connection.execute(query)}

    def note_rules(self, config_digest: str) -> None:
        """Keep since when a configuration decides."""
        with self._writing() as connection:
            self._note(connection, "rules.hold", config_digest=config_digest)

    def counts(self) -> dict[str, int]:
        """Return how many rows there are of each thing, by state where it has one.

        `holds` tells why studies are held.
        """
        counts = {
            **{f"studies.{state}": 0 for state in StudyState},
            **{f"jobs.{state}": 0 for state in JobState},
            **{f"deliveries.{state}": 0 for state in DeliveryState},
            **{f"steps.{state}": 0 for state in StepState},
            f"holds.{UID_CONFLICT}": 0,
        }
        with self._reading() as connection:
            for name, table in {
                "studies": study,
                "jobs": job,
                "deliveries": delivery,
                "steps": step,
            }.items():
                for state, count in connection.execute(
                    select(table.c.state, func.count()).group_by(table.c.state)
                ):
                    counts[f"{name}.{state}"] = count
            for code, count in connection.execute(
                select(study.c.hold_code, func.count())
                .where(study.c.state == StudyState.HELD)
                .group_by(study.c.hold_code)
            ):
                counts[f"holds.{code}"] = count
            for name, table in {
                "instances": instance,
                "derived": derived,
                "outages": outage,
            }.items():
                counts[name] = connection.scalar(select(func.count()).select_from(table)) or 0
        return counts

    def find_expired_instances(
        self, received_before: datetime, confirming: Collection[str] = ()
    ) -> list[str]:
        """Return the received files that nothing will ask for again.

        Their study was judged or held and got nothing since `received_before`; none of its jobs
        may still run, and none of its results still has to go out, or to be confirmed by one of
        the `confirming` peers. Where a person has to choose between contents, all of them wait.
        """
        working = exists().where(
            job.c.study_instance_uid == instance.c.study_instance_uid,
            job.c.state.in_(_NEEDS_SOURCES),
        )
        leaving = exists().where(
            job.c.study_instance_uid == instance.c.study_instance_uid,
            delivery.c.plan_id == job.c.plan_id,
            (delivery.c.state == DeliveryState.PENDING)
            | (_is_unconfirmed(confirming) & (job.c.state == JobState.DONE)),
        )
        with self._reading() as connection:
            return list(
                connection.scalars(
                    select(instance.c.path)
                    .join(study)
                    .where(
                        instance.c.forgotten_at.is_(None),
                        study.c.state != StudyState.RECEIVING,
                        func.coalesce(study.c.hold_code, "") != UID_CONFLICT,
                        study.c.last_received < received_before,
                        ~working,
                        ~leaving,
                    )
                    .order_by(instance.c.sequence)
                )
            )

    def find_expired_derived(
        self, changed_before: datetime, confirming: Collection[str] = ()
    ) -> list[str]:
        """Return the derived files that all peers have, of jobs over since `changed_before`.

        What a peer did not take, or one of the `confirming` peers has not said that it keeps,
        stays, unless its job was superseded or rejected.
        """
        owed = exists().where(
            delivery.c.sop_instance_uid == derived.c.sop_instance_uid,
            delivery.c.state.not_in(TAKEN) | _is_unconfirmed(confirming),
            job.c.state == JobState.DONE,
        )
        with self._reading() as connection:
            return list(
                connection.scalars(
                    select(derived.c.path)
                    .join(job)
                    .where(
                        derived.c.forgotten_at.is_(None),
                        job.c.state.in_(_IS_OVER),
                        job.c.changed_at < changed_before,
                        ~owed,
                    )
                    .order_by(derived.c.path)
                )
            )

    def forget_bytes(self, paths: Sequence[str]) -> None:
        """Record that files were deleted; their rows and events stay for good."""
        now = self._clock()
        received = select(instance.c.study_instance_uid).where(
            instance.c.path.in_(paths), instance.c.forgotten_at.is_(None)
        )
        made = (
            select(job.c.study_instance_uid)
            .join(derived)
            .where(derived.c.path.in_(paths), derived.c.forgotten_at.is_(None))
        )
        with self._writing() as connection:
            files = Counter(connection.scalars(received)) + Counter(connection.scalars(made))
            for table in (instance, derived):
                connection.execute(
                    update(table)
                    .where(table.c.path.in_(paths), table.c.forgotten_at.is_(None))
                    .values(forgotten_at=now)
                )
            for uid, count in sorted(files.items()):
                self._note(connection, "bytes.forgotten", study=uid, files=count)


def _is_unconfirmed(confirming: Collection[str]) -> ColumnElement[bool]:
    return delivery.c.state.in_(UNCONFIRMED) & delivery.c.peer.in_(confirming)
