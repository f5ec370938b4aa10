"""The ledger while peers are asked whether what is not here is really missing.

Between two looks of assembly at a study. A question belongs to one generation of it; a study that
waits for an answer is not judged.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

from sqlalchemy import Row, distinct, func, select, tuple_, update

from dicom_node.domain import InquiryState, Question, RemoteSeries, StudyState
from dicom_node.ledger.database import Database, insert_new
from dicom_node.ledger.documents import read_remote
from dicom_node.records import Inquiry
from dicom_node.schema import derived, inquiry, instance, study


class Inquiries(Database):
    """What assembly asks for, and what the inquirers read and write."""

    def ask(self, study_instance_uid: str, generation: int, questions: Sequence[Question]) -> None:
        """Want answers for a generation of a study; those to earlier ones are void."""
        now = self._clock()
        with self._writing() as connection:
            for question in questions:
                values = {
                    "generation": generation,
                    "state": InquiryState.DUE,
                    "siblings_within_days": question.siblings_within_days,
                    "fetch": question.fetch,
                    "since": now,
                    "next_attempt": now,
                    "rounds": 0,
                    "found": [],
                    "reason": None,
                }
                key = {"study_instance_uid": study_instance_uid, "peer": question.peer}
                if not insert_new(connection, inquiry, [{**key, **values}]):
                    connection.execute(
                        update(inquiry)
                        .where(
                            inquiry.c.study_instance_uid == study_instance_uid,
                            inquiry.c.peer == question.peer,
                        )
                        .values(**values)
                    )
            self._note(
                connection,
                "study.asked",
                study=study_instance_uid,
                generation=generation,
                peers=[question.peer for question in questions],
            )

    def inquiries(self, study_instance_uid: str) -> tuple[Inquiry, ...]:
        """Return what was asked for the present generation of a study."""
        with self._reading() as connection:
            return tuple(
                _read_inquiry(row)
                for row in connection.execute(
                    select(inquiry)
                    .join(study)
                    .where(
                        inquiry.c.study_instance_uid == study_instance_uid,
                        inquiry.c.generation == study.c.generation,
                    )
                    .order_by(inquiry.c.peer)
                )
            )

    def find_waiting_studies(self) -> set[str]:
        """Return the studies that are not judged before a peer has answered."""
        with self._reading() as connection:
            return set(
                connection.scalars(
                    select(inquiry.c.study_instance_uid)
                    .join(study)
                    .where(
                        inquiry.c.generation == study.c.generation,
                        inquiry.c.state == InquiryState.DUE,
                        study.c.state == StudyState.RECEIVING,
                    )
                )
            )

    def find_due_inquiries(self, peer: str, now: datetime, most: int) -> tuple[Inquiry, ...]:
        """Return what a peer is to be asked now, the longest waiting first."""
        with self._reading() as connection:
            return tuple(
                _read_inquiry(row)
                for row in connection.execute(
                    select(inquiry)
                    .join(study)
                    .where(
                        inquiry.c.peer == peer,
                        inquiry.c.state == InquiryState.DUE,
                        inquiry.c.next_attempt <= now,
                        inquiry.c.generation == study.c.generation,
                        study.c.state == StudyState.RECEIVING,
                    )
                    .order_by(inquiry.c.since, inquiry.c.study_instance_uid)
                    .limit(most)
                )
            )

    def record_inquiry(
        self,
        asked: Inquiry,
        state: InquiryState,
        *,
        found: Iterable[RemoteSeries] = (),
        rounds: int | None = None,
        reason: str | None = None,
        next_attempt: datetime | None = None,
    ) -> None:
        """Record what came of asking; nothing, when it is answered or the study has reopened.

        Args:
            asked: as it was read.
            state: where it stands now.
            found: what the peer lists.
            rounds: how often something was fetched; None keeps the number.
            reason: what went wrong, without patient attributes.
            next_attempt: when it is asked again; None: never, or it does not matter.
        """
        with self._writing() as connection:
            was_due = connection.execute(
                update(inquiry)
                .where(
                    tuple_(inquiry.c.study_instance_uid, inquiry.c.peer, inquiry.c.generation)
                    == (asked.study_instance_uid, asked.question.peer, asked.generation),
                    inquiry.c.state == InquiryState.DUE,
                )
                .values(
                    state=state,
                    found=[asdict(each) for each in found],
                    rounds=asked.rounds if rounds is None else rounds,
                    reason=reason,
                    next_attempt=next_attempt or asked.next_attempt,
                )
            ).rowcount
            if not was_due:
                return
            self._note(
                connection,
                f"inquiry.{state}",
                study=asked.study_instance_uid,
                peer=asked.question.peer,
                reason=reason,
            )

    def count_series(self, study_instance_uid: str) -> dict[str, int]:
        """Return how many instances (UIDs) of each series of a study came."""
        with self._reading() as connection:
            rows = connection.execute(
                select(
                    instance.c.series_instance_uid,
                    func.count(distinct(instance.c.sop_instance_uid)),
                )
                .where(instance.c.study_instance_uid == study_instance_uid)
                .group_by(instance.c.series_instance_uid)
            )
            return {uid: count for uid, count in rows}

    def find_own_series(self, series_instance_uids: Iterable[str]) -> set[str]:
        """Return those of the series that this node made."""
        with self._reading() as connection:
            return set(
                connection.scalars(
                    select(derived.c.series_instance_uid).where(
                        derived.c.series_instance_uid.in_(set(series_instance_uids))
                    )
                )
            )


def _read_inquiry(row: Row[Any]) -> Inquiry:
    return Inquiry(
        study_instance_uid=row.study_instance_uid,
        generation=row.generation,
        question=Question(
            peer=row.peer, siblings_within_days=row.siblings_within_days, fetch=row.fetch
        ),
        state=row.state,
        since=row.since,
        next_attempt=row.next_attempt,
        rounds=row.rounds,
        found=tuple(read_remote(document) for document in row.found),
        reason=row.reason,
    )
