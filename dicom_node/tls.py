"""TLS on both sides: the node's own certificate, and which certificates it takes a peer for.

The profile is BCP 195 (RFC 8996, RFC 9325; PS3.15 section B.12): TLS 1.2 or later, authenticated
ciphers with forward secrecy, certificates of both sides, no compression, no renegotiation, and no
session tickets, so that every connection shows its certificate. Files are read when they are
needed, so that a certificate is changed by changing its files.
"""

import hashlib
import logging
import os
import socket
import ssl
import stat
import threading
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from dicom_node.errors import ConfigurationError, DeliveryError

if TYPE_CHECKING:
    from dicom_node.door_settings import Peer
    from dicom_node.node_settings import NodeSettings, WebCertificate

CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""For TLS 1.2; TLS 1.3 has only such."""

WARNINGS = (timedelta(days=30), timedelta(days=7), timedelta(days=1))
"""How long before its end a certificate is told of (reliability catalogue, row E37)."""

_ROOT = 0
_OWN_KEY = 0o600
_KEY_OF_ROOT = 0o640
_OPENSSL_NOT_YET_VALID = 9
_OPENSSL_EXPIRED = 10

_logger = logging.getLogger(__name__)


class InsecurePeerError(DeliveryError):
    """A peer that this node called is not who it should be, or does not talk TLS as it should."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"no TLS session: {reason}", retry=True)
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """Which certificate it is, and until when it is valid."""

    fingerprint: str
    expires: datetime


