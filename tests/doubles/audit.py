"""The other side of the audit trail: who receives syslog over TLS, and what a message has to be.

The grammar is that of PS3.15 section A.5.1, read for this test and written anew: for each element
its attributes with what they may hold, and the order of its children.
"""

import base64
import re
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from xml.etree import ElementTree as ET

from doubles.certificates import make_authority, make_certificate
from doubles.tools import require_program

HEADER = re.compile(
    rb"<(?P<priority>\d{1,3})>1 "
    rb"(?P<at>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z) "
    rb"(?P<host>[!-~]{1,255}) (?P<application>[!-~]{1,48}) (?P<process>[!-~]{1,128}) "
    rb"(?P<kind>[!-~]{1,32}) - \xef\xbb\xbf"
)
"""RFC 5424 section 6, without structured data."""

_ANY, _BOOLEAN, _NUMBER = ".+", "true|false|1|0", r"\d+"
_DATE = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)"
_UID = r"[0-9.]{1,64}"
_BASE64 = r"[A-Za-z0-9+/]+={0,2}"
_CODE = {"csd-code": _ANY, "codeSystemName": _ANY, "displayName?": _ANY, "originalText": _ANY}
_PAIR = {"type": _ANY, "value": _BASE64}
_GRAMMAR: dict[str, tuple[dict[str, str], str]] = {
    "AuditMessage": (
        {},
        "EventIdentification (ActiveParticipant )+AuditSourceIdentification "
        "(ParticipantObjectIdentification )*",
    ),
    "EventIdentification": (
        {
            "EventActionCode?": "[CRUDE]",
            "EventDateTime": _DATE,
            "EventOutcomeIndicator": "0|4|8|12",
        },
        "EventID (EventTypeCode )*(EventOutcomeDescription )?",
    ),
    "EventID": (_CODE, ""),
    "EventTypeCode": (_CODE, ""),
    "RoleIDCode": (_CODE, ""),
    "ParticipantObjectIDTypeCode": (_CODE, ""),
    "ActiveParticipant": (
        {
            "UserID": ".*",
            "AlternativeUserID?": ".*",
            "UserName?": ".*",
            "UserIsRequestor": _BOOLEAN,
            "NetworkAccessPointID?": _ANY,
            "NetworkAccessPointTypeCode?": "[1-5]",
        },
        "(RoleIDCode )*(MediaIdentifier )?",
    ),
    "MediaIdentifier": ({}, "MediaType "),
    "MediaType": (_CODE, ""),
    "AuditSourceIdentification": (
        {"AuditEnterpriseSiteID?": _ANY, "AuditSourceID": _ANY},
        "(AuditSourceTypeCode )*",
    ),
    "AuditSourceTypeCode": ({"csd-code": "[1-9]"}, ""),
    "ParticipantObjectIdentification": (
        {
            "ParticipantObjectID": _ANY,
            "ParticipantObjectTypeCode?": "[1-4]",
            "ParticipantObjectTypeCodeRole?": "1?[0-9]|2[0-6]",
            "ParticipantObjectDataLifeCycle?": "[1-9]|1[0-5]",
            "ParticipantObjectSensitivity?": _ANY,
        },
        "ParticipantObjectIDTypeCode (ParticipantObjectName |ParticipantObjectQuery )"
        "(ParticipantObjectDetail )*(ParticipantObjectDescription )*",
    ),
    "ParticipantObjectName": ({}, ""),
    "ParticipantObjectQuery": ({}, ""),
    "ParticipantObjectDetail": (_PAIR, ""),
    "ParticipantObjectDescription": ({}, "(MPPS )*(Accession )*(SOPClass )*"),
    "SOPClass": ({"UID?": _UID, "NumberOfInstances": _NUMBER}, "(Instance )*"),
}
_BOUND = 10.0


def find_faults(text: bytes) -> list[str]:
    """Return what is wrong with an audit message; nothing when it follows the schema."""
    root = ET.fromstring(text)  # noqa: S314 - the node's own
    faults = [] if root.tag == "AuditMessage" else [f"the root is {root.tag}"]
    for element in root.iter():
        attributes, children = _GRAMMAR.get(element.tag, ({}, "no such element"))
        if not re.fullmatch(children, "".join(f"{child.tag} " for child in element)):
            faults.append(f"{element.tag} holds {[child.tag for child in element]}")
        known = {name.rstrip("?"): pattern for name, pattern in attributes.items()}
        missing = {name for name in attributes if not name.endswith("?")} - set(element.attrib)
        faults += [f"{element.tag} lacks {name}" for name in sorted(missing)]
        for name, value in element.attrib.items():
            if not re.fullmatch(known.get(name, "(?!)"), value):
                faults.append(f"{element.tag} has {name}={value!r}")
        if element.tag == "ParticipantObjectQuery":
            base64.b64decode(element.text or "", validate=True)
    return faults


