"""DCMTK's archive, where what was sent can be found again."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dicom_node.demonstration.processes import find_free_ports
from doubles.dcmtk import echoscu
from doubles.tools import require_program

_CONFIGURATION = """
NetworkTCPPort  = {port}
MaxPDUSize      = 16384
MaxAssociations = 16
HostTable BEGIN
HostTable END
VendorTable BEGIN
VendorTable END
AETable BEGIN
ARCHIVE {folder} RW (200, 1024mb) ANY
AETable END
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Archive:
    """A running dcmqrscp."""

    ae_title: str
    port: int
    folder: Path

    def lose(self) -> None:
        """Forget everything, as after a mistake of its administrator."""
        (self.folder / "index.dat").unlink()


@contextmanager
def run_archive(folder: Path) -> Iterator[Archive]:
    """Run an archive in `folder` for the length of a `with` block."""
    folder.mkdir()
    (port,) = find_free_ports(1)
    settings = folder.with_suffix(".cfg")
    settings.write_text(_CONFIGURATION.format(port=port, folder=folder))
    program = require_program("dcmqrscp", "dcmtk")
    command = [program, "-c", str(settings), str(port)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as child:
        try:
            while echoscu(port, called="ARCHIVE").returncode != 0:
                assert child.poll() is None
            yield Archive(ae_title="ARCHIVE", port=port, folder=folder)
        finally:
            child.terminate()
