"""Results to DICOMweb archives: a real Orthanc, and what answers as an archive rarely does."""

import logging
import ssl
import threading
from base64 import b64encode
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
from pydantic import ValidationError

from dicom_node.demonstration.pacs import PLUGIN, Orthanc
from dicom_node.dicomweb import Answer
from dicom_node.domain import DeliveryState
from dicom_node.door_settings import DICOMweb, Peer
from dicom_node.stow import read_listed
from doubles.certificates import make_authority, make_certificate
from doubles.ledger import finish, make_plan, receive_and_judge
from doubles.outbox import Outbox
from doubles.scripted_archive import (
    STORED,
    UID,
    Reply,
    Request,
    ScriptedArchive,
    guard,
    list_sequence,
    listing,
    take,
)
from doubles.scripted_pacs import MR
from doubles.tools import give_up

pytestmark = pytest.mark.integration

PENDING, SENT, WARNED, PARKED = (
    DeliveryState.PENDING,
    DeliveryState.SENT,
    DeliveryState.WARNED,
    DeliveryState.PARKED,
)
FAILED, WARNING, FAILURE = "00081198", "00081196", "00081197"
TOKEN = "planted-token-7c41"  # noqa: S105 - nobody's


@pytest.fixture
def outbox(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Outbox]:
    """One with a study of its own, for all tests share one Orthanc."""
    number = int(sha256(request.node.name.encode()).hexdigest()[:8], 16)
    one = Outbox(tmp_path, f"1.2.3.778.{number}")
    yield one
    one.ledger.close()


@pytest.fixture
def dicomweb(orthanc: Orthanc) -> str:
    if not PLUGIN.exists():
        give_up("Orthanc's DICOMweb is missing: apt-get install orthanc-dicomweb")
    return f"{orthanc.http}/dicom-web"


def write_secret(folder: Path, text: str = TOKEN) -> Path:
    path = folder / "secret"
    path.write_text(f"{text}\n")
    path.chmod(0o600)
    return path


def read_files(outbox: Outbox) -> dict[str, bytes]:
    return {
        each.instance.sop_instance_uid: outbox.store.read(each.instance.path)
        for each in outbox.deliveries()
    }


@pytest.mark.parametrize(("window", "associations"), [(1, 1), (8, 1), (4, 3)])
def test_a_real_archive_gives_back_the_bytes_that_it_was_sent(
    outbox, orthanc, dicomweb, window, associations
):
    outbox.fill(instances=30)
    peer = {"window": window, "associations": associations}
    with closing(outbox.archive(dicomweb, peer=peer)) as archive:
        assert archive.sweep() == 30
        assert archive.sweep() == 0

    assert outbox.states() == [SENT] * 30
    assert {uid: orthanc.read_instance(uid) for uid in outbox.uids} == read_files(outbox)


def test_what_a_real_archive_cannot_read_waits_for_a_person_and_holds_up_no_other(
    outbox, orthanc, dicomweb
):
    receive_and_judge(outbox.ledger, [make_plan(deliver_to=("pacs",))])
    made = [outbox.write(number, MR) for number in range(1, 6)]
    place = outbox.store.path(made[2].path)
    cut = place.read_bytes()[:-8]
    place.write_bytes(cut)
    made[2] = replace(made[2], sha256=sha256(cut).hexdigest())
    finish(outbox.ledger, *made)

    with closing(outbox.archive(dicomweb, peer={"window": 5})) as archive:
        archive.sweep()
        outbox.clock.advance(minutes=1)
        archive.sweep()

    assert outbox.states() == [SENT, SENT, PARKED, SENT, SENT]
    assert "HTTP 400" in str(outbox.deliveries()[2].reason)
    assert len(orthanc.find_instances(outbox.study)) == 4


def test_a_gateway_before_a_real_archive_lets_the_token_in_over_tls(
    outbox, orthanc, tmp_path, caplog
):
    authority = make_authority(tmp_path)
    shown = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    shown.load_cert_chain(*make_certificate(tmp_path, authority, "gateway"))
    outbox.fill()
    token = write_secret(tmp_path)
    with (
        caplog.at_level(logging.DEBUG),
        ScriptedArchive(guard(orthanc.http, f"Bearer {TOKEN}"), tls=shown) as gateway,
        closing(outbox.archive(gateway.url, ca=authority, token=token)) as archive,
    ):
        assert archive.sweep() == 3

    assert outbox.states() == [SENT] * 3
    assert set(orthanc.find_instances(outbox.study)) == set(outbox.uids)
    assert gateway.connections == 1
    assert TOKEN not in caplog.text