class OwnFiles(Protocol):
    """Where the node's own certificate is, see `door_settings.TLS`."""

    @property
    def certificate(self) -> Path:
        """PEM file with the certificate and its chain."""

    @property
    def key(self) -> Path:
        """PEM file with the private key."""

    @property
    def ca(self) -> Path:
        """PEM file with the authorities whose certificates peers must show."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Authorities:
    """Whose certificates are good, where this node shows none; None: those of the system."""

    ca: Path | None


class ServerSide:
    """The TLS settings of the receiver, which follow their files; safe to share between threads."""

    def __init__(self, files: OwnFiles) -> None:
        """Load `files`.

        Raises:
            ConfigurationError: they cannot be used, or the certificate is not valid now.
        """
        self._files = files
        self._lock = threading.Lock()
        self._stamp = _read_stamp(files)
        self._context = _load_server(files)

    def context(self) -> ssl.SSLContext:
        """Return what the next connection is served with.

        Files that changed are taken if they can be used; else what was loaded before stays.
        """
        with self._lock:
            stamp = _read_stamp(self._files)
            if stamp != self._stamp:
                self._stamp = stamp
                try:
                    self._context = _load_server(self._files)
                except ConfigurationError as error:
                    _logger.error("tls.files_not_taken: %s", error)
                else:
                    _logger.info("tls.files_taken")
            return self._context


class ClientSide:
    """How a peer is called with TLS.

    With `certificates` it must show one of them; else its certificate must name the host that was
    called. Both must be signed by one of the authorities.
    """

    def __init__(
        self,
        files: OwnFiles | Authorities,
        certificates: Collection[str] = (),
        where: str = "receiver.tls",
    ) -> None:
        """Load `files`, whose place in node.yaml is `where`; `certificates` are fingerprints.

        Raises:
            ConfigurationError: they cannot be used.
        """
        self._certificates = certificates
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if not isinstance(files, Authorities):
            self._context = _load(context, files, where)
        else:
            self._context = _set_profile(context)
            if files.ca is None:
                context.load_default_certs()
            else:
                _trust(context, files.ca, where)
        self._context.check_hostname = not certificates

    def wrap(self, sock: socket.socket, host: str) -> ssl.SSLSocket:
        """Return `sock` after the handshake.

        Raises:
            InsecurePeerError: the peer does not talk TLS, or is not who it should be.
        """
        try:
            secured = self._context.wrap_socket(sock, server_hostname=host)
        except OSError as error:
            raise InsecurePeerError(describe_failure(error)) from None
        seen = read_fingerprint(secured)
        if self._certificates and seen not in self._certificates:
            secured.close()
            raise InsecurePeerError(f"the peer shows another certificate, {seen}")
        return secured

    def look_at(self, host: str, port: int, seconds: float) -> Certificate:
        """Call a peer, and return the certificate that it shows.

        Raises:
            DeliveryError: nobody answers, or it is not who it should be.
        """
        try:
            with (
                socket.create_connection((host, port), timeout=seconds) as sock,
                self.wrap(sock, host) as secured,
            ):
                return _describe(secured)
        except OSError as error:
            raise DeliveryError(f"no connection: {type(error).__name__}", retry=True) from None


class CertificateWatch:
    """Tells in time that the node's certificate ends.

    Attributes:
        left: how long it is still valid; None before the first look.
    """

    def __init__(self, files: OwnFiles, clock: Callable[[], datetime]) -> None:
        self._files = files
        self._clock = clock
        self._told: timedelta | None = None
        self.left: timedelta | None = None

    def sweep(self) -> None:
        """Look at the certificate, and write a line when it comes to one of `WARNINGS`.

        Raises:
            ConfigurationError: its files cannot be used, or it is not valid any more.
        """
        self.left = inspect_own(self._files).expires - self._clock()
        reached = min((each for each in WARNINGS if self.left <= each), default=None)
        if reached is not None and reached != self._told:
            level = logging.ERROR if reached == min(WARNINGS) else logging.WARNING
            _logger.log(level, "tls.certificate_expires", extra={"days": self.left.days})
        self._told = reached

    def find_alerts(self) -> Iterator[str]:
        """Yield a sentence for a person, if the end is near."""
        if self.left is not None and self.left <= max(WARNINGS):
            yield (
                f"receiver.tls: the certificate expires in {self.left.days} days: change its "
                "files, the running node takes them"
            )


def call_with_tls(node: "NodeSettings", peer: "Peer") -> ClientSide | None:
    """Return how `peer` is called with TLS, or None when it is called in plain.

    Raises:
        DeliveryError: the files cannot be used.
    """
    if not peer.tls or node.receiver.tls is None:
        return None
    try:
        return ClientSide(node.receiver.tls, peer.certificates)
    except ConfigurationError as error:
        raise DeliveryError(str(error), retry=True) from None


def inspect_own(files: OwnFiles) -> Certificate:
    """Return the node's own certificate.

    Raises:
        ConfigurationError: the files cannot be used, or it is not valid now.
    """
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname = False
    # What is asked is whether it is valid now, so that it is its own authority here.
    trusting.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    server_side = _load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), files)
    server_side.verify_mode = ssl.CERT_NONE
    try:
        trusting.load_verify_locations(files.certificate)
        return _describe(_shake_hands(trusting, server_side))
    except ssl.SSLCertVerificationError as error:
        if error.verify_code == _OPENSSL_EXPIRED:
            seen = "one that has expired"
        elif error.verify_code == _OPENSSL_NOT_YET_VALID:
            seen = "one that is not valid yet"
        else:
            seen = f"one that OpenSSL does not take ({error.verify_message})"
    except OSError as error:
        seen = f"one that cannot be used ({describe_failure(error)})"
    raise _fault("certificate", files.certificate, seen, "a certificate that is valid now")


def check_own_chain(files: OwnFiles) -> None:
    """Let the node's certificate talk to itself, both ways, as a peer of the same authority would.

    Raises:
        ConfigurationError: it would not be taken.
    """
    client_side = _load(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), files)
    client_side.check_hostname = False
    try:
        _shake_hands(client_side, _load_server(files))
    except OSError as error:
        seen = f"one that no peer of this authority takes ({describe_failure(error)})"
        raise _fault("certificate", files.certificate, seen, f"one of {files.ca.name}") from None


def read_fingerprint(sock: socket.socket) -> str | None:
    """Return the fingerprint of what the other side of a connection shows; None without TLS."""
    der = sock.getpeercert(binary_form=True) if isinstance(sock, ssl.SSLSocket) else None
    return None if der is None else _format_fingerprint(der)


def describe_failure(error: OSError) -> str:
    """Return why there is no TLS session, in OpenSSL's words and none of the peer's."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.replace("_", " ").lower()
    return type(error).__name__


def _format_fingerprint(der: bytes) -> str:
    """Return the SHA-256 fingerprint of a certificate as OpenSSL prints it."""
    return hashlib.sha256(der).digest().hex(":").upper()


def _load_server(files: OwnFiles) -> ssl.SSLContext:
    """Return the TLS settings of the receiver: a peer must show a certificate of `ca`."""
    inspect_own(files)
    context = _load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), files)
    context.verify_mode = ssl.CERT_REQUIRED
    context.options |= ssl.OP_NO_TICKET
    context.num_tickets = 0
    return context


