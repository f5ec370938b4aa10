"""Events as audit messages: each follows the schema of PS3.15 and says what it should."""

import base64
from datetime import UTC, datetime
from io import BytesIO
from typing import Any
from uuid import UUID

import pytest
from pydicom import dcmread

from dicom_node.audit_messages import (
    KIND,
    MESSAGES,
    Background,
    Source,
    find_pseudonym,
    write_messages,
)
from dicom_node.door_settings import Peer
from dicom_node.ledger import Event
from doubles.audit import ET, find_faults
from doubles.ledger import STUDY

MR, REPORT = "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.88.34"
AT = datetime(2026, 11, 27, 9, 0, 0, 500_000, UTC)
PLAN = "a" * 32
PACS = Peer(
    ae_title="ORTHANC",
    address="10.1.2.3",
    host="pacs.example",
    port=104,
    roles=["send", "receive", "query"],
)
ARCHIVE = Peer(dicomweb={"url": "https://archive.example/dicom-web"}, roles=["send", "query"])
SOURCE = Source(ae_title="DICOM_NODE", host="box", peers={"pacs": PACS, "archive": ARCHIVE})


def make_event(name: str, *, study: str | None = None, **detail: Any) -> Event:
    plan = detail.pop("plan", None)
    return Event(
        sequence=1, at=AT, name=name, study_instance_uid=study, plan_id=plan, detail=detail
    )


def write(*events: Event, **patients: str) -> list[ET.Element]:
    """Return the messages of events, which follow the schema."""
    background = Background(
        studies={PLAN: STUDY}, classes={"2.25.1": MR, "2.25.2": REPORT}, patients=patients
    )
    messages = list(write_messages(events, SOURCE, background))
    assert [find_faults(each.text) for each in messages] == [[]] * len(messages)
    assert {each.kind for each in messages} <= {KIND}
    return [ET.fromstring(each.text) for each in messages]


def describe(message: ET.Element) -> tuple[str | None, ...]:
    """Return event, type, action and outcome."""
    about = message.find("EventIdentification")
    kind = about.find("EventTypeCode")
    return (
        about.find("EventID").get("csd-code"),
        None if kind is None else kind.get("csd-code"),
        about.get("EventActionCode"),
        about.get("EventOutcomeIndicator"),
    )


def find_participants(message: ET.Element) -> dict[str | None, tuple[str | None, ...]]:
    """Return who took part, by role: user, AE title, requestor, host."""
    names = ("UserID", "AlternativeUserID", "UserIsRequestor", "NetworkAccessPointID")
    return {
        None if (role := each.find("RoleIDCode")) is None else role.get("csd-code"): tuple(
            each.get(name) for name in names
        )
        for each in message.iter("ActiveParticipant")
    }


def find_objects(message: ET.Element) -> dict[str | None, str | None]:
    """Return what it is about, by the kind of its identifier."""
    return {
        each.find("ParticipantObjectIDTypeCode").get("csd-code"): each.get("ParticipantObjectID")
        for each in message.iter("ParticipantObjectIdentification")
    }


US = ("DICOM_NODE", "AETITLES=DICOM_NODE")