def split_frames(octets: bytes) -> list[bytes]:
    """Return the messages of a stream, by the octets that RFC 5425 counts."""
    messages = []
    while octets:
        count, _, octets = octets.partition(b" ")
        messages.append(octets[: int(count)])
        octets = octets[int(count) :]
    return messages


def read_message(syslog: bytes) -> ET.Element:
    """Return the audit message in a syslog message, which both must be as they should."""
    header = HEADER.match(syslog)
    assert header, syslog[:200]
    text = syslog[header.end() :]
    assert find_faults(text) == []
    return ET.fromstring(text)  # noqa: S314 - the node's own


class Repository:
    """Receives syslog over TLS, as an audit record repository does.

    Attributes:
        port: where it listens.
        streams: what came over each connection that ended in order.
        mood: what it does with a connection: `read` it to its end; `cut` it after the first octets;
            `mute`, it takes the connection and does nothing.
    """

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.streams: list[bytes] = []
        self.mood = "read"
        self._kept: list[socket.socket] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Be away."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(_BOUND)
        for each in self._kept:
            each.close()

    @property
    def messages(self) -> list[ET.Element]:
        """What came, each message checked."""
        return [read_message(each) for stream in self.streams for each in split_frames(stream)]

    def find(self, event: str) -> list[ET.Element]:
        """Return the messages whose Event ID has this code."""
        return [
            each
            for each in self.messages
            if each.find("EventIdentification/EventID").get("csd-code") == event
        ]

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                sock = self._listener.accept()[0]
                sock.settimeout(_BOUND)
                if self.mood == "mute":
                    self._kept.append(sock)
                    continue
                with suppress(OSError), self._context.wrap_socket(sock, server_side=True) as link:
                    self._read(link)

    def _read(self, link: ssl.SSLSocket) -> None:
        octets = b""
        while more := link.recv(65_536):
            if self.mood == "cut":
                link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                return
            octets += more
        self.streams.append(octets)
        link.unwrap()


@contextmanager
def open_repository(folder: Path) -> Iterator[Repository]:
    """Give a repository whose certificates are in `folder`: see `make_certificates`."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=folder / "authority.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(folder / "repository.pem", folder / "repository.key")
    repository = Repository(context)
    try:
        yield repository
    finally:
        repository.close()


def make_certificates(folder: Path) -> str:
    """Write what the node and its repository show each other; return the node's `audit.tls`."""
    authority = make_authority(folder)
    for name in ("node", "repository"):
        make_certificate(folder, authority, name)
    names = {"certificate": "node.pem", "key": "node.key", "ca": "authority.pem"}
    return f"{{{', '.join(f'{key}: {folder / name}' for key, name in names.items())}}}"


@contextmanager
def open_rsyslog(folder: Path, port: int, is_open: Callable[[], bool]) -> Iterator[Path]:
    """Give the file into which rsyslog writes what it receives, each message on a line."""
    program = require_program("rsyslogd", "rsyslog rsyslog-gnutls")
    kept = folder / "kept.log"
    (folder / "rsyslog.conf").write_text(
        f"""
global(workDirectory="{folder}" maxMessageSize="64k"
    defaultNetstreamDriver="gtls"
    defaultNetstreamDriverCAFile="{folder}/authority.pem"
    defaultNetstreamDriverCertFile="{folder}/repository.pem"
    defaultNetstreamDriverKeyFile="{folder}/repository.key")
module(load="imtcp" streamDriver.name="gtls" streamDriver.mode="1"
    streamDriver.authMode="x509/certvalid")
template(name="raw" type="string" string="%rawmsg%\\n")
input(type="imtcp" port="{port}" address="127.0.0.1")
action(type="omfile" file="{kept}" template="raw")
"""
    )
    command = [program, "-n", "-f", str(folder / "rsyslog.conf"), "-i", str(folder / "pid")]
    with (folder / "rsyslog.out").open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out)
    try:
        assert is_open(), (folder / "rsyslog.out").read_text()
        yield kept
    finally:
        process.terminate()
        process.wait(_BOUND)
