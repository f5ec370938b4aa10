"""A connection to a peer's DICOMweb service (PS3.18): who calls it, and what its refusals mean.

    secret → request → answer, or the reason why the service as a whole says no

An answer about the service and not about what was asked ends the call as an association does that a
peer rejects: its reason says what to look at. Bodies are bounded, in bytes and in time. Nothing of
what the peer writes gets into a reason, and no secret: HTTP statuses do.
"""

import base64
import http.client
import select
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dicom_node.door_settings import DICOMweb, Peer
from dicom_node.errors import ConfigurationError, DeliveryError
from dicom_node.network import AssociationRejectedError, connect
from dicom_node.tls import Authorities, ClientSide, check_secret
from dicom_node.wire import Piece

CONNECT_SECONDS = 10.0

JSON = "application/dicom+json"

_PORTS = {"http": 80, "https": 443}
_READ_BYTES = 262_144
_MOST_SECRET = 16_384  # bytes; tokens of identity providers have some thousands
_REFUSALS: Mapping[int, str] = {
    HTTPStatus.UNAUTHORIZED: "the service does not take what this node shows: look at its {secret}",
    HTTPStatus.FORBIDDEN: "the service does not let this node do that: look at its rights there",
    HTTPStatus.PROXY_AUTHENTICATION_REQUIRED: "a proxy wants to know who calls",
    HTTPStatus.NOT_FOUND: "there is no such service: look at its url",
    HTTPStatus.METHOD_NOT_ALLOWED: "the service does not offer that: look at its url",
    HTTPStatus.GONE: "the service is gone: look at its url",
}
"""What stays so until somebody changes it, and where to look."""

_OF_A_RESOURCE = frozenset(
    {
        HTTPStatus.FORBIDDEN,
        HTTPStatus.NOT_FOUND,
        HTTPStatus.METHOD_NOT_ALLOWED,
        HTTPStatus.GONE,
    }
)
"""What a service may also say of the one resource that was asked for."""

_BUSY: Mapping[int, str] = {
    HTTPStatus.REQUEST_TIMEOUT: "the service did not get the request in time",
    HTTPStatus.TOO_MANY_REQUESTS: "the service wants fewer requests",
    HTTPStatus.BAD_GATEWAY: "the service behind the gateway does not answer",
    HTTPStatus.SERVICE_UNAVAILABLE: "the service is not available",
    HTTPStatus.GATEWAY_TIMEOUT: "the service behind the gateway does not answer",
}
"""What may pass, and has nothing to do with what was asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a service answered; `kind` is its Content-Type."""

    status: int
    kind: str
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """What a service answers, whose body is read piece by piece."""

    status: int
    kind: str
    pieces: Iterator[bytes]


