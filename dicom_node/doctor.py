"""What may keep this node from its work, tried out, from the disk and the ledger to the models.

Each check does the real thing: an echo and a negotiation with every peer that we call, a handshake
with our own certificate, a forward pass of every model. Beside the findings stand the lines that an
admin enters at the PACS.
"""

import ctypes
import json
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from http import HTTPStatus
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydicom.uid import KeyObjectSelectionDocumentStorage

from dicom_node.commitment import STORAGE_COMMITMENT
from dicom_node.dicomweb import JSON, Service
from dicom_node.domain import Mode
from dicom_node.door_settings import Peer, is_here
from dicom_node.errors import ConfigurationError, DeliveryError, StorageError, WorkerLost
from dicom_node.executors import JobExecutor, call
from dicom_node.ledger import REJECTED, Ledger
from dicom_node.network import (
    STUDY_ROOT_FIND,
    VERIFICATION,
    normalize_address,
    open_association,
)
from dicom_node.node_settings import NodeSettings
from dicom_node.performer import find_station, find_worklists
from dicom_node.rules import ROUTING_FILE
from dicom_node.settings import Configuration
from dicom_node.statement import find_sent_classes
from dicom_node.tls import WARNINGS, ClientSide, call_with_tls, check_own_chain, inspect_own
from dicom_node.worklist import UPS_PULL
from synthesis.errors import UntrustedModel
from synthesis.registry import load_cards

TRIAL = "dicom_node.trial:run"
TRIAL_LIMIT = timedelta(minutes=5)

LOW_DISK_BYTES = 20 * 1024**3
"""A busy scanner fills this in a day or two (reliability catalogue, row E3)."""

CALL_SECONDS = 10.0
"""How long a peer may take to show its certificate."""

_WITHDRAWAL = str(KeyObjectSelectionDocumentStorage)
_CLOCK_ERROR = 5  # TIME_ERROR of adjtimex(2): the clock is not synchronized
_TIMEX_BYTES = 1024  # more than struct timex has on any platform
_SUCCESS = 0
_LONGEST_LIST = 16 * 1024**2  # bytes; a service may list more than it is asked for


class State(StrEnum):
    """How a check went."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one check found."""

    check: str
    state: State
    detail: str


_COMMITMENT: Mapping[str, Mapping[str, str]] = {
    "none": {},
    "query": {"StudyRootQueryRetrieveInformationModelFind": STUDY_ROOT_FIND},
    "storage_commitment": {"StorageCommitmentPushModel": STORAGE_COMMITMENT},
}
"""How a peer is asked whether it keeps what it took, to what it must offer for that."""

Check = Callable[[Configuration], Iterator[Finding]]


def examine(configuration: Configuration, executor: JobExecutor) -> Iterator[Finding]:
    """Yield what each check finds, as it finds it.

    Args:
        configuration: what the node runs with.
        executor: whose workers try the models.
    """
    checks: tuple[Check, ...] = (
        *(_check_disk, _check_clock, _check_ledger, _check_tls),
        *(_check_identities, _check_addresses, _check_door, _check_heard, _check_peers),
        _check_audit,
    )
    for check in checks:
        yield from check(configuration)
    yield from _check_executor(executor)
    yield from _check_models(configuration, executor)


def as_document(findings: list[Finding], configuration: Configuration) -> dict[str, Any]:
    """Return findings and the lines for the PACS as JSON types."""
    return {
        "findings": [asdict(each) for each in findings],
        "enter_at_pacs": list(describe_for_pacs(configuration.node)),
    }


def describe_for_pacs(node: NodeSettings) -> Iterator[str]:
    """Yield what an admin enters at the PACS so that it knows this node."""
    host, port = node.receiver.host, node.receiver.port
    if ip_address(host).is_unspecified:
        host = socket.gethostname()
    tls = node.receiver.tls is not None
    yield f"AE title {node.ae_title}, host {host}, port {port}, {'TLS' if tls else 'no TLS'}"
    yield "send it studies by C-STORE, and let it store (and echo) at the PACS under that AE title"
    if any(peer.commitment == "storage_commitment" for peer in node.peers.values()):
        yield "let it send its storage commitment reports to the same AE title, host and port"
    for alias in find_worklists(node):
        station = find_station(node)
        codes = " ".join(f"({each.value}, {each.scheme})" for each in node.steps.workitems)
        yield (
            f"{alias}: let it find, read, claim and change Unified Procedure Steps of the workitem "
            f"{codes}, for the station ({station.value}, {station.scheme}) or for any"
        )
    # Both forms are Orthanc's; only the second one can say TLS.
    modality: Any = [node.ae_title, host, port]
    if tls:
        modality = {"AET": node.ae_title, "Host": host, "Port": port, "UseDicomTls": True}
    yield f'Orthanc: "DicomModalities": {{"node": {json.dumps(modality)}}}'
    yield (
        f"dcm4chee: Configuration, AE list, new AET: AE title {node.ae_title}, hostname {host}, "
        f"port {port}{', with a TLS cipher suite' if tls else ''}"
    )
    yield f"DCMTK, HostTable of dcmqrscp.cfg: node = ({node.ae_title}, {host}, {port})"
    options = "+tls KEY CERTIFICATE +cf AUTHORITY " if tls else ""
    for alias, peer in node.peers.items():
        if peer.may_call:
            titles = f"-aet {peer.ae_title} -aec {node.ae_title}"
            yield f"tried from {alias} with DCMTK: echoscu {options}{titles} {host} {port}"


