"""A DICOMweb archive is asked what it holds: a real Orthanc, and what is rarely met."""

import json
import logging
import ssl
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset, dcmread
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.uid import JPEGLSLossless

from dicom_node.conversation import Conversation, Patient, QueryRefusedError
from dicom_node.demonstration.pacs import PLUGIN, Orthanc
from dicom_node.domain import InquiryState, Question, RemoteSeries
from dicom_node.elements import encode
from dicom_node.errors import DeliveryError
from dicom_node.ledger import Ledger
from dicom_node.network import AssociationRejectedError
from dicom_node.node_settings import read_node
from dicom_node.part10 import decode_file_meta, encode_file_meta
from dicom_node.query import Inquirer, open_conversation
from dicom_node.store import Store
from dicom_node.wado import AS_IT_IS_STORED, read_parts
from doubles.certificates import make_authority, make_certificate
from doubles.ledger import Clock
from doubles.scripted_archive import Reply, Request, ScriptedArchive
from doubles.series import make_series
from doubles.studies import CONFIG
from doubles.tools import give_up

pytestmark = pytest.mark.integration

BOUNDARY = "a-boundary"
PARTS = f'multipart/related; type="application/dicom"; boundary={BOUNDARY}'
PATIENT = "PLANTED-PATIENT-4711"
DAY = datetime(2020, 1, 2)  # noqa: DTZ001 - a day
JPEG_BASELINE = "1.2.840.10008.1.2.4.50"


class Site:
    """A store and a ledger, and a peer `pacs` that is a DICOMweb archive."""

    def __init__(self, folder: Path) -> None:
        self.clock = Clock()
        self.folder = folder
        self.store = Store(folder / "store").open()
        self.ledger = Ledger(f"sqlite:///{folder / 'ledger.sqlite'}", self.clock).open()

    def settings(self, url: str, *overrides: str, **web: Any) -> Any:
        peer = {"dicomweb": {"url": url, **web}, "roles": ["send", "query"]}
        given = [f"peers.pacs={json.dumps(peer)}", f"data_folder={self.folder}", "query.pause=0 s"]
        return read_node(CONFIG, [*given, *overrides])

    @contextmanager
    def talk(self, url: str, *overrides: str, **web: Any) -> Iterator[Conversation]:
        settings = self.settings(url, *overrides, **web)
        with open_conversation(settings, "pacs", self.ledger, self.store) as conversation:
            yield conversation

    def read_kept(self, study: str) -> dict[str, bytes]:
        return {
            each.sop_instance_uid: self.store.read(each.path)
            for each in self.ledger.read_instances(study)
        }

    def find_leftovers(self) -> list[str]:
        return [str(each) for each in self.folder.rglob("*.part")]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One for all tests, each of which has a study of its own."""
    site = Site(tmp_path_factory.mktemp("site"))
    yield site
    site.ledger.close()


@pytest.fixture
def dicomweb(orthanc: Orthanc) -> str:
    if not PLUGIN.exists():
        give_up("Orthanc's DICOMweb is missing: apt-get install orthanc-dicomweb")
    return f"{orthanc.http}/dicom-web"


def make_images(key: str, *, number: int = 1) -> list[Dataset]:
    return make_series("T1w", number=number, key=key, patient_id=PATIENT)[:3]


@pytest.fixture
def images(request: pytest.FixtureRequest) -> list[Dataset]:
    """A series of three images, in a study of the test's own."""
    return make_images(request.node.name)


def store(orthanc: Orthanc, image: Dataset) -> bytes:
    """Put an image into the archive, and return its file."""
    file = encode(image)
    request = urllib.request.Request(f"{orthanc.http}/instances", data=file)
    urllib.request.urlopen(request, timeout=30).close()
    return file


def name_series(images: Sequence[Dataset]) -> RemoteSeries:
    return RemoteSeries(
        peer="pacs",
        study_instance_uid=str(images[0].StudyInstanceUID),
        series_instance_uid=str(images[0].SeriesInstanceUID),
        instances=len(images),
        header={},
    )


def join(*files: bytes) -> bytes:
    parts = b"".join(
        f"--{BOUNDARY}\r\nContent-Type: application/dicom\r\n\r\n".encode() + each + b"\r\n"
        for each in files
    )
    return parts + f"--{BOUNDARY}--".encode()


def give(*files: bytes) -> Callable[[Request], Reply]:
    return lambda _: Reply(status=200, kind=PARTS, body=join(*files))


def read_data_set(file: bytes) -> bytes:
    return file[decode_file_meta(file).data_set_offset :]


def describe(**facts: Any) -> dict[str, Any]:
    """Return an item of DICOM JSON."""
    return {
        f"{tag_for_keyword(keyword):08X}": {"vr": dictionary_VR(keyword), "Value": [value]}
        for keyword, value in facts.items()
    }


