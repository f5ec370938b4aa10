"""Events of the ledger as DICOM audit messages (PS3.15 section A.5).

    event                            message                           it says
    tenure.begun, ended              110100 Application Activity       the node started, or stopped
    delivery.begun                   110102 Begin Transferring         what is to go, to whom
    study.received                   110104 Instances Transferred      what came, from whom
    delivery.sent, warned,           110104 Instances Transferred      what went, to whom, and how
      pending, parked                                                  that went
    inquiry.answered, silent         110112 Query                      which study, of whom
    archive.asked                    110112 Query                      by which keys, by whom
    job.claim, finish, refuse        110103 Instances Accessed         read, and made
    what a person decided            110103 Instances Accessed         which act, by whom
    page.patient_seen                110103 Instances Accessed         by whom
    study.exported                   110106 Export                     by whom
    bytes.forgotten                  110105 Study Deleted              how many files of it
    security.*, page.right_missing,  110113 Security Alert             who, and what about
      rules.hold, account.*
    page.acts_seen                   110101 Audit Log Used             by whom
    page.login, login_failed,        110114 User Authentication        who, from where
      locked, logout

What came of a study over one association since the last look is one message; so is what went of it
to one peer with the same outcome. Before, each association that begins to send a job tells what the
peer is to get of it; that somebody begins to send here is the sender's to tell. 110107 Import and
110108 Network Entry are not written: nothing comes from media, and the node does not travel. Why a
person decided something stays in the ledger, because a person may have written a name there.
"""

import base64
import hashlib
import hmac
import struct
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from ipaddress import ip_address
from urllib.parse import urlsplit
from uuid import UUID
from xml.etree import ElementTree as ET

from pydicom.datadict import tag_for_keyword

from dicom_node.door_settings import Peer
from dicom_node.ledger import Event
from dicom_node.network import IMPLICIT_VR_LITTLE_ENDIAN, STUDY_ROOT_FIND
from dicom_node.provenance import CODING_SCHEME
from dicom_node.syslog import Message, Severity

KIND = "DICOM+RFC3881"
"""What syslog receivers know these messages by."""

_FINE, _MINOR, _SERIOUS = "0", "4", "8"
_SEVERITIES = {"0": Severity.NOTICE, "4": Severity.WARNING, "8": Severity.ERROR}

_DICOM, _RFC_3881 = "DCM", "RFC-3881"
_APPLICATION_SERVER = "4"
_SYSTEM, _PERSON = "2", "1"
_REPORT, _PATIENT, _SECURITY_RESOURCE = "3", "1", "13"
_MACHINE_NAME, _IP_ADDRESS = "1", "2"

_Code = tuple[str, str, str]
_APPLICATION_ACTIVITY: _Code = ("110100", _DICOM, "Application Activity")
_LOG_USED: _Code = ("110101", _DICOM, "Audit Log Used")
_BEGUN: _Code = ("110102", _DICOM, "Begin Transferring DICOM Instances")
_ACCESSED: _Code = ("110103", _DICOM, "DICOM Instances Accessed")
_TRANSFERRED: _Code = ("110104", _DICOM, "DICOM Instances Transferred")
_DELETED: _Code = ("110105", _DICOM, "DICOM Study Deleted")
_EXPORT: _Code = ("110106", _DICOM, "Export")
_QUERY: _Code = ("110112", _DICOM, "Query")
_ALERT: _Code = ("110113", _DICOM, "Security Alert")
_AUTHENTICATION: _Code = ("110114", _DICOM, "User Authentication")

MESSAGES = tuple(
    meaning
    for _, _, meaning in (
        *(_APPLICATION_ACTIVITY, _LOG_USED, _BEGUN, _ACCESSED, _TRANSFERRED, _DELETED, _EXPORT),
        *(_QUERY, _ALERT, _AUTHENTICATION),
    )
)
"""What the messages that may be written are called."""

