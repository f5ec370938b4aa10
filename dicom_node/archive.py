"""A small archive for the demonstration and for tests: C-ECHO, C-STORE, C-FIND and C-MOVE.

It stands in for a PACS where none can be had. One folder of files, an index in memory that is read
from them at start, Study Root queries with the matching that people use (PS3.4 C.2.2.2). It runs on
pynetdicom, so that the node's own sender and receiver meet an implementation that is not theirs.

Not for patients: it syncs nothing, keeps the last of two contents of one UID, and a C-MOVE may lose
a response to pynetdicom's own thread, which then counts as a failed sub-operation.
"""

import argparse
import hashlib
import logging
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydicom import Dataset, dcmread
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)
from pynetdicom import AE, AllStoragePresentationContexts, build_context, evt
from pynetdicom.presentation import PresentationContext
from pynetdicom.transport import ThreadedAssociationServer

from dicom_node.audit import configure_logging
from dicom_node.signals import EndRequest

LOOPBACK = "127.0.0.1"
LOSSLESS = (JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless, RLELossless)
VERIFICATION = "1.2.840.10008.1.1"
STUDY_ROOT_FIND = "1.2.840.10008.5.1.4.1.2.2.1"
STUDY_ROOT_MOVE = "1.2.840.10008.5.1.4.1.2.2.2"
LEVEL_KEYS = {
    "STUDY": "StudyInstanceUID",
    "SERIES": "SeriesInstanceUID",
    "IMAGE": "SOPInstanceUID",
}

SUCCESS = 0x0000
PENDING = 0xFF00
CANCELED = 0xFE00
CANNOT_UNDERSTAND = 0xC000
OUT_OF_RESOURCES = 0xA700
IDENTIFIER_MISMATCH = 0xA900

_NEVER_MATCHED = frozenset({"QueryRetrieveLevel", "SpecificCharacterSet", "TimezoneOffsetFromUTC"})
_RESPONSE_SECONDS = 10
_LEAVE_SECONDS = 2.0
_PAUSE_SECONDS = 0.02
_MOVE_CONTEXTS = 128