def list_rows(*rows: dict[str, Any]) -> Callable[[Request], Reply]:
    """Answer every search with all rows that its page has."""

    def answer(request: Request) -> Reply:
        offset = int(request.path.rpartition("offset=")[2])
        return Reply(
            status=200, body=json.dumps([describe(**row) for row in rows[offset:]]).encode()
        )

    return answer


ROW = {
    "StudyInstanceUID": "1.2",
    "SeriesInstanceUID": "1.2.1",
    "Modality": "MR",
    "SeriesDescription": "T2 FLAIR",
    "NumberOfSeriesRelatedInstances": 24,
}


def test_a_real_archive_lists_series_and_the_studies_of_a_patient(site, orthanc, dicomweb):
    here, sibling = make_images("asked"), make_images("sibling")
    for image in [*here, *make_images("asked", number=2)[:1], *sibling]:
        store(orthanc, image)
    study = str(here[0].StudyInstanceUID)
    patient = Patient(patient_id=PATIENT, character_set="", date=DAY)

    with site.talk(dicomweb) as conversation:
        listed = {each.instances: each for each in conversation.find_series("pacs", study)}
        siblings = conversation.find_siblings(study, patient, days=1)
        others = conversation.find_siblings(study, replace(patient, patient_id="NOBODY"), days=1)
        found = conversation.find_studies({"PatientID": PATIENT, "StudyDate": "20200102"})
        unknown = list(conversation.find_series("pacs", "1.2.3.4"))

    assert listed.keys() == {1, 3}
    assert listed[3].series_instance_uid == here[0].SeriesInstanceUID
    assert listed[3].header == {
        "Modality": "MR",
        "SeriesDescription": "T1w test",
        "ProtocolName": "T1 MPRAGE",
        "BodyPartExamined": "HEAD",
        "StudyDescription": "Brain",
    }
    assert str(sibling[0].StudyInstanceUID) in siblings
    assert study not in siblings
    assert others == unknown == []
    assert {study, *siblings} == set(found)


def test_a_real_archive_gives_its_bytes_and_transcodes_nothing(site, images, orthanc, dicomweb):
    images[0].compress(JPEGLSLossless, generate_instance_uid=False)
    files = {str(each.SOPInstanceUID): store(orthanc, each) for each in images}

    with site.talk(dicomweb) as conversation:
        conversation.fetch(name_series(images))
        study = str(images[0].StudyInstanceUID)
        kept = site.read_kept(study)
        conversation.fetch(name_series(images))

    assert {uid: read_data_set(each) for uid, each in kept.items()} == {
        uid: read_data_set(each) for uid, each in files.items()
    }
    syntaxes = {dcmread(BytesIO(each)).file_meta.TransferSyntaxUID for each in kept.values()}
    assert JPEGLSLossless in syntaxes
    assert len(syntaxes) == 2
    assert len(site.ledger.read_instances(study)) == 3


@pytest.mark.parametrize("durability", ["strict", "none"])
def test_what_is_fetched_is_as_durable_as_what_is_received(site, images, durability):
    with (
        ScriptedArchive(give(*map(encode, images))) as archive,
        site.talk(archive.url, f"receiver.durability={durability}") as conversation,
    ):
        conversation.fetch(name_series(images))

        assert archive.requests[0].headers["Accept"] == AS_IT_IS_STORED
        assert len(site.read_kept(str(images[0].StudyInstanceUID))) == 3


@pytest.mark.parametrize("size", [1, 7, 64, 10_000])
def test_parts_are_the_same_however_the_answer_is_cut(size):
    files = [b"first\r\n--a-bound", b"", b"\r\n\r\nthird\r\n"]
    body = b"a preamble\r\n" + join(*files) + b"\r\nan epilogue"
    pieces = (body[k : k + size] for k in range(0, len(body), size))

    assert [b"".join(part) for part in read_parts(PARTS, pieces)] == files


def test_a_part_that_is_not_read_is_passed_over():
    pieces = iter([join(b"first" * 100, b"second")])

    assert [next(part)[:5] for part in read_parts(PARTS, pieces)] == [b"first", b"secon"]


@pytest.mark.parametrize(
    ("kind", "body", "error"),
    [
        ("application/dicom", b"", QueryRefusedError),
        ("multipart/related", b"", QueryRefusedError),
        (f"multipart/related; boundary={'x' * 71}", b"", QueryRefusedError),
        (PARTS, b"", DeliveryError),
        (PARTS, join(b"whole")[:-4], DeliveryError),
        (PARTS, b"x" * 20_000, DeliveryError),
        (PARTS, f"--{BOUNDARY}\r\nX: ".encode() + b"x" * 20_000, DeliveryError),
    ],
)
def test_an_answer_that_is_no_whole_multipart_body_is_told(kind, body, error):
    parts = (b"".join(part) for part in read_parts(kind, iter([body] if body else [])))

    with pytest.raises(error):
        list(parts)