def test_no_secret_goes_to_a_stranger(outbox, tmp_path):
    authority, other = make_authority(tmp_path), make_authority(tmp_path, "other")
    shown = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    shown.load_cert_chain(*make_certificate(tmp_path, other, "stranger"))
    outbox.fill()
    with (
        ScriptedArchive(take, tls=shown) as stranger,
        closing(
            outbox.archive(stranger.url, ca=authority, token=write_secret(tmp_path))
        ) as archive,
    ):
        assert archive.sweep() == 0

    assert stranger.requests == []
    assert "unable to get local issuer certificate" in outbox.ledger.outages()["pacs"].reason


def test_a_token_that_is_not_taken_is_told_at_once_and_costs_the_instances_nothing(
    outbox, orthanc, tmp_path, caplog
):
    outbox.fill()
    token = write_secret(tmp_path, "an-old-one")
    with (
        ScriptedArchive(guard(orthanc.http, f"Bearer {TOKEN}")) as gateway,
        closing(outbox.archive(gateway.url, token=token)) as archive,
    ):
        archive.sweep()

        outage = outbox.ledger.outages()["pacs"]
        [told] = [each for each in caplog.records if each.levelno == logging.ERROR]
        assert "HTTP 401" in outage.reason
        assert "look at its token" in told.getMessage()
        assert "an-old-one" not in caplog.text + outage.reason
        assert {each.attempts for each in outbox.deliveries()} == {0}
        assert len(gateway.requests) == 1

        write_secret(tmp_path)
        outbox.clock.advance(minutes=20)
        assert archive.sweep() == 3
    assert outbox.ledger.outages() == {}


def test_user_and_password_open(outbox, orthanc, tmp_path):
    outbox.fill()
    pair = b64encode(b"node:planted").decode()
    with (
        ScriptedArchive(guard(orthanc.http, f"Basic {pair}")) as gateway,
        closing(
            outbox.archive(gateway.url, user="node", password=write_secret(tmp_path, "planted"))
        ) as archive,
    ):
        assert archive.sweep() == 3


def test_a_secret_that_others_can_read_is_not_sent(outbox, tmp_path):
    outbox.fill()
    token = write_secret(tmp_path)
    token.chmod(0o644)
    with (
        ScriptedArchive(take) as server,
        closing(outbox.archive(server.url, token=token)) as archive,
    ):
        archive.sweep()

    assert server.requests == []
    assert "mode 0644" in outbox.ledger.outages()["pacs"].reason


@pytest.mark.parametrize("status", [408, 429, 502, 503, 504])
def test_a_service_that_is_busy_is_left_alone_for_a_while(outbox, status):
    outbox.fill()
    answers = [Reply(status=status)]
    with (
        ScriptedArchive(lambda it: answers.pop() if answers else take(it)) as server,
        closing(outbox.archive(server.url)) as archive,
    ):
        assert archive.sweep() == 0
        assert f"HTTP {status}" in outbox.ledger.outages()["pacs"].reason
        assert {each.attempts for each in outbox.deliveries()} == {0}
        assert archive.sweep() == 0
        outbox.clock.advance(minutes=1)
        assert archive.sweep() == 3

    assert outbox.states() == [SENT] * 3


@pytest.mark.parametrize("status", [301, 403, 404, 405])
def test_a_service_that_is_not_there_needs_a_person(outbox, status, caplog):
    outbox.fill()
    with (
        ScriptedArchive(lambda _: Reply(status=status)) as server,
        closing(outbox.archive(server.url)) as archive,
    ):
        archive.sweep()

    assert f"HTTP {status}" in outbox.ledger.outages()["pacs"].reason
    assert [each.levelno for each in caplog.records].count(logging.ERROR) == 1
    assert outbox.states() == [PENDING] * 3


def test_a_dead_service_is_an_outage_that_ends_with_its_first_answer(outbox):
    outbox.fill()
    with ScriptedArchive(take) as server:
        url = server.url
    with closing(outbox.archive(url)) as archive:
        assert archive.sweep() == 0

    assert "ConnectionRefusedError" in outbox.ledger.outages()["pacs"].reason
    assert {each.attempts for each in outbox.deliveries()} == {0}


def test_a_silent_service_is_an_outage(outbox):
    outbox.fill()
    is_over = threading.Event()

    def answer(request: Request) -> Reply:
        is_over.wait(20)
        return take(request)

    with (
        ScriptedArchive(answer) as server,
        closing(outbox.archive(server.url, answer="500 ms")) as it,
    ):
        it.sweep()
        is_over.set()

    assert outbox.states() == [PENDING] * 3
    assert "TimeoutError" in outbox.ledger.outages()["pacs"].reason


def test_a_connection_that_the_service_ended_is_no_failure(outbox):
    outbox.fill(instances=5)
    with (
        ScriptedArchive(lambda it: replace(take(it), keep=False)) as server,
        closing(outbox.archive(server.url)) as archive,
    ):
        assert archive.sweep() == 5

    assert [each.attempts for each in outbox.deliveries()] == [1] * 5
    assert outbox.ledger.outages() == {}