class Archive:
    """An archive in one folder; it listens between `start` and `stop`.

    Attributes:
        port: where it listens, known after `start`.
    """

    name = "built-in archive"

    def __init__(
        self,
        folder: Path,
        *,
        ae_title: str = "ARCHIVE",
        port: int = 0,
        peers: Mapping[str, tuple[str, int]] | None = None,
    ) -> None:
        """Describe it.

        Args:
            folder: where the files are kept.
            ae_title: its own.
            port: 0 is any free one.
            peers: AE title to host and port of those that may talk to it and that a C-MOVE may
                name; None lets everybody in and moves to nobody.
        """
        self.ae_title = ae_title
        self.port = port
        self._folder = folder
        self._peers = peers
        self._headers: dict[str, Dataset] = {}
        self._lock = threading.Lock()
        self._server: ThreadedAssociationServer | None = None

    def start(self) -> None:
        """Read what is in the folder, then listen on loopback."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(self._folder.glob("*.dcm")):
            self._remember(path)
        ae = AE(self.ae_title)
        ae.require_called_aet = True
        if self._peers is not None:
            ae.require_calling_aet = sorted(self._peers)
        ae.dimse_timeout = _RESPONSE_SECONDS
        for service in (VERIFICATION, STUDY_ROOT_FIND, STUDY_ROOT_MOVE):
            ae.add_supported_context(service)
        for context in AllStoragePresentationContexts:
            syntaxes = [
                syntax
                for syntax in context.transfer_syntax
                if syntax != DeflatedExplicitVRLittleEndian
            ]
            ae.add_supported_context(str(context.abstract_syntax), [*syntaxes, *LOSSLESS])
        server = ae.start_server(
            (LOOPBACK, self.port),
            block=False,
            evt_handlers=[
                (evt.EVT_C_STORE, self._on_store),
                (evt.EVT_C_FIND, self._on_find),
                (evt.EVT_C_MOVE, self._on_move),
            ],
        )
        if server is None:
            raise RuntimeError("the archive's server did not start")
        self._server = server
        self.port = server.server_address[1]

    def stop(self) -> None:
        """Stop listening; what was stored stays in the folder."""
        if self._server is None:
            return
        # pynetdicom aborts what is open, and fails in a thread of its own on what is just closing.
        deadline = time.monotonic() + _LEAVE_SECONDS
        while self._server.active_associations and time.monotonic() < deadline:
            time.sleep(_PAUSE_SECONDS)
        self._server.ae.shutdown()
        self._server = None

    def find_instances(self, study_instance_uid: str) -> dict[str, str]:
        """Return SOP Instance UID to Series Instance UID of all that it holds of a study."""
        with self._lock:
            return {
                uid: str(header.SeriesInstanceUID)
                for uid, header in self._headers.items()
                if header.StudyInstanceUID == study_instance_uid
            }

    def read_instance(self, sop_instance_uid: str) -> bytes:
        """Return one instance as a DICOM file.

        Raises:
            LookupError: the archive does not hold it.
        """
        if sop_instance_uid not in self._headers:
            raise LookupError(f"the archive does not hold instance {sop_instance_uid}")
        return self._path(sop_instance_uid).read_bytes()

    def _path(self, sop_instance_uid: str) -> Path:
        """Return where an instance lies; a digest, because a UID is what a peer wrote."""
        name = hashlib.sha256(sop_instance_uid.encode()).hexdigest()[:32]
        return self._folder / f"{name}.dcm"

    def _remember(self, path: Path) -> None:
        header = dcmread(path, stop_before_pixels=True)
        with self._lock:
            self._headers[str(header.SOPInstanceUID)] = header

    def _on_store(self, event: evt.Event) -> int:
        path = self._path(str(event.file_meta.MediaStorageSOPInstanceUID))
        part = path.with_suffix(f".{threading.get_ident()}.part")
        try:
            part.write_bytes(event.encoded_dataset())
            part.replace(path)
        except OSError:
            return OUT_OF_RESOURCES
        try:
            self._remember(path)
        except (ValueError, AttributeError, NotImplementedError):
            path.unlink()
            return CANNOT_UNDERSTAND
        return SUCCESS

    def _on_find(self, event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        query = event.identifier
        level_key = LEVEL_KEYS.get(str(query.get("QueryRetrieveLevel", "")))
        if level_key is None:
            yield IDENTIFIER_MISMATCH, None
            return
        for answer in _answers(query, level_key, self._snapshot()):
            if event.is_cancelled:
                yield CANCELED, None
                return
            yield PENDING, answer

    def _on_move(self, event: evt.Event) -> Iterator[Any]:
        destination = (self._peers or {}).get(str(event.move_destination).strip())
        if destination is None:
            yield None, None
            return
        wanted = [header for header in self._snapshot() if _is_named(event.identifier, header)]
        yield (*destination, {"contexts": _contexts(wanted)})
        yield len(wanted)
        for header in wanted:
            if event.is_cancelled:
                yield CANCELED, None
                return
            yield PENDING, dcmread(self._path(str(header.SOPInstanceUID)))

    def _snapshot(self) -> list[Dataset]:
        with self._lock:
            return list(self._headers.values())


def _answers(query: Dataset, level_key: str, headers: Sequence[Dataset]) -> Iterator[Dataset]:
    """Yield one answer for each study, series or instance that matches every key of `query`."""
    keys = [element.keyword for element in query if element.keyword not in _NEVER_MATCHED]
    seen: set[str] = set()
    for header in headers:
        uid = str(header.get(level_key, ""))
        if uid in seen or not all(_matches(query, key, header) for key in keys):
            continue
        seen.add(uid)
        answer = Dataset()
        answer.QueryRetrieveLevel = query.QueryRetrieveLevel
        if "SpecificCharacterSet" in header:
            answer.SpecificCharacterSet = header.SpecificCharacterSet
        for key in {*keys, level_key}:
            setattr(answer, key, header.get(key, ""))
        yield answer


def _matches(query: Dataset, keyword: str, header: Dataset) -> bool:
    """Match one key: universal, list of UIDs, range of dates, wildcard or single value."""
    wanted = query.get(keyword)
    if wanted is None or wanted == "" or query[keyword].VR == "SQ":
        return True
    seen = str(header.get(keyword, ""))
    vr = query[keyword].VR
    if vr == "UI":
        return seen in ([wanted] if isinstance(wanted, str) else list(wanted))
    if vr in {"DA", "TM"} and "-" in str(wanted):
        first, last = str(wanted).split("-", 1)
        return first <= seen and (not last or seen <= last)
    pattern = re.escape(str(wanted)).replace(r"\*", ".*").replace(r"\?", ".")
    return re.fullmatch(pattern, seen, re.DOTALL) is not None


def _is_named(identifier: Dataset, header: Dataset) -> bool:
    """Say whether a C-MOVE's unique keys name this instance; without any key nothing is named."""
    keys = [key for key in LEVEL_KEYS.values() if identifier.get(key)]
    return bool(keys) and all(_matches(identifier, key, header) for key in keys)


def _contexts(headers: Sequence[Dataset]) -> list[PresentationContext]:
    """Return the contexts under which these instances go out as they are stored."""
    pairs = {(str(h.SOPClassUID), str(h.file_meta.TransferSyntaxUID)) for h in headers}
    return [build_context(*pair) for pair in sorted(pairs)][:_MOVE_CONTEXTS]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run an archive until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(
        prog="python -m dicom_node.archive",
        description="A small DICOM archive on loopback, for trying things out.",
        epilog="example: python -m dicom_node.archive /tmp/archive --port 4242 "
        "--peer DICOM_NODE=127.0.0.1:11112",
    )
    parser.add_argument("folder", type=Path, help="where files are kept")
    parser.add_argument("--ae-title", default="ARCHIVE")
    parser.add_argument("--port", type=int, default=0, help="0 is any free one")
    parser.add_argument(
        "--peer",
        action="append",
        default=[],
        type=_peer,
        metavar="AE=HOST:PORT",
        help="who may talk to it, and where a C-MOVE may go; without any, everybody may",
    )
    options = parser.parse_args(arguments)
    configure_logging()  # pynetdicom's and pydicom's own lines repeat what peers wrote
    end = EndRequest()
    archive = Archive(
        options.folder,
        ae_title=options.ae_title,
        port=options.port,
        peers=dict(options.peer) or None,
    )
    archive.start()
    # By name: run as a program this module is `__main__`, whose lines are not told.
    logging.getLogger("dicom_node.archive").info("archive.ready port=%d", archive.port)
    end.wait()
    archive.stop()
    return 0


def _peer(text: str) -> tuple[str, tuple[str, int]]:
    """Return AE title and address of `AE=HOST:PORT`."""
    match = re.fullmatch(r"([^=]{1,16})=([^:]+):(\d+)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r}: wanted AE=HOST:PORT")
    return match[1], (match[2], int(match[3]))


if __name__ == "__main__":
    raise SystemExit(main())
