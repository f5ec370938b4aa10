"""A PACS that answers each instance as a script says; pynetdicom, so not our own protocol code."""

import ssl
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from pydicom import Dataset
from pynetdicom import AE, evt

IMPLICIT = "1.2.840.10008.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
VERIFICATION = "1.2.840.10008.1.1"
MR = "1.2.840.10008.5.1.4.1.1.4"

ABORT = -1
"""Says nothing and aborts, after it has kept the instance."""


class ScriptedPacs:
    """Listens on loopback inside a `with` block.

    Attributes:
        received: SOP Instance UIDs in the order in which they came.
        datasets: what was kept, by SOP Instance UID.
        encoded: the bytes of each data set as they came.
        associations: how many were established.
        releases: how many were released.
    """

    def __init__(
        self,
        answer: Callable[[str], int | Dataset] = lambda _: 0x0000,
        *,
        classes: tuple[str, ...] = (MR,),
        syntaxes: tuple[str, ...] = (EXPLICIT, IMPLICIT),
        ae_title: str = "PACS",
        known: str | None = None,
        tls: ssl.SSLContext | None = None,
        most_associations: int = 10,
    ) -> None:
        self.received: list[str] = []
        self.datasets: dict[str, Dataset] = {}
        self.encoded: dict[str, bytes] = {}
        self.associations = 0
        self.releases = 0
        self.port = 0
        self.ae_title = ae_title
        self._answer = answer
        self._tls = tls
        self._ae = AE(ae_title)
        self._ae.require_called_aet = True
        self._ae.maximum_associations = most_associations
        if known is not None:
            self._ae.require_calling_aet = [known]
        self._ae.add_supported_context(VERIFICATION)
        for sop_class in classes:
            self._ae.add_supported_context(sop_class, list(syntaxes))

    def __enter__(self) -> Self:
        self._server = server = self._ae.start_server(
            ("127.0.0.1", self.port),
            block=False,
            evt_handlers=self._handlers(),
            ssl_context=self._tls,
        )
        self.port = server.server_address[1]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # pynetdicom fails in a thread of its own when it aborts what is just closing.
        deadline = time.monotonic() + 2
        while self._server.active_associations and time.monotonic() < deadline:
            time.sleep(0.02)
        self._ae.shutdown()

    def _handlers(self) -> list[tuple[evt.EventType, Callable[[evt.Event], object]]]:
        return [
            (evt.EVT_C_STORE, self._on_store),
            (evt.EVT_ESTABLISHED, self._on_established),
            (evt.EVT_RELEASED, self._on_released),
        ]

    def _on_established(self, _: evt.Event) -> None:
        self.associations += 1

    def _on_released(self, _: evt.Event) -> None:
        self.releases += 1

    def hang_up(self) -> None:
        """Abort all associations that are open."""
        for each in self._server.active_associations:
            each.abort()

    def wait_until(self, condition: Callable[[Self], bool]) -> bool:
        """Wait, at most 10 seconds, until `condition` holds, and say whether it does."""
        deadline = time.monotonic() + 10
        while not condition(self) and time.monotonic() < deadline:
            time.sleep(0.02)
        return condition(self)

    def _on_store(self, event: evt.Event) -> int | Dataset:
        uid = str(event.request.AffectedSOPInstanceUID)
        self.received.append(uid)
        self.datasets[uid] = event.dataset
        self.encoded[uid] = event.request.DataSet.getvalue()
        status = self._answer(uid)
        if status == ABORT:
            event.assoc.abort()
            return 0xC000
        return status
