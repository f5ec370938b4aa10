"""The part of node.yaml about the door: who may come in, how, and whom this node calls.

Every default is safe: nobody is a peer, and nothing is heard outside this machine.
"""

import ipaddress
import os
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from dicom_node.value_types import (
    Address,
    AETitle,
    Count,
    Duration,
    Fingerprint,
    IPNetwork,
    Network,
    Port,
    Size,
    StorageClass,
    Strict,
)

_MOST_PROCESSES = 4
_WIDEST = {4: 8, 6: 7}
"""Prefix lengths of 10.0.0.0/8 and fc00::/7: no site has a wider network."""
_MOST_ASSOCIATIONS = 16
_MOST_OPERATIONS = 64


class TLS(Strict):
    """The node's own certificate, used both when it listens and when it sends.

    Attributes:
        certificate: PEM file with the certificate and its chain.
        key: PEM file with the private key, without passphrase; mode 0600 and the node's own user,
            or mode 0640 and root.
        ca: PEM file with the authorities whose certificates peers must show. With revocation lists
            in it, each authority needs one.
    """

    certificate: Path
    key: Path
    ca: Path


class Limits(Strict):
    """What a peer may take of the receiver before it is cut off.

    Attributes:
        connections: TCP connections without an association at a time; half of them from addresses
            that no peer calls from.
        connections_per_address: of them, from one address.
        associations: negotiated associations at a time.
        associations_per_peer: of them, with one peer, so that one sender cannot starve others.
        associations_per_second: new ones with one peer, beside what it saved up in five seconds.
        messages_per_second: over one association, of those that store nothing; more are kept
            waiting.
        request: longest A-ASSOCIATE-RQ.
        pdu: longest P-DATA PDU.
        command: longest command set.
        instance: longest data set.
        outside_pixels: longest sum of everything but Pixel Data.
        depth: deepest nesting of sequences.
        elements: most elements of a data set.
        handshake: time for a TLS handshake.
        first_pdu: time until the whole association request is there.
        each_pdu: time from the first byte of a PDU to its last.
        message: time between two PDUs of one message.
        idle: time between two messages.
        no_context: the same, where not one presentation context was accepted.
        send: time for a response to be taken.
        flush: time for a peer to close after the end of an association.
        room: time that a request for an association waits for another one to end.
    """

    connections: Count = 64
    connections_per_address: Count = 16
    associations: Count = 20
    associations_per_peer: Count = 8
    associations_per_second: Count = 100
    messages_per_second: Count = 100
    request: Size = 65_536
    pdu: Size = 131_072
    command: Size = 16_384
    instance: Size = 2 * 1024**3
    outside_pixels: Size = 64 * 1024**2
    depth: Count = 32
    elements: Count = 200_000
    handshake: Duration = timedelta(seconds=3)
    first_pdu: Duration = timedelta(seconds=5)
    each_pdu: Duration = timedelta(seconds=10)
    message: Duration = timedelta(seconds=30)
    idle: Duration = timedelta(seconds=60)
    no_context: Duration = timedelta(seconds=30)
    send: Duration = timedelta(seconds=30)
    flush: Duration = timedelta(seconds=5)
    room: Duration = timedelta(seconds=1)


class StorageClasses(Strict):
    """Storage SOP classes that are negotiated, written as keywords and kept here as UIDs.

    Attributes:
        image: may be labelled, and may be a source.
        passed_over: stored, so that the sender can get rid of the whole study, and not looked at.
    """

    image: tuple[StorageClass, ...] = Field(min_length=1)
    passed_over: tuple[StorageClass, ...] = ()

    @model_validator(mode="after")
    def _are_named_once(self) -> Self:
        both = set(self.image) & set(self.passed_over)
        if both:
            raise ValueError("each storage class in one of image and passed_over, not in both")
        return self

    @property
    def all(self) -> tuple[str, ...]:
        """Every SOP Class UID that the receiver negotiates."""
        return self.image + self.passed_over