def cut(file: bytes) -> bytes:
    return file[:-9]


def change(**facts: Any) -> Callable[[bytes], bytes]:
    def apply(file: bytes) -> bytes:
        image = dcmread(BytesIO(file))
        for keyword, value in facts.items():
            setattr(image, keyword, value)
        return encode(image)

    return apply


def say(sop_class: str | None, syntax: str | None) -> Callable[[bytes], bytes]:
    """Return what changes the file meta information of a file."""

    def apply(file: bytes) -> bytes:
        meta = decode_file_meta(file)
        head = encode_file_meta(
            sop_class or meta.sop_class_uid,
            meta.sop_instance_uid,
            syntax or meta.transfer_syntax_uid,
        )
        return head + read_data_set(file)

    return apply


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (cut, "cut off"),
        (lambda _: b"<html>", "not a DICOM file"),
        (lambda file: file[:140], "not a DICOM file"),
        (change(SeriesInstanceUID="1.2.3"), "another series"),
        (change(StudyInstanceUID="1.2.3"), "another series"),
        (say("1.2.840.10008.5.1.4.1.1.104.1", None), "SOP class"),
        (say(None, JPEG_BASELINE), "transfer syntax"),
    ],
)
def test_an_instance_that_the_door_would_refuse_is_refused_and_the_others_are_kept(
    site, images, spoil, reason
):
    files = [encode(each) for each in images]
    files[1] = spoil(files[1])
    with (
        ScriptedArchive(give(*files)) as archive,
        site.talk(archive.url) as conversation,
        pytest.raises(QueryRefusedError, match="1 of 3 instances cannot be kept") as caught,
    ):
        conversation.fetch(name_series(images))

    assert reason in str(caught.value)
    assert PATIENT not in str(caught.value)
    kept = site.read_kept(str(images[0].StudyInstanceUID))
    assert kept.keys() == {str(images[0].SOPInstanceUID), str(images[2].SOPInstanceUID)}
    assert site.find_leftovers() == []


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("receiver.limits.instance=1 KiB", "receiver.limits.instance"),
        ("receiver.minimum_free=900000 GiB", "almost full"),
    ],
)
def test_a_limit_ends_what_is_fetched(site, images, override, reason):
    with (
        ScriptedArchive(give(*map(encode, images))) as archive,
        site.talk(archive.url, override) as conversation,
        pytest.raises(DeliveryError, match=reason),
    ):
        conversation.fetch(name_series(images))

    assert site.find_leftovers() == []
    assert site.ledger.read_instances(str(images[0].StudyInstanceUID)) == ()


def test_a_series_that_takes_longer_than_it_may_is_given_up(site, images):
    body = join(*map(encode, images))

    def answer(_: Request) -> Reply:
        time.sleep(0.05)
        return Reply(status=200, kind=PARTS, body=body)

    with (
        ScriptedArchive(answer) as archive,
        site.talk(archive.url, "query.move=1 ms") as conversation,
        pytest.raises(DeliveryError, match="does not end in time"),
    ):
        conversation.fetch(name_series(images))

    assert site.find_leftovers() == []


@pytest.mark.parametrize("status", [403, 404, 406, 410, 500])
def test_an_archive_that_does_not_give_a_series_out_may_still_be_asked(site, images, status):
    with (
        ScriptedArchive(lambda _: Reply(status=status, body=b"P1", kind="text/plain")) as archive,
        site.talk(archive.url) as conversation,
        pytest.raises(QueryRefusedError, match=f"HTTP {status}"),
    ):
        conversation.fetch(name_series(images))