def _check_disk(configuration: Configuration) -> Iterator[Finding]:
    folder = configuration.node.data_folder
    existing = next(each for each in (folder, *folder.parents) if each.is_dir())
    free = shutil.disk_usage(existing).free
    yield Finding(
        check="disk",
        state=State.OK if free >= LOW_DISK_BYTES else State.WARNING,
        detail=f"{free / 1024**3:.1f} GiB are free for {folder}",
    )


def _check_clock(_: Configuration) -> Iterator[Finding]:
    """Ask the kernel whether something keeps the clock right."""
    answer = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES))
    if answer == _CLOCK_ERROR:
        yield Finding(check="clock", state=State.WARNING, detail="nothing keeps it synchronized")
    elif answer < 0:
        yield Finding(check="clock", state=State.WARNING, detail="the kernel does not tell")
    else:
        yield Finding(check="clock", state=State.OK, detail="synchronized")


def _check_ledger(configuration: Configuration) -> Iterator[Finding]:
    if not configuration.node.data_folder.exists():
        detail = "there is none yet; the first start makes it"
        yield Finding(check="ledger", state=State.OK, detail=detail)
        return
    try:
        with Ledger(configuration.node.ledger_url, lambda: datetime.now(UTC)).open(
            create=False
        ) as ledger:
            counts = ledger.counts()
    except (ConfigurationError, StorageError) as error:
        yield Finding(check="ledger", state=State.FAILED, detail=str(error))
        return
    held = counts["studies.held"] - counts.get(f"holds.{REJECTED}", 0)
    waiting = counts["jobs.held"] + counts["jobs.failed"] + held
    yield Finding(
        check="ledger",
        state=State.OK,
        detail=f"{counts['instances']} instances; {waiting} jobs and studies wait for a person",
    )


def _check_tls(configuration: Configuration) -> Iterator[Finding]:
    tls = configuration.node.receiver.tls
    if tls is None:
        return
    try:
        check_own_chain(tls)
        own = inspect_own(tls)
    except ConfigurationError as error:
        yield Finding(check="tls", state=State.FAILED, detail=str(error))
        return
    left = own.expires - datetime.now(UTC)
    yield Finding(
        check="tls",
        state=State.OK if left > max(WARNINGS) else State.WARNING,
        detail=(
            f"certificate, key and authority fit; {left.days} days are left; "
            f"fingerprint {own.fingerprint}"
        ),
    )


def _check_identities(configuration: Configuration) -> Iterator[Finding]:
    """Tell of peers that are known by little, or talked to where others can read along."""
    node = configuration.node
    for alias, peer in node.peers.items():
        if node.receiver.tls and peer.may_call and not peer.certificates:
            detail = (
                "any certificate of receiver.tls.ca opens for its AE title and address: name its "
                f"own in peers.{alias}.certificates"
            )
            yield Finding(check=f"identity {alias}", state=State.WARNING, detail=detail)
        host, is_secure = peer.host, peer.tls
        if peer.dicomweb is not None:
            host, is_secure = urlsplit(peer.dicomweb.url).hostname, peer.dicomweb.is_secure
        if host is not None and not is_secure and not is_here(host):
            detail = f"it is called without TLS: whoever is on the way to {host} reads along"
            yield Finding(check=f"secrecy {alias}", state=State.WARNING, detail=detail)


def _check_door(configuration: Configuration) -> Iterator[Finding]:
    """Call our own receiver as a peer on this machine would."""
    node = configuration.node
    host = ip_address(node.receiver.host)
    local = ip_address("::1" if host.version == 6 else "127.0.0.1")  # noqa: PLR2004
    callers = (
        peer
        for peer in node.peers.values()
        if peer.may_call and peer.address and local in peer.address
    )
    # Our own certificate opens where a peer is not known by another.
    caller = next((peer for peer in callers if not peer.certificates), None)
    if caller is None:
        return
    try:
        with open_association(
            str(local if host.is_unspecified else host),
            node.receiver.port,
            called_ae_title=node.ae_title,
            calling_ae_title=caller.ae_title or "",
            sop_classes=[VERIFICATION],
            tls=_call_ourselves(node),
        ) as association:
            association.echo()
    except DeliveryError as error:
        detail = f"the node does not answer on port {node.receiver.port} ({error}): is it running?"
        yield Finding(check="door", state=State.WARNING, detail=detail)
    else:
        detail = f"the node answers an echo on port {node.receiver.port}"
        yield Finding(check="door", state=State.OK, detail=detail)


