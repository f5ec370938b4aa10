"""A node of our own for a test: the shipped configuration, free ports, a folder of its own."""

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from dicom_node import settings
from dicom_node.demonstration.pacs import Orthanc
from dicom_node.demonstration.processes import find_free_ports
from dicom_node.demonstration.walk import Node, watch
from dicom_node.ledger import Ledger

ROOT = Path(__file__).resolve().parents[2]
CONFIGURATION = ROOT / "config"
AE_TITLE = "DICOM_NODE"
SCANNER = "STORESCU"
FINISH_SECONDS = 300.0
DEATH_SECONDS = 120.0


class NodeUnderTest:
    """`dicom-node serve` on ports of its own; it may be started, killed and started again.

    Attributes:
        overrides: what it runs with, for other commands on the same folder.
    """

    def __init__(
        self,
        folder: Path,
        pacs: Orthanc | None,
        overrides: Sequence[str] = (),
        configuration: Path = CONFIGURATION,
    ) -> None:
        """Describe it; without `pacs` nobody answers where its PACS should be."""
        self._configuration = configuration
        dicom_port, web_port, nobody = find_free_ports(3)
        self.overrides = (
            f"data_folder={folder / 'data'}",
            f"receiver.port={dicom_port}",
            f"web.port={web_port}",
            f"peers.pacs.port={nobody if pacs is None else pacs.port}",
            "assembly.quiet_period=1 s",
            "assembly.sweep_every=300 ms",
            "dispatch.sweep_every=300 ms",
            "dispatch.warm=false",
            "delivery.sweep_every=300 ms",
            "query.sweep_every=300 ms",
            *overrides,
        )
        self.port = dicom_port
        self._folder = folder
        self._configuration = configuration
        self._node: Node | None = None

    def start(self, environment: dict[str, str] | None = None) -> None:
        """Start it and wait until it is ready, or dead."""
        self._folder.mkdir(parents=True, exist_ok=True)
        log = self._folder / "node.log"
        self._node = Node(self._configuration, self.overrides, log, environment)
        self._node.start()

    def stop(self) -> int | None:
        """Let it drain; return its exit status."""
        return None if self._node is None else self._node.stop()

    def kill(self) -> None:
        """End it as a power cut does, and return when it has."""
        assert self._node is not None
        os.kill(self._node.child.pid, signal.SIGKILL)
        self.wait_for_death()

    def wait_for_death(self) -> int:
        """Return the exit status of a node that is about to be killed."""
        deadline = time.monotonic() + DEATH_SECONDS
        assert self._node is not None
        while (status := self._node.child.poll()) is None:
            assert time.monotonic() < deadline, self.read_log()[-3000:]
            time.sleep(0.05)
        return status

    def wait_for(self, study: str, seconds: float = FINISH_SECONDS) -> None:
        """Return when the study is judged, made and delivered."""
        assert self._node is not None
        with self.ledger() as ledger:
            watch(ledger, study, seconds, lambda line: None, self._node)

    def wait_until(self, holds: Callable[[], bool], seconds: float = FINISH_SECONDS) -> None:
        """Return as soon as something holds."""
        deadline = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < deadline, self.read_log()[-3000:]
            time.sleep(0.1)

    @contextmanager
    def ledger(self) -> Iterator[Ledger]:
        """Give its ledger, opened beside it."""
        url = settings.load(self._configuration, self.overrides).node.ledger_url
        ledger = Ledger(url, lambda: datetime.now(UTC)).open(create=False)
        try:
            yield ledger
        finally:
            ledger.close()

    def read_log(self) -> str:
        """Return all that it wrote."""
        return (self._folder / "node.log").read_text()
