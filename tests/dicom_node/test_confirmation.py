"""Sent is not kept: what peers are asked, what they answer, and what follows."""

import json
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from dicom_node import confirmation
from dicom_node.commitment import take_report
from dicom_node.demonstration.pacs import Orthanc
from dicom_node.domain import DeliveryState
from dicom_node.node_settings import NodeSettings
from dicom_node.spool import build_structure_limits
from dicom_node.store import Durability
from doubles.committing_pacs import NO_SUCH_INSTANCE, CommittingPacs
from doubles.dcmqrscp import run_archive
from doubles.ledger import STUDY
from doubles.outbox import Outbox
from doubles.receiver import build_receiver, open_spool
from doubles.scripted_archive import Reply, Request, ScriptedArchive, take
from doubles.scripted_pacs import ScriptedPacs

pytestmark = pytest.mark.integration

PENDING, SENT, COMMITTED, PARKED = (
    DeliveryState.PENDING,
    DeliveryState.SENT,
    DeliveryState.COMMITTED,
    DeliveryState.PARKED,
)
UNKNOWN_TRANSACTION = 0x0115
PATIENCE_SECONDS = 10


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    one = Outbox(tmp_path, study=STUDY, one_series=True)
    one.fill()
    yield one
    one.ledger.close()


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no association stay open for a report that does not come."""
    monkeypatch.setattr(confirmation, "REPORT_SECONDS", 0)


@pytest.fixture
def open_door(outbox: Outbox) -> Iterator[Callable[[NodeSettings], int]]:
    """Return a function that starts a receiver on the ledger of the outbox, and gives its port."""
    with ExitStack() as stack:

        def start(settings: NodeSettings) -> int:
            record = partial(take_report, outbox.ledger, settings.delivery, outbox.clock)
            limits = build_structure_limits(settings)
            spool = stack.enter_context(
                open_spool(outbox.store, outbox.ledger, limits, Durability.SYNCED, record)
            )
            receiver = build_receiver(settings, spool)
            stack.callback(receiver.stop)
            return receiver.start()[1]

        yield start


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def send(outbox: Outbox, pacs: CommittingPacs) -> None:
    """Send all there is, and ask for the commitment to it."""
    assert outbox.sweep(pacs) == 3
    outbox.confirmation(pacs).sweep()


def test_report_over_the_association_of_the_request_commits(outbox):
    with CommittingPacs(reports_at_once=True) as pacs:
        send(outbox, pacs)

    [request] = pacs.requests
    assert [item.ReferencedSOPInstanceUID for item in request.ReferencedSOPSequence] == outbox.uids
    assert outbox.states() == [COMMITTED] * 3
    assert pacs.told == [0x0000]


def test_report_over_an_association_of_the_peers_own_commits(outbox, open_door, short):
    with CommittingPacs() as pacs:
        port = open_door(outbox.settings("storage_commitment", pacs=pacs))
        send(outbox, pacs)
        before = outbox.states()

        assert pacs.call_back(port, pacs.report()) == 0x0000

    assert before == [SENT] * 3
    assert outbox.states() == [COMMITTED] * 3


def test_a_real_pacs_commits(outbox, open_door, orthanc):
    """Orthanc answers over an association of its own, in its own time."""
    port = open_door(outbox.settings("storage_commitment", pacs=orthanc))
    set_modality(orthanc, "peer-0", "DICOM_NODE", port)
    try:
        assert outbox.sweep(orthanc) == 3
        outbox.confirmation(orthanc).sweep()

        wait_until(lambda: outbox.states() == [COMMITTED] * 3)
    finally:
        set_modality(orthanc, "peer-0", "DICOM_NODE", 11112)


def test_a_real_pacs_that_lost_something_gets_it_again(outbox, open_door, orthanc):
    port = open_door(outbox.settings("storage_commitment", pacs=orthanc))
    set_modality(orthanc, "peer-0", "DICOM_NODE", port)
    try:
        assert outbox.sweep(orthanc) == 3
        delete(orthanc, outbox.uids[1])
        outbox.confirmation(orthanc).sweep()
        wait_until(lambda: outbox.states() == [COMMITTED, PENDING, COMMITTED])
        outbox.clock.advance(minutes=1)
        assert outbox.sweep(orthanc) == 1
        outbox.confirmation(orthanc).sweep()

        wait_until(lambda: outbox.states() == [COMMITTED] * 3)
    finally:
        set_modality(orthanc, "peer-0", "DICOM_NODE", 11112)


def set_modality(orthanc: Orthanc, name: str, ae_title: str, port: int) -> None:
    ask(orthanc, "PUT", f"/modalities/{name}", [ae_title, "127.0.0.1", port])


def delete(orthanc: Orthanc, sop_instance_uid: str) -> None:
    for found in orthanc._look_up("Instance", sop_instance_uid):
        ask(orthanc, "DELETE", f"/instances/{found}")


def ask(orthanc: Orthanc, method: str, path: str, body: object = None) -> None:
    data = json.dumps(body).encode()
    request = urllib.request.Request(f"{orthanc.http}{path}", data=data, method=method)
    with urllib.request.urlopen(request, timeout=10):
        pass


def test_what_the_peer_lost_is_sent_again_and_nothing_else(outbox, caplog):
    with CommittingPacs(reports_at_once=True) as pacs:
        pacs.lost = {outbox.uids[1]: NO_SUCH_INSTANCE}
        send(outbox, pacs)
        after = outbox.states()
        pacs.lost = {}
        outbox.clock.advance(minutes=1)
        assert outbox.sweep(pacs) == 1
        outbox.confirmation(pacs).sweep()

    assert after == [COMMITTED, PENDING, COMMITTED]
    assert pacs.received == [*outbox.uids, outbox.uids[1]]
    assert outbox.states() == [COMMITTED] * 3
    assert "commitment.reported peer=pacs kept=2 lost=1" in caplog.text


@pytest.mark.parametrize(
    ("reason", "state"),
    [
        (0x0110, PENDING),
        (0x0112, PENDING),
        (0x0213, PENDING),
        (0x0999, PENDING),
        (0x0119, PARKED),
        (0x0122, PARKED),
        (0x0131, SENT),
    ],
)
def test_every_failure_reason_means_what_the_catalogue_says(outbox, reason, state):
    with CommittingPacs(reports_at_once=True) as pacs:
        pacs.lost = {outbox.uids[0]: reason}
        send(outbox, pacs)

    assert outbox.states() == [state, COMMITTED, COMMITTED]


def test_a_peer_that_loses_for_days_is_somebodys_to_look_at(outbox):
    with CommittingPacs(reports_at_once=True) as pacs:
        pacs.lost = dict.fromkeys(outbox.uids, NO_SUCH_INSTANCE)
        send(outbox, pacs)
        outbox.clock.advance(hours=73)
        send(outbox, pacs)

    assert outbox.states() == [PARKED] * 3


def test_report_that_comes_twice_changes_nothing(outbox, open_door, short):
    with CommittingPacs() as pacs:
        port = open_door(outbox.settings("storage_commitment", pacs=pacs))
        send(outbox, pacs)
        report = pacs.report()

        assert [pacs.call_back(port, report) for _ in range(2)] == [0x0000] * 2

    assert outbox.states() == [COMMITTED] * 3


def test_report_that_never_comes_is_asked_for_under_another_transaction(outbox, short):
    with CommittingPacs() as pacs:
        send(outbox, pacs)
        outbox.clock.advance(minutes=59)
        assert outbox.confirmation(pacs).sweep() == 0
        outbox.clock.advance(minutes=1)
        assert outbox.confirmation(pacs).sweep() == 3

    first, second = (request.TransactionUID for request in pacs.requests)
    assert first != second
    assert outbox.states() == [SENT] * 3


def test_late_report_on_an_older_request_still_commits(outbox, open_door, short):
    with CommittingPacs() as pacs:
        port = open_door(outbox.settings("storage_commitment", pacs=pacs))
        send(outbox, pacs)
        outbox.clock.advance(hours=2)
        outbox.confirmation(pacs).sweep()

        assert pacs.call_back(port, pacs.report(0)) == 0x0000

    assert outbox.states() == [COMMITTED] * 3


def test_late_loss_on_an_older_request_sends_nothing_again(outbox, open_door, short):
    with CommittingPacs() as pacs:
        port = open_door(outbox.settings("storage_commitment", pacs=pacs))
        send(outbox, pacs)
        outbox.clock.advance(hours=2)
        outbox.confirmation(pacs).sweep()
        pacs.lost = dict.fromkeys(outbox.uids, NO_SUCH_INSTANCE)

        assert pacs.call_back(port, pacs.report(0)) == 0x0000

    assert outbox.states() == [SENT] * 3


def test_loss_never_undoes_a_commitment(outbox, open_door):
    with CommittingPacs(reports_at_once=True) as pacs:
        port = open_door(outbox.settings("storage_commitment", pacs=pacs))
        send(outbox, pacs)
        pacs.lost = dict.fromkeys(outbox.uids, NO_SUCH_INSTANCE)
        pacs.call_back(port, pacs.report())

    assert outbox.states() == [COMMITTED] * 3


def test_report_that_nobody_asked_for_is_refused(outbox, open_door, short):
    with CommittingPacs() as pacs:
        port = open_door(outbox.settings("storage_commitment", pacs=pacs))
        send(outbox, pacs)
        report = pacs.report()
        report.TransactionUID = "1.2.3.4"

        assert pacs.call_back(port, report) == UNKNOWN_TRANSACTION

    assert outbox.states() == [SENT] * 3


def test_report_on_what_another_peer_was_asked_is_refused(outbox, open_door, short):
    with CommittingPacs() as pacs, CommittingPacs(ae_title="OTHER") as other:
        port = open_door(outbox.settings("storage_commitment", pacs=pacs, other=other))
        send(outbox, pacs)
        other.requests = pacs.requests

        assert other.call_back(port, other.report()) == UNKNOWN_TRANSACTION

    assert outbox.states() == [SENT] * 3


def test_peer_without_commitment_may_not_report(outbox, open_door, short):
    with CommittingPacs() as pacs:
        port = open_door(outbox.settings("none", pacs=pacs))
        send(outbox, pacs)

        with pytest.raises(ConnectionError):
            pacs.call_back(port, pacs.report())


def test_a_study_is_asked_about_when_all_of_it_is_there(outbox, short):
    statuses = dict(zip(outbox.uids, (0, 0xA700, 0), strict=True))
    with CommittingPacs(answer=statuses.__getitem__) as pacs:
        outbox.sweep(pacs)

        assert outbox.confirmation(pacs).sweep() == 0


def test_refused_request_is_made_again_later(outbox, caplog, short):
    with CommittingPacs() as pacs:
        pacs.action_status = 0x0213
        send(outbox, pacs)

    assert "commitment.refused peer=pacs status=0x0213 instances=3" in caplog.text
    assert outbox.confirmation(pacs).sweep() == 0


def test_peer_that_does_not_offer_commitment_is_left_alone_for_a_while(outbox, caplog):
    with ScriptedPacs() as pacs:
        outbox.sweep(pacs)
        asking = outbox.confirmation(pacs)
        asking.sweep()
        asking.sweep()

    assert pacs.associations == 2
    assert "commitment.not_asked peer=pacs failures=1" in caplog.text


def test_a_peer_that_does_not_offer_commitment_is_believed_by_what_it_lists(outbox, tmp_path):
    with run_archive(tmp_path / "archive") as archive:
        assert outbox.sweep(archive) == 3
        outbox.confirmation(archive, "storage_commitment").sweep()

    assert outbox.states() == [COMMITTED] * 3


def test_silence_about_what_is_kept_is_told(outbox, short):
    with CommittingPacs() as pacs:
        send(outbox, pacs)
        outbox.clock.advance(hours=73)

        assert outbox.alerts(pacs, "storage_commitment") == [
            "peer pacs: 3 instances were taken, and it does not say that it keeps them"
        ]
        assert outbox.alerts(pacs) == []


def test_a_real_pacs_is_believed_by_the_count_that_it_lists(outbox, orthanc):
    assert outbox.sweep(orthanc) == 3
    outbox.confirmation(orthanc, "query").sweep()

    assert outbox.states() == [COMMITTED] * 3


def test_what_a_real_pacs_does_not_list_twice_is_sent_again(outbox, orthanc):
    assert outbox.sweep(orthanc) == 3
    delete(orthanc, outbox.uids[1])
    outbox.confirmation(orthanc, "query").sweep()
    first = outbox.states()
    outbox.clock.advance(hours=1)
    outbox.confirmation(orthanc, "query").sweep()
    second = outbox.states()
    outbox.clock.advance(minutes=1)
    assert outbox.sweep(orthanc) == 1
    outbox.confirmation(orthanc, "query").sweep()

    assert first == [COMMITTED, SENT, COMMITTED]
    assert second == [COMMITTED, PENDING, COMMITTED]
    assert outbox.states() == [COMMITTED] * 3


def test_what_a_real_dicomweb_archive_does_not_list_twice_is_sent_again(outbox, orthanc):
    url = f"{orthanc.http}/dicom-web"
    with closing(outbox.archive(url)) as archive:
        assert archive.sweep() == 3
        delete(orthanc, outbox.uids[1])
        outbox.archive_confirmation(url).sweep()
        first = outbox.states()
        outbox.clock.advance(hours=1)
        outbox.archive_confirmation(url).sweep()
        second = outbox.states()
        outbox.clock.advance(minutes=1)
        assert archive.sweep() == 1
    outbox.archive_confirmation(url).sweep()

    assert first == [COMMITTED, SENT, COMMITTED]
    assert second == [COMMITTED, PENDING, COMMITTED]
    assert outbox.states() == [COMMITTED] * 3


def test_a_dicomweb_archive_is_asked_on_until_nothing_new_comes(outbox):
    def answer(request: Request) -> Reply:
        if request.method == "POST":
            return take(request)
        [offset] = parse_qs(urlsplit(request.path).query)["offset"]
        page = outbox.uids[int(offset) : int(offset) + 2]
        listed = [{"00080018": {"vr": "UI", "Value": [uid]}} for uid in page]
        return Reply(status=200, body=json.dumps(listed).encode())

    with ScriptedArchive(answer) as server, closing(outbox.archive(server.url)) as archive:
        archive.sweep()
        outbox.archive_confirmation(server.url).sweep()

    assert outbox.states() == [COMMITTED] * 3


@pytest.mark.parametrize(
    "reply",
    [Reply(status=401), Reply(status=400), Reply(status=200, body=b"<html>"), Reply(status=404)],
)
def test_a_dicomweb_archive_that_does_not_say_loses_nothing(outbox, reply):
    def answer(request: Request) -> Reply:
        return take(request) if request.method == "POST" else reply

    with ScriptedArchive(answer) as server, closing(outbox.archive(server.url)) as archive:
        archive.sweep()
        for _ in range(2):
            outbox.archive_confirmation(server.url).sweep()
            outbox.clock.advance(hours=1)

    assert outbox.states() == [SENT] * 3


def test_an_archive_without_counts_is_believed_by_its_instances(outbox, tmp_path):
    with run_archive(tmp_path / "archive") as archive:
        assert outbox.sweep(archive) == 3
        outbox.confirmation(archive, "query").sweep()
        kept = outbox.states()

    assert kept == [COMMITTED] * 3


def test_an_archive_that_lost_everything_gets_it_again(outbox, tmp_path):
    with run_archive(tmp_path / "archive") as archive:
        assert outbox.sweep(archive) == 3
        archive.lose()
        for _ in range(2):
            outbox.confirmation(archive, "query").sweep()
            outbox.clock.advance(hours=1)

        assert outbox.states() == [PENDING] * 3
        assert outbox.sweep(archive) == 3
