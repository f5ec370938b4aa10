"""A connection at the door, from its first byte until it has its association, or is turned away.

Step 1 of the walk. Whatever may take its time runs in a thread of its own, so that a peer that is
slow, silent or hostile costs only itself, and nothing that a peer sends ends up in a log line.
`session` is what follows. Codes of rejections and aborts: PS3.8 sections 9.3.4 and 9.3.8.
"""

import contextlib
import logging
import shutil
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from dicom_node import upper_layer
from dicom_node.admission import Entry
from dicom_node.association import ANNOUNCED_BYTES, Association, Context
from dicom_node.commitment import STORAGE_COMMITMENT
from dicom_node.complaints import Complains
from dicom_node.network import (
    SMALLEST_PDU,
    UNCOMPRESSED,
    VERIFICATION,
    Address,
    Network,
    normalize_address,
)
from dicom_node.notices import NOTICES
from dicom_node.services import Services
from dicom_node.session import Session
from dicom_node.spool import Spool
from dicom_node.tls import ServerSide, describe_failure, read_fingerprint
from dicom_node.upper_layer import (
    AssociationRequest,
    ContextResult,
    ProtocolError,
    RoleSelection,
)
from dicom_node.wire import Limits, Wire

_MAXIMUM_CONTEXTS = 128
_TLS_HANDSHAKE = 0x16  # first byte of a TLS record that begins a session (RFC 8446 5.1)
_STRANGER_FLUSH_SECONDS = 0.5  # for a peer that was never let in: it need not read our answer
_FIRST_PAUSE_SECONDS = 0.01  # before room is looked for again; each further pause is twice as long

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """A peer that may ask for associations, as the configuration names it.

    Attributes:
        network: where it calls from.
        certificates: fingerprints of those that it may show; without any, all that TLS lets in.
        may_store: False lets it not store.
        may_report: lets it say which of the instances that it got it keeps.
        may_notify: lets it tell of steps and instances of studies.
    """

    alias: str
    ae_title: str
    network: Network
    certificates: tuple[str, ...] = ()
    may_store: bool
    may_report: bool = False
    may_notify: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Door:
    """What the configuration says about who comes in, and how.

    Attributes:
        callers: who may ask for an association.
        plain: networks that may talk without TLS, beside this machine itself.
        storage: storage SOP class to the transfer syntaxes that are taken, best first.
        folder: whose file system must have `minimum_free_bytes`.
        request_seconds: until the whole association request is there.
        room_seconds: that an association waits for another one to end.
        no_context_seconds: between two messages where not one presentation context was accepted.
        messages_per_second: over one association, of those that store nothing.
    """

    ae_title: str
    callers: tuple[Caller, ...]
    plain: tuple[Network, ...]
    storage: Mapping[str, tuple[str, ...]]
    folder: Path
    tls: ServerSide | None = None
    minimum_free_bytes: int = 0
    handshake_seconds: float = 3.0
    request_seconds: float = 5.0
    room_seconds: float = 1.0
    no_context_seconds: float = 30.0
    messages_per_second: int = 100
    instance_bytes: int = 2 * 1024**3
    limits: Limits = field(default_factory=Limits)

    def find_caller(self, ae_title: str, address: Address, certificate: str | None) -> Caller:
        """Return who is calling; `certificate` is the fingerprint of theirs, None in plain.

        Raises:
            RejectedError: nobody who is known.
        """
        facts = {"lacks": "ae_title"}
        for caller in self.callers:
            if caller.ae_title != ae_title:
                continue
            if address not in caller.network:
                facts = {"lacks": "address", "claims": caller.alias}
            elif caller.certificates and certificate not in caller.certificates:
                facts = {"lacks": "certificate", "claims": caller.alias}
                break
            else:
                return caller
        raise RejectedError("calling_ae_title", 1, 1, 3, **facts)

    def may_be_plain(self, address: Address) -> bool:
        """Say whether an address may talk without TLS."""
        return address.is_loopback or any(address in network for network in self.plain)


class NotSecuredError(ProtocolError):
    """There is no TLS session; `reason` says why, in our own words."""

    def __init__(self, reason: str) -> None:
        super().__init__("tls_failed", None)
        self.reason = reason


class RejectedError(ProtocolError):
    """The association is not wanted; `answer` is the A-ASSOCIATE-RJ that says why.

    Attributes:
        facts: more for the log, in our own words.
    """

    def __init__(self, code: str, result: int, source: int, reason: int, **facts: str) -> None:
        super().__init__(code, None)
        self.facts = facts
        self.answer = upper_layer.encode_reject(result, source, reason)


class _LeftAtOnceError(Exception):
    """The peer has gone without a byte, as a load balancer does that probes: nothing to tell."""


class Doorkeeper(Protocol):
    """Counts who is in, see `Admission`."""

    def associate(self, address: str, peer: str) -> Entry:
        """Count an association in, or say what stands in the way."""

    def part(self, address: str, peer: str) -> None:
        """Count it out."""

    def leave(self, address: str) -> None:
        """Count a connection out."""


