"""The ledger while a study is coming: what peers tell of its procedure steps and instances.

Before the first instance, as a rule: no row of a study is needed. One row for each study that a
notice is about. What is told stays, so that a study that reopens is measured by it again.
"""

from typing import Any

from sqlalchemy import Row, exists, select, update

from dicom_node.domain import NoticeState, StudyState
from dicom_node.ledger.database import Database, insert_new
from dicom_node.records import Noted, Notice, StudyNotice
from dicom_node.schema import instance, notice, study

_OPEN = NoticeState.IN_PROGRESS


class Notices(Database):
    """What the receiver writes when it is told, and what assembly and explanation read."""

    def record_notice(self, peer: str, told: Notice) -> Noted:
        """Record what `peer` tells: a new notice, which has studies, or a change of one of its own.

        Nothing is written unless it is taken.
        """
        now = self._clock()
        values: dict[str, Any] = {"changed_at": now, "reason": told.reason}
        if told.state is not None:
            values["state"] = told.state
        if told.instances is not None:
            values["instances"] = list(told.instances)
        here = notice.c.sop_instance_uid == told.sop_instance_uid
        with self._writing() as connection:
            known = connection.execute(select(notice).where(here)).all()
            if told.studies:
                if known:
                    return Noted.KNOWN
                key = {"sop_instance_uid": told.sop_instance_uid, "peer": peer, "instances": []}
                rows = [{**key, **values, "study_instance_uid": uid} for uid in told.studies]
                insert_new(connection, notice, rows)
            else:
                if not known or known[0].peer != peer:
                    return Noted.UNKNOWN
                if known[0].state is not _OPEN:
                    return Noted.OVER
                connection.execute(update(notice).where(here).values(**values))
            for uid in told.studies or [row.study_instance_uid for row in known]:
                self._note(
                    connection,
                    f"notice.{told.state or _OPEN}",
                    study=uid,
                    peer=peer,
                    instances=len(told.instances or ()),
                    reason=told.reason,
                )
        return Noted.TAKEN

    def find_noticed_studies(self) -> set[str]:
        """Return the receiving studies of which something was told."""
        with self._reading() as connection:
            return set(
                connection.scalars(
                    select(study.c.study_instance_uid).where(
                        study.c.state == StudyState.RECEIVING,
                        exists().where(notice.c.study_instance_uid == study.c.study_instance_uid),
                    )
                )
            )

    def notices(self, study_instance_uid: str) -> tuple[StudyNotice, ...]:
        """Return what was told of a study, the oldest first."""
        with self._reading() as connection:
            return tuple(
                _read_notice(row)
                for row in connection.execute(
                    select(notice)
                    .where(notice.c.study_instance_uid == study_instance_uid)
                    .order_by(notice.c.changed_at, notice.c.sop_instance_uid)
                )
            )

    def find_received(self, study_instance_uid: str) -> set[str]:
        """Return the SOP Instance UIDs that came of a study and of those that share a step with it.

        What this node made is left out.
        """
        shared = select(notice.c.sop_instance_uid).where(
            notice.c.study_instance_uid == study_instance_uid
        )
        studies = select(notice.c.study_instance_uid).where(notice.c.sop_instance_uid.in_(shared))
        with self._reading() as connection:
            return set(
                connection.scalars(
                    select(instance.c.sop_instance_uid).where(
                        instance.c.study_instance_uid.in_(studies), ~instance.c.own
                    )
                )
            )


def _read_notice(row: Row[Any]) -> StudyNotice:
    return StudyNotice(
        sop_instance_uid=row.sop_instance_uid,
        peer=row.peer,
        state=row.state,
        changed_at=row.changed_at,
        instances=frozenset(row.instances),
        reason=row.reason,
    )
