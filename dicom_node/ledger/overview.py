"""The ledger for somebody who looks at all of it: a page of studies, who decided what, usual times.

Every question is for a page at a time, so that it costs the same in a ledger of years.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from statistics import median
from typing import Any

from sqlalchemy import ColumnElement, and_, exists, func, or_, select

from dicom_node.domain import DeliveryState, StudyState
from dicom_node.jobs import JobState
from dicom_node.ledger.conflicts import REJECTED
from dicom_node.ledger.database import Database
from dicom_node.ledger.judgements import select_studies
from dicom_node.ledger.queue import read_job
from dicom_node.records import Event, Job, StudyRow
from dicom_node.schema import association_study, delivery, event, instance, job, study

_SAMPLE = 200
"""Newest jobs by which it is said how long one takes."""

_MOST_COMPARED = 2_000
"""Newest jobs in which comparisons are looked for."""

_PEOPLE = ("job.requeue", "job.release", "job.reject", "job.withdrawn", "delivery.requeue")
_PEOPLE_OF_STUDIES = ("study.released", "study.rejected", "study.reopened")
_COMMANDS = ("account.set", "account.removed", "archive.asked", "study.exported")
_PAGE = "page."

TOLD_KEYS = ("StudyInstanceUID", "StudyDate")
"""Of a query: what names no patient."""

_IS_TOLD = re.compile(r"[0-9.-]{1,64}")
"""A UID, a date, a range of dates: no text fits in."""


class Show(StrEnum):
    """Which studies are looked at."""

    ALL = "all"
    ATTENTION = "attention"  # a person must look
    PROGRESS = "progress"  # something is received, made or sent
    FINISHED = "finished"  # neither


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyGlance:
    """A study as it stands in a list.

    Attributes:
        modalities: of its received series, by the judgement; none before there is one.
        is_sending: somebody has an association open over which it came.
        jobs: in the order of their plans.
        deliveries: how many instances stand how with the peers, by plan id.
    """

    row: StudyRow
    is_sending: bool
    jobs: tuple[Job, ...] = ()
    deliveries: dict[str, dict[DeliveryState, int]] = field(default_factory=dict)


class Overview(Database):
    """What the admin page asks."""

    def glance(
        self, show: Show, limit: int, offset: int = 0, study_instance_uid: str | None = None
    ) -> list[StudyGlance]:
        """Return studies with their jobs and deliveries, the newest first.

        Args:
            show: which ones.
            limit: the most that are returned.
            offset: how many newer ones are passed over.
            study_instance_uid: only this one, where it is named.
        """
        conditions = [_CONDITIONS[show]]
        if study_instance_uid is not None:
            conditions.append(study.c.study_instance_uid == study_instance_uid)
        query = (
            select_studies(and_(*conditions))
            .add_columns(
                exists()
                .where(association_study.c.study_instance_uid == study.c.study_instance_uid)
                .label("is_sending")
            )
            .order_by(study.c.last_received.desc(), study.c.study_instance_uid)
            .limit(limit)
            .offset(offset)
        )
        with self._reading() as connection:
            rows = connection.execute(query).all()
            uids = [row.study_instance_uid for row in rows]
            jobs: dict[str, list[Job]] = defaultdict(list)
            for row in connection.execute(
                select(job)
                .where(job.c.study_instance_uid.in_(uids))
                .order_by(job.c.created_at, job.c.plan_id)
            ):
                jobs[row.study_instance_uid].append(read_job(row))
            deliveries: dict[str, dict[str, dict[DeliveryState, int]]] = defaultdict(
                lambda: defaultdict(dict)
            )
            for row in connection.execute(
                select(job.c.study_instance_uid, delivery.c.plan_id, delivery.c.state, func.count())
                .join_from(delivery, job, delivery.c.plan_id == job.c.plan_id)
                .where(job.c.study_instance_uid.in_(uids))
                .group_by(job.c.study_instance_uid, delivery.c.plan_id, delivery.c.state)
            ):
                uid, plan_id, state, count = row
                deliveries[uid][plan_id][state] = count
        return [
            StudyGlance(
                row=_read_row(row._mapping),
                is_sending=row.is_sending,
                jobs=tuple(jobs[row.study_instance_uid]),
                deliveries={
                    key: dict(each) for key, each in deliveries[row.study_instance_uid].items()
                },
            )
            for row in rows
        ]

    def count_shown(self) -> dict[Show, int]:
        """Return how many studies each `Show` shows."""
        with self._reading() as connection:
            return {
                show: connection.scalar(select(func.count()).select_from(study).where(condition))
                or 0
                for show, condition in _CONDITIONS.items()
            }

    def find_jobs(self, states: Sequence[JobState], limit: int) -> list[Job]:
        """Return jobs in any of `states`, those that have been so for longest first."""
        query = (
            select(job)
            .where(job.c.state.in_(states))
            .order_by(job.c.changed_at, job.c.plan_id)
            .limit(limit)
        )
        with self._reading() as connection:
            return [read_job(row) for row in connection.execute(query)]

    def find_parked_jobs(self, limit: int) -> list[tuple[Job, dict[str, int]]]:
        """Return done jobs of which peers did not take something, with how much by peer."""
        parked = (
            select(delivery.c.plan_id, delivery.c.peer, func.count().label("count"))
            .join(job, delivery.c.plan_id == job.c.plan_id)
            .where(delivery.c.state == DeliveryState.PARKED, job.c.state == JobState.DONE)
            .group_by(delivery.c.plan_id, delivery.c.peer)
            .order_by(delivery.c.plan_id, delivery.c.peer)
        )
        with self._reading() as connection:
            counts: dict[str, dict[str, int]] = defaultdict(dict)
            for plan_id, peer, count in connection.execute(parked):
                counts[plan_id][peer] = count
            wanted = list(counts)[:limit]
            rows = connection.execute(
                select(job).where(job.c.plan_id.in_(wanted)).order_by(job.c.changed_at)
            )
            return [(read_job(row), counts[row.plan_id]) for row in rows]

    def find_held_studies(self, limit: int) -> list[StudyRow]:
        """Return studies that a person must look at, the one that was held first in front."""
        query = select_studies(_IS_HELD).order_by(study.c.judged_at).limit(limit)
        with self._reading() as connection:
            return [_read_row(row._mapping) for row in connection.execute(query)]

    def read_usual_seconds(self) -> dict[str, float]:
        """Return how long the newest jobs of each model took, model id to the median."""
        query = (
            select(job.c.plan, job.c.seconds)
            .where(job.c.state == JobState.DONE)
            .order_by(job.c.created_at.desc())
            .limit(_SAMPLE)
        )
        found: dict[str, list[float]] = defaultdict(list)
        with self._reading() as connection:
            for row in connection.execute(query):
                if row.seconds:
                    found[row.plan["model_id"]].append(sum(row.seconds.values()))
        return {model: median(seconds) for model, seconds in found.items()}

    def find_compared(self) -> dict[tuple[str, ...], list[Job]]:
        """Return newest jobs that were compared with a real series, oldest first.

        The key is manufacturer, model name and field strength of the scanner, target and model.
        """
        query = select(job).order_by(job.c.changed_at.desc()).limit(_MOST_COMPARED)
        with self._reading() as connection:
            jobs = [read_job(row) for row in connection.execute(query)]
        found: dict[tuple[str, ...], list[Job]] = defaultdict(list)
        for each in reversed(jobs):
            if compared := each.quality.get("comparison"):
                scanner = [
                    str(compared.get(name) or "unknown")
                    for name in ("manufacturer", "model_name", "field_strength")
                ]
                found[*scanner, str(each.plan.target), each.plan.model_id].append(each)
        return dict(sorted(found.items()))

    def count_received(self, study_instance_uid: str) -> dict[str, dict[str, int]]:
        """Return how many instances of each series of a study came from which peer."""
        query = (
            select(instance.c.series_instance_uid, instance.c.peer, func.count())
            .where(instance.c.study_instance_uid == study_instance_uid)
            .group_by(instance.c.series_instance_uid, instance.c.peer)
            .order_by(func.min(instance.c.sequence))
        )
        found: dict[str, dict[str, int]] = defaultdict(dict)
        with self._reading() as connection:
            for series, peer, count in connection.execute(query):
                found[series][peer] = count
        return dict(found)

    def note_act(self, name: str, by: str, study: str | None = None, **detail: Any) -> None:
        """Keep what a person did at the page beside deciding: logged in, saw a name."""
        with self._writing() as connection:
            self._note(connection, f"{_PAGE}{name}", study=study, by=by, **detail)

    def note_command(self, name: str, by: str, study: str | None = None, **detail: Any) -> None:
        """Keep what a person did at the command line, beside deciding: an event of its own."""
        with self._writing() as connection:
            self._note(connection, name, study=study, by=by, **detail)

    def note_query(self, by: str, peer: str, keys: Mapping[str, str]) -> None:
        """Keep that a person asks a peer about studies.

        Args:
            by: who asks.
            peer: its alias.
            keys: DICOM keywords to what is looked for; only of `TOLD_KEYS` the value is kept.
        """
        kept = {
            keyword: value if keyword in TOLD_KEYS and _IS_TOLD.fullmatch(value) else ""
            for keyword, value in keys.items()
        }
        self.note_command("archive.asked", by, peer=peer, keys=kept)

    def find_acts(self, limit: int, offset: int = 0) -> list[Event]:
        """Return what persons did, the newest first."""
        query = (
            select(event)
            .where(
                or_(
                    event.c.name.in_(_PEOPLE + _PEOPLE_OF_STUDIES + _COMMANDS),
                    event.c.name.startswith(_PAGE, autoescape=True),
                )
            )
            .order_by(event.c.sequence.desc())
            .limit(limit)
            .offset(offset)
        )
        with self._reading() as connection:
            events = [Event(**row._mapping) for row in connection.execute(query)]
        return [each for each in events if each.detail.get("by")]

    def read_held_rules(self) -> Event | None:
        """Return when the node last took rules, and which; None when it never ran."""
        query = (
            select(event)
            .where(event.c.name == "rules.hold")
            .order_by(event.c.sequence.desc())
            .limit(1)
        )
        with self._reading() as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else Event(**row._mapping)


def _read_row(mapping: Any) -> StudyRow:
    return StudyRow(**{name: mapping[name] for name in StudyRow.__slots__})


def _has_job(*states: JobState) -> ColumnElement[bool]:
    return exists().where(
        job.c.study_instance_uid == study.c.study_instance_uid, job.c.state.in_(states)
    )


def _has_delivery(state: DeliveryState) -> ColumnElement[bool]:
    return exists().where(
        job.c.study_instance_uid == study.c.study_instance_uid,
        job.c.state == JobState.DONE,
        delivery.c.plan_id == job.c.plan_id,
        delivery.c.state == state,
    )


_IS_HELD = (study.c.state == StudyState.HELD) & (study.c.hold_code != REJECTED)
_NEEDS_A_PERSON = or_(
    _IS_HELD, _has_job(JobState.HELD, JobState.FAILED), _has_delivery(DeliveryState.PARKED)
)
_MOVES = or_(
    study.c.state == StudyState.RECEIVING,
    and_(
        study.c.state == StudyState.JUDGED,
        or_(_has_job(JobState.QUEUED, JobState.RUNNING), _has_delivery(DeliveryState.PENDING)),
    ),
)
_CONDITIONS: dict[Show, ColumnElement[bool]] = {
    Show.ALL: study.c.study_instance_uid.is_not(None),
    Show.ATTENTION: _NEEDS_A_PERSON,
    Show.PROGRESS: _MOVES,
    Show.FINISHED: ~_NEEDS_A_PERSON & ~_MOVES,
}