class Acceptor:
    """Serves connections, each in its caller's thread."""

    def __init__(
        self,
        door: Door,
        spool: Spool,
        admission: Doorkeeper,
        complaints: Complains,
        stopping: Callable[[], bool],
    ) -> None:
        self._door = door
        self._spool = spool
        self._admission = admission
        self._complaints = complaints
        self._stopping = stopping
        self._delivering: set[str] = set()

    def beat(self) -> None:
        """Say in the ledger that the associations that deliver now are alive."""
        self._spool.recorder.keep_alive(tuple(self._delivering))

    def admit(self, sock: socket.socket, host: str) -> Session | None:
        """Let a connection have its association, or see it to its end and close it."""
        address = normalize_address(host)
        wire: Wire | None = None
        session: Session | None = None
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            secured = self._secure(sock, address)
            wire = Wire(secured, self._door.limits, self._stopping)
            session = self._associate(wire, address, read_fingerprint(secured))
        except NotSecuredError as error:
            self._complaints.note(error.code, who=str(address), reason=error.reason)
        except RejectedError as error:
            self._complaints.note(error.code, who=str(address), **error.facts)
            if wire is not None:
                wire.finish(error.answer, flush_seconds=_STRANGER_FLUSH_SECONDS)
        except ProtocolError as error:
            self._complaints.note(error.code, who=str(address))
            if wire is not None and error.abort is not None:
                # Before an association there is only one abort (PS3.8 table 9-10, AA-1).
                wire.finish(
                    upper_layer.encode_abort(*upper_layer.BY_USER),
                    flush_seconds=_STRANGER_FLUSH_SECONDS,
                )
        except _LeftAtOnceError:
            pass
        except OSError:
            self._complaints.note("connection_lost", who=str(address))
        finally:
            if session is None:
                if wire is not None:
                    wire.close()
                sock.close()
        return session

    def _secure(self, sock: socket.socket, address: Address) -> socket.socket:
        """Do the TLS handshake where one is due, inside its deadline."""
        may_be_plain = self._door.may_be_plain(address)
        if self._door.tls is None:
            if not may_be_plain:
                raise ProtocolError("plain_not_allowed", None)
            return sock
        deadline = time.monotonic() + self._door.handshake_seconds
        try:
            sock.settimeout(self._door.handshake_seconds)
            first = sock.recv(1, socket.MSG_PEEK)
        except TimeoutError as error:
            raise NotSecuredError(describe_failure(error)) from None
        except OSError:
            raise _LeftAtOnceError from None
        if not first:
            raise _LeftAtOnceError
        if may_be_plain and first != bytes((_TLS_HANDSHAKE,)):
            return sock
        try:
            sock.settimeout(max(deadline - time.monotonic(), 0.001))  # of the whole handshake
            return self._door.tls.context().wrap_socket(sock, server_side=True)
        except OSError as error:
            raise NotSecuredError(describe_failure(error)) from None

    def _associate(self, wire: Wire, address: Address, certificate: str | None) -> Session:
        """Read the request, answer it, and return the association if there is one."""
        request_body = self._read_request(wire)
        request = upper_layer.decode_request(request_body)
        caller = self._check_request(request, address, certificate)
        self._find_room(str(address), caller.alias)
        with contextlib.ExitStack() as place:
            place.callback(self._admission.part, str(address), caller.alias)
            association = self._accept(wire, request, request_body, caller)
            services = Services(
                association,
                self._spool,
                self._complaints,
                caller.alias,
                self._door.instance_bytes,
                self._door.storage,
            )
            idle_seconds = self._door.limits.idle_seconds
            if not association.contexts:
                idle_seconds = min(idle_seconds, self._door.no_context_seconds)
            return Session(
                association,
                services,
                caller.alias,
                self._complaints,
                self._delivering,
                place.pop_all(),
                messages_per_second=self._door.messages_per_second,
                idle_seconds=idle_seconds,
            )

    def _read_request(self, wire: Wire) -> bytes:
        """Return the body of the association request."""
        try:
            pdu_type, body = wire.read_pdu(
                {
                    upper_layer.ASSOCIATE_RQ: self._door.limits.request_bytes,
                    upper_layer.ABORT: upper_layer.FIXED_BODY,
                },
                wait=self._door.request_seconds,
                whole=None,
            )
        except TimeoutError:
            raise ProtocolError("connection_timeout", None) from None
        except ProtocolError:
            if wire.has_read:
                raise
            raise _LeftAtOnceError from None
        if pdu_type == upper_layer.ABORT:
            raise ProtocolError("peer_aborted", None)
        return bytes(body)

    def _find_room(self, address: str, peer: str) -> None:
        """Count an association in, when there is room or in a moment.

        A peer that closes one and at once asks for the next may come before its end is noticed.
        """
        pause, deadline = _FIRST_PAUSE_SECONDS, time.monotonic() + self._door.room_seconds
        while (entry := self._admission.associate(address, peer)) is Entry.NOT_YET:
            if time.monotonic() + pause > deadline:
                entry = Entry.FULL
                break
            time.sleep(pause)
            pause *= 2
        if entry is Entry.FULL:
            raise RejectedError(entry, 2, 3, 2)
        if entry is Entry.TOO_FAST:
            raise RejectedError(entry, 2, 3, 1)

    def _accept(
        self, wire: Wire, request: AssociationRequest, request_body: bytes, caller: Caller
    ) -> Association:
        """Answer the request, and return the association."""
        results = self._negotiate(request, caller)
        roles = _choose_roles(request, results)
        announced = min(ANNOUNCED_BYTES, self._door.limits.pdu_bytes)
        wire.send(upper_layer.encode_accept(request_body, results, announced, roles))
        if request.user_identity_type:  # no credential here: addresses and certificates are
            self._complaints.note(
                "user_identity_ignored",
                who=caller.alias,
                level=logging.INFO,
                type=request.user_identity_type,
            )
        abstract = {each.context_id: each.abstract_syntax for each in request.contexts}
        accepted = [
            Context(
                context_id=each.context_id,
                abstract_syntax=abstract[each.context_id],
                transfer_syntax=each.transfer_syntax,
            )
            for each in results
            if each.result == upper_layer.ACCEPTED
        ]
        return Association(wire, accepted, request.maximum_length)

    def _check_request(
        self, request: AssociationRequest, address: Address, certificate: str | None
    ) -> Caller:
        """Return who is calling, or refuse the association."""
        if not request.protocol_version & 1:
            raise RejectedError("protocol_version", 1, 2, 2)
        if request.called_ae_title != self._door.ae_title:
            raise RejectedError("called_ae_title", 1, 1, 7)
        caller = self._door.find_caller(request.calling_ae_title, address, certificate)
        ids = [context.context_id for context in request.contexts]
        if (
            not request.application_context
            or not ids
            or len(ids) > _MAXIMUM_CONTEXTS
            or len(set(ids)) < len(ids)
            or any(each % 2 == 0 for each in ids)
            or 0 < request.maximum_length < SMALLEST_PDU
        ):
            raise RejectedError("association_request", 1, 2, 1)
        if request.application_context != upper_layer.APPLICATION_CONTEXT:
            raise RejectedError("application_context", 1, 1, 2)
        if self._stopping():
            raise RejectedError("stopping", 2, 3, 1)
        try:
            free = shutil.disk_usage(self._door.folder).free
        except OSError:
            raise RejectedError("disk_gone", 2, 3, 1) from None
        if free < self._door.minimum_free_bytes:
            raise RejectedError("disk_almost_full", 2, 3, 1)
        if self._spool.recorder.is_shut:
            raise RejectedError("ledger_silent", 2, 3, 1)
        return caller

    def _negotiate(self, request: AssociationRequest, caller: Caller) -> list[ContextResult]:
        """Answer each proposed context (PS3.8 section 9.3.3.2)."""
        offered = offer_contexts(self._door.storage, caller)
        results: list[ContextResult] = []
        for context in request.contexts:
            ours = offered.get(context.abstract_syntax)
            common = [syntax for syntax in ours or () if syntax in context.transfer_syntaxes]
            if ours is None:
                result = upper_layer.ABSTRACT_SYNTAX_NOT_SUPPORTED
            elif not common:
                result = upper_layer.TRANSFER_SYNTAXES_NOT_SUPPORTED
            else:
                result = upper_layer.ACCEPTED
            syntax = common[0] if common else upper_layer.IMPLICIT_VR_LITTLE_ENDIAN
            results.append(
                ContextResult(context_id=context.context_id, result=result, transfer_syntax=syntax)
            )
        return results


def offer_contexts(
    storage: Mapping[str, tuple[str, ...]], caller: Caller
) -> dict[str, tuple[str, ...]]:
    """Return what a peer may use here: abstract syntax to transfer syntaxes, best first."""
    offered = {VERIFICATION: UNCOMPRESSED, **(storage if caller.may_store else {})}
    if caller.may_report:
        offered[STORAGE_COMMITMENT] = UNCOMPRESSED
    if caller.may_notify:
        offered.update(dict.fromkeys(NOTICES, UNCOMPRESSED))
    return offered


def _choose_roles(
    request: AssociationRequest, results: Sequence[ContextResult]
) -> list[RoleSelection]:
    """Let a peer that reports commitments be the SCP, and nobody anything else than the SCU."""
    accepted = {each.context_id for each in results if each.result == upper_layer.ACCEPTED}
    is_offered = any(
        each.abstract_syntax == STORAGE_COMMITMENT and each.context_id in accepted
        for each in request.contexts
    )
    return [
        RoleSelection(sop_class_uid=STORAGE_COMMITMENT, scu=False, scp=each.scp)
        for each in request.roles
        if is_offered and each.sop_class_uid == STORAGE_COMMITMENT
    ]