def _call_ourselves(node: NodeSettings) -> ClientSide | None:
    """Return how we call our own door with TLS, or None when it is plain.

    Raises:
        DeliveryError: the files cannot be used.
    """
    tls = node.receiver.tls
    if tls is None:
        return None
    try:
        return ClientSide(tls, [inspect_own(tls).fingerprint])
    except ConfigurationError as error:
        raise DeliveryError(str(error), retry=True) from None


def _check_addresses(configuration: Configuration) -> Iterator[Finding]:
    """Tell of hosts that have no address, and of peers that cannot call from where they are."""
    for alias, peer in configuration.node.peers.items():
        if peer.host is None:
            continue
        try:
            found = socket.getaddrinfo(peer.host, peer.port, type=socket.SOCK_STREAM)
        except OSError:
            detail = f"the host {peer.host} has no address: enter one, or see to the DNS"
            yield Finding(check=f"address {alias}", state=State.FAILED, detail=detail)
            continue
        addresses = {normalize_address(str(each[4][0])) for each in found}
        network = peer.address
        if peer.may_call and network and not any(each in network for each in addresses):
            here = ", ".join(sorted(map(str, addresses)))
            detail = f"its host is {here}, and it may call from {network} only: is that right?"
            yield Finding(check=f"address {alias}", state=State.WARNING, detail=detail)


def _check_heard(configuration: Configuration) -> Iterator[Finding]:
    """Tell when each peer that may has stored here: whether its way to us works."""
    node = configuration.node
    if not node.data_folder.exists():
        return
    try:
        with Ledger(node.ledger_url, lambda: datetime.now(UTC)).open(create=False) as ledger:
            heard = ledger.find_last_received()
    except (ConfigurationError, StorageError):
        return  # which `_check_ledger` tells
    for alias, peer in node.peers.items():
        if "receive" not in peer.roles:
            continue
        at = heard.get(alias)
        detail = "has not stored anything here: enter the node there, and let it echo and send"
        if at is not None:
            detail = f"stored here last at {at:%Y-%m-%d %H:%M} UTC"
        state = State.WARNING if at is None else State.OK
        yield Finding(check=f"heard {alias}", state=state, detail=detail)


def _check_peers(configuration: Configuration) -> Iterator[Finding]:
    node = configuration.node
    classes = find_sent_classes(configuration)
    for alias, peer in node.peers.items():
        if peer.dicomweb is not None:
            yield _call_service(alias, peer)
        elif peer.roles & {"send", "query", "worklist"}:
            sent = {**classes, **_COMMITMENT[peer.commitment]} if "send" in peer.roles else {}
            offered = {"UnifiedProcedureStepPull": UPS_PULL} if "worklist" in peer.roles else {}
            try:
                yield from _look_at_certificate(node, alias, peer)
                yield from _call(node, alias, peer, sent, offered)
            except DeliveryError as error:
                where = f"{peer.ae_title} at {peer.host} port {peer.port}"
                detail = f"{where}: {error}"
                yield Finding(check=f"peer {alias}", state=State.FAILED, detail=detail)


def _call_service(alias: str, peer: Peer) -> Finding:
    """Let a DICOMweb service list one study: nothing else shows without a trace that it answers."""
    check = f"peer {alias}"
    where = "" if peer.dicomweb is None else peer.dicomweb.url
    try:
        with closing(Service(alias, peer)) as service:
            answer = service.ask("GET", "/studies?limit=1", accept=JSON, longest=_LONGEST_LIST)
    except DeliveryError as error:
        return Finding(check=check, state=State.FAILED, detail=f"{where}: {error}")
    if answer.status >= HTTPStatus.MULTIPLE_CHOICES:
        detail = f"{where}: answers a search with HTTP {answer.status}"
        return Finding(check=check, state=State.WARNING, detail=detail)
    return Finding(check=check, state=State.OK, detail="its DICOMweb service answers a search")