class Receiver(Strict):
    """The door at which instances come in.

    Attributes:
        host: address to listen on.
        port: 0 is any free one.
        allow_plain: networks whose peers may talk without TLS, beside this machine itself.
        tls: None listens in plain DICOM, which only loopback and `allow_plain` may use.
        durability: what an instance survives once it was answered with success. `synced`: a power
            cut, on ext4, XFS and Btrfs; each process that serves has a log of 128 MiB for that.
            `strict`: a power cut, by the letter of POSIX. `none`: the end of the process only.
        minimum_free: with less room on the disk of the data folder no association is accepted, so
            that the ledger and the results still have some.
        processes: that serve connections; as many as the machine has cores, four at most, unless
            it is said.
        limits: what a peer may take before it is cut off.
        storage_classes: what it may store.
    """

    host: Address = "127.0.0.1"
    port: Port = 11112
    allow_plain: tuple[Network, ...] = ()
    tls: TLS | None = None
    durability: Literal["strict", "synced", "none"] = "synced"
    minimum_free: Size = 256 * 1024**2
    processes: Count = Field(default_factory=lambda: min(os.cpu_count() or 1, _MOST_PROCESSES))
    limits: Limits = Limits()
    storage_classes: StorageClasses

    @model_validator(mode="after")
    def _is_not_open_to_all(self) -> Self:
        exposed = not ipaddress.ip_address(self.host).is_loopback
        if exposed and self.tls is None and not self.allow_plain:
            raise ValueError(
                f"tls, or an allow_plain that names the networks that may talk in plain, because "
                f"{self.host} can be reached from other machines"
            )
        if any(map(_is_everywhere, self.allow_plain)):
            raise ValueError(
                "an allow_plain of your own networks, none wider than 10.0.0.0/8 or fc00::/7, "
                "because whoever is in them needs no certificate and reads along"
            )
        return self


PeerRole = Literal["send", "receive", "echo", "query", "notify", "worklist"]


_CALLING = frozenset({"receive", "echo", "notify"})
"""Roles in which it calls this node."""


class DICOMweb(Strict):
    """The DICOMweb service of a peer, which is called over HTTP instead of DIMSE (PS3.18).

    Secrets are in files of their own, mode 0600 and the node's own user, or mode 0640 and root.
    They are read anew for each request, so that one is changed by changing its file.

    Attributes:
        url: of the service, below which `/studies` is: `https://archive.example/dicom-web`.
            `http://` sends no secret beyond this machine.
        ca: PEM file with the authorities whose certificate it must show; None: those of the system.
        token: file with the bearer token that opens.
        user: under which it is called with `password`, by HTTP Basic authentication.
        password: file with the password.
        answer: for the answer to one request.
    """

    url: Annotated[
        str,
        Field(pattern=r"^https?://[A-Za-z0-9.\[\]:-]{1,253}(/[A-Za-z0-9._~!$&'()*+,;=:@/-]*)?$"),
    ]
    ca: Path | None = None
    token: Path | None = None
    user: Annotated[str, Field(pattern=r"^[ -9;-~]{1,128}$")] | None = None
    password: Path | None = None
    answer: Duration = timedelta(seconds=60)

    @model_validator(mode="after")
    def _keeps_its_secret(self) -> Self:
        address = urlsplit(self.url)
        if (self.user is None) != (self.password is None):
            raise ValueError("user and password, or neither")
        if self.token is not None and self.user is not None:
            raise ValueError("token, or user and password, not both")
        has_secret = self.token is not None or self.user is not None
        if has_secret and address.scheme == "http" and not is_here(address.hostname or ""):
            raise ValueError("a url with https://, because others could read the secret")
        if self.ca is not None and address.scheme == "http":
            raise ValueError("a url with https://, because there is a ca")
        try:
            is_whole = bool(address.hostname) and address.port != 0
        except ValueError:
            is_whole = False
        if not is_whole:
            raise ValueError("a url with a host, and a port from 1 to 65535 if any")
        return self

    @property
    def is_secure(self) -> bool:
        """Whether it is called with TLS."""
        return urlsplit(self.url).scheme == "https"


