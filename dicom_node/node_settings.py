"""The types of node.yaml: what the node is called, how patient it is, where its parts are.

Whom it talks to stands in `door_settings`. Every number that may be wrong for a site is a setting,
and every default is safe. The receiving process reads this file and no other, so no rule, no
dictionary and no codec is imported on the way here.
"""

import ipaddress
import os
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar
from urllib.parse import parse_qs, urlsplit, urlunsplit
from uuid import UUID

from pydantic import (
    Discriminator,
    Field,
    Tag,
    field_validator,
    model_validator,
)

from dicom_node.door_settings import TLS, DICOMweb, Peer, Receiver, is_here
from dicom_node.errors import ConfigurationError
from dicom_node.strict_yaml import read_document, read_file
from dicom_node.value_types import (
    Address,
    AETitle,
    Alias,
    Count,
    Duration,
    Fingerprint,
    HostName,
    IPNetwork,
    Port,
    Strict,
)

NODE_FILE = "node.yaml"

_Files = TypeVar("_Files", TLS, "WebCertificate", DICOMweb)


class Assembly(Strict):
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


class Query(Strict):
    """How peers are asked whether something is really missing, where a rule wants to know.

    Attributes:
        enabled: false asks nobody, whatever rules say; for trying things out without a PACS.
        answer: for all answers to one query.
        move: for one series to come here.
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


class Code(Strict):
    """A coded concept (PS3.3 section 8).

    Attributes:
        value: Code Value.
        scheme: Coding Scheme Designator; a site's own begins with 99.
        meaning: Code Meaning.
    """

    value: Annotated[str, Field(pattern=r"^[!-\[\]-~]{1,16}$")]
    scheme: Annotated[str, Field(pattern=r"^[!-\[\]-~]{1,16}$")]
    meaning: Annotated[str, Field(pattern=r"^[ -\[\]-~]{1,64}$")]


class Steps(Strict):
    """How Unified Procedure Steps of peers with the role `worklist` are performed (PS3.4 annex CC).

    Attributes:
        workitems: what is claimed: steps whose Scheduled Workitem Code Sequence has one of these
            (value and scheme). Without any, nothing is.
        station: under which this node says that it has performed a step; one that is scheduled for
            other stations is left to them. None: its AE title, in a scheme of this program's own.
        at_once: so many steps are open at most; the others are left to whoever else takes them.
        patience: a step that is not done after so long is canceled, with the reason.
        sweep_every: how often worklists are asked, and told how far steps are.
    """

    workitems: tuple[Code, ...] = ()
    station: Code | None = None
    at_once: Count = 20
    patience: Duration = timedelta(hours=24)
    sweep_every: Duration = timedelta(seconds=10)


class Dispatch(Strict):
    """How jobs get to workers.

    Attributes:
        lease: a worker that is silent for so long has lost its job.
        attempts: a job that has lost so many workers fails, and a person must look.
        sweep_every: how often jobs are handed out.
        out_of_memory: what a worker does with a volume that its GPU has too little memory for, in
            smaller portions too: `cpu` lets the CPU answer, slower and in the precision of the
            model's card, `hold` leaves it to a person.
        warm: whether the models that the rules name are loaded, and answer once, in every worker as
            soon as the node starts, so that the first job does not wait for that. A model that
            cannot is an alert. Workers of Dask load them with their first job.
    """

    lease: Duration = timedelta(minutes=10)
    attempts: Count = 3
    sweep_every: Duration = timedelta(seconds=2)
    out_of_memory: Literal["cpu", "hold"] = "cpu"
    warm: bool = True


class Delivery(Strict):
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


class Retention(Strict):
    """How long bytes are kept; rows and events are kept for good.

    Attributes:
        received: after the last instance of the study came, and nothing is left to do with it.
        derived: after the job was over and every peer has its result.
        sweep_every: how often it is looked at.
    """

    received: Duration = timedelta(days=7)
    derived: Duration = timedelta(days=30)
    sweep_every: Duration = timedelta(hours=1)


class SQLiteLedger(Strict):
    """The ledger as a file in the data folder, for workers on this machine.

    Attributes:
        kind: `sqlite`.
    """

    kind: Literal["sqlite"] = "sqlite"


class PostgreSQLLedger(Strict):
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
        if is_here(address.hostname or "") or "sslmode" in parse_qs(address.query):
            return dsn
        query = "&".join(filter(None, (address.query, "sslmode=verify-full")))
        return urlunsplit(address._replace(query=query))


class EmbeddedExecutor(Strict):
    """Jobs run in worker processes on this machine, which the node starts and ends.

    Attributes:
        kind: `embedded`.
        workers: how many jobs run at once.
    """

    kind: Literal["embedded"] = "embedded"
    workers: Count = 1


class DaskExecutor(Strict):
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
        if address.scheme == "tcp" and not is_here(address.hostname or ""):
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


class Web(Strict):
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


class WebCertificate(Strict):
    """What the admin page shows a browser.

    Attributes:
        certificate: PEM file with the certificate and its chain.
        key: PEM file with the private key, without passphrase; mode 0600 and the page's own user,
            or mode 0640 and root.
    """

    certificate: Path
    key: Path


class Admin(Strict):
    """The admin page, which `dicom-node admin` serves beside the node.

    Attributes:
        host: address to listen on.
        port: 0 is any free one.
        names: under which browsers call it, beside `host`; a request for any other is refused.
            Only localhost needs no entry.
        tls: certificate and key; needed for any address that other machines can reach.
        idle: a person who does nothing for so long has to log in again.
        longest: so long after logging in, too, whatever the person does.
        attempts: so many wrong passwords in a row lock an account, four times as many an address.
        lock: for so long.
        patient_names: operators and admins see whose study it is; each look is kept in the ledger.
    """

    host: Address = "127.0.0.1"
    port: Port = 8090
    names: tuple[HostName, ...] = ()
    tls: WebCertificate | None = None
    idle: Duration = timedelta(minutes=15)
    longest: Duration = timedelta(hours=8)
    attempts: Count = 5
    lock: Duration = timedelta(minutes=5)
    patient_names: bool = False

    @model_validator(mode="after")
    def _is_not_overheard(self) -> Self:
        if not ipaddress.ip_address(self.host).is_loopback and self.tls is None:
            raise ValueError(
                f"tls, because {self.host} can be reached from other machines and passwords go "
                "over the connection"
            )
        return self


class Audit(Strict):
    """Where DICOM audit messages go (PS3.15 sections A.5 and A.6): syslog over TLS.

    Attributes:
        host: the audit record repository, as its certificate names it.
        port: 6514 is that of syslog over TLS.
        tls: certificate and key that the node shows there, and the authority of the repository.
        certificates: SHA-256 fingerprints of those that it may show; without any, the one that it
            shows must name `host`.
        patient: what a message says of whose study it is. `pseudonym`: the same one for the same
            patient, from which nobody gets back to the Patient ID; `identifier`: the Patient ID
            itself, as PS3.15 asks for; `none`: nothing.
        first_retry: after the first failure; each further pause is twice the one before.
        longest_retry: no pause is longer.
        sweep_every: how often what has happened is told.
    """

    host: Annotated[str, Field(pattern=r"^[A-Za-z0-9.:-]{1,253}$")]
    port: Annotated[int, Field(ge=1, le=65535)] = 6514
    tls: TLS
    certificates: tuple[Fingerprint, ...] = ()
    patient: Literal["pseudonym", "identifier", "none"] = "pseudonym"
    first_retry: Duration = timedelta(seconds=10)
    longest_retry: Duration = timedelta(minutes=5)
    sweep_every: Duration = timedelta(seconds=5)


class NodeSettings(Strict):
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
        steps: how Unified Procedure Steps of a worklist are performed.
        dispatch: how jobs get to workers.
        delivery: how results get to peers.
        retention: how long files are kept.
        ledger: where the record of everything is.
        executor: where jobs run.
        web: where the node tells how it is.
        admin: the page on which people watch the node and decide.
        audit: where audit messages go; None sends none.
    """

    ae_title: AETitle
    installation: UUID | None = None
    data_folder: Path
    models_folder: Path
    receiver: Receiver
    peers: Mapping[Alias, Peer] = Field(default_factory=dict)
    assembly: Assembly = Assembly()
    query: Query = Query()
    steps: Steps = Steps()
    dispatch: Dispatch = Dispatch()
    delivery: Delivery = Delivery()
    retention: Retention = Retention()
    ledger: LedgerSettings = SQLiteLedger()
    executor: ExecutorSettings = EmbeddedExecutor()
    web: Web = Web()
    admin: Admin = Admin()
    audit: Audit | None = None

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
    def _knows_what_to_claim(self) -> Self:
        has_worklist = any("worklist" in peer.roles for peer in self.peers.values())
        if has_worklist and not self.steps.workitems:
            raise ValueError("steps.workitems, because there is a peer with the role worklist")
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
        executor = executor.model_copy(update={"tls": _locate_files(executor.tls, folder)})
    tls = _locate_files(node.receiver.tls, folder)
    shown = _locate_files(node.admin.tls, folder)
    peers = {
        alias: peer.model_copy(update={"dicomweb": _locate_files(peer.dicomweb, folder)})
        for alias, peer in node.peers.items()
    }
    audit = node.audit
    if audit is not None:
        audit = audit.model_copy(update={"tls": _locate_files(audit.tls, folder)})
    return node.model_copy(
        update={
            "data_folder": (folder / node.data_folder).resolve(),
            "models_folder": (folder / node.models_folder).resolve(),
            "receiver": node.receiver.model_copy(update={"tls": tls}),
            "executor": executor,
            "admin": node.admin.model_copy(update={"tls": shown}),
            "audit": audit,
            "peers": peers,
        }
    )


def _locate_files(files: _Files | None, folder: Path) -> _Files | None:
    """Return settings whose paths are absolute."""
    return files and files.model_copy(
        update={
            name: (folder / value).resolve() for name, value in files if isinstance(value, Path)
        }
    )


def _overlap(one: IPNetwork, other: IPNetwork) -> bool:
    return one.version == other.version and one.overlaps(other)