def serve_browsers(files: "WebCertificate") -> ssl.SSLContext:
    """Return what the admin page is served with: browsers show no certificate.

    Raises:
        ConfigurationError: the files cannot be used.
    """
    return _load_own(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), files, "admin.tls")


def _load(context: ssl.SSLContext, files: OwnFiles, where: str = "receiver.tls") -> ssl.SSLContext:
    """Return `context` with the profile, the node's certificate and its authorities."""
    _load_own(context, files, where)
    _trust(context, files.ca, where)
    return context


def _trust(context: ssl.SSLContext, ca: Path, where: str) -> None:
    """Let `context` take what the authorities in a file have signed."""
    try:
        context.load_verify_locations(ca)
    except OSError as error:
        raise _fault(
            "ca",
            ca,
            describe_failure(error),
            "a PEM file with the authorities of the peers",
            where,
        ) from None
    if context.cert_store_stats()["crl"]:
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF


def _set_profile(context: ssl.SSLContext) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.set_ciphers(CIPHERS)
    return context


def _load_own(
    context: ssl.SSLContext, files: "OwnFiles | WebCertificate", where: str
) -> ssl.SSLContext:
    """Return `context` with the profile and a certificate of ours; `where` is its place."""
    _set_profile(context)
    check_secret(files.key, "key", "a PEM file with a private key", where)
    try:
        context.load_cert_chain(files.certificate, files.key, password=_refuse_password)
    except _PasswordError:
        raise _fault(
            "key",
            files.key,
            "a key with a passphrase",
            "one without, which only the node can read",
            where,
        ) from None
    except OSError as error:
        raise _fault(
            "certificate",
            files.certificate,
            describe_failure(error),
            "a PEM file that fits the key",
            where,
        ) from None
    return context


def check_secret(path: Path, name: str, wanted: str, where: str) -> None:
    """Refuse a file with a secret that others can read.

    Only its owner, or the group where root owns it (a packaged service has such keys): what
    PostgreSQL asks for, too.

    Args:
        path: the file.
        name: of the setting.
        wanted: what it is.
        where: in node.yaml that is.

    Raises:
        ConfigurationError: others can read it, or it is not there.
    """
    try:
        found = path.stat()
    except OSError as error:
        raise _fault(name, path, str(error.strerror), wanted, where) from None
    mode = stat.S_IMODE(found.st_mode)
    allowed = _KEY_OF_ROOT if found.st_uid == _ROOT else _OWN_KEY
    if mode & ~allowed or found.st_uid not in {_ROOT, os.geteuid()}:
        raise _fault(
            name,
            path,
            f"mode {mode:04o}, owner {found.st_uid}",
            "mode 0600 and the node's own user, or mode 0640 and root: others can read it",
            where,
        )


def _shake_hands(client_side: ssl.SSLContext, server_side: ssl.SSLContext) -> ssl.SSLObject:
    """Do a handshake in memory, and return the client's end."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = server_side.wrap_bio(to_server, to_client, server_side=True)
    client = client_side.wrap_bio(to_client, to_server)
    waiting = [client, server]
    while waiting:
        side = waiting.pop(0)
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            waiting.append(side)
    return client


def _describe(session: ssl.SSLSocket | ssl.SSLObject) -> Certificate:
    """Return the certificate that the other side has shown, and that was found valid."""
    words, der = session.getpeercert(), session.getpeercert(binary_form=True)
    if not words or der is None:
        raise ssl.SSLError("no certificate")
    expires = datetime.fromtimestamp(ssl.cert_time_to_seconds(str(words["notAfter"])), UTC)
    return Certificate(fingerprint=_format_fingerprint(der), expires=expires)


def _read_stamp(files: OwnFiles) -> tuple[tuple[int, int, int] | None, ...]:
    """Return what changes when one of the files does."""
    stamps: list[tuple[int, int, int] | None] = []
    for path in (files.certificate, files.key, files.ca):
        try:
            found = path.stat()
        except OSError:
            stamps.append(None)
        else:
            stamps.append((found.st_ino, found.st_size, found.st_mtime_ns))
    return tuple(stamps)


class _PasswordError(Exception):
    """The key has a passphrase."""


def _refuse_password() -> str:
    """Keep OpenSSL from asking at a terminal, where nobody sits."""
    raise _PasswordError


def _fault(
    key: str, path: Path, seen: str, wanted: str, where: str = "receiver.tls"
) -> ConfigurationError:
    return ConfigurationError(f"node.yaml: {where}.{key} : seen {path} ({seen}), wanted {wanted}")