_APPLICATION: _Code = ("110150", _DICOM, "Application")
_DESTINATION: _Code = ("110152", _DICOM, "Destination Role ID")
_SOURCE: _Code = ("110153", _DICOM, "Source Role ID")
_MEDIA: _Code = ("110154", _DICOM, "Destination Media")
_URI: _Code = ("110037", _DICOM, "URI")
_STUDY: _Code = ("110180", _DICOM, "Study Instance UID")
_CLASS: _Code = ("110181", _DICOM, "SOP Class UID")
_NODE: _Code = ("110182", _DICOM, "Node ID")
_PATIENT_NUMBER: _Code = ("2", _RFC_3881, "Patient Number")
_ADDRESS: _Code = ("12", _RFC_3881, "URI")
_AUDIT_LOG = "Security Audit Log"
"""What the Standard calls it, whatever it is."""

_LIVES: Mapping[str, _Code] = {
    "tenure.begun": ("110120", _DICOM, "Application Start"),
    "tenure.ended": ("110121", _DICOM, "Application Stop"),
}
_LOGINS: Mapping[str, tuple[_Code, str]] = {
    "page.login": (("110122", _DICOM, "Login"), _FINE),
    "page.login_failed": (("110122", _DICOM, "Login"), _MINOR),
    "page.locked": (("110122", _DICOM, "Login"), _SERIOUS),
    "page.logout": (("110123", _DICOM, "Logout"), _FINE),
}
_NODE_AUTHENTICATION: _Code = ("110126", _DICOM, "Node Authentication")
_USERS_CHANGED: _Code = ("110137", _DICOM, "User security Attributes Changed")
_ALERTS: Mapping[str, tuple[_Code, str]] = {
    "rules.hold": (("110131", _DICOM, "Software Configuration"), _FINE),
    "account.set": (_USERS_CHANGED, _FINE),
    "account.removed": (_USERS_CHANGED, _FINE),
    "page.right_missing": (("110132", _DICOM, "Use of Restricted Function"), _MINOR),
}
_SENT: Mapping[str, str] = {
    "delivery.sent": _FINE,
    "delivery.warned": _FINE,
    "delivery.pending": _MINOR,
    "delivery.parked": _SERIOUS,
}
_ASKED: Mapping[str, str] = {"inquiry.answered": _FINE, "inquiry.silent": _MINOR}
_USES: Mapping[str, str] = {"job.claim": "R", "job.finish": "C", "job.refuse": "C"}
"""Events of a job to what is done to the study: read, or something of it created."""
_ACTS: Mapping[str, tuple[str, str]] = {
    "job.release": ("U", "Held result released"),
    "job.reject": ("U", "Held result rejected"),
    "job.requeue": ("U", "Job queued again"),
    "job.withdrawn": ("D", "Sent result withdrawn"),
    "delivery.requeue": ("U", "Deliveries queued again"),
    "study.released": ("U", "Held study released"),
    "study.rejected": ("U", "Held study closed"),
    "study.reopened": ("U", "Study judged again"),
    "page.patient_seen": ("R", "Patient's name shown"),
}
"""Where a person is named: what it is to the study, and in words."""

