"""The PACS that the demonstration starts for itself: Orthanc, else the small built-in archive.

Both keep what they are sent and say what they hold. The tests start Orthanc with the same class.
"""

import json
import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from dicom_node.demonstration.processes import LOOPBACK, Child, find_free_ports

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
START_SECONDS = 30.0


class Pacs(Protocol):
    """What the demonstration asks of a PACS."""

    name: str
    ae_title: str
    port: int

    def start(self) -> None:
        """Listen."""

    def stop(self) -> None:
        """Stop listening; what was stored stays in the folder."""

    def find_instances(self, study_instance_uid: str) -> dict[str, str]:
        """Return SOP Instance UID to Series Instance UID of all that it holds of a study."""

    def read_instance(self, sop_instance_uid: str) -> bytes:
        """Return the file of one instance as the PACS gives it out."""


def find_orthanc() -> str | None:
    """Return the path of Orthanc's program, which Debian keeps out of a user's search path."""
    return shutil.which("Orthanc", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


class Orthanc:
    """An Orthanc of our own on free ports, everything in one folder.

    Its sockets listen on every address (it knows no other way), so only loopback may use HTTP and
    only the AE titles in `peers`, from loopback, may store.

    Attributes:
        port: of DICOM.
        http: address of its REST interface.
        child: the program.
    """

    name = "Orthanc"

    def __init__(self, folder: Path, peers: Mapping[str, int], ae_title: str = "ORTHANC") -> None:
        """Describe it.

        Args:
            folder: for its storage, index, configuration and log.
            peers: AE title to DICOM port of those on this machine that may talk to it.
            ae_title: its own.
        """
        self.ae_title = ae_title
        self.port, http_port = find_free_ports(2)
        self.http = f"http://{LOOPBACK}:{http_port}"
        self._folder = folder
        self._settings: dict[str, Any] = {
            "Name": "PACS of the demonstration",
            "StorageDirectory": str(folder / "storage"),
            "IndexDirectory": str(folder / "storage"),
            "HttpPort": http_port,
            "DicomPort": self.port,
            "DicomAet": ae_title,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "DicomAlwaysAllowStore": False,
            "DicomAlwaysAllowEcho": False,
            "DicomCheckModalityHost": True,
            "DicomModalities": {
                f"peer-{number}": [title, LOOPBACK, port]
                for number, (title, port) in enumerate(peers.items())
            },
            "Plugins": [str(PLUGIN)] if PLUGIN.exists() else [],
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
            "StableAge": 1,
        }
        program = find_orthanc()
        if program is None:
            raise FileNotFoundError("Orthanc is not installed (Debian package: orthanc)")
        self.child = Child(
            [program, str(folder / "orthanc.json")], folder / "orthanc.log", os.environ
        )

    def start(self) -> None:
        """Start it and wait until it answers."""
        (self._folder / "storage").mkdir(parents=True, exist_ok=True)
        (self._folder / "orthanc.json").write_text(json.dumps(self._settings, indent=2))
        self.child.start()
        self.child.wait_for(self._answers, START_SECONDS)

    def stop(self) -> None:
        """End the process."""
        self.child.stop()

    def read(self, path: str, body: object = None) -> bytes:
        """Return the answer of `GET path`, or of `POST path` with `body` as JSON."""
        sent = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.http}{path}", data=sent)  # noqa: S310 - http, ours
        with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310
            answer: bytes = response.read()
        return answer

    def read_json(self, path: str, body: object = None) -> Any:
        """Return the answer as JSON."""
        return json.loads(self.read(path, body))

    def find_instances(self, study_instance_uid: str) -> dict[str, str]:
        """Return SOP Instance UID to Series Instance UID of all that it holds of a study."""
        found: dict[str, str] = {}
        for study in self._look_up("Study", study_instance_uid):
            for series in self.read_json(f"/studies/{study}/series?expand"):
                uid = series["MainDicomTags"]["SeriesInstanceUID"]
                for instance in self.read_json(f"/series/{series['ID']}/instances?expand"):
                    found[instance["MainDicomTags"]["SOPInstanceUID"]] = uid
        return found

    def read_instance(self, sop_instance_uid: str) -> bytes:
        """Return one instance as a DICOM file."""
        found = self._look_up("Instance", sop_instance_uid)
        if not found:
            raise LookupError(f"the PACS does not hold instance {sop_instance_uid}")
        return self.read(f"/instances/{found[0]}/file")

    def _look_up(self, level: str, uid: str) -> list[str]:
        keyword = {"Study": "StudyInstanceUID", "Instance": "SOPInstanceUID"}[level]
        answer = self.read_json("/tools/find", {"Level": level, "Query": {keyword: uid}})
        return [str(one) for one in answer]

    def _answers(self) -> bool:
        try:
            self.read("/system")
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False
        return True
