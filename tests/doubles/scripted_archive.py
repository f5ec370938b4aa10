"""A DICOMweb archive that answers as it is told, or a gateway that lets in who has the token."""

import http.client
import http.server
import json
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any, Self
from urllib.parse import urlsplit

from pydicom import dcmread

JSON = "application/dicom+json"
STORED = "00081199"
UID = "00081155"


@dataclass(frozen=True, kw_only=True)
class Request:
    """What came; `files` are the parts of a multipart body."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    files: list[bytes] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What is answered; without `keep` the connection ends after it, and nobody says so."""

    status: int
    body: bytes = b""
    kind: str = JSON
    keep: bool = True


class ScriptedArchive:
    """Listens on a port of this machine while it is entered.

    Attributes:
        requests: all that came.
        connections: how many there were.
    """

    def __init__(
        self, answer: Callable[[Request], Reply], tls: ssl.SSLContext | None = None
    ) -> None:
        self.requests: list[Request] = []
        self.connections = 0
        archive = self

        class Door(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                archive.connections += 1

            def do_GET(self) -> None:
                self._answer()

            def do_POST(self) -> None:
                self._answer()

            def _answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                request = Request(
                    method=self.command,
                    path=self.path,
                    headers=dict(self.headers),
                    body=body,
                    files=_split(self.headers.get("Content-Type", ""), body),
                )
                archive.requests.append(request)
                reply = answer(request)
                self.send_response(reply.status)
                self.send_header("Content-Type", reply.kind)
                self.send_header("Content-Length", str(len(reply.body)))
                self.end_headers()
                self.wfile.write(reply.body)
                self.close_connection = not reply.keep

            def log_message(self, format: str, *args: object) -> None:
                pass

        class Server(http.server.ThreadingHTTPServer):
            def handle_error(self, request: object, client_address: object) -> None:
                pass  # whoever called has left

        self._server = Server(("127.0.0.1", 0), Door)
        scheme = "http"
        if tls is not None:
            self._server.socket = tls.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
            scheme = "https"
        self.url = f"{scheme}://127.0.0.1:{self._server.server_address[1]}/dicom-web"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def take(request: Request) -> Reply:
    """Answer as an archive that stores everything."""
    uids = [str(dcmread(BytesIO(file)).SOPInstanceUID) for file in request.files]
    return Reply(status=200, body=listing(list_sequence(STORED, *({UID: uid} for uid in uids))))


def guard(behind: str, authorization: str) -> Callable[[Request], Reply]:
    """Return what a gateway answers that hands on to `behind` what shows the right secret."""

    def answer(request: Request) -> Reply:
        if request.headers.get("Authorization") != authorization:
            return Reply(status=401)
        connection = http.client.HTTPConnection(urlsplit(behind).netloc, timeout=60)
        try:
            kept = {k: v for k, v in request.headers.items() if k in {"Accept", "Content-Type"}}
            connection.request(request.method, request.path, request.body, kept)
            found = connection.getresponse()
            kind = found.headers["Content-Type"] or ""
            return Reply(status=found.status, kind=kind, body=found.read())
        finally:
            connection.close()

    return answer


def _split(kind: str, body: bytes) -> list[bytes]:
    _, _, boundary = kind.partition("boundary=")
    if not boundary:
        return []
    parts = body.split(f"--{boundary}".encode())[1:-1]
    return [part.split(b"\r\n\r\n", 1)[1][:-2] for part in parts]


def list_sequence(tag: str, *items: dict[str, Any]) -> dict[str, Any]:
    """Return a sequence of DICOM JSON whose items have numbers and UIDs."""
    values = [
        {
            key: {"vr": "US" if isinstance(value, int) else "UI", "Value": [value]}
            for key, value in item.items()
        }
        for item in items
    ]
    return {tag: {"vr": "SQ", "Value": values}}


def listing(*sequences: dict[str, Any]) -> bytes:
    """Return a document of DICOM JSON with these sequences."""
    return json.dumps({key: value for each in sequences for key, value in each.items()}).encode()