def _call(
    node: NodeSettings, alias: str, peer: Peer, sent: dict[str, str], offered: dict[str, str]
) -> Iterator[Finding]:
    """Echo a peer, and see which of the classes it takes that it will be sent or must offer."""
    named = {**sent, **offered}
    wanted = [VERIFICATION, *named.values()]
    with open_association(
        str(peer.host),
        int(peer.port or 0),
        called_ae_title=peer.ae_title or "",
        calling_ae_title=node.ae_title,
        sop_classes=[*wanted, *([_WITHDRAWAL] if sent else [])],
        tls=call_with_tls(node, peer),
    ) as association:
        status = association.echo()
        refused = [name for name, uid in named.items() if association.find_context(uid) is None]
        can_withdraw = not sent or association.find_context(_WITHDRAWAL) is not None
    state, detail = State.FAILED, f"answers an echo with 0x{status:04X}"
    if status == _SUCCESS and refused:
        detail = f"echoes, and does not take {', '.join(refused)}: allow them at {peer.ae_title}"
    elif status == _SUCCESS:
        state, detail = State.OK, f"echoes{' and takes ' if named else ''}{', '.join(named)}"
    yield Finding(check=f"peer {alias}", state=state, detail=detail)
    if not can_withdraw:
        detail = (
            "does not take KeyObjectSelectionDocumentStorage: it will not learn that a result is "
            "withdrawn"
        )
        yield Finding(check=f"withdrawal {alias}", state=State.WARNING, detail=detail)


def _look_at_certificate(node: NodeSettings, alias: str, peer: Peer) -> Iterator[Finding]:
    """Tell what a peer that is called with TLS shows, to be compared and entered."""
    tls = call_with_tls(node, peer)
    if tls is None:
        return
    seen = tls.look_at(str(peer.host), int(peer.port or 0), CALL_SECONDS)
    left = seen.expires - datetime.now(UTC)
    yield Finding(
        check=f"certificate {alias}",
        state=State.OK if left > max(WARNINGS) else State.WARNING,
        detail=f"{left.days} days are left; fingerprint {seen.fingerprint}",
    )


def _check_audit(configuration: Configuration) -> Iterator[Finding]:
    """Call the audit record repository, and end without a word."""
    audit = configuration.node.audit
    if audit is None:
        return
    try:
        tls = ClientSide(audit.tls, audit.certificates, "audit.tls")
        seen = tls.look_at(audit.host, audit.port, CALL_SECONDS)
    except (ConfigurationError, DeliveryError) as error:
        detail = f"{audit.host} port {audit.port}: {error}"
        yield Finding(check="audit", state=State.FAILED, detail=detail)
        return
    left = seen.expires - datetime.now(UTC)
    yield Finding(
        check="audit",
        state=State.OK if left > max(WARNINGS) else State.WARNING,
        detail=f"answers; {left.days} days are left; fingerprint {seen.fingerprint}",
    )


def _check_executor(executor: JobExecutor) -> Iterator[Finding]:
    for problem in executor.problems():
        yield Finding(check="executor", state=State.FAILED, detail=problem)
    if places := executor.capacity():
        yield Finding(check="executor", state=State.OK, detail=f"{places} jobs may run at once")


def _check_models(configuration: Configuration, executor: JobExecutor) -> Iterator[Finding]:
    folder = configuration.node.models_folder
    try:
        cards = load_cards(folder)
    except UntrustedModel as error:
        yield Finding(check="models", state=State.FAILED, detail=str(error))
        return
    for problem in find_model_problems(configuration, {card.id for card in cards}):
        yield Finding(check="models", state=State.FAILED, detail=problem)
    if not executor.capacity():
        detail = "not tried, because there are no workers"
        yield Finding(check="models", state=State.FAILED, detail=detail)
        return
    for card in cards:
        try:
            (first, _), (again, peak_mb) = (
                _time_trial(executor, folder, card.id) for _ in range(2)
            )
        except (WorkerLost, TimeoutError) as error:
            yield Finding(check=f"model {card.id}", state=State.FAILED, detail=str(error))
        else:
            detail = f"the first answer took {first:.1f} s, the next {again:.1f} s; {peak_mb} MB"
            yield Finding(check=f"model {card.id}", state=State.OK, detail=detail)


def _time_trial(executor: JobExecutor, folder: Path, model_id: str) -> tuple[float, int]:
    """Return the seconds of one answer, of a worker that may have to start first, and its MB."""
    began = time.monotonic()
    peak_mb: int = executor.submit(call, TRIAL, folder, model_id).result(
        TRIAL_LIMIT.total_seconds()
    )
    return time.monotonic() - began, peak_mb


def find_model_problems(configuration: Configuration, models: set[str]) -> Iterator[str]:
    """Yield one line, as `settings.load` words its own, for each rule whose model is not there."""
    document = configuration.documents[ROUTING_FILE]
    wanted = ", ".join(sorted(models)) or (
        f"a model in {configuration.node.models_folder} (models_folder of node.yaml), where none is"
    )
    for k, rule in enumerate(configuration.routing.rules):
        for n, make in enumerate(rule.makes):
            unknown = [model for model in make.model if model not in models]
            if rule.mode is not Mode.OFF and unknown:
                location = ("rules", k, "makes", n, "model")
                yield document.tell(location, f"seen the model {unknown[0]!r}, wanted {wanted}")
