"""The ledger while instances come in: instances, studies that open and reopen, open associations.

Steps 1 and 2 of the walk. `recorder` writes all of it, many instances in one commit.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, delete, exists, select, update

from dicom_node.complaints import Alert
from dicom_node.domain import UID_CONFLICT, UID_NONCONFORMANT, Instance, StudyState
from dicom_node.ledger.conflicts import is_quarantined
from dicom_node.ledger.database import Database, add_new, insert_new
from dicom_node.records import Receipt
from dicom_node.schema import association, association_study, derived, instance, study

FIRST_GENERATION = 1

Quarantine = Callable[[str], str]
"""Moves a received file into the quarantine, unless it is there already; returns its new path."""

_Delivery = tuple[str, str, str | None]
"""Study Instance UID, peer and association."""


@dataclass(slots=True, kw_only=True)
class _Arrivals:
    """What a batch of receipts is, beside what is known.

    Attributes:
        own: those of its UIDs that are of our own output.
        new: contents without a row, in the order in which they came.
        again: paths of the known contents that came again.
        contested: those of `new` whose UID another content had.
        elsewhere: studies of the contents that had it, where they are other studies.
    """

    own: set[str]
    new: list[Receipt] = field(default_factory=list)
    again: list[str] = field(default_factory=list)
    contested: list[Receipt] = field(default_factory=list)
    elsewhere: Counter[str] = field(default_factory=Counter)


class Reception(Database):
    """What the receiver writes, and what assembly asks about it."""

    def record_instances(
        self,
        instances: Iterable[Instance],
        peer: str,
        association_id: str | None,
        quarantine: Quarantine | None = None,
    ) -> None:
        """Record instances of one peer, as `record_receipts` does."""
        self.record_receipts(
            [
                Receipt(instance=each, peer=peer, association_id=association_id)
                for each in instances
            ],
            quarantine=quarantine,
        )

    def record_receipts(
        self,
        receipts: Sequence[Receipt],
        *,
        alive: Iterable[str] = (),
        closed: Iterable[str] = (),
        alerts: Iterable[Alert] = (),
        quarantine: Quarantine | None = None,
    ) -> list[Receipt]:
        """Record in one commit what came in; the same content a second time changes nothing.

        A new content (a new UID, or a known UID with other bytes) reopens a study that was judged
        or held. Our own output coming back is kept and reopens nothing. An association is known
        from its first instance on. UIDs that the Standard does not allow, but the field knows, are
        taken as they are, and told.

        The first content of a UID is the only one that counts. Another one under the same UID,
        unless the UID is of our own output, is quarantined before its row is committed.

        Args:
            receipts: of any peers and associations, in the order in which they came.
            alive: associations that gave a sign of life; without one they soon count as closed.
            closed: associations that are over; only their events stay.
            alerts: who was not let in, for those who watch over security.
            quarantine: moves a file there, unless it is there already, and returns its new path;
                None leaves it where it is.

        Returns:
            What is new and came under a UID that another content had.

        Raises:
            StorageError: nothing of it is recorded.
        """
        now = self._clock()
        contested: list[Receipt] = []
        with self._writing() as connection:
            if receipts:
                contested = self._record(connection, receipts, now, quarantine or _leave)
            _beat(connection, alive, now)
            for association_id in closed:
                self._close(connection, association_id)
            for alert in alerts:
                self._note_alert(connection, alert)
        return contested

    def note_alert(self, alert: Alert) -> None:
        """Keep who is not who it should be."""
        with self._writing() as connection:
            self._note_alert(connection, alert)

    def _note_alert(self, connection: Connection, alert: Alert) -> None:
        detail = {"who": alert.who, **alert.facts}
        self._note_all(connection, [{"name": f"security.{alert.event}", "detail": detail}])

    def _record(
        self,
        connection: Connection,
        receipts: Sequence[Receipt],
        now: datetime,
        quarantine: Quarantine,
    ) -> list[Receipt]:
        arrivals = _sort_out(connection, receipts, quarantine)
        deliveries: dict[_Delivery, list[Receipt]] = {_delivery(each): [] for each in receipts}
        for each in arrivals.new:
            deliveries[_delivery(each)].append(each)
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
        own = arrivals.own
        add_new(
            connection,
            instance,
            [
                _instance_row(each, now, own=each.instance.sop_instance_uid in own)
                for each in arrivals.new
            ],
            key=("sop_instance_uid", "sha256"),
        )
        connection.execute(
            update(instance)
            .where(instance.c.path.in_(arrivals.again), instance.c.forgotten_at.is_not(None))
            .values(forgotten_at=None)
        )
        self._link_associations(connection, deliveries, now)
        for delivery, new in sorted(deliveries.items(), key=lambda each: str(each[0])):
            uid, peer, association_id = delivery
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
                classes=dict(Counter(each.instance.sop_class_uid for each in new)),
                association=association_id,
                **_flag(new),
            )
        self._note_conflicts(connection, arrivals, now)
        return arrivals.contested

    def _note_conflicts(self, connection: Connection, arrivals: "_Arrivals", now: datetime) -> None:
        """Record for each study how many new contents contest a UID of it, or are contested."""
        for uid, count in sorted(arrivals.elsewhere.items()):
            self._reopen(connection, uid, now, anew=True)
            self._note(connection, f"study.{UID_CONFLICT}", study=uid, new=count)
        here = Counter((each.instance.study_instance_uid, each.peer) for each in arrivals.contested)
        for (uid, peer), count in sorted(here.items()):
            self._note(connection, f"study.{UID_CONFLICT}", study=uid, peer=peer, new=count)

    def _reopen(
        self, connection: Connection, study_instance_uid: str, now: datetime, *, anew: bool = False
    ) -> None:
        """Let a study receive again, as a new generation if it had been judged or held.

        With `anew`, a study that receives becomes a new generation too: something has changed that
        its instances do not show, and whoever judges it now must not miss that.
        """
        here = study.c.study_instance_uid == study_instance_uid
        connection.execute(update(study).where(here).values(last_received=now))
        if not anew:
            here &= study.c.state != StudyState.RECEIVING
        reopened = connection.execute(
            update(study)
            .where(here)
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
        """Return the path of every instance that has a row and, by it, a file.

        For the rebuild at start. What retention has deleted may have come again just before the
        end; its row must be told.
        """
        with self._reading() as connection:
            return set(
                connection.scalars(select(instance.c.path).where(instance.c.forgotten_at.is_(None)))
            )

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


def _leave(path: str) -> str:
    return path


def _flag(new: Sequence[Receipt]) -> dict[str, Any]:
    """Return what an event says of instances whose UIDs have leading zeros."""
    flagged = sum(not each.instance.has_conformant_uids for each in new)
    return {UID_NONCONFORMANT: flagged} if flagged else {}


def _delivery(receipt: Receipt) -> _Delivery:
    return (receipt.instance.study_instance_uid, receipt.peer, receipt.association_id)


def _sort_out(
    connection: Connection, receipts: Iterable[Receipt], quarantine: Quarantine
) -> _Arrivals:
    """Tell new contents from known ones and from contested ones, which are quarantined here."""
    uids = sorted({each.instance.sop_instance_uid for each in receipts})
    places: dict[tuple[str, str], str] = {}
    holders: dict[str, str] = {}
    for row in connection.execute(
        select(
            instance.c.sop_instance_uid,
            instance.c.sha256,
            instance.c.path,
            instance.c.study_instance_uid,
        )
        .where(instance.c.sop_instance_uid.in_(uids))
        .order_by(instance.c.sequence)
    ):
        places[row.sop_instance_uid, row.sha256] = row.path
        if not is_quarantined(row.path):
            holders.setdefault(row.sop_instance_uid, row.study_instance_uid)
    arrivals = _Arrivals(own=_own_uids(connection, set(uids)))
    for each in receipts:
        here = each.instance
        uid = here.sop_instance_uid
        place = places.get((uid, here.sha256))
        is_second = place is None and uid in holders and uid not in arrivals.own
        is_contested = is_second or is_quarantined(place or here.path)
        path = quarantine(here.path) if is_contested else here.path
        if place is not None:
            arrivals.again.append(place)
            continue
        places[uid, here.sha256] = path
        arrivals.new.append(
            replace(each, instance=replace(here, path=path)) if is_contested else each
        )
        if not is_contested:
            holders.setdefault(uid, here.study_instance_uid)
            continue
        arrivals.contested.append(arrivals.new[-1])
        if holders.get(uid, here.study_instance_uid) != here.study_instance_uid:
            arrivals.elsewhere[holders[uid]] += 1
    return arrivals


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