class Service:
    """A DICOMweb service that is called over one connection; one thread has it at a time."""

    def __init__(self, alias: str, peer: Peer) -> None:
        """Describe it; the first request connects.

        Raises:
            DeliveryError: the peer has none, or the authorities cannot be read.
        """
        if peer.dicomweb is None:  # only who has one gets here
            raise DeliveryError("the peer has no DICOMweb service", retry=False)
        self._settings = peer.dicomweb
        self._where = f"peers.{alias}.dicomweb"
        address = urlsplit(peer.dicomweb.url)
        self._root = address.path.rstrip("/")
        self._seconds = peer.dicomweb.answer.total_seconds()
        self._connection = _Connection(
            address.hostname or "",
            address.port or _PORTS[address.scheme],
            self._secure(peer),
            self._seconds,
        )

    def connect(self) -> None:
        """See to a connection.

        Raises:
            DeliveryError: there is none.
        """
        if self._connection.sock is None:
            self._connection.connect()

    def has_input(self) -> bool:
        """Say whether the service has said something unasked, or has gone."""
        sock = self._connection.sock
        if sock is None:
            return True
        poll = select.poll()
        poll.register(sock, select.POLLIN)
        return bool(poll.poll(0))

    def close(self) -> None:
        """End the connection."""
        self._connection.close()

    def ask(
        self,
        method: str,
        path: str,
        *,
        accept: str,
        longest: int,
        body: Sequence[Piece] = (),
        kind: str = "",
    ) -> Answer:
        """Send a request and return its answer, whatever that says of what was asked.

        It is sent once more over another connection when the service ended the one that was kept
        open without a word: every request of this node may come twice.

        Args:
            method: of HTTP.
            path: below the URL of the service, and the query.
            accept: media type of the answer.
            longest: bytes that its body may have.
            body: of the request.
            kind: media type of the body.

        Raises:
            AssociationRejectedError: the service says no to this node, or to everybody now.
            DeliveryError: it does not answer, or not as it should.
        """
        deadline = time.monotonic() + self._seconds
        response = self._call(method, path, accept, body, kind)
        parts: list[bytes] = []
        for part in self._read(response, deadline):
            parts.append(part)
            longest -= len(part)
            if longest < 0:
                self.close()
                raise DeliveryError("the HTTP answer is too long", retry=True)
        self._refuse(response.status)
        return Answer(
            status=response.status,
            kind=response.headers.get("Content-Type", ""),
            body=b"".join(parts),
        )

    @contextmanager
    def retrieve(self, path: str, *, accept: str, seconds: float) -> Iterator[Stream]:
        """Give the answer to a GET while it comes; what is not read ends the connection.

        Args:
            path: below the URL of the service.
            accept: media type of the answer.
            seconds: for all of it.

        Raises:
            AssociationRejectedError: the service says no to this node, or to everybody now. What
                may be said of one resource is left to the caller.
            DeliveryError: it does not answer, or not as it should.
        """
        deadline = time.monotonic() + seconds
        response = self._call("GET", path, accept)
        try:
            if response.status not in _OF_A_RESOURCE:
                self._refuse(response.status)
            yield Stream(
                status=response.status,
                kind=response.headers.get("Content-Type", ""),
                pieces=self._read(response, deadline),
            )
        finally:
            if not response.isclosed():
                self.close()

    def _call(
        self, method: str, path: str, accept: str, body: Sequence[Piece] = (), kind: str = ""
    ) -> http.client.HTTPResponse:
        """Send a request and return its answer, of which the body has not been read.

        Raises:
            DeliveryError: there is none.
        """
        headers = {"Accept": accept, **self._show_secret()}
        if method != "GET":
            headers["Content-Length"] = str(sum(memoryview(piece).nbytes for piece in body))
            headers["Content-Type"] = kind
        was_kept = self._connection.sock is not None
        try:
            try:
                self._send(method, path, headers, body)
                return self._connection.getresponse()
            except (ConnectionError, http.client.BadStatusLine):
                self.close()
                if not was_kept:
                    raise
                self._send(method, path, headers, body)
                return self._connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise DeliveryError(f"no HTTP answer: {type(error).__name__}", retry=True) from None
        except DeliveryError:
            self.close()
            raise

    def _read(self, response: http.client.HTTPResponse, deadline: float) -> Iterator[bytes]:
        """Yield the body of an answer.

        Raises:
            DeliveryError: it breaks off, or does not end in time.
        """
        try:
            while part := response.read1(_READ_BYTES):
                if time.monotonic() > deadline:
                    self.close()
                    raise DeliveryError("the HTTP answer does not end in time", retry=True)
                yield part
            if response.length:
                raise http.client.IncompleteRead(b"", response.length)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise DeliveryError(f"no HTTP answer: {type(error).__name__}", retry=True) from None
        response.close()  # the connection is free for the next request

    def _send(
        self, method: str, path: str, headers: Mapping[str, str], body: Sequence[Piece]
    ) -> None:
        """Send a request; one that is answered before it is whole is left as it is."""
        self.connect()
        try:
            pieces = iter(body) if body else None
            self._connection.request(method, f"{self._root}{path}", pieces, headers)
        except ConnectionError:
            # A service that refuses may do so before it has read everything, and close.
            if self._connection.sock is None or not self.has_input():
                raise

    def _refuse(self, status: int) -> None:
        """Raise what an answer says of the service as a whole."""
        if HTTPStatus.MULTIPLE_CHOICES <= status < HTTPStatus.BAD_REQUEST:
            reason = f"HTTP {status}: the service is elsewhere: look at its url"
            raise AssociationRejectedError(reason, permanent=True)
        if status in _REFUSALS:
            secret = "token" if self._settings.token else "user and password"
            reason = f"HTTP {status}: {_REFUSALS[status].format(secret=secret)}"
            raise AssociationRejectedError(reason, permanent=True)
        if status in _BUSY:
            raise AssociationRejectedError(f"HTTP {status}: {_BUSY[status]}", permanent=False)

    def _secure(self, peer: Peer) -> ClientSide | None:
        if not self._settings.is_secure:
            return None
        try:
            authorities = Authorities(ca=self._settings.ca)
            return ClientSide(authorities, peer.certificates, self._where)
        except ConfigurationError as error:
            raise DeliveryError(str(error), retry=True) from None

    def _show_secret(self) -> dict[str, str]:
        """Return the header that says who calls.

        Raises:
            DeliveryError: the secret cannot be read.
        """
        try:
            return show_secret(self._settings, self._where)
        except ConfigurationError as error:
            raise AssociationRejectedError(str(error), permanent=True) from None


class _Connection(http.client.HTTPConnection):
    """HTTP over a socket that was opened as all others of this node are."""

    def __init__(self, host: str, port: int, tls: ClientSide | None, seconds: float) -> None:
        super().__init__(host, port)
        self._tls = tls
        self._seconds = seconds

    def connect(self) -> None:
        """Connect, and do the handshake of TLS.

        Raises:
            DeliveryError: nobody answers there, or not who should.
        """
        self.sock = connect(self.host, self.port, self._tls, CONNECT_SECONDS)
        self.sock.settimeout(self._seconds)


def show_secret(settings: DICOMweb, where: str) -> dict[str, str]:
    """Return the Authorization header that the settings want; `where` in node.yaml they are.

    Raises:
        ConfigurationError: the file cannot be used.
    """
    if settings.token is not None:
        token = _read_secret(settings.token, "token", where)
        return {"Authorization": f"Bearer {token}"}
    if settings.user is not None and settings.password is not None:
        password = _read_secret(settings.password, "password", where)
        pair = base64.b64encode(f"{settings.user}:{password}".encode()).decode()
        return {"Authorization": f"Basic {pair}"}
    return {}


def find_values(item: Any, tag: str) -> Sequence[Any]:
    """Return the values of an attribute in an item of DICOM JSON (PS3.18 annex F), or none."""
    element = item.get(tag) if isinstance(item, dict) else None
    values = element.get("Value") if isinstance(element, dict) else None
    return values if isinstance(values, list) else ()


def _read_secret(path: Path, name: str, where: str) -> str:
    wanted = f"a file with the {name} in one line of ASCII"
    check_secret(path, name, wanted, where)
    try:
        with path.open("rb") as file:
            secret = file.read(_MOST_SECRET + 1).decode("ascii").strip()
    except (OSError, UnicodeDecodeError):
        secret = ""
    if not secret or len(secret) > _MOST_SECRET or not secret.isprintable():
        raise ConfigurationError(f"node.yaml: {where}.{name} : seen {path}, wanted {wanted}")
    return secret
