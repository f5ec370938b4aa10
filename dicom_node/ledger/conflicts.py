"""The ledger where several contents claim one SOP Instance UID: the first has it, a person decides.

A UID names one instance for good (PS3.5 chapter 9). Who sends other bytes under it is mistaken, or
has changed what it should have named anew, and no program can tell which content is the right one.
The first stays what the node works with, the others lie in quarantine, and their study is held
until a person has looked. Our own output coming back changed is no conflict: nothing is made of it.
"""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, and_, exists, select, update

from dicom_node.domain import QUARANTINE, UID_CONFLICT, StudyState
from dicom_node.errors import IllegalTransition
from dicom_node.ledger.database import Database
from dicom_node.records import Conflict
from dicom_node.schema import derived, event, instance, study

PEER_SILENT = "peer_silent"
"""Why a study is held: a peer did not say whether it has what is missing here."""

REJECTED = "rejected"
"""Why a study stays held for good: a person has looked and wants nothing made of it."""

_RELEASABLE = (UID_CONFLICT, PEER_SILENT)

_RELEASED = "study.released"
_PREFIX = f"{QUARANTINE}/"


def is_quarantined(path: str) -> bool:
    """Say whether a received file lies in the quarantine."""
    return path.startswith(_PREFIX)


def is_first() -> ColumnElement[bool]:
    """Return the condition that an instance row is the content that has its UID."""
    earlier = instance.alias()
    return and_(
        ~instance.c.path.startswith(_PREFIX),
        ~exists().where(
            earlier.c.sop_instance_uid == instance.c.sop_instance_uid,
            earlier.c.sequence < instance.c.sequence,
            ~earlier.c.path.startswith(_PREFIX),
        ),
    )


class Conflicts(Database):
    """What assembly and a person ask about contested UIDs, and what the person decides."""

    def conflicts(self, study_instance_uid: str) -> list[Conflict]:
        """Return the conflicts of a study that nobody has accepted yet, in order of arrival."""
        with self._reading() as connection:
            open_rows = _open_conflicts(connection, study_instance_uid)
            kept = {
                row.sop_instance_uid: row.path
                for row in connection.execute(
                    select(instance.c.sop_instance_uid, instance.c.path).where(
                        instance.c.sop_instance_uid.in_(
                            {row.sop_instance_uid for row in open_rows}
                        ),
                        is_first(),
                    )
                )
            }
        return [
            Conflict(
                sop_instance_uid=row.sop_instance_uid,
                kept=kept.get(row.sop_instance_uid),
                quarantined=row.path,
                peer=row.peer,
                received_at=row.received_at,
            )
            for row in open_rows
        ]

    def release_study(self, study_instance_uid: str, by: str, why: str) -> None:
        """Accept the first contents of a held study, which is then judged, and asked about, again.

        A further conflict holds it again, and so does a peer that stays silent.

        Raises:
            LookupError: the ledger does not know the study.
            IllegalTransition: the study is not held, or for another reason.
        """
        with self._writing() as connection:
            accepted = _open_conflicts(connection, study_instance_uid)
            here = study.c.study_instance_uid == study_instance_uid
            released = connection.execute(
                update(study)
                .where(here, study.c.hold_code.in_(_RELEASABLE))
                .values(
                    state=StudyState.RECEIVING,
                    generation=study.c.generation + 1,
                    hold_code=None,
                    hold_reason=None,
                )
            ).rowcount
            if not released:
                seen = _describe_study(connection, study_instance_uid)
                raise IllegalTransition(
                    f"the study {study_instance_uid} is {seen}; only one that is held, "
                    f"{' or '.join(_RELEASABLE)} can be released"
                )
            self._note(
                connection,
                _RELEASED,
                study=study_instance_uid,
                by=by,
                why=why,
                conflicts=len(accepted),
                up_to=max((row.sequence for row in accepted), default=0),
            )

    def reject_study(self, study_instance_uid: str, by: str, why: str) -> None:
        """Close a held study: nothing is made of it, nor sent, until something new of it comes.

        Raises:
            LookupError: the ledger does not know the study.
            IllegalTransition: the study is not held, or is closed already.
        """
        with self._writing() as connection:
            closed = connection.execute(
                update(study)
                .where(
                    study.c.study_instance_uid == study_instance_uid,
                    study.c.state == StudyState.HELD,
                    study.c.hold_code != REJECTED,
                )
                .values(hold_code=REJECTED, hold_reason=why)
            ).rowcount
            if not closed:
                seen = _describe_study(connection, study_instance_uid)
                raise IllegalTransition(
                    f"the study {study_instance_uid} is {seen}; only one that is held can be closed"
                )
            self._note(connection, "study.rejected", study=study_instance_uid, by=by, why=why)


def _describe_study(connection: Connection, study_instance_uid: str) -> str:
    """Return the state of a study, with its code where it is held.

    Raises:
        LookupError: the ledger does not know the study.
    """
    row = connection.execute(
        select(study.c.state, study.c.hold_code).where(
            study.c.study_instance_uid == study_instance_uid
        )
    ).one_or_none()
    if row is None:
        raise LookupError(f"the ledger has no study {study_instance_uid}")
    return f"{row.state}, {row.hold_code}" if row.hold_code else str(row.state)


def _open_conflicts(connection: Connection, study_instance_uid: str) -> Sequence[Row[Any]]:
    """Return the rows of a study's UIDs, in whatever study they are, that nobody has accepted."""
    accepted = max(
        (
            int(detail["up_to"])
            for detail in connection.scalars(
                select(event.c.detail).where(
                    event.c.study_instance_uid == study_instance_uid, event.c.name == _RELEASED
                )
            )
        ),
        default=0,
    )
    others = instance.alias()
    its_uids = select(others.c.sop_instance_uid).where(
        others.c.study_instance_uid == study_instance_uid
    )
    return connection.execute(
        select(instance)
        .where(
            instance.c.sop_instance_uid.in_(its_uids),
            instance.c.sequence > accepted,
            ~is_first(),
            ~exists().where(derived.c.sop_instance_uid == instance.c.sop_instance_uid),
        )
        .order_by(instance.c.sequence)
    ).all()