_QUERY_LEVEL = "QueryRetrieveLevel"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Who writes the messages, and whom they are about.

    Attributes:
        ae_title: of this node.
        host: its name.
        peers: by alias.
    """

    ae_title: str
    host: str
    peers: Mapping[str, Peer]


@dataclass(frozen=True, slots=True, kw_only=True)
class Background:
    """What the ledger knows of the things that events are about.

    Attributes:
        studies: plan id to Study Instance UID.
        classes: SOP Instance UID to SOP Class UID, of derived instances.
        patients: Study Instance UID to what is told of the patient.
    """

    studies: Mapping[str, str]
    classes: Mapping[str, str]
    patients: Mapping[str, str]


@dataclass(slots=True, kw_only=True)
class _Transfer:
    """Events that are told as one message."""

    first: Event
    study: str
    at: datetime
    new: int = 0
    classes: Counter[str] = field(default_factory=Counter)


def find_pseudonym(key: UUID, identity: str) -> str:
    """Return what is told of a patient instead of the Patient ID.

    The key keeps everybody else from trying out all Patient IDs that there may be.
    """
    return hmac.new(key.bytes, identity.encode(), hashlib.sha256).hexdigest()[:32]


def find_study(event: Event, studies: Mapping[str, str]) -> str | None:
    """Return the study that an event is about."""
    return event.study_instance_uid or studies.get(event.plan_id or "")


def write_messages(
    events: Sequence[Event], source: Source, background: Background
) -> Iterator[Message]:
    """Yield the audit messages of events, in the order of what they tell."""
    for item in _bundle(events, background):
        writer = _Writer(source, background, item)
        if (message := writer.write()) is not None:
            yield message


def _bundle(events: Iterable[Event], background: Background) -> list[Event | _Transfer]:
    """Put together what is told as one, where the first of it is."""
    items: list[Event | _Transfer] = []
    open_ones: dict[tuple[object, ...], _Transfer] = {}
    for each in events:
        study = find_study(each, background.studies)
        is_sent = each.name in _SENT
        if study is None or not (is_sent or each.name == "study.received"):
            items.append(each)
            continue
        key = (each.name, study, each.detail["peer"], each.detail.get("association"))
        transfer = open_ones.get(key)
        if transfer is None:
            transfer = open_ones[key] = _Transfer(first=each, study=study, at=each.at)
            items.append(transfer)
        transfer.at = each.at
        if is_sent:
            uid = str(each.detail["sop_instance_uid"])
            transfer.classes[background.classes.get(uid, "")] += 1
        else:
            transfer.new += each.detail["new"]
            transfer.classes.update(each.detail.get("classes", {"": each.detail["new"]}))
    return items


class _Writer:
    """Writes one message."""

    def __init__(self, source: Source, background: Background, item: Event | _Transfer) -> None:
        self._source = source
        self._background = background
        self._item = item
        self._message = ET.Element("AuditMessage")
        self._outcome: str = _FINE

    def write(self) -> Message | None:
        """Return the message, or None when nothing is to be told."""
        item = self._item
        if isinstance(item, _Transfer):
            self._transfer(item)
        elif not self._event(item):
            return None
        return Message(
            at=item.at,
            severity=_SEVERITIES[self._outcome],
            kind=KIND,
            text=ET.tostring(self._message, encoding="utf-8", xml_declaration=True),
        )

    def _event(self, event: Event) -> bool:
        name, detail = event.name, event.detail
        study = find_study(event, self._background.studies)
        person = str(detail.get("by", ""))
        if name in _LIVES:
            self._begin(_APPLICATION_ACTIVITY, "E", kind=_LIVES[name])
            self._this_node(_APPLICATION)
            self._source_element()
        elif name in _LOGINS:
            kind, outcome = _LOGINS[name]
            self._begin(_AUTHENTICATION, "E", outcome, kind)
            self._person(person, str(detail.get("address", "")))
            self._this_node(_APPLICATION)
            self._source_element()
        elif name == "page.acts_seen":
            self._begin(_LOG_USED, "R")
            self._person(person)
            self._this_node(_APPLICATION)
            self._source_element()
            self._object("/acts", _ADDRESS, _SECURITY_RESOURCE, name=_AUDIT_LOG)
        elif name in _ALERTS or name.startswith("security."):
            self._alert(event, person)
        elif name == "archive.asked":
            self._query(event, "STUDY", detail["keys"])
        elif name in _ACTS and person:
            self._act(event, person, study)
        else:
            return study is not None and self._event_of_study(event, study)
        return True

    def _event_of_study(self, event: Event, study: str) -> bool:
        name, detail = event.name, event.detail
        if name in _ASKED:
            self._query(event, "SERIES", {"StudyInstanceUID": study}, _ASKED[name])
        elif name in _USES:
            self._begin(_ACCESSED, _USES[name])
            self._this_node(_APPLICATION, is_requestor=True)
            self._source_element()
            self._about(study)
        elif name == "delivery.begun":
            self._begin(_BEGUN, "E")
            self._this_node(_SOURCE, is_requestor=True)
            self._peer(str(detail["peer"]), _DESTINATION, is_called=True)
            self._source_element()
            self._about(study, detail["classes"])
        elif name == "study.exported":
            self._begin(_EXPORT, "R")
            self._person(str(detail.get("by", "")))
            self._this_node(_SOURCE)
            self._media()
            self._source_element()
            self._about(study)
        elif name == "bytes.forgotten":
            self._begin(_DELETED, "D")
            self._this_node(_APPLICATION, is_requestor=True)
            self._source_element()
            self._about(study, {"": detail["files"]})
        else:
            return False
        return True

    def _transfer(self, transfer: _Transfer) -> None:
        first = transfer.first
        alias = str(first.detail["peer"])
        if first.name in _SENT:
            self._begin(_TRANSFERRED, "C", _SENT[first.name])
            self._this_node(_SOURCE, is_requestor=True)
            self._peer(alias, _DESTINATION, is_called=True)
        else:
            # Read: the node had all of it.
            self._begin(_TRANSFERRED, "C" if transfer.new else "R")
            # What comes from a peer that cannot call was fetched there.
            peer = self._source.peers.get(alias)
            is_fetched = peer is not None and not peer.may_call
            self._peer(alias, _SOURCE, is_requestor=not is_fetched, is_called=is_fetched)
            self._this_node(_DESTINATION, is_requestor=is_fetched)
        self._source_element()
        self._about(transfer.study, transfer.classes)

    def _query(
        self, event: Event, level: str, keys: Mapping[str, str], outcome: str = _FINE
    ) -> None:
        person = event.detail.get("by")
        self._begin(_QUERY, "E", outcome)
        self._this_node(_SOURCE, is_requestor=not person)
        self._peer(str(event.detail["peer"]), _DESTINATION, is_called=True)
        if person:
            self._person(str(person))
        self._source_element()
        asked = self._object(
            STUDY_ROOT_FIND, _CLASS, _REPORT, query=_encode_query({_QUERY_LEVEL: level, **keys})
        )
        syntax = {"type": "TransferSyntax", "value": _base64(IMPLICIT_VR_LITTLE_ENDIAN.encode())}
        ET.SubElement(asked, "ParticipantObjectDetail", syntax)

    def _act(self, event: Event, person: str, study: str | None) -> None:
        action, meaning = _ACTS[event.name]
        self._begin(_ACCESSED, action, kind=(event.name, CODING_SCHEME, meaning))
        self._person(person)
        self._this_node(_APPLICATION)
        self._source_element()
        if study is not None:
            self._about(study)

    def _alert(self, event: Event, person: str) -> None:
        kind, outcome = _ALERTS.get(event.name, (_NODE_AUTHENTICATION, _MINOR))
        self._begin(_ALERT, "E", outcome, kind)
        self._this_node(_APPLICATION, is_requestor=not person)
        if person:
            self._person(person)
        self._source_element()
        subject = str(event.detail.get("who") or person or self._source.ae_title)
        words = {key: each for key, each in event.detail.items() if key not in {"who", "by"}}
        told = " ".join([event.name, *(f"{key}={each}" for key, each in sorted(words.items()))])
        about = self._object(subject, _NODE, _SECURITY_RESOURCE)
        detail = {"type": "Alert Description", "value": _base64(told.encode())}
        ET.SubElement(about, "ParticipantObjectDetail", detail)

    def _begin(
        self, what: _Code, action: str, outcome: str = _FINE, kind: _Code | None = None
    ) -> None:
        self._outcome = outcome
        at = self._item.at.astimezone(UTC)
        about = ET.SubElement(
            self._message,
            "EventIdentification",
            {
                "EventActionCode": action,
                "EventDateTime": f"{at:%Y-%m-%dT%H:%M:%S}.{at.microsecond // 1000:03d}Z",
                "EventOutcomeIndicator": outcome,
            },
        )
        _add_code(about, "EventID", what)
        if kind is not None:
            _add_code(about, "EventTypeCode", kind)

    def _this_node(self, role: _Code, *, is_requestor: bool = False) -> None:
        source = self._source
        self._participant(source.ae_title, source.ae_title, role, source.host, is_requestor)

    def _peer(
        self, alias: str, role: _Code, *, is_called: bool = False, is_requestor: bool = False
    ) -> None:
        """Name a peer; from where it calls is told when it can be from one address only."""
        peer = self._source.peers.get(alias)
        host = None
        if peer is not None and is_called:
            host = urlsplit(peer.dicomweb.url).hostname if peer.dicomweb else peer.host
        elif peer is not None and peer.address is not None and peer.address.num_addresses == 1:
            host = str(peer.address.network_address)
        title = None if peer is None else peer.ae_title
        self._participant(alias, title, role, host, is_requestor)

    def _person(self, name: str, address: str = "") -> None:
        self._participant(name, None, None, address or None, is_requestor=True)

    def _participant(
        self,
        user: str,
        ae_title: str | None,
        role: _Code | None,
        host: str | None,
        is_requestor: bool,
    ) -> None:
        words = {"UserID": user, "UserIsRequestor": "true" if is_requestor else "false"}
        if ae_title is not None:
            words["AlternativeUserID"] = f"AETITLES={ae_title}"  # PS3.15 section A.5.2.2
        if host is not None:
            words["NetworkAccessPointID"] = host
            words["NetworkAccessPointTypeCode"] = _find_host_type(host)
        element = ET.SubElement(self._message, "ActiveParticipant", _clean(words))
        if role is not None:
            _add_code(element, "RoleIDCode", role)

    def _media(self) -> None:
        """Name where an export goes: a folder, whose path may say more than it should."""
        words = {"UserID": "a folder", "UserIsRequestor": "false"}
        element = ET.SubElement(self._message, "ActiveParticipant", words)
        _add_code(element, "RoleIDCode", _MEDIA)
        _add_code(ET.SubElement(element, "MediaIdentifier"), "MediaType", _URI)

    def _source_element(self) -> None:
        source = ET.SubElement(
            self._message, "AuditSourceIdentification", {"AuditSourceID": self._source.ae_title}
        )
        ET.SubElement(source, "AuditSourceTypeCode", {"csd-code": _APPLICATION_SERVER})

    def _about(self, study: str, classes: Mapping[str, int] | None = None) -> None:
        """Name the study, how many instances of which SOP classes, and the patient."""
        element = self._object(study, _STUDY, _REPORT)
        if classes:
            description = ET.SubElement(element, "ParticipantObjectDescription")
            for uid, count in sorted(classes.items()):
                words = {"NumberOfInstances": str(count), **({"UID": uid} if uid else {})}
                ET.SubElement(description, "SOPClass", words)
        if (patient := self._background.patients.get(study)) is not None:
            self._object(patient, _PATIENT_NUMBER, _PATIENT, type_code=_PERSON)

    def _object(
        self,
        identifier: str,
        kind: _Code,
        role: str,
        *,
        type_code: str = _SYSTEM,
        query: str | None = None,
        name: str | None = None,
    ) -> ET.Element:
        words = {
            "ParticipantObjectID": identifier,
            "ParticipantObjectTypeCode": type_code,
            "ParticipantObjectTypeCodeRole": role,
        }
        element = ET.SubElement(self._message, "ParticipantObjectIdentification", _clean(words))
        _add_code(element, "ParticipantObjectIDTypeCode", kind)
        # The schema wants a name or a query. A name of our own would say no more than the ID.
        if query is None:
            ET.SubElement(element, "ParticipantObjectName").text = name or _clean_text(identifier)
        else:
            ET.SubElement(element, "ParticipantObjectQuery").text = query
        return element


def _add_code(parent: ET.Element, tag: str, code: _Code) -> None:
    value, scheme, meaning = code
    words = {"csd-code": value, "codeSystemName": scheme, "originalText": meaning}
    ET.SubElement(parent, tag, words)


def _find_host_type(host: str) -> str:
    try:
        ip_address(host)
    except ValueError:
        return _MACHINE_NAME
    return _IP_ADDRESS


def _clean(words: Mapping[str, str]) -> dict[str, str]:
    return {key: _clean_text(text) for key, text in words.items()}


def _clean_text(text: str) -> str:
    """Return a text without what XML cannot hold, whoever has typed it."""
    return "".join(character if character.isprintable() else "?" for character in text)


def _base64(octets: bytes) -> str:
    return base64.b64encode(octets).decode("ascii")


def _encode_query(keys: Mapping[str, str]) -> str:
    """Return the identifier of a query, keywords to texts, in Implicit VR."""
    tags = {tag: text for key, text in keys.items() if (tag := tag_for_keyword(key)) is not None}
    return _base64(b"".join(_encode(tag, text.encode()) for tag, text in sorted(tags.items())))


def _encode(tag: int, text: bytes) -> bytes:
    padded = text + b"\0" * (len(text) % 2)
    return struct.pack("<HHL", tag >> 16, tag & 0xFFFF, len(padded)) + padded