def test_what_came_before_the_archive_broke_off_is_kept(site, images):
    body = join(*map(encode, images))
    with (
        ScriptedArchive(
            lambda _: Reply(status=200, kind=PARTS, body=body[: len(body) * 2 // 3], keep=False)
        ) as archive,
        site.talk(archive.url) as conversation,
        pytest.raises(DeliveryError, match="too early"),
    ):
        conversation.fetch(name_series(images))

    assert 1 <= len(site.read_kept(str(images[0].StudyInstanceUID))) < 3
    assert site.find_leftovers() == []


def test_an_archive_that_gives_pages_is_asked_for_all_of_them(site):
    rows = [{**ROW, "SeriesInstanceUID": f"1.2.{k}"} for k in range(5)]

    def answer(request: Request) -> Reply:
        offset = int(request.path.rpartition("offset=")[2])
        page = [describe(**row) for row in rows[offset : offset + 2]]
        return Reply(status=200 if page else 204, body=json.dumps(page).encode() if page else b"")

    with ScriptedArchive(answer) as archive, site.talk(archive.url) as conversation:
        listed = list(conversation.find_series("pacs", "1.2"))

    assert [each.series_instance_uid for each in listed] == [f"1.2.{k}" for k in range(5)]


def test_an_archive_that_keeps_no_counts_is_asked_for_the_instances(site):
    row = {key: value for key, value in ROW.items() if "Number" not in key}
    instances = [{**row, "SOPInstanceUID": f"1.2.1.{k}"} for k in range(7)]

    def answer(request: Request) -> Reply:
        is_series = "/series?" in request.path
        return list_rows(*([row] if is_series else instances))(request)

    with ScriptedArchive(answer) as archive, site.talk(archive.url) as conversation:
        [listed] = conversation.find_series("pacs", "1.2")

    assert listed.instances == 7


@pytest.mark.parametrize(
    "row",
    [
        {"StudyInstanceUID": "1.3"},
        {"SeriesInstanceUID": "../../studies"},
        {"SeriesInstanceUID": "1.2.1?x=1"},
        {"SeriesInstanceUID": ""},
    ],
)
def test_an_answer_that_was_not_asked_for_is_dropped(site, row):
    with (
        ScriptedArchive(list_rows({**ROW, **row})) as archive,
        site.talk(archive.url) as conversation,
    ):
        assert list(conversation.find_series("pacs", "1.2")) == []


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (Reply(status=400), QueryRefusedError),
        (Reply(status=500), QueryRefusedError),
        (Reply(status=200, body=b"<html>"), QueryRefusedError),
        (Reply(status=200, body=b'{"a": 1}'), QueryRefusedError),
        (Reply(status=401), AssociationRejectedError),
        (Reply(status=404), AssociationRejectedError),
        (Reply(status=503), AssociationRejectedError),
    ],
)
def test_a_search_that_is_not_answered_names_no_patient(site, reply, error, caplog):
    caplog.set_level(logging.DEBUG)
    patient = Patient(patient_id=PATIENT, character_set="", date=DAY)
    with (
        ScriptedArchive(lambda _: reply) as archive,
        site.talk(archive.url) as conversation,
        pytest.raises(error) as caught,
    ):
        conversation.find_siblings("1.2", patient, days=1)

    assert f"PatientID={PATIENT}" in archive.requests[0].path
    assert PATIENT not in f"{caught.value}{caplog.text}"


def test_an_answer_that_is_too_long_is_cut_off(site, monkeypatch):
    monkeypatch.setattr("dicom_node.qido.LONGEST_ANSWER", 1_000)
    rows = [{**ROW, "SeriesInstanceUID": f"1.2.{k}"} for k in range(50)]
    with (
        ScriptedArchive(list_rows(*rows)) as archive,
        site.talk(archive.url) as conversation,
        pytest.raises(DeliveryError, match="too long"),
    ):
        list(conversation.find_series("pacs", "1.2"))


def test_an_archive_with_another_certificate_learns_nothing(site, tmp_path):
    authority, other = make_authority(tmp_path), make_authority(tmp_path, "other")
    shown = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    shown.load_cert_chain(*make_certificate(tmp_path, other, "stranger"))
    with (
        ScriptedArchive(list_rows(ROW), tls=shown) as archive,
        site.talk(archive.url, ca=str(authority)) as conversation,
        pytest.raises(DeliveryError, match="certificate"),
    ):
        list(conversation.find_series("pacs", "1.2"))

    assert archive.requests == []


def test_study_that_waits_learns_of_what_did_not_come_and_fetches_it(site, images):
    study = str(images[0].StudyInstanceUID)
    files = [encode(each) for each in images]
    row = {
        **ROW,
        "StudyInstanceUID": study,
        "SeriesInstanceUID": str(images[0].SeriesInstanceUID),
        "NumberOfSeriesRelatedInstances": 3,
    }

    def answer(request: Request) -> Reply:
        return (list_rows(row) if "?" in request.path else give(*files))(request)

    with ScriptedArchive(give(files[0])) as one, site.talk(one.url) as conversation:
        conversation.fetch(name_series(images))
    assert len(site.ledger.read_instances(study)) == 1

    with ScriptedArchive(answer) as archive:
        settings = site.settings(archive.url)
        inquirer = Inquirer("pacs", site.ledger, site.store, settings, site.clock)
        site.ledger.ask(study, 1, [Question(peer="pacs", siblings_within_days=None, fetch=True)])
        inquirer.sweep()
        site.clock.advance(seconds=30)
        inquirer.sweep()

    [inquiry] = site.ledger.inquiries(study)
    assert (inquiry.state, inquiry.rounds) == (InquiryState.ANSWERED, 1)
    assert len(site.ledger.read_instances(study)) == 3
