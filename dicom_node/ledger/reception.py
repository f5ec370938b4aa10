"""The ledger while instances come in: instances, studies that open and reopen, open associations.

Steps 1 and 2 of the walk. The receiver answers 0x0000 after `record_instances` has returned.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from sqlalchemy import Connection, delete, exists, select, update

from dicom_node.domain import Instance, StudyState
from dicom_node.ledger.database import Database, insert_new
from dicom_node.schema import association, association_study, derived, instance, study

FIRST_GENERATION = 1


class Reception(Database):
    """What the receiver writes, and what assembly asks about it."""

    def record_instances(
        self, instances: Sequence[Instance], peer: str, association_id: str | None
    ) -> None:
        """Record a batch in one commit; the same content a second time changes nothing.

        A new content (a new UID, or a known UID with other bytes) reopens a study that was judged
        or held. Our own output coming back is kept and reopens nothing.

        Raises:
            StorageError: the batch is not recorded.
        """
        if not instances:
            return
        now = self._clock()
        studies = {each.study_instance_uid for each in instances}
        with self._writing() as connection:
            own = _own_uids(connection, {each.sop_instance_uid for each in instances})
            insert_new(
                connection,
                study,
                [
                    {
                        "study_instance_uid": uid,
                        "state": StudyState.RECEIVING,
                        "generation": FIRST_GENERATION,
                        "first_received": now,
                        "last_received": now,
                    }
                    for uid in sorted(studies)
                ],
            )
            inserted = insert_new(
                connection,
                instance,
                [
                    {
                        "sop_instance_uid": each.sop_instance_uid,
                        "sha256": each.sha256,
                        "sop_class_uid": each.sop_class_uid,
                        "series_instance_uid": each.series_instance_uid,
                        "study_instance_uid": each.study_instance_uid,
                        "transfer_syntax_uid": each.transfer_syntax_uid,
                        "path": each.path,
                        "own": each.sop_instance_uid in own,
                        "peer": peer,
                        "received_at": now,
                        "header": dict(each.header) if each.header is not None else None,
                    }
                    for each in instances
                ],
                key=("sop_instance_uid", "sha256"),
            )
            connection.execute(
                update(instance)
                .where(
                    instance.c.path.in_([each.path for each in instances]),
                    instance.c.forgotten_at.is_not(None),
                )
                .values(forgotten_at=None)
            )
            if association_id is not None:
                _link_association(connection, association_id, studies, now)
            for uid in sorted(studies):
                new = [row for row in inserted if row.study_instance_uid == uid]
                if any(not row.own for row in new):
                    self._reopen(connection, uid, now)
                self._note(
                    connection,
                    "study.received",
                    study=uid,
                    peer=peer,
                    new=len(new),
                    own=sum(row.own for row in new),
                    association=association_id,
                )

    def _reopen(self, connection: Connection, study_instance_uid: str, now: datetime) -> None:
        """Let a study receive again, as a new generation if it had been judged or held."""
        here = study.c.study_instance_uid == study_instance_uid
        connection.execute(update(study).where(here).values(last_received=now))
        reopened = connection.execute(
            update(study)
            .where(here, study.c.state != StudyState.RECEIVING)
            .values(
                state=StudyState.RECEIVING,
                generation=study.c.generation + 1,
                hold_code=None,
                hold_reason=None,
            )
        ).rowcount
        if reopened:
            self._note(connection, "study.reopened", study=study_instance_uid)

    def open_association(self, association_id: str, peer: str) -> None:
        """Record that a peer has begun to deliver."""
        now = self._clock()
        with self._writing() as connection:
            insert_new(
                connection,
                association,
                [
                    {
                        "association_id": association_id,
                        "peer": peer,
                        "opened_at": now,
                        "heartbeat": now,
                    }
                ],
            )
            self._note(connection, "association.opened", association=association_id, peer=peer)

    def beat_association(self, association_id: str) -> None:
        """Record that an association is alive; without beats it soon counts as closed."""
        with self._writing() as connection:
            connection.execute(
                update(association)
                .where(association.c.association_id == association_id)
                .values(heartbeat=self._clock())
            )

    def close_association(self, association_id: str) -> None:
        """Record that an association is over; only its events stay."""
        with self._writing() as connection:
            connection.execute(
                delete(association_study).where(
                    association_study.c.association_id == association_id
                )
            )
            closed = connection.execute(
                delete(association).where(association.c.association_id == association_id)
            ).rowcount
            if closed:
                self._note(connection, "association.closed", association=association_id)

    def close_all_associations(self) -> None:
        """Record at start that no association has outlived the process that held it."""
        with self._writing() as connection:
            connection.execute(delete(association_study))
            closed = connection.execute(delete(association)).rowcount
            if closed:
                self._note(connection, "association.all_closed", count=closed)

    def known_paths(self) -> set[str]:
        """Return the path of every instance that has a row, for the rebuild at start."""
        with self._reading() as connection:
            return set(connection.scalars(select(instance.c.path)))

    def is_own(self, sop_instance_uid: str) -> bool:
        """Say whether this node made the instance."""
        return bool(self.own_uids([sop_instance_uid]))

    def own_uids(self, sop_instance_uids: Iterable[str]) -> set[str]:
        """Return those of `sop_instance_uids` that this node made."""
        with self._reading() as connection:
            return _own_uids(connection, set(sop_instance_uids))

    def find_quiet_studies(self, quiet_period: timedelta, stale_after: timedelta) -> list[str]:
        """Return the receiving studies to which nothing has come, and nobody is still sending.

        Args:
            quiet_period: how long nothing new may have come.
            stale_after: an association without a beat for so long counts as closed.
        """
        now = self._clock()
        delivering = exists().where(
            association_study.c.study_instance_uid == study.c.study_instance_uid,
            association_study.c.association_id == association.c.association_id,
            association.c.heartbeat > now - stale_after,
        )
        with self._reading() as connection:
            return list(
                connection.scalars(
                    select(study.c.study_instance_uid)
                    .where(
                        study.c.state == StudyState.RECEIVING,
                        study.c.last_received <= now - quiet_period,
                        ~delivering,
                    )
                    .order_by(study.c.last_received, study.c.study_instance_uid)
                )
            )

    def find_receiving_studies(self) -> list[str]:
        """Return the studies that still wait to be judged."""
        with self._reading() as connection:
            return list(
                connection.scalars(
                    select(study.c.study_instance_uid)
                    .where(study.c.state == StudyState.RECEIVING)
                    .order_by(study.c.last_received, study.c.study_instance_uid)
                )
            )


def _own_uids(connection: Connection, sop_instance_uids: set[str]) -> set[str]:
    return set(
        connection.scalars(
            select(derived.c.sop_instance_uid).where(
                derived.c.sop_instance_uid.in_(sop_instance_uids)
            )
        )
    )


def _link_association(
    connection: Connection, association_id: str, studies: Iterable[str], now: datetime
) -> None:
    """Remember which studies an association delivers to; a delivery is a beat as well."""
    insert_new(
        connection,
        association_study,
        [{"association_id": association_id, "study_instance_uid": uid} for uid in sorted(studies)],
    )
    connection.execute(
        update(association)
        .where(association.c.association_id == association_id)
        .values(heartbeat=now)
    )
