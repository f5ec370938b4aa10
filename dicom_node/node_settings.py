"""The types of node.yaml: what the node is called, whom it talks to, how patient it is.

Every number that may be wrong for a site is a setting here; every default is safe: nobody is a
peer, and nothing is heard outside this machine. The receiving process reads this file and no other,
so no rule, no dictionary and no codec is imported on the way here.
"""

import ipaddress
import os
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import parse_qs, urlsplit, urlunsplit
from uuid import UUID

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    field_validator,
    model_validator,
)

from dicom_node.errors import ConfigurationError
from dicom_node.strict_yaml import read_document, read_file
from dicom_node.value_types import (
    Address,
    AETitle,
    Alias,
    Count,
    Duration,
    Fingerprint,
    IPNetwork,
    Network,
    Port,
    Size,
    StorageClass,
)

NODE_FILE = "node.yaml"

_MOST_PROCESSES = 4
_WIDEST = {4: 8, 6: 7}
"""Prefix lengths of 10.0.0.0/8 and fc00::/7: no site has a wider network."""
_MOST_ASSOCIATIONS = 16
_MOST_OPERATIONS = 64


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TLS(_Settings):
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


class Limits(_Settings):
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


class StorageClasses(_Settings):
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


class Receiver(_Settings):
    """The door at which instances come in.

    Attributes:
        host: address to listen on.
        port: 0 is any free one.
        allow_plain: networks whose peers may talk without TLS, beside this machine itself.
        tls: None listens in plain DICOM, which only loopback and `allow_plain` may use.
        durability: what an instance survives once it was answered with success. `synced`: a power
            cut, on ext4, XFS and Btrfs. `strict`: a power cut, by the letter of POSIX. `none`: the
            end of the process only.
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


PeerRole = Literal["send", "receive", "echo", "query", "notify"]


_CALLING = frozenset({"receive", "echo", "notify"})
"""Roles in which it calls this node."""


class Peer(_Settings):
    """One remote application entity. Whoever is none of them does not get in.

    Attributes:
        ae_title: what it calls itself, and what it is called when we call.
        address: where its associations come from.
        host: where we call it.
        port: where we call it.
        tls: call it with TLS.
        certificates: SHA-256 fingerprints of those that it may show, when it calls and when it is
            called; two while it changes from one to the next. Without any, every certificate of
            `receiver.tls.ca` opens, and the one that it shows when it is called must name `host`.
        associations: over how many at a time results go to it, when there is work for so many.
        window: how many C-STOREs may wait for their answers in each of them. The peer is asked for
            this asynchronous operations window (PS3.7 section D.3.3.3); one that does not grant it
            gets one at a time.
        keep_open: an association is released when nothing has gone over it for so long.
        commitment: how a peer that takes results is asked whether it keeps them, which then has to
            be so before they are deleted here. `storage_commitment`: by N-ACTION (PS3.4 annex J);
            it may call back with its report. `query`: by C-FIND.
        roles: `receive` lets it store here, `echo` lets it verify here (a receiver may anyway),
            `send` lets us store there, `query` lets us ask there, `notify` lets it tell of studies:
            performed procedure steps (MPPS) and Instance Availability Notifications.
    """

    ae_title: AETitle
    address: Network | None = None
    host: str | None = Field(default=None, pattern=r"^[A-Za-z0-9.:-]{1,253}$")
    port: Annotated[int, Field(ge=1, le=65535)] | None = None
    tls: bool = False
    certificates: tuple[Fingerprint, ...] = ()
    associations: Annotated[int, Field(ge=1, le=_MOST_ASSOCIATIONS)] = 1
    window: Annotated[int, Field(ge=1, le=_MOST_OPERATIONS)] = 1
    keep_open: Duration = timedelta(seconds=10)
    commitment: Literal["storage_commitment", "query", "none"] = "none"
    roles: frozenset[PeerRole] = Field(min_length=1)

    @model_validator(mode="after")
    def _can_play_its_roles(self) -> Self:
        if self.roles & _CALLING and self.address is None:
            raise ValueError("address, because its roles let it call this node")
        if self.roles & {"send", "query"} and (self.host is None or self.port is None):
            raise ValueError("host and port, because its roles let this node call it")
        if self.commitment != "none" and "send" not in self.roles:
            raise ValueError("the role send, because it is asked for a commitment to what it gets")
        if self.commitment == "storage_commitment" and self.address is None:
            raise ValueError("address, because its commitment may come over a call of its own")
        if self.commitment == "query" and "query" not in self.roles:
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
        if self.certificates and self.roles & {"send", "query"} and not self.tls:
            raise ValueError("tls: true, because it shows no certificate without")
        return self

    @property
    def may_call(self) -> bool:
        """Whether it may ask this node for an association."""
        return bool(self.roles & _CALLING) or self.commitment == "storage_commitment"


class Assembly(_Settings):
    """When a study is judged.

    Attributes:
        quiet_period: nothing new came for so long, and nobody is still sending.
        early_period: the same, for a study that lacks one contrast and holds all that this one is
            made of.
        steps_within: a study is kept open for so long after its last instance or notice, where a
            peer tells that a step of it is in progress, or lists instances that have not come.
        stale_association: a sender that gave no sign of life for so long counts as gone.
        sweep_every: how often it is looked at.
    """

    quiet_period: Duration = timedelta(seconds=60)
    early_period: Duration = timedelta(seconds=20)
    steps_within: Duration = timedelta(minutes=20)
    stale_association: Duration = timedelta(seconds=90)
    sweep_every: Duration = timedelta(seconds=5)


class Query(_Settings):
    """How peers are asked whether something is really missing, where a rule wants to know.

    Attributes:
        enabled: false asks nobody, whatever rules say; for trying things out without a PACS.
        answer: for all answers to one query.
        move: for one series to be sent here.
        pause: before each request, so that the peer has no load of it.
        first_retry: after a peer did not answer; each further pause is twice the one before. Also
            the time that something which was fetched has to come.
        longest_retry: no pause is longer.
        patience: after so long without an answer the rule says what follows.
        rounds: so often what is there and not here is fetched.
        sweep_every: how often it is looked for what is to be asked.
    """

    enabled: bool = True
    answer: Duration = timedelta(seconds=60)
    move: Duration = timedelta(minutes=10)
    pause: Duration = timedelta(milliseconds=100)
    first_retry: Duration = timedelta(seconds=10)
    longest_retry: Duration = timedelta(minutes=2)
    patience: Duration = timedelta(minutes=10)
    rounds: Count = 3
    sweep_every: Duration = timedelta(seconds=2)


class Dispatch(_Settings):
    """How jobs get to workers.

    Attributes:
        lease: a worker that is silent for so long has lost its job.
        attempts: a job that has lost so many workers fails, and a person must look.
        sweep_every: how often jobs are handed out.
    """

    lease: Duration = timedelta(minutes=10)
    attempts: Count = 3
    sweep_every: Duration = timedelta(seconds=2)


class Delivery(_Settings):
    """How results get to peers.

    Attributes:
        first_retry: after the first failure; each further pause is twice the one before.
        longest_retry: no pause is longer.
        jitter: part of a pause by which it is varied at random, 0 to 1.
        alarm_after: so many associations in a row that came to nothing are told as an error.
        give_up_after: what fails then is parked for a person; nothing is deleted.
        report_within: a peer that has not said for so long what it keeps is asked again.
        sweep_every: how often it is tried.
    """

    first_retry: Duration = timedelta(seconds=30)
    longest_retry: Duration = timedelta(minutes=15)
    jitter: float = Field(default=0.2, ge=0, le=1)
    alarm_after: Count = 3
    give_up_after: Duration = timedelta(hours=72)
    report_within: Duration = timedelta(hours=1)
    sweep_every: Duration = timedelta(seconds=5)


class Retention(_Settings):
    """How long bytes are kept; rows and events are kept for good.

    Attributes:
        received: after the last instance of the study came, and nothing is left to do with it.
        derived: after the job was over and every peer has its result.
        sweep_every: how often it is looked at.
    """

    received: Duration = timedelta(days=7)
    derived: Duration = timedelta(days=30)
    sweep_every: Duration = timedelta(hours=1)


class SQLiteLedger(_Settings):
    """The ledger as a file in the data folder, for workers on this machine.

    Attributes:
        kind: `sqlite`.
    """

    kind: Literal["sqlite"] = "sqlite"


class PostgreSQLLedger(_Settings):
    """The ledger as a database of a PostgreSQL server, for workers on many machines.

    Attributes:
        kind: `postgresql`.
        dsn_env: name of the environment variable that says where it is. Its value is
            `postgresql://user:password@host:port/database`, with the parameters of libpq; beyond
            this machine it is called with sslmode=verify-full, unless the parameters say otherwise.
    """

    kind: Literal["postgresql"]
    dsn_env: Annotated[str, Field(pattern=r"^[A-Z_][A-Z0-9_]*$")]

    @model_validator(mode="before")
    @classmethod
    def _holds_no_secret(cls, given: Any) -> Any:
        values = [each for each in given.values() if isinstance(each, str)]
        if any("://" in each for each in values):
            raise ValueError(
                "dsn_env with the NAME of the environment variable that holds the address, "
                "because no secret may be in this file"
            )
        return given

    def read_url(self) -> str:
        """Return the address, as `Ledger` wants it.

        Raises:
            ConfigurationError: the environment does not say it, or says something else.
        """
        dsn = os.environ.get(self.dsn_env, "")
        address = urlsplit(dsn)
        if address.scheme != "postgresql":
            raise ConfigurationError(
                f"{NODE_FILE}: ledger.dsn_env : seen no address of a database in the environment "
                f"variable {self.dsn_env}, wanted postgresql://user:password@host:port/database"
            )
        if _is_here(address.hostname or "") or "sslmode" in parse_qs(address.query):
            return dsn
        query = "&".join(filter(None, (address.query, "sslmode=verify-full")))
        return urlunsplit(address._replace(query=query))


class EmbeddedExecutor(_Settings):
    """Jobs run in worker processes on this machine, which the node starts and ends.

    Attributes:
        kind: `embedded`.
        workers: how many jobs run at once.
    """

    kind: Literal["embedded"] = "embedded"
    workers: Count = 1


class DaskExecutor(_Settings):
    """Jobs run on the workers of a Dask scheduler, on any machine; the ledger is in PostgreSQL.

    Attributes:
        kind: `dask`.
        scheduler: its address, `tls://host:8786`; `tcp://` is for this machine alone.
        workers: the most jobs that run at once; fewer do while fewer workers are there.
        resources: what a job takes of its worker, as the worker offers it: `{GPU: 1}`.
        tls: certificate and key that the scheduler lets in, and the authority that signs nothing
            but the certificates of this cluster: whoever has one of them may run code in it.
    """

    kind: Literal["dask"]
    scheduler: Annotated[str, Field(pattern=r"^(tls|tcp)://[A-Za-z0-9.\[\]:-]+:[0-9]{1,5}$")]
    workers: Count = 64
    resources: Mapping[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    tls: TLS | None = None

    @model_validator(mode="after")
    def _is_encrypted(self) -> Self:
        address = urlsplit(self.scheduler)
        if address.scheme == "tls" and self.tls is None:
            raise ValueError("tls, because its scheduler is called with TLS")
        if address.scheme == "tcp" and not _is_here(address.hostname or ""):
            raise ValueError("a scheduler with tls://, because it is on another machine")
        if address.scheme == "tcp" and self.tls is not None:
            raise ValueError("a scheduler with tls://, because there is a tls")
        return self


def _find_kind(default: str) -> Discriminator:
    def find(given: Any) -> str:
        if isinstance(given, Mapping):
            return str(given.get("kind", default))
        return str(getattr(given, "kind", default))

    return Discriminator(find)


LedgerSettings = Annotated[
    Annotated[SQLiteLedger, Tag("sqlite")] | Annotated[PostgreSQLLedger, Tag("postgresql")],
    _find_kind("sqlite"),
]
ExecutorSettings = Annotated[
    Annotated[EmbeddedExecutor, Tag("embedded")] | Annotated[DaskExecutor, Tag("dask")],
    _find_kind("embedded"),
]


class Web(_Settings):
    """Where /healthz and /metrics are answered: counts and states, in plain HTTP.

    Attributes:
        host: address to listen on.
        port: 0 is any free one.
        allow_plain: needed for any address that other machines can reach.
    """

    host: Address = "127.0.0.1"
    port: Port = 8080
    allow_plain: bool = False

    @model_validator(mode="after")
    def _is_not_open_to_all(self) -> Self:
        if not ipaddress.ip_address(self.host).is_loopback and not self.allow_plain:
            raise ValueError(
                f"allow_plain: true, because {self.host} can be reached from other machines"
            )
        return self


class NodeSettings(_Settings):
    """node.yaml.

    Attributes:
        ae_title: what this node calls itself.
        installation: UUID under which derived UIDs are made; None keeps one in the data folder.
        data_folder: received and derived files and the ledger, on a disk of this machine.
        models_folder: the models that may be used.
        receiver: the door.
        peers: by alias, the short name that rules and logs use.
        assembly: when a study is judged.
        query: how peers are asked whether something is really missing.
        dispatch: how jobs get to workers.
        delivery: how results get to peers.
        retention: how long files are kept.
        ledger: where the record of everything is.
        executor: where jobs run.
        web: where the node tells how it is.
    """

    ae_title: AETitle
    installation: UUID | None = None
    data_folder: Path
    models_folder: Path
    receiver: Receiver
    peers: Mapping[Alias, Peer] = Field(default_factory=dict)
    assembly: Assembly = Assembly()
    query: Query = Query()
    dispatch: Dispatch = Dispatch()
    delivery: Delivery = Delivery()
    retention: Retention = Retention()
    ledger: LedgerSettings = SQLiteLedger()
    executor: ExecutorSettings = EmbeddedExecutor()
    web: Web = Web()

    @field_validator("peers")
    @classmethod
    def _can_be_told_apart(cls, peers: Mapping[str, Peer]) -> Mapping[str, Peer]:
        callers = [(alias, peer, peer.address) for alias, peer in peers.items()]
        for index, (alias, peer, address) in enumerate(callers):
            for other, twin, place in callers[:index]:
                same = address is not None and place is not None and _overlap(address, place)
                if same and peer.ae_title == twin.ae_title:
                    raise ValueError(f"{other} and {alias} with another AE title or address")
        return peers

    @model_validator(mode="after")
    def _has_a_certificate(self) -> Self:
        for alias, peer in self.peers.items():
            if peer.tls and self.receiver.tls is None:
                raise ValueError(f"receiver.tls, because peers.{alias} is called with TLS")
            if peer.certificates and self.receiver.tls is None:
                raise ValueError(f"receiver.tls, because peers.{alias} has to show a certificate")
        return self

    @model_validator(mode="after")
    def _workers_reach_the_ledger(self) -> Self:
        if self.executor.kind == "dask" and self.ledger.kind == "sqlite":
            raise ValueError("ledger.kind: postgresql, because workers of Dask cannot share a file")
        return self

    @property
    def store_folder(self) -> Path:
        """Where received and derived files are."""
        return self.data_folder / "store"

    @property
    def ledger_url(self) -> str:
        """The ledger, as `Ledger` wants it.

        Raises:
            ConfigurationError: the environment does not say where it is.
        """
        if isinstance(self.ledger, PostgreSQLLedger):
            return self.ledger.read_url()
        return f"sqlite:///{self.data_folder / 'ledger.sqlite'}"


def read_node(folder: Path, overrides: Sequence[str] = ()) -> NodeSettings:
    """Read node.yaml alone, as `settings.load` does.

    Raises:
        ConfigurationError: one line for each mistake: file, key, what was seen, what is wanted.
    """
    return parse_node(read_file(folder / NODE_FILE), folder, overrides)


def parse_node(text: bytes, folder: Path, overrides: Sequence[str] = ()) -> NodeSettings:
    """Return the settings in the text of node.yaml; its relative paths start at `folder`.

    Each override is `dotted.key=value`, the value in YAML.

    Raises:
        ConfigurationError: one line for each mistake.
    """
    document = read_document(text, NODE_FILE)
    for each in overrides:
        key, equals, value = each.partition("=")
        if not equals or not key:
            raise ConfigurationError(f"override: seen {each!r}, wanted key=value")
        document.override(key, value)
    return _locate(document.check(NodeSettings), folder.resolve())


def _locate(node: NodeSettings, folder: Path) -> NodeSettings:
    """Return `node` with every path absolute; what was relative starts at `folder`."""
    executor = node.executor
    if isinstance(executor, DaskExecutor):
        executor = executor.model_copy(update={"tls": _locate_tls(executor.tls, folder)})
    tls = _locate_tls(node.receiver.tls, folder)
    return node.model_copy(
        update={
            "data_folder": (folder / node.data_folder).resolve(),
            "models_folder": (folder / node.models_folder).resolve(),
            "receiver": node.receiver.model_copy(update={"tls": tls}),
            "executor": executor,
        }
    )


def _locate_tls(tls: TLS | None, folder: Path) -> TLS | None:
    return tls and TLS(**{name: (folder / path).resolve() for name, path in tls})


def _is_everywhere(network: IPNetwork) -> bool:
    return network.prefixlen < _WIDEST[network.version]


def _is_here(host: str) -> bool:
    """Say whether a host is this machine by its name: then nobody can listen on the way."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host in {"", "localhost"}


def _overlap(one: IPNetwork, other: IPNetwork) -> bool:
    return one.version == other.version and one.overlaps(other)
