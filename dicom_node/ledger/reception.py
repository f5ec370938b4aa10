"""The ledger while instances come in: instances, studies that open and reopen, open associations.

Steps 1 and 2 of the walk. `recorder` writes all of it, many instances in one commit.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, delete, exists, select, update

from dicom_node.domain import Instance, StudyState
from dicom_node.ledger.database import Database, add_new, insert_new
from dicom_node.ledger.records import Receipt
from dicom_node.schema import association, association_study, derived, instance, study

FIRST_GENERATION = 1


class Reception(Database):
    """What the receiver writes, and what assembly asks about it."""

    def record_instances(
        self, instances: Iterable[Instance], peer: str, association_id: str | None
    ) -> None:
        """Record instances of one peer, as `record_receipts` does."""
        self.record_receipts(
            [Receipt(instance=each, peer=peer, association_id=association_id) for each in instances]
        )

    def record_receipts(
        self,
        receipts: Sequence[Receipt],
        *,
        alive: Iterable[str] = (),
        closed: Iterable[str] = (),
    ) -> None:
        """Record in one commit what came in; the same content a second time changes nothing.

        A new content (a new UID, or a known UID with other bytes) reopens a study that was judged
        or held. Our own output coming back is kept and reopens nothing. An association is known
        from its first instance on.

        Args:
            receipts: of any peers and associations.
            alive: associations that gave a sign of life; without one they soon count as closed.
            closed: associations that are over; only their events stay.

        Raises:
            StorageError: nothing of it is recorded.
        """
        now = self._clock()
        with self._writing() as connection:
            if receipts:
                self._record(connection, receipts, now)
            _beat(connection, alive, now)
            for association_id in closed:
                self._close(connection, association_id)

    def _record(self, connection: Connection, receipts: Sequence[Receipt], now: datetime) -> None:
        by_content = {
            (each.instance.sop_instance_uid, each.instance.sha256): each for each in receipts
        }
        uids = sorted({uid for uid, _ in by_content})
        known = _known_contents(connection, uids)
        own = _own_uids(connection, set(uids))
        deliveries: dict[tuple[str, str, str | None], list[Receipt]] = {}
        for each in receipts:
            key = (each.instance.study_instance_uid, each.peer, each.association_id)
            deliveries.setdefault(key, [])
        for content, each in by_content.items():
            if content not in known:
                key = (each.instance.study_instance_uid, each.peer, each.association_id)
                deliveries[key].append(each)
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
                for uid in sorted({uid for uid, _, _ in deliveries})
            ],
        )
        add_new(
            connection,
            instance,
            [
                _instance_row(each, now, own=each.instance.sop_instance_uid in own)
                for new in deliveries.values()
                for each in new
            ],
            key=("sop_instance_uid", "sha256"),
        )
        connection.execute(
            update(instance)
            .where(
                instance.c.path.in_(
                    [each.instance.path for key, each in by_content.items() if key in known]
                ),
                instance.c.forgotten_at.is_not(None),
            )
            .values(forgotten_at=None)
        )
        self._link_associations(connection, deliveries, now)
        for (uid, peer, association_id), new in sorted(
            deliveries.items(), key=lambda each: str(each[0])
        ):
            own_count = sum(each.instance.sop_instance_uid in own for each in new)
            if len(new) > own_count:
                self._reopen(connection, uid, now)
            self._note(
                connection,
                "study.received",
                study=uid,
                peer=peer,
                new=len(new),
                own=own_count,
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

    def _link_associations(
        self,
        connection: Connection,
        deliveries: Iterable[tuple[str, str, str | None]],
        now: datetime,
    ) -> None:
        """Remember which studies an association delivers to; a delivery is a sign of life."""
        links = [(uid, peer, each) for uid, peer, each in deliveries if each is not None]
        opened = insert_new(
            connection,
            association,
            [
                {
                    "association_id": association_id,
                    "peer": peer,
                    "opened_at": now,
                    "heartbeat": now,
                }
                for association_id, peer in sorted({(each, peer) for _, peer, each in links})
            ],
        )
        for row in opened:
            self._note(
                connection, "association.opened", association=row.association_id, peer=row.peer
            )
        add_new(
            connection,
            association_study,
            [
                {"association_id": association_id, "study_instance_uid": uid}
                for uid, _, association_id in sorted(links)
            ],
        )
        _beat(connection, {each for _, _, each in links}, now)

    def _close(self, connection: Connection, association_id: str) -> None:
        connection.execute(
            delete(association_study).where(association_study.c.association_id == association_id)
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


def _beat(connection: Connection, association_ids: Iterable[str], now: datetime) -> None:
    connection.execute(
        update(association)
        .where(association.c.association_id.in_(sorted(association_ids)))
        .values(heartbeat=now)
    )


def _known_contents(connection: Connection, uids: Sequence[str]) -> set[tuple[str, str]]:
    """Return UID and digest of the contents of `uids` that have a row."""
    rows = connection.execute(
        select(instance.c.sop_instance_uid, instance.c.sha256).where(
            instance.c.sop_instance_uid.in_(uids)
        )
    )
    return {(row.sop_instance_uid, row.sha256) for row in rows}


def _instance_row(receipt: Receipt, now: datetime, *, own: bool) -> dict[str, Any]:
    here = receipt.instance
    return {
        "sop_instance_uid": here.sop_instance_uid,
        "sha256": here.sha256,
        "sop_class_uid": here.sop_class_uid,
        "series_instance_uid": here.series_instance_uid,
        "study_instance_uid": here.study_instance_uid,
        "transfer_syntax_uid": here.transfer_syntax_uid,
        "path": here.path,
        "own": own,
        "peer": receipt.peer,
        "received_at": now,
        "header": dict(here.header) if here.header is not None else None,
    }
