"""The ledger while studies are judged: headers, labels, slots, gaps, and the plans that follow.

Steps 3 to 6 of the walk. A judgement holds only for what it has seen: when the study has grown or
reopened meanwhile, nothing is written and the next sweep judges again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Select,
    bindparam,
    func,
    insert,
    select,
    update,
)

from dicom_node.domain import (
    Closing,
    DeliveryState,
    Gap,
    Header,
    Instance,
    Refusal,
    Role,
    Series,
    StudyState,
    SynthesisPlan,
)
from dicom_node.jobs import TRANSITIONS, JobEvent, JobState, next_state
from dicom_node.ledger.conflicts import is_first
from dicom_node.ledger.database import Database, insert_new
from dicom_node.ledger.documents import (
    plan_document,
    read_gap,
    read_instance,
    read_refusal,
    read_series,
    series_document,
)
from dicom_node.records import Judgement, StudyRow
from dicom_node.schema import delivery, derived, instance, job, judgement, study

SUPERSEDED = "superseded"
"""Why a delivery is parked when the study has changed under its job."""

_CAN_BE_SUPERSEDED = [state for state, event in TRANSITIONS if event is JobEvent.SUPERSEDE]


class Judgements(Database):
    """What assembly reads and writes."""

    def study_row(self, study_instance_uid: str) -> StudyRow:
        """Return where a study stands.

        Raises:
            LookupError: the ledger does not know the study.
        """
        with self._reading() as connection:
            row = connection.execute(
                select_studies(study.c.study_instance_uid == study_instance_uid)
            ).one_or_none()
        if row is None:
            raise LookupError(f"the ledger has no study {study_instance_uid}")
        return _read_study(row)

    def studies(self) -> list[StudyRow]:
        """Return every study, the newest first."""
        with self._reading() as connection:
            return [
                _read_study(row)
                for row in connection.execute(
                    select_studies().order_by(
                        study.c.last_received.desc(), study.c.study_instance_uid
                    )
                )
            ]

    def read_instances(self, study_instance_uid: str) -> tuple[Instance, ...]:
        """Return the instances of a study: of each UID the first content, wherever that came."""
        with self._reading() as connection:
            return tuple(
                read_instance(row)
                for row in connection.execute(
                    select(instance)
                    .where(instance.c.study_instance_uid == study_instance_uid, is_first())
                    .order_by(instance.c.sequence)
                )
            )

    def record_headers(self, headers: Mapping[tuple[str, str], Header]) -> None:
        """Keep the header facts of instances, by `(sop_instance_uid, sha256)`."""
        if not headers:
            return
        with self._writing() as connection:
            connection.execute(
                update(instance).where(
                    instance.c.sop_instance_uid == bindparam("uid"),
                    instance.c.sha256 == bindparam("digest"),
                ),
                [
                    {"uid": uid, "digest": digest, "header": dict(header)}
                    for (uid, digest), header in headers.items()
                ],
            )

    def record_judgement(
        self,
        study_instance_uid: str,
        generation: int,
        *,
        seen: int,
        series: Sequence[Series],
        slots: Mapping[str, Mapping[str, str]],
        gaps: Sequence[Gap],
        plans: Sequence[SynthesisPlan],
        refusals: Sequence[Refusal],
        closing: Closing = Closing.QUIET,
        config_digest: str | None = None,
    ) -> bool:
        """Record what the rules said, queue the plans, and supersede what they no longer want.

        `generation` and `seen` come from the `StudyRow` that was read before the instances. A plan
        that the ledger knows keeps its job and its deliveries as they are. `closing` says why the
        study was not waited for any longer, `config_digest` by which rules it was judged.

        Returns:
            False when the study has changed since then; nothing is written.
        """
        now = self._clock()
        with self._writing() as connection:
            judged = _settle(
                connection,
                study_instance_uid,
                generation,
                seen,
                {"state": StudyState.JUDGED, "judged_at": now},
            )
            if not judged:
                return False
            _write_judgement(
                connection,
                study_instance_uid,
                generation,
                now,
                {
                    "series": [series_document(each) for each in series],
                    "slots": {rule: dict(states) for rule, states in slots.items()},
                    "gaps": [asdict(gap) for gap in gaps],
                    "refusals": [asdict(refusal) for refusal in refusals],
                    "closing": closing,
                    "config_digest": config_digest,
                },
            )
            queued = _queue(connection, plans, generation, now)
            revived = self._revive(connection, study_instance_uid, plans, now)
            superseded = self._supersede(connection, study_instance_uid, plans, now)
            self._note(
                connection,
                "study.judged",
                study=study_instance_uid,
                generation=generation,
                gaps=len(gaps),
                queued=queued,
                revived=revived,
                superseded=superseded,
                refused=[refusal.code for refusal in refusals],
                closing=closing,
                config_digest=config_digest,
            )
        return True

    def hold_study(
        self,
        study_instance_uid: str,
        generation: int,
        code: str,
        reason: str,
        series: Sequence[Series] = (),
        *,
        seen: int,
    ) -> bool:
        """Hold a study that cannot be worked with; its queued jobs and deliveries wait with it.

        Returns:
            False when the study has changed since its row was read; nothing is written.
        """
        now = self._clock()
        with self._writing() as connection:
            held = _settle(
                connection,
                study_instance_uid,
                generation,
                seen,
                {
                    "state": StudyState.HELD,
                    "judged_at": now,
                    "hold_code": code,
                    "hold_reason": reason,
                },
            )
            if not held:
                return False
            _write_judgement(
                connection,
                study_instance_uid,
                generation,
                now,
                {
                    "series": [series_document(each) for each in series],
                    "slots": {},
                    "gaps": [],
                    "refusals": [],
                },
            )
            self._note(
                connection, "study.held", study=study_instance_uid, generation=generation, code=code
            )
        return True

    def reopen_study(self, study_instance_uid: str, by: str, why: str) -> None:
        """Let a study be judged again as a new generation, because a person asks for it.

        Raises:
            LookupError: the ledger does not know the study.
        """
        with self._writing() as connection:
            known = connection.execute(
                update(study)
                .where(study.c.study_instance_uid == study_instance_uid)
                .values(
                    state=StudyState.RECEIVING,
                    generation=study.c.generation + 1,
                    hold_code=None,
                    hold_reason=None,
                )
            ).rowcount
            if not known:
                raise LookupError(f"the ledger has no study {study_instance_uid}")
            self._note(connection, "study.reopened", study=study_instance_uid, by=by, why=why)

    def read_judgement(self, study_instance_uid: str) -> Judgement:
        """Return the newest judgement of a study.

        Raises:
            LookupError: the study has not been judged.
        """
        with self._reading() as connection:
            row = connection.execute(
                select(judgement)
                .where(judgement.c.study_instance_uid == study_instance_uid)
                .order_by(judgement.c.generation.desc())
                .limit(1)
            ).one_or_none()
        if row is None:
            raise LookupError(f"the study {study_instance_uid} has not been judged")
        return Judgement(
            study_instance_uid=row.study_instance_uid,
            generation=row.generation,
            judged_at=row.judged_at,
            series=tuple(read_series(document) for document in row.series),
            slots=row.slots,
            gaps=tuple(read_gap(document) for document in row.gaps),
            refusals=tuple(read_refusal(document) for document in row.refusals),
            closing=None if row.closing is None else Closing(row.closing),
            config_digest=row.config_digest,
        )

    def _revive(
        self,
        connection: Connection,
        study_instance_uid: str,
        plans: Sequence[SynthesisPlan],
        now: datetime,
    ) -> int:
        """Bring back superseded jobs that are wanted again: the same plan is the same job.

        What was withdrawn from peers stays so: they would keep it hidden under its UIDs.
        """
        withdrawn = select(derived.c.plan_id).where(derived.c.role == Role.WITHDRAWAL)
        wanted = connection.execute(
            select(job.c.plan_id).where(
                job.c.plan_id.in_([plan.plan_id for plan in plans]),
                job.c.state == JobState.SUPERSEDED,
                job.c.plan_id.not_in(withdrawn),
            )
        ).scalars()
        plan_ids = list(wanted)
        for plan_id in plan_ids:
            its_parked = (delivery.c.plan_id == plan_id) & (delivery.c.reason == SUPERSEDED)
            was_on_its_way = connection.execute(
                select(func.count()).select_from(delivery).where(delivery.c.plan_id == plan_id)
            ).scalar_one()
            event = JobEvent.RESTORE if was_on_its_way else JobEvent.REPLAN
            connection.execute(
                update(job)
                .where(job.c.plan_id == plan_id)
                .values(state=next_state(JobState.SUPERSEDED, event), reason=None, changed_at=now)
            )
            connection.execute(
                update(delivery)
                .where(its_parked)
                .values(state=DeliveryState.PENDING, reason=None, next_attempt=now)
            )
            self._note(connection, f"job.{event}", study=study_instance_uid, plan=plan_id)
        return len(plan_ids)

    def _supersede(
        self,
        connection: Connection,
        study_instance_uid: str,
        plans: Sequence[SynthesisPlan],
        now: datetime,
    ) -> int:
        """Take the jobs of a study that no plan wants any more out of the way."""
        wanted = {plan.plan_id for plan in plans}
        unwanted = [
            row
            for row in connection.execute(
                select(job.c.plan_id, job.c.state).where(
                    job.c.study_instance_uid == study_instance_uid,
                    job.c.state.in_(_CAN_BE_SUPERSEDED),
                )
            )
            if row.plan_id not in wanted
        ]
        for row in unwanted:
            connection.execute(
                update(job)
                .where(job.c.plan_id == row.plan_id, job.c.state == row.state)
                .values(
                    state=next_state(row.state, JobEvent.SUPERSEDE),
                    lease_until=None,
                    reason="the study has changed",
                    changed_at=now,
                )
            )
            connection.execute(
                update(delivery)
                .where(delivery.c.plan_id == row.plan_id, delivery.c.state == DeliveryState.PENDING)
                .values(state=DeliveryState.PARKED, reason=SUPERSEDED)
            )
            self._note(connection, "job.supersede", study=study_instance_uid, plan=row.plan_id)
        return len(unwanted)


def select_studies(*conditions: ColumnElement[bool]) -> Select[Any]:
    """Return the query whose rows are the columns of `StudyRow`."""
    seen = (
        select(func.count())
        .select_from(instance)
        .where(instance.c.study_instance_uid == study.c.study_instance_uid)
        .scalar_subquery()
    )
    return select(study, seen.label("seen")).where(*conditions)


def _read_study(row: Row[Any]) -> StudyRow:
    return StudyRow(**row._mapping)


def _settle(
    connection: Connection,
    study_instance_uid: str,
    generation: int,
    seen: int,
    values: Mapping[str, Any],
) -> bool:
    """Take a study out of RECEIVING unless it has changed since `generation` and `seen`."""
    held_now = (
        select(func.count())
        .select_from(instance)
        .where(instance.c.study_instance_uid == study_instance_uid)
        .scalar_subquery()
    )
    return bool(
        connection.execute(
            update(study)
            .where(
                study.c.study_instance_uid == study_instance_uid,
                study.c.generation == generation,
                study.c.state == StudyState.RECEIVING,
                held_now == seen,
            )
            .values(**values)
        ).rowcount
    )


def _write_judgement(
    connection: Connection,
    study_instance_uid: str,
    generation: int,
    now: datetime,
    documents: Mapping[str, Any],
) -> None:
    key = {"study_instance_uid": study_instance_uid, "generation": generation}
    connection.execute(insert(judgement).values(**key, judged_at=now, **documents))


def _queue(
    connection: Connection, plans: Sequence[SynthesisPlan], generation: int, now: datetime
) -> int:
    """Queue the plans that are new, and let the known ones belong to this generation."""
    connection.execute(
        update(job)
        .where(job.c.plan_id.in_([plan.plan_id for plan in plans]))
        .values(generation=generation)
    )
    return len(
        insert_new(
            connection,
            job,
            [
                {
                    "plan_id": plan.plan_id,
                    "study_instance_uid": plan.study_instance_uid,
                    "generation": generation,
                    "priority": plan.priority,
                    "created_at": plan.created_at,
                    "plan": plan_document(plan),
                    "state": JobState.QUEUED,
                    "attempt": 0,
                    "losses": 0,
                    "quality": {},
                    "seconds": {},
                    "record": [],
                    "changed_at": now,
                }
                for plan in plans
            ],
        )
    )