@pytest.mark.parametrize(
    ("event", "says"),
    [
        (make_event("tenure.begun", number=1), ("110100", "110120", "E", "0")),
        (make_event("tenure.ended", number=1), ("110100", "110121", "E", "0")),
        (
            make_event("study.received", study=STUDY, peer="pacs", new=0, association="a"),
            ("110104", None, "R", "0"),
        ),
        (
            make_event("inquiry.answered", study=STUDY, peer="pacs"),
            ("110112", None, "E", "0"),
        ),
        (
            make_event("delivery.begun", plan=PLAN, peer="pacs", classes={MR: 3}),
            ("110102", None, "E", "0"),
        ),
        (make_event("page.acts_seen", by="A. Admin"), ("110101", None, "R", "0")),
        (
            make_event("archive.asked", by="root", peer="pacs", keys={"StudyDate": "20260101"}),
            ("110112", None, "E", "0"),
        ),
        (make_event("inquiry.silent", study=STUDY, peer="pacs"), ("110112", None, "E", "4")),
        (make_event("job.claim", study=STUDY), ("110103", None, "R", "0")),
        (make_event("job.finish", study=STUDY), ("110103", None, "C", "0")),
        (
            make_event("job.release", study=STUDY, by="M. Meier", why="seen"),
            ("110103", "job.release", "U", "0"),
        ),
        (
            make_event("job.withdrawn", plan=PLAN, by="M. Meier", why="seen"),
            ("110103", "job.withdrawn", "D", "0"),
        ),
        (
            make_event("page.patient_seen", study=STUDY, by="M. Meier"),
            ("110103", "page.patient_seen", "R", "0"),
        ),
        (make_event("study.exported", study=STUDY, by="root"), ("110106", None, "R", "0")),
        (make_event("account.set", by="root", account="m"), ("110113", "110137", "E", "0")),
        (make_event("bytes.forgotten", study=STUDY, files=7), ("110105", None, "D", "0")),
        (
            make_event("security.calling_ae_title", who="10.9.9.9"),
            ("110113", "110126", "E", "4"),
        ),
        (make_event("rules.hold", config_digest="d"), ("110113", "110131", "E", "0")),
        (
            make_event("page.right_missing", by="M. Meier", right="decide"),
            ("110113", "110132", "E", "4"),
        ),
        (make_event("page.login", by="M. Meier", address="::1"), ("110114", "110122", "E", "0")),
        (make_event("page.login_failed", by="nobody known"), ("110114", "110122", "E", "4")),
        (make_event("page.locked", by="M. Meier"), ("110114", "110122", "E", "8")),
        (make_event("page.logout", by="M. Meier"), ("110114", "110123", "E", "0")),
    ],
    ids=lambda each: each.name if isinstance(each, Event) else "",
)
def test_event_is_told_by_its_code(event, says):
    [message] = write(event)

    assert describe(message) == says
    name = message.find("EventIdentification/EventID").get("originalText")
    assert name in MESSAGES, "the conformance statement names it"


@pytest.mark.parametrize("name", ["study.judged", "association.opened", "job.supersede"])
def test_event_of_no_concern_is_not_told(name):
    assert write(make_event(name, study=STUDY)) == []


def test_reception_names_source_destination_study_and_classes():
    [message] = write(
        make_event(
            "study.received", study=STUDY, peer="pacs", new=3, association="a", classes={MR: 3}
        )
    )

    assert find_participants(message) == {
        "110153": ("pacs", "AETITLES=ORTHANC", "true", "10.1.2.3"),
        "110152": (*US, "false", "box"),
    }
    assert find_objects(message) == {"110180": STUDY}
    [classes] = message.iter("SOPClass")
    assert classes.attrib == {"UID": MR, "NumberOfInstances": "3"}


def test_what_was_fetched_from_an_archive_was_asked_for_by_the_node():
    received = {"new": 2, "own": 0, "classes": {MR: 2}, "association": "a", "peer": "archive"}
    [message] = write(make_event("study.received", study=STUDY, **received))

    assert find_participants(message) == {
        "110153": ("archive", None, "false", "archive.example"),
        "110152": (*US, "true", "box"),
    }


def test_batches_of_one_association_are_one_message():
    facts = {"study": STUDY, "peer": "pacs", "association": "a"}
    messages = write(
        make_event("study.received", new=3, classes={MR: 3}, **facts),
        make_event("page.logout", by="M. Meier"),
        make_event("study.received", new=2, classes={MR: 2}, **facts),
        make_event("study.received", new=1, classes={MR: 1}, **{**facts, "association": "b"}),
    )

    assert [describe(each)[0] for each in messages] == ["110104", "110114", "110104"]
    counts = [
        each.get("NumberOfInstances") for message in messages for each in message.iter("SOPClass")
    ]
    assert counts == ["5", "1"]


def test_sending_is_told_by_outcome():
    def sent(state: str, uid: str) -> Event:
        return make_event(f"delivery.{state}", plan=PLAN, peer="pacs", sop_instance_uid=uid)

    messages = write(
        sent("sent", "2.25.1"),
        sent("pending", "2.25.1"),
        sent("sent", "2.25.2"),
        sent("parked", "2.25.2"),
    )

    assert [describe(each) for each in messages] == [
        ("110104", None, "C", "0"),
        ("110104", None, "C", "4"),
        ("110104", None, "C", "8"),
    ]
    assert find_participants(messages[0]) == {
        "110153": (*US, "true", "box"),
        "110152": ("pacs", "AETITLES=ORTHANC", "false", "pacs.example"),
    }
    assert [each.get("UID") for each in messages[0].iter("SOPClass")] == [MR, REPORT]


