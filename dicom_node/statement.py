"""The DICOM Conformance Statement of this node (PS3.2), made of its configuration.

`describe` says in tables what is accepted of whom and proposed to whom, from the functions that
negotiate; `write` puts them into `statement.md`, the chapters that readers of such statements know.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

from pydicom.uid import (
    UID,
    Comprehensive3DSRStorage,
    KeyObjectSelectionDocumentStorage,
    ParametricMapStorage,
)

from dicom_node import __version__
from dicom_node.acceptor import offer_contexts
from dicom_node.association import ANNOUNCED_BYTES
from dicom_node.audit_messages import MESSAGES
from dicom_node.commitment import STORAGE_COMMITMENT
from dicom_node.courier import find_contexts
from dicom_node.dimse_conversation import STUDY_ROOT_MOVE
from dicom_node.domain import Mode
from dicom_node.door_settings import Peer
from dicom_node.entrance import find_callers, find_storage
from dicom_node.exposures import EXPOSURE_CLASSES
from dicom_node.identifiers import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from dicom_node.images import SOP_CLASSES
from dicom_node.network import (
    EXPLICIT_VR_LITTLE_ENDIAN,
    STUDY_ROOT_FIND,
    UNCOMPRESSED,
    VERIFICATION,
)
from dicom_node.node_settings import NodeSettings
from dicom_node.outcomes import judge_status
from dicom_node.performer import find_worklists
from dicom_node.query import find_asked
from dicom_node.recorder import OVERLOADED, PROCESSING_FAILURE, UNWELL
from dicom_node.services import NO_SUCH_SOP_CLASS, UNRECOGNIZED_OPERATION
from dicom_node.settings import Configuration
from dicom_node.structure import (
    INVALID_INSTANCE,
    MISMATCH,
    NO_DATA_SET,
    OVER_A_LIMIT,
    TRUNCATED,
    UNDECODABLE,
)
from dicom_node.tls import CIPHERS
from dicom_node.upper_layer import APPLICATION_CONTEXT
from dicom_node.wado import AS_IT_IS_STORED
from dicom_node.worklist import UPS_PULL

_OUT_OF_DISK = 0xA700
_STORE_ANSWERS: Mapping[int, str] = {
    0x0000: "it is durable, as `receiver.durability` says",
    _OUT_OF_DISK: "the disk cannot keep it",
    UNWELL: "the ledger does not answer",
    OVERLOADED: "the ledger is behind",
    PROCESSING_FAILURE: "it could not be processed",
    INVALID_INSTANCE: "a UID is missing or malformed",
    NO_SUCH_SOP_CLASS: "the SOP class of the command is not that of the context",
    UNRECOGNIZED_OPERATION: "the operation is not one of this SOP class",
    MISMATCH: "command and data set name another SOP class or instance",
    NO_DATA_SET: "there is no data set",
    UNDECODABLE: "the data set cannot be decoded",
    TRUNCATED: "the data set ends too early, or a length is wrong",
    OVER_A_LIMIT: "it is larger or deeper than `receiver.limits` allows",
}
_ASSUMED_STATUSES = (
    *(0x0000, 0x0107, 0x0110, 0x0111, 0x0116, 0x0117, 0x0118, 0x0122, 0x0124, 0x0210, 0x0211),
    *(0x0213, 0xA700, 0xA900, 0xB000, 0xB006, 0xB007, 0xC000),
)
_REJECTIONS = (
    ("1", "1", "7", "the called AE title is another"),
    ("1", "1", "3", "nobody is known by this calling AE title, address and certificate"),
    ("1", "1", "2", "the application context is not that of DICOM"),
    ("1", "2", "1", "the request is malformed"),
    ("1", "2", "2", "the protocol version is another"),
    ("2", "3", "1", "congestion: too many new associations, almost no disk, or the node ends"),
    ("2", "3", "2", "no association more is taken at a time"),
)

Context = dict[str, Any]


def find_sent_classes(configuration: Configuration) -> dict[str, str]:
    """Return what the rules that are on make, as keyword to SOP Class UID."""
    contrasts = configuration.contrasts.contrasts
    modalities = {
        contrasts[make.target].modality
        for rule in configuration.routing.rules
        if rule.mode is not Mode.OFF
        for make in rule.makes
    }
    written = {**SOP_CLASSES, **EXPOSURE_CLASSES}
    classes = [written[each] for each in sorted(modalities & written.keys())]
    return {
        uid.keyword: str(uid) for uid in (*classes, Comprehensive3DSRStorage, ParametricMapStorage)
    }


def describe(configuration: Configuration) -> dict[str, Any]:
    """Return what the node negotiates, as JSON types.

    `accepts` are the presentation contexts that a peer may use when it calls, `proposes` those that
    this node asks for when it calls a peer; transfer syntaxes in the order of preference.
    """
    node = configuration.node
    return {
        "ae_title": node.ae_title,
        "implementation_class_uid": IMPLEMENTATION_CLASS_UID,
        "implementation_version_name": IMPLEMENTATION_VERSION_NAME,
        "version": __version__,
        "maximum_length": min(ANNOUNCED_BYTES, node.receiver.limits.pdu),
        "accepts": list(_find_accepted(node)),
        "proposes": list(_find_proposed(configuration)),
    }


def write(configuration: Configuration) -> str:
    """Return the statement in Markdown."""
    node, told = configuration.node, describe(configuration)
    text = Path(__file__).with_name("statement.md").read_text()
    return Template(text).substitute(
        ae_title=node.ae_title,
        version=told["version"],
        digest=configuration.digest[:16],
        classes=_table(
            ("SOP class", "user (SCU)", "provider (SCP)"),
            _count_roles([*told["proposes"], *told["accepts"]]),
        ),
        policies=_table(("policy", "value"), _list_policies(node, told)),
        called=_table(
            ("peer", "AE title", "host and port", "TLS", "associations", "operations invoked"),
            _list_called(node),
        ),
        requests=_table(
            ("DICOMweb transaction (user agent)", "request", "peers"), _list_requests(node)
        ),
        proposes=_tabulate(told["proposes"]),
        follows=_table(("status", "state", "meaning"), _list_outcomes()),
        steps=_describe_steps(node),
        callers=_table(
            ("peer", "AE title", "address", "certificate", "roles"), _list_callers(node)
        ),
        accepts=_tabulate(told["accepts"]),
        rejections=_table(("result", "source", "reason", "when"), _REJECTIONS),
        statuses=_table(
            ("status", "when"),
            ((f"0x{code:04X}", why) for code, why in _STORE_ANSWERS.items()),
        ),
        listens=f"{node.receiver.host} port {node.receiver.port}",
        security=_describe_security(node),
        audit=_describe_audit(node),
    )


def _find_accepted(node: NodeSettings) -> Iterator[Context]:
    storage = find_storage(node)
    for _, caller in find_callers(node):
        for abstract_syntax, syntaxes in offer_contexts(storage, caller).items():
            # Reports of a commitment come from its provider.
            role = "SCU" if abstract_syntax == STORAGE_COMMITMENT else "SCP"
            yield _context(caller.alias, abstract_syntax, syntaxes, role)


def _find_proposed(configuration: Configuration) -> Iterator[Context]:
    node = configuration.node
    sent = [*find_sent_classes(configuration).values(), str(KeyObjectSelectionDocumentStorage)]
    asked = find_asked(node)
    for alias, peer in node.peers.items():
        if peer.dicomweb is not None:  # nothing is negotiated over HTTP
            continue
        if "send" in peer.roles:
            contexts, _ = find_contexts((each, EXPLICIT_VR_LITTLE_ENDIAN) for each in sent)
            for sop_class, syntax in contexts:
                yield _context(alias, sop_class, (syntax,), "SCU", window=peer.window)
        for sop_class in _find_services(peer, is_asked=alias in asked):
            yield _context(alias, sop_class, UNCOMPRESSED, "SCU")


def _find_services(peer: Peer, *, is_asked: bool) -> Iterator[str]:
    if peer.roles & {"send", "query", "worklist"}:
        yield VERIFICATION
    if "worklist" in peer.roles:
        yield UPS_PULL
    if is_asked:
        yield from (STUDY_ROOT_FIND, STUDY_ROOT_MOVE)
    elif peer.commitment == "query":
        yield STUDY_ROOT_FIND
    if peer.commitment == "storage_commitment":
        yield STORAGE_COMMITMENT


def _context(
    alias: str, abstract_syntax: str, syntaxes: Sequence[str], role: str, window: int = 1
) -> Context:
    return {
        "peer": alias,
        "abstract_syntax": abstract_syntax,
        "name": UID(abstract_syntax).name,
        "transfer_syntaxes": list(syntaxes),
        "role": role,
        "operations_invoked": window,
    }


def _list_policies(node: NodeSettings, told: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    limits = node.receiver.limits
    yield "application context", APPLICATION_CONTEXT
    yield "maximum PDU length announced", str(told["maximum_length"])
    yield "associations accepted at a time", str(limits.associations)
    yield "of them with one peer", str(limits.associations_per_peer)
    yield "operations performed at a time, as acceptor", "1: the window is not negotiated"
    yield "implementation class UID", told["implementation_class_uid"]
    yield "implementation version name", told["implementation_version_name"]
    yield "user identity of a requestor", "ignored, and not answered"
    yield "SOP class extended negotiation", "not answered"


def _list_called(node: NodeSettings) -> Iterator[tuple[str, ...]]:
    for alias, peer in node.peers.items():
        if peer.roles & {"send", "query", "worklist"}:
            place, is_secure = f"{peer.host}:{peer.port}", peer.tls
            if peer.dicomweb is not None:
                place, is_secure = peer.dicomweb.url, peer.dicomweb.is_secure
            numbers = (str(peer.associations), str(peer.window))
            yield (alias, peer.ae_title or "", place, "yes" if is_secure else "no", *numbers)


def _list_requests(node: NodeSettings) -> Iterator[tuple[str, ...]]:
    """Yield what is asked of DICOMweb services (PS3.18 chapter 10), and of which."""
    services = [(alias, peer) for alias, peer in node.peers.items() if peer.dicomweb is not None]
    asked = find_asked(node)
    stored = [alias for alias, peer in services if "send" in peer.roles]
    listed = [alias for alias, peer in services if peer.commitment == "query" or alias in asked]
    found = [alias for alias, _ in services if alias in asked]
    for transaction, request, peers in (
        ("Store Instances (STOW-RS)", "POST /studies", stored),
        ("Search for Instances (QIDO-RS)", "GET /instances", listed),
        ("Search for Series (QIDO-RS)", "GET /series", found),
        ("Search for Studies (QIDO-RS)", "GET /studies", found),
        ("Retrieve Series (WADO-RS)", f"GET /studies/…/series/…, Accept: {AS_IT_IS_STORED}", found),
    ):
        yield transaction, request, ", ".join(peers) or "none"


def _list_outcomes() -> Iterator[tuple[str, ...]]:
    for status in _ASSUMED_STATUSES:
        outcome = judge_status(status)
        yield f"0x{status:04X}", str(outcome.state), outcome.reason or "the peer has it"


def _list_callers(node: NodeSettings) -> Iterator[tuple[str, ...]]:
    shown = "any of the authority" if node.receiver.tls else "none"
    for peer, caller in find_callers(node):
        certificate = "one of its own" if peer.certificates else shown
        roles = ", ".join(sorted(peer.roles))
        yield caller.alias, peer.ae_title or "", str(peer.address), certificate, roles


def _describe_steps(node: NodeSettings) -> str:
    worklists = find_worklists(node)
    if not worklists:
        return "None are performed."
    codes = ", ".join(f"({each.value}, {each.scheme})" for each in node.steps.workitems)
    return (
        f"The node performs steps of {', '.join(worklists)} as a user of the UPS Pull SOP Class "
        f"(PS3.4 annex CC; IHE AIW-I Task Performer), whose Scheduled Workitem Code is {codes}. "
        "It finds them by Procedure Step State SCHEDULED, Input Readiness State READY and that "
        "code; reads the Input Information Sequence; claims, and ends as COMPLETED or CANCELED, "
        "under a Transaction UID of its own; and sets the Procedure Step Progress Information "
        "Sequence and, at the end, the Unified Procedure Step Performed Procedure Sequence with "
        "its Output Information Sequence. It creates no steps, does not subscribe to events, and "
        "takes the statuses C300, C301, C307 and C310 for the loss of a step."
    )


def _describe_security(node: NodeSettings) -> str:
    plain = ", ".join(["this machine", *map(str, node.receiver.allow_plain)])
    if node.receiver.tls is None:
        return f"TLS is off. Plain DICOM is taken from: {plain}."
    return (
        "TLS follows BCP 195 (PS3.15 section B.12): 1.2 or later, certificates of both sides, for "
        f"1.2 the ciphers `{CIPHERS}`. Plain DICOM is taken from: {plain}."
    )


def _describe_audit(node: NodeSettings) -> str:
    audit = node.audit
    if audit is None:
        return "No audit messages are sent."
    return (
        "Audit messages (PS3.15 section A.5) are sent by syslog over TLS (RFC 5425) to "
        f"{audit.host} port {audit.port}: {', '.join(MESSAGES)}. "
        f"Of the patient they tell: {audit.patient}. None are received."
    )


def _count_roles(contexts: Iterable[Context]) -> Iterator[tuple[str, ...]]:
    roles: dict[str, set[str]] = {}
    for each in contexts:
        roles.setdefault(each["abstract_syntax"], set()).add(each["role"])
    for uid, found in sorted(roles.items(), key=lambda each: UID(each[0]).name):
        yield (UID(uid).name, *("yes" if role in found else "no" for role in ("SCU", "SCP")))


def _tabulate(contexts: Iterable[Context]) -> str:
    """Return a table in which peers with the same contexts share a row."""
    rows: dict[tuple[str, ...], list[str]] = {}
    for each in contexts:
        syntaxes = "<br>".join(f"{UID(uid).name} {uid}" for uid in each["transfer_syntaxes"])
        key = (each["name"], each["abstract_syntax"], syntaxes, each["role"])
        rows.setdefault(key, []).append(each["peer"])
    return _table(
        ("abstract syntax", "UID", "transfer syntaxes", "role", "peers"),
        ((*key, ", ".join(peers)) for key, peers in rows.items()),
    )


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])
