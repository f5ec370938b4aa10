"""The ledger while Unified Procedure Steps are performed: which were claimed, and how far they are.

A step is written before it is claimed, with the Transaction UID that proves whose it is, so that a
crash in between loses neither. How its study is, stands where it always does.
"""

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

from sqlalchemy import Row, select, update

from dicom_node.domain import StepState
from dicom_node.ledger.database import Database, insert_new
from dicom_node.records import Sources, Step
from dicom_node.schema import step

_OPEN = (StepState.CLAIMING, StepState.CLAIMED, StepState.PERFORMED)


class Steps(Database):
    """What the performers read and write."""

    def begin_step(self, begun: Step) -> bool:
        """Record a step that is about to be claimed; False when it is known already."""
        values = {
            "sop_instance_uid": begun.sop_instance_uid,
            "peer": begun.peer,
            "study_instance_uid": begun.study_instance_uid,
            "transaction_uid": begun.transaction_uid,
            "workitem": list(begun.workitem),
            "sources": asdict(begun.sources),
            "state": StepState.CLAIMING,
            "since": begun.since,
            "next_attempt": begun.next_attempt,
            "rounds": 0,
        }
        with self._writing() as connection:
            return bool(insert_new(connection, step, [values]))

    def change_step(
        self,
        changed: Step,
        state: StepState,
        *,
        next_attempt: datetime | None = None,
        rounds: int | None = None,
        told: str | None = None,
        reason: str | None = None,
    ) -> None:
        """Record how far a step is; None keeps what was known."""
        values: dict[str, Any] = {
            "state": state,
            "next_attempt": next_attempt,
            "rounds": rounds,
            "told": told,
            "reason": reason,
        }
        with self._writing() as connection:
            connection.execute(
                update(step)
                .where(
                    step.c.sop_instance_uid == changed.sop_instance_uid,
                    step.c.peer == changed.peer,
                )
                .values({name: value for name, value in values.items() if value is not None})
            )
            if state is not changed.state:
                self._note(
                    connection,
                    f"step.{state}",
                    study=changed.study_instance_uid or None,
                    peer=changed.peer,
                    step=changed.sop_instance_uid,
                    reason=reason,
                )

    def find_open_steps(self, peer: str) -> Sequence[Step]:
        """Return the steps of a peer that are not over, the oldest first."""
        with self._reading() as connection:
            return [
                _read_step(row)
                for row in connection.execute(
                    select(step)
                    .where(step.c.peer == peer, step.c.state.in_(_OPEN))
                    .order_by(step.c.since, step.c.sop_instance_uid)
                )
            ]

    def steps(self, study_instance_uid: str) -> Sequence[Step]:
        """Return the steps of a study, the oldest first."""
        with self._reading() as connection:
            return [
                _read_step(row)
                for row in connection.execute(
                    select(step)
                    .where(step.c.study_instance_uid == study_instance_uid)
                    .order_by(step.c.since, step.c.sop_instance_uid)
                )
            ]


def _read_step(row: Row[Any]) -> Step:
    code, scheme, meaning = row.workitem
    return Step(
        sop_instance_uid=row.sop_instance_uid,
        peer=row.peer,
        study_instance_uid=row.study_instance_uid,
        transaction_uid=row.transaction_uid,
        workitem=(code, scheme, meaning),
        sources=Sources(
            series=tuple(row.sources["series"]), ae_titles=tuple(row.sources["ae_titles"])
        ),
        state=row.state,
        since=row.since,
        next_attempt=row.next_attempt,
        rounds=row.rounds,
        told=row.told,
        reason=row.reason,
    )
