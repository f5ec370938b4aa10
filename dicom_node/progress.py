"""How far a study is by what peers tell of it, and what that says about when it may be judged.

Between the ledger's notices and `assembly`. A step that is in progress, or instances that were
listed and have not come, keep a study open, but not for ever; a study whose steps are all over is
not kept waiting for silence.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from dicom_node.domain import Closing, NoticeState
from dicom_node.ledger import Ledger, StudyNotice, StudyRow

_EXPECTED = frozenset({NoticeState.COMPLETED, NoticeState.AVAILABLE})
"""What these list is there to come. A step that was broken off is taken as it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What was told of a study, beside what came of it.

    Attributes:
        notices: what was told, the oldest first.
        received: SOP Instance UIDs.
    """

    notices: tuple[StudyNotice, ...]
    received: frozenset[str]

    def find_missing(self) -> set[str]:
        """Return the SOP Instance UIDs that are there to come and have not come."""
        listed = (each.instances for each in self.notices if each.state in _EXPECTED)
        return set().union(*listed) - self.received

    def narrow(
        self, closings: Sequence[Closing], row: StudyRow, now: datetime, patience: timedelta
    ) -> Sequence[Closing]:
        """Return for which reasons the study may be closed, of those that time allows.

        Args:
            closings: as if nothing had been told.
            row: the study's.
            now: the time.
            patience: so long after the last instance or notice something is waited for.
        """
        steps = {each.state for each in self.notices} - {NoticeState.AVAILABLE}
        if NoticeState.IN_PROGRESS in steps or self.find_missing():
            last = max(row.last_received, *(each.changed_at for each in self.notices))
            is_over = now - last >= patience and Closing.QUIET in closings
            return [Closing.COMPLETE, Closing.OVERDUE] if is_over else [Closing.COMPLETE]
        is_calm = Closing.SOURCES in closings
        if NoticeState.DISCONTINUED in steps:
            return [*closings, Closing.DISCONTINUED] if is_calm else closings
        listed = set[str]().union(*(each.instances for each in self.notices))
        # What came and is on no list may be the first of more.
        if steps and listed and (is_calm or self.received <= listed):
            return [*closings, Closing.PERFORMED]
        return closings

    def describe(self) -> list[dict[str, Any]]:
        """Return each notice in words and numbers, for a person."""
        return [
            {
                "peer": each.peer,
                "state": each.state.value,
                "since": each.changed_at.isoformat(),
                "instances": len(each.instances),
                "not_here": len(each.instances - self.received),
                "reason": each.reason,
            }
            for each in self.notices
        ]


def read_progress(ledger: Ledger, study_instance_uid: str) -> Progress | None:
    """Return how far a study is; None when nobody told anything.

    Raises:
        StorageError: the ledger does not answer.
    """
    notices = ledger.notices(study_instance_uid)
    if not notices:
        return None
    received = frozenset(ledger.find_received(study_instance_uid))
    return Progress(notices=notices, received=received)