def test_what_is_to_go_is_told_before_it_goes():
    [message] = write(
        make_event("delivery.begun", plan=PLAN, peer="pacs", classes={MR: 3, REPORT: 1})
    )

    assert find_participants(message) == {
        "110153": (*US, "true", "box"),
        "110152": ("pacs", "AETITLES=ORTHANC", "false", "pacs.example"),
    }
    assert find_objects(message) == {"110180": STUDY}
    told = {each.get("UID"): each.get("NumberOfInstances") for each in message.iter("SOPClass")}
    assert told == {MR: "3", REPORT: "1"}


def test_query_of_a_person_names_person_and_keys_and_no_patient():
    keys = {"StudyDate": "20260101-20260131", "PatientID": ""}
    [message] = write(make_event("archive.asked", by="root", peer="pacs", keys=keys))

    people = find_participants(message)
    assert people[None] == ("root", None, "true", None)
    assert people["110153"][2] == "false"
    query = base64.b64decode(message.find(".//ParticipantObjectQuery").text)
    identifier = dcmread(BytesIO(query), force=True)
    assert identifier.QueryRetrieveLevel == "STUDY"
    assert identifier.StudyDate == "20260101-20260131"
    assert identifier.PatientID == ""
    assert len(identifier) == 3


def test_who_reads_the_acts_reads_an_audit_log():
    [message] = write(make_event("page.acts_seen", by="A. Admin"))

    assert find_participants(message) == {
        None: ("A. Admin", None, "true", None),
        "110150": (*US, "false", "box"),
    }
    assert find_objects(message) == {"12": "/acts"}
    assert message.find(".//ParticipantObjectName").text == "Security Audit Log"


def test_query_holds_its_identifier_and_nothing_of_the_patient():
    [message] = write(make_event("inquiry.answered", study=STUDY, peer="pacs"))

    query = base64.b64decode(message.find(".//ParticipantObjectQuery").text)
    identifier = dcmread(BytesIO(query), force=True)
    assert identifier.StudyInstanceUID == STUDY
    assert identifier.QueryRetrieveLevel == "SERIES"
    assert len(identifier) == 2


def test_alert_says_who_and_what():
    [message] = write(make_event("security.tls_failed", who="10.9.9.9", left_out=4))

    assert find_objects(message) == {"110182": "10.9.9.9"}
    detail = message.find(".//ParticipantObjectDetail")
    assert detail.get("type") == "Alert Description"
    assert base64.b64decode(detail.get("value")) == b"security.tls_failed left_out=4"


def test_person_is_named_and_the_reason_stays_in_the_ledger():
    [message] = write(make_event("job.reject", study=STUDY, by="M. \x1bMeier", why="Mrs Smith"))

    assert find_participants(message)[None] == ("M. ?Meier", None, "true", None)
    assert b"Smith" not in ET.tostring(message)


def test_patient_is_told_where_it_is_known():
    [message] = write(make_event("job.claim", study=STUDY), **{STUDY: "0f0f"})

    assert find_objects(message) == {"110180": STUDY, "2": "0f0f"}


def test_pseudonym_is_the_same_for_a_patient_and_another_at_another_site():
    here, there = UUID(int=1), UUID(int=2)

    assert find_pseudonym(here, "4711") == find_pseudonym(here, "4711")
    assert find_pseudonym(here, "4711") != find_pseudonym(here, "4712")
    assert find_pseudonym(here, "4711") != find_pseudonym(there, "4711")


@pytest.mark.parametrize(
    "spoil",
    [
        (b"EventOutcomeIndicator", b"Outcome"),
        (b'"E"', b'"X"'),
        (b"ActiveParticipant", b"Participant"),
        (b"csd-code", b"code"),
    ],
)
def test_check_of_the_schema_sees_a_fault(spoil):
    background = Background(studies={}, classes={}, patients={})
    [message] = write_messages([make_event("tenure.begun")], SOURCE, background)

    assert find_faults(message.text) == []
    assert find_faults(message.text.replace(*spoil)) != []
