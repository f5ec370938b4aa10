"""Where connections are served: each on a thread of its own, in the process that calls.

Step 1 of the walk, between the listening socket (`receiver`) and one connection (`acceptor`).
"""

import socket
import threading

from dicom_node.acceptor import Acceptor, Door, Doorkeeper
from dicom_node.complaints import Complains
from dicom_node.spool import Spool


class Hall:
    """Serves the connections that it is given, until it is told to stop."""

    def __init__(
        self,
        door: Door,
        spool: Spool,
        admission: Doorkeeper,
        complaints: Complains,
        beat_seconds: float,
    ) -> None:
        """Describe it: every `beat_seconds` the ledger hears which associations deliver."""
        self._admission = admission
        self._complaints = complaints
        self._beat_seconds = beat_seconds
        self._stopping = threading.Event()
        self._acceptor = Acceptor(door, spool, admission, complaints, self._stopping.is_set)

    def start(self) -> None:
        """Begin to give signs of life."""
        threading.Thread(target=self._beat, name="beat", daemon=True).start()

    def take(self, sock: socket.socket, host: str) -> None:
        """Serve a connection that was counted in; it is closed and counted out at its end."""
        try:
            threading.Thread(
                target=self._serve, args=(sock, host), name="connection", daemon=True
            ).start()
        except RuntimeError:
            self._complaints.note("no_thread", who=host)
            self._admission.leave(host)
            sock.close()

    def stop(self) -> None:
        """Let associations end where nothing is on its way; what is coming in comes in."""
        self._stopping.set()

    def _serve(self, sock: socket.socket, host: str) -> None:
        try:
            self._acceptor.serve(sock, host)
        finally:
            self._admission.leave(host)

    def _beat(self) -> None:
        while not self._stopping.wait(self._beat_seconds):
            self._acceptor.beat()