class Peer(Strict):
    """One remote application entity. Whoever is none of them does not get in.

    Attributes:
        ae_title: what it calls itself, and what it is called when we call by DIMSE.
        address: where its associations come from.
        host: where we call it.
        port: where we call it.
        dicomweb: it is called over HTTP, by DICOMweb, instead of by DIMSE; without `host`, `port`
            and `tls`.
        tls: call it with TLS.
        certificates: SHA-256 fingerprints of those that it may show, when it calls and when it is
            called; two while it changes from one to the next. Without any, every certificate of
            `receiver.tls.ca` opens, and the one that it shows when it is called must name `host`.
        associations: over how many at a time results go to it, when there is work for so many.
        window: how many C-STOREs may wait for their answers in each of them. The peer is asked for
            this asynchronous operations window (PS3.7 section D.3.3.3); one that does not grant it
            gets one at a time. Of a DICOMweb service: how many instances go in one request.
        keep_open: an association is released when nothing has gone over it for so long.
        commitment: how a peer that takes results is asked whether it keeps them, which then has to
            be so before they are deleted here. `storage_commitment`: by N-ACTION (PS3.4 annex J);
            it may call back with its report; one that does not offer it is asked by C-FIND where it
            has the role `query`. `query`: by C-FIND, or by QIDO-RS of a DICOMweb service.
        roles: `receive` lets it store here, `echo` lets it verify here (a receiver may anyway),
            `send` lets us store there, `query` lets us ask there what it holds and fetch it (C-FIND
            and C-MOVE, of a DICOMweb service QIDO-RS and WADO-RS), `notify` lets it tell of
            studies: performed procedure steps (MPPS) and Instance Availability Notifications.
            `worklist` lets us perform its Unified Procedure Steps, see `steps`.
    """

    ae_title: AETitle | None = None
    address: Network | None = None
    host: str | None = Field(default=None, pattern=r"^[A-Za-z0-9.:-]{1,253}$")
    port: Annotated[int, Field(ge=1, le=65535)] | None = None
    dicomweb: DICOMweb | None = None
    tls: bool = False
    certificates: tuple[Fingerprint, ...] = ()
    associations: Annotated[int, Field(ge=1, le=_MOST_ASSOCIATIONS)] = 1
    window: Annotated[int, Field(ge=1, le=_MOST_OPERATIONS)] = 1
    keep_open: Duration = timedelta(seconds=10)
    commitment: Literal["storage_commitment", "query", "none"] = "none"
    roles: frozenset[PeerRole] = Field(min_length=1)

    @model_validator(mode="after")
    def _can_be_called(self) -> Self:
        is_called = bool(self.roles & {"send", "query", "worklist"})
        if self.dicomweb is None:
            if is_called and (self.host is None or self.port is None):
                raise ValueError("host and port, because its roles let this node call it")
            if self.certificates and is_called and not self.tls:
                raise ValueError("tls: true, because it shows no certificate without")
        else:
            if not is_called:
                raise ValueError("one of the roles send and query, because it is called only")
            if self.host is not None or self.port is not None or self.tls:
                raise ValueError("no host, port and tls, because it is called by dicomweb.url")
            if self.certificates and not self.dicomweb.is_secure:
                raise ValueError("https:// in dicomweb.url, because there are certificates")
            if "worklist" in self.roles:
                raise ValueError("no role worklist, because steps are taken over DIMSE alone")
            if self.commitment == "storage_commitment":
                raise ValueError("commitment: query or none, because DICOMweb has no other")
        if self.ae_title is None and (self.dicomweb is None or self.roles & _CALLING):
            raise ValueError("ae_title, because it calls, or is called, by DIMSE")
        return self

    @model_validator(mode="after")
    def _can_play_its_roles(self) -> Self:
        if self.roles & _CALLING and self.address is None:
            raise ValueError("address, because its roles let it call this node")
        if self.commitment != "none" and "send" not in self.roles:
            raise ValueError("the role send, because it is asked for a commitment to what it gets")
        if self.commitment == "storage_commitment" and self.address is None:
            raise ValueError("address, because its commitment may come over a call of its own")
        if self.commitment == "query" and not self.dicomweb and "query" not in self.roles:
            raise ValueError("the role query, because it is asked what it holds")
        if (
            self.may_call
            and not self.certificates
            and self.address
            and _is_everywhere(self.address)
        ):
            raise ValueError(
                "certificates, or an address no wider than 10.0.0.0/8 or fc00::/7, because an AE "
                "title is no secret"
            )
        return self

    @property
    def may_call(self) -> bool:
        """Whether it may ask this node for an association."""
        return bool(self.roles & _CALLING) or self.commitment == "storage_commitment"


def is_here(host: str) -> bool:
    """Say whether a host is this machine by its name: then nobody can listen on the way."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host in {"", "localhost"}


def _is_everywhere(network: IPNetwork) -> bool:
    return network.prefixlen < _WIDEST[network.version]