def test_each_instance_keeps_what_the_answer_says_of_it(outbox):
    outbox.fill(instances=7)
    _, fine, warned, full, unknown_class, _, broken = outbox.uids

    def answer(request: Request) -> Reply:
        if len(request.files) == 1:
            return take(request)
        stored = list_sequence(STORED, {UID: fine}, {UID: warned, WARNING: 0xB000})
        failed = list_sequence(
            FAILED,
            {UID: full, FAILURE: 0xA700},
            {UID: unknown_class, FAILURE: 0x0122},
            {UID: broken, FAILURE: 0xC000},
        )
        return Reply(status=202, body=listing(stored, failed))

    with (
        ScriptedArchive(answer) as server,
        closing(outbox.archive(server.url, peer={"window": 6})) as archive,
    ):
        archive.sweep()

    assert outbox.states() == [SENT, SENT, WARNED, PENDING, PARKED, PENDING, PARKED]
    statuses = [each.status for each in outbox.deliveries()]
    assert statuses == [0, 0, 0xB000, 0xA700, 0x0122, None, 0xC000]
    assert "does not say what became of it" in str(outbox.deliveries()[5].reason)
    assert [len(each.files) for each in server.requests] == [1, 6]


@pytest.mark.parametrize(
    ("status", "state"),
    [(200, PENDING), (400, PARKED), (409, PARKED), (413, PARKED), (500, PENDING)],
)
def test_an_answer_without_a_list_counts_by_its_http_status(outbox, status, state):
    outbox.fill(instances=1)
    with (
        ScriptedArchive(lambda _: Reply(status=status, body=b"<html>", kind="text/html")) as server,
        closing(outbox.archive(server.url)) as archive,
    ):
        archive.sweep()

    assert outbox.states() == [state]
    assert f"HTTP {status}" in str(outbox.deliveries()[0].reason)
    assert outbox.ledger.outages() == {}


def test_an_instance_that_is_refused_with_others_goes_alone(outbox):
    outbox.fill(instances=5)

    def answer(request: Request) -> Reply:
        return take(request) if len(request.files) == 1 else Reply(status=413)

    with (
        ScriptedArchive(answer) as server,
        closing(outbox.archive(server.url, peer={"window": 4})) as archive,
    ):
        assert archive.sweep() == 1
        outbox.clock.advance(minutes=1)
        assert archive.sweep() == 4

    assert outbox.states() == [SENT] * 5


@pytest.mark.parametrize(
    ("reason", "state"),
    [(0x0111, WARNED), (45070, WARNED), (0xB000, PENDING), (0x0110, PENDING), (0xA900, PARKED)],
)
def test_a_reason_of_a_failure_means_what_its_dimse_status_does(reason, state):
    body = listing(list_sequence(FAILED, {UID: "1.2", FAILURE: reason}))

    assert read_listed(Answer(status=409, kind="", body=body))["1.2"].state is state


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{",
        b"null",
        b"[" * 100_000,
        b'{"00081199": 3}',
        b'{"00081199": {"Value": [7]}}',
    ],
)
def test_an_answer_that_is_no_list_lists_nothing(body):
    assert read_listed(Answer(status=200, kind="", body=body)) == {}


@pytest.mark.parametrize(
    ("peer", "wanted"),
    [
        ({"dicomweb": {"url": "ftp://a.example"}}, "string_pattern_mismatch"),
        ({"dicomweb": {"url": "https://a.example:0"}}, "a port from 1 to 65535"),
        ({"dicomweb": {"url": "https://a.example/x?y=1"}}, "string_pattern_mismatch"),
        ({"dicomweb": {"url": "http://a.example", "token": "t"}}, "a url with https://"),
        ({"dicomweb": {"url": "https://a.example", "user": "u"}}, "user and password"),
        (
            {"dicomweb": {"url": "https://a", "user": "u", "password": "p", "token": "t"}},
            "not both",
        ),
        ({"dicomweb": {"url": "http://a.example"}, "host": "a.example"}, "no host"),
        (
            {"dicomweb": {"url": "http://a.example"}, "certificates": ["A1" + ":B2" * 31]},
            "https://",
        ),
        ({"host": "a.example", "port": 104}, "ae_title"),
    ],
)
def test_a_service_that_cannot_be_called_so_is_a_mistake(peer, wanted):
    with pytest.raises(ValidationError) as caught:
        Peer(roles={"send"}, **peer)

    assert wanted in str(caught.value)


def test_a_service_needs_no_more_than_its_url():
    peer = Peer(dicomweb=DICOMweb(url="https://archive.example/dicom-web"), roles={"send"})

    assert peer.ae_title is None
    assert peer.dicomweb is not None
    assert peer.dicomweb.is_secure
