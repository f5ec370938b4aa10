"""A PACS that commits to what it holds, as a script says: when, over which association, to what."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

from pydicom import Dataset
from pydicom.sequence import Sequence
from pynetdicom import AE, build_role, evt

from doubles.scripted_pacs import ScriptedPacs

STORAGE_COMMITMENT = "1.2.840.10008.1.20.1"
WELL_KNOWN_INSTANCE = "1.2.840.10008.1.20.1.1"
NO_SUCH_INSTANCE = 0x0112
LOOPBACK = "127.0.0.1"


class CommittingPacs(ScriptedPacs):
    """Says nothing unless `reports_at_once`: then it reports over the association of the request.

    Attributes:
        requests: the data sets of the N-ACTIONs.
        lost: SOP Instance UIDs that it says it has not, with Failure Reasons.
        action_status: what it answers to an N-ACTION.
        told: the status of each response to a report, None when there was none.
    """

    def __init__(self, *, reports_at_once: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.requests: list[Dataset] = []
        self.lost: dict[str, int] = {}
        self.action_status = 0x0000
        self.told: list[int | None] = []
        self._reports_at_once = reports_at_once
        self._ae.add_supported_context(STORAGE_COMMITMENT)

    def report(self, number: int = -1) -> Dataset:
        """Return the report on a request."""
        request = self.requests[number]
        held = [uid for uid in self._referenced(request) if uid not in self.lost]
        lost = [uid for uid in self._referenced(request) if uid in self.lost]
        report = Dataset()
        report.TransactionUID = request.TransactionUID
        if held:
            report.ReferencedSOPSequence = Sequence(self._item(request, uid) for uid in held)
        if lost:
            report.FailedSOPSequence = Sequence(self._item(request, uid) for uid in lost)
            for item in report.FailedSOPSequence:
                item.FailureReason = self.lost[item.ReferencedSOPInstanceUID]
        return report

    def call_back(
        self, port: int, report: Dataset, called: str = "DICOM_NODE", calling: str | None = None
    ) -> int | None:
        """Report over an association of its own, and return the status of the response.

        Raises:
            ConnectionError: the node does not let it in, or not as what it is.
        """
        ae = AE(calling or self.ae_title)
        ae.add_requested_context(STORAGE_COMMITMENT)
        role = build_role(STORAGE_COMMITMENT, scp_role=True)
        association = ae.associate(LOOPBACK, port, ae_title=called, ext_neg=[role])
        if not association.is_established:
            raise ConnectionError
        try:
            return self._send(association, report)
        finally:
            association.release()

    def _handlers(self) -> list[tuple[evt.EventType, Callable[[evt.Event], object]]]:
        return [*super()._handlers(), (evt.EVT_N_ACTION, self._on_action)]

    def _on_action(self, event: evt.Event) -> tuple[int, None]:
        self.requests.append(event.action_information)
        if self._reports_at_once:
            report = self.report()
            threading.Thread(target=self._send, args=(event.assoc, report)).start()
        return self.action_status, None

    def _send(self, association: Any, report: Dataset) -> int | None:
        event_type = 2 if "FailedSOPSequence" in report else 1
        response, _ = association.send_n_event_report(
            report, event_type, STORAGE_COMMITMENT, WELL_KNOWN_INSTANCE
        )
        self.told.append(response.get("Status"))
        return self.told[-1]

    @staticmethod
    def _referenced(request: Dataset) -> Iterator[str]:
        return (item.ReferencedSOPInstanceUID for item in request.ReferencedSOPSequence)

    @staticmethod
    def _item(request: Dataset, uid: str) -> Dataset:
        item = Dataset()
        item.ReferencedSOPClassUID = request.ReferencedSOPSequence[0].ReferencedSOPClassUID
        item.ReferencedSOPInstanceUID = uid
        return item
