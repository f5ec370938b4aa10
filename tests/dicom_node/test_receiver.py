import contextlib
import random
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from dicom_node import command
from dicom_node.ledger import Ledger
from dicom_node.node_settings import Limits, NodeSettings, Peer, StorageClasses
from dicom_node.node_settings import Receiver as ReceiverSettings
from dicom_node.receiver import Receiver, build_structure_limits
from dicom_node.recorder import Rows
from dicom_node.store import Durability, Store
from dicom_node.upper_layer import ProposedContext, decode_request, encode_pdu, encode_request
from doubles.raw_peer import (
    EXPLICIT,
    IMPLICIT,
    MR,
    RELEASE_RP,
    RELEASE_RQ,
    VERIFICATION,
    RawPeer,
    associate_request,
    echo_command,
    p_data,
    pdv,
    store_command,
)
from doubles.receiver import build_receiver, open_spool

pytestmark = pytest.mark.integration

ENCAPSULATED_PDF = "1.2.840.10008.5.1.4.1.1.104.1"
DEFLATED = "1.2.840.10008.1.2.1.99"
PATIENT = "CANARY^PATIENT"


class Node:
    """A receiver in this process, with what is behind it."""

    def __init__(self, receiver: Receiver, ledger: Ledger, store: Store, port: int) -> None:
        self.receiver = receiver
        self.ledger = ledger
        self.store = store
        self.port = port

    def connect(self, **options: str) -> RawPeer:
        return RawPeer(self.port, **options)

    def stored(self, study_instance_uid: str = "1.2.3") -> list[bytes]:
        instances = self.ledger.read_instances(study_instance_uid)
        return [self.store.read(instance.path) for instance in instances]


StartNode = Callable[..., Node]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[StartNode]:
    """Give a function that starts a receiver with the given limits.

    It is strict, so that a row is there when its answer is.
    """
    nodes: list[Node] = []
    stack = contextlib.ExitStack()

    def start_node(minimum_free: str = "256 MiB", **limits: object) -> Node:
        settings = NodeSettings(
            ae_title="NODE",
            data_folder=tmp_path,
            models_folder=tmp_path,
            receiver=ReceiverSettings(
                port=0,
                minimum_free=minimum_free,
                limits=Limits(**limits),
                storage_classes=StorageClasses(
                    image=("MRImageStorage", "CTImageStorage"),
                    passed_over=("BasicTextSRStorage",),
                ),
            ),
            peers={
                "scanner": Peer(ae_title="SCANNER", address="127.0.0.1", roles={"receive"}),
                "tester": Peer(ae_title="TESTER", address="127.0.0.0/8", roles={"echo"}),
                "far": Peer(ae_title="FAR", address="10.9.8.7", roles={"receive"}),
            },
        )
        store = Store(settings.store_folder).open()
        ledger = Ledger(settings.ledger_url, lambda: datetime.now(UTC)).open()
        spool = stack.enter_context(
            open_spool(store, ledger, build_structure_limits(settings), Durability.STRICT)
        )
        receiver = build_receiver(settings, spool)
        nodes.append(Node(receiver, ledger, store, receiver.start()[1]))
        return nodes[-1]

    yield start_node
    for node in nodes:
        node.receiver.stop(5)
    stack.close()
    for node in nodes:
        node.ledger.close()


@pytest.fixture
def node(start: StartNode) -> Node:
    return start()


def element(group: int, number: int, vr: bytes, value: bytes) -> bytes:
    value += b"\0" * (len(value) % 2)
    return struct.pack("<HH2sH", group, number, vr, len(value)) + value


def data_set(sop_instance_uid: str, pixel: bytes = b"\1\2", **uids: str) -> bytes:
    """Return an Explicit VR data set that says a patient's name."""
    return b"".join(
        (
            element(0x0008, 0x0016, b"UI", uids.get("sop_class", MR).encode()),
            element(0x0008, 0x0018, b"UI", sop_instance_uid.encode()),
            element(0x0010, 0x0010, b"PN", PATIENT.encode()),
            element(0x0020, 0x000D, b"UI", uids.get("study", "1.2.3").encode()),
            element(0x0020, 0x000E, b"UI", b"1.2.3.4"),
            struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OW", 0, len(pixel)) + pixel,
        )
    )


def wait_until(holds: Callable[[], bool], seconds: float = 5) -> None:
    deadline = time.monotonic() + seconds
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert holds()


# -- who comes in ---------------------------------------------------------------------------------


def test_a_known_peer_echoes_and_leaves_in_order(node):
    with node.connect() as peer:
        peer.associate()

        assert peer.echo() == command.SUCCESS
        peer.send(encode_pdu(RELEASE_RQ, bytes(4)))
        assert peer.read_pdu() == (RELEASE_RP, bytes(4))
        assert peer.seconds_until_closed() < 1


@pytest.mark.parametrize(
    ("request_of", "rejection"),
    [
        ({"called": "OTHER"}, (1, 1, 7)),
        ({"calling": "STRANGER"}, (1, 1, 3)),
        ({"calling": "FAR"}, (1, 1, 3)),
        ({"calling": "../secret/X"}, (1, 1, 3)),
        ({"calling": ""}, (1, 1, 3)),
        ({"called": "NODE\r\nX"}, (1, 1, 7)),
        ({"application_context": "1.2.3"}, (1, 1, 2)),
        ({"application_context": ""}, (1, 2, 1)),
        ({"protocol_version": 2}, (1, 2, 2)),
        ({"maximum_length": 11}, (1, 2, 1)),
        ({"contexts": ()}, (1, 2, 1)),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_wrong_request_is_rejected_with_its_reason(node, request_of, rejection):
    with node.connect() as peer:
        peer.send(associate_request(**request_of))

        assert peer.read_rejection() == rejection
        assert peer.seconds_until_closed() < 6


@pytest.mark.parametrize("ids", [(1, 1), (2,), (0,), (*range(1, 256, 2), 1)], ids=len)
def test_context_ids_that_are_even_or_repeated_are_rejected(node, ids):
    contexts = tuple(
        ProposedContext(context_id=each, abstract_syntax=MR, transfer_syntaxes=(EXPLICIT,))
        for each in ids
    )
    request = replace(decode_request(associate_request()[6:]), contexts=contexts)
    with node.connect() as peer:
        peer.send(encode_request(request))

        assert peer.read_rejection() == (1, 2, 1)


def test_a_peer_that_may_only_echo_cannot_store(node):
    with node.connect(source="127.0.0.9") as peer:
        assert peer.associate(associate_request(calling="TESTER")) == [0, 3]


def test_a_known_title_from_another_address_is_rejected(node):
    with node.connect(source="127.0.0.9") as peer:
        peer.send(associate_request())

        assert peer.read_rejection() == (1, 1, 3)


def test_only_configured_classes_and_syntaxes_are_accepted(node):
    proposals = (
        (MR, (EXPLICIT,)),
        (ENCAPSULATED_PDF, (EXPLICIT,)),
        (MR, (DEFLATED,)),
        ("1.2.840.10008.5.1.4.1.2.2.1", (IMPLICIT,)),
    )
    with node.connect() as peer:
        assert peer.associate(associate_request(proposals)) == [0, 3, 4, 3]


# -- what is kept ---------------------------------------------------------------------------------


def test_a_stored_instance_is_on_disk_and_in_the_ledger_before_success(node):
    sent = data_set("1.2.3.5")
    with node.connect() as peer:
        peer.associate()

        status = peer.store("1.2.3.5", sent)

        assert status == command.SUCCESS
        (kept,) = node.stored()
        assert kept.endswith(sent)
        assert kept[128:132] == b"DICM"


def test_the_same_instance_again_is_stored_once(node):
    with node.connect() as peer:
        peer.associate()
        statuses = [peer.store("1.2.3.5", data_set("1.2.3.5")) for _ in range(2)]

    assert statuses == [0, 0]
    assert len(list(node.store.iterate_incoming())) == 1


def test_another_content_under_the_same_uid_is_taken_and_quarantined(node, caplog):
    with node.connect() as peer:
        peer.associate()
        peer.store("1.2.3.5", data_set("1.2.3.5", b"\1\2"))
        statuses = [peer.store("1.2.3.5", data_set("1.2.3.5", b"\3\4")) for _ in range(2)]

    assert statuses == [command.SUCCESS] * 2
    assert [content[-2:] for content in node.stored()] == [b"\1\2"]
    (other,) = node.store.iterate_quarantine()
    assert node.store.read(other).endswith(b"\3\4")
    assert len(list(node.store.iterate_incoming())) == 1
    alerts = [record for record in caplog.records if record.levelname == "ERROR"]
    assert [record.getMessage() for record in alerts] == ["receive.uid_conflict"]


def test_a_uid_with_leading_zeros_is_taken_and_flagged(node, caplog):
    with node.connect() as peer:
        peer.associate()
        statuses = [peer.store(uid, data_set(uid)) for uid in ("1.02.3", "1.2.0", "1.20.3")]

    assert statuses == [command.SUCCESS] * 3
    (flag,) = [each for each in caplog.records if "uid_nonconformant" in each.getMessage()]
    assert vars(flag)["instances"] == 1
    told = [event.detail.get("uid_nonconformant") for event in node.ledger.events("1.2.3")]
    assert told.count(1) == 1


def test_of_two_contents_at_once_one_has_the_uid(node):
    both = threading.Barrier(2)
    statuses = []

    def send(pixel: bytes) -> None:
        with node.connect() as peer:
            peer.associate()
            both.wait(5)
            statuses.append(peer.store("1.2.3.5", data_set("1.2.3.5", pixel)))

    senders = [threading.Thread(target=send, args=(pixel,)) for pixel in (b"\1\2", b"\3\4")]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()

    assert statuses == [command.SUCCESS] * 2
    (first,) = node.stored()
    (second,) = node.store.iterate_quarantine()
    assert {first[-2:], node.store.read(second)[-2:]} == {b"\1\2", b"\3\4"}


def test_a_long_data_set_goes_through_the_disk_unchanged(node):
    sent = data_set("1.2.3.5", bytes(range(256)) * 40_000)
    with node.connect() as peer:
        peer.associate()

        assert peer.store("1.2.3.5", sent, fragment=60_000) == command.SUCCESS

    assert node.stored()[0].endswith(sent)
    assert [path.suffix for path in node.store.path("incoming").rglob("*.*")] == [".dcm"]


def test_a_data_set_in_many_small_pieces_arrives_whole(node):
    sent = data_set("1.2.3.5", bytes(300))
    with node.connect() as peer:
        peer.associate()

        assert peer.store("1.2.3.5", sent, fragment=7) == command.SUCCESS

    assert node.stored()[0].endswith(sent)


@pytest.mark.parametrize(
    ("uid", "content", "status"),
    [
        ("1.2.3.5", data_set("1.2.3.6"), 0xA900),
        ("1.2.3.5", data_set("1.2.3.5", sop_class="1.2.840.10008.5.1.4.1.1.2"), 0xA900),
        ("1.2.3.5", data_set("1.2.3.5", study=""), 0xA900),
        ("1.2.3.5", data_set("1.2.3.5", study="../../x"), 0x0117),
        ("1" * 65, data_set("1.2.3.5"), 0x0117),
        ("../../x", data_set("../../x"), 0x0117),
        ("", data_set("1.2.3.5"), 0x0117),
        ("..", data_set(".."), 0x0117),
        ("1.2.3.5", b"\xff" * 50, 0xC102),
        ("1.2.3.5", data_set("1.2.3.5")[:-1], 0xC103),
    ],
)
def test_what_cannot_be_kept_is_refused_and_the_association_goes_on(node, uid, content, status):
    with node.connect() as peer:
        peer.associate()

        assert peer.store(uid, content) == status
        assert peer.store("1.2.3.7", data_set("1.2.3.7")) == command.SUCCESS

    assert len(list(node.store.iterate_incoming())) == 1


def test_a_class_that_is_not_the_contexts_is_refused(node):
    with node.connect() as peer:
        peer.associate()

        assert peer.store("1.2.3.5", data_set("1.2.3.5"), sop_class_uid="1.2.3") == 0x0122


def test_nothing_is_stored_under_the_context_of_verification(node):
    """Or a peer that may only echo could store after all."""
    content = data_set("1.2.3.5", sop_class=VERIFICATION)
    with node.connect(source="127.0.0.9") as peer:
        peer.associate(associate_request(((VERIFICATION, (EXPLICIT,)),), calling="TESTER"))

        assert peer.store("1.2.3.5", content, sop_class_uid=VERIFICATION, context_id=1) == 0x0122

    assert list(node.store.iterate_incoming()) == []


def test_a_store_request_without_a_data_set_is_refused(node):
    with node.connect() as peer:
        peer.associate()
        peer.send(p_data(pdv(3, store_command("1.2.3.5", has_data=False), is_command=True)))

        assert peer.read_response()[command.STATUS] == 0xC101


def test_a_service_that_is_not_offered_is_not_recognized(node):
    find = command.encode_command(
        {
            command.COMMAND_FIELD: 0x0020,
            command.MESSAGE_ID: 5,
            command.COMMAND_DATA_SET_TYPE: command.A_DATA_SET,
        }
    )
    with node.connect() as peer:
        peer.associate()
        peer.send(p_data(pdv(3, find, is_command=True), pdv(3, b"query", is_command=False)))

        response = peer.read_response()
        assert response[command.STATUS] == 0x0211
        assert response[command.MESSAGE_ID_BEING_RESPONDED_TO] == 5


def test_a_disk_that_fails_is_told_and_nothing_is_acknowledged(node):
    incoming = node.store.path("incoming")
    aside = incoming.rename(incoming.with_name("aside"))
    incoming.write_bytes(b"not a folder")
    with node.connect() as peer:
        peer.associate()

        assert peer.store("1.2.3.5", data_set("1.2.3.5")) == 0xA700
        incoming.unlink()
        aside.rename(incoming)
        assert peer.store("1.2.3.5", data_set("1.2.3.5")) == command.SUCCESS


def test_without_room_on_the_disk_nobody_is_let_in_for_now(start):
    node = start(minimum_free="1000000 GiB")
    with node.connect() as peer:
        peer.send(associate_request())

        assert peer.read_rejection() == (2, 3, 1)


def test_a_ledger_that_fails_is_told_and_nothing_is_acknowledged(node):
    with node.connect() as peer:
        peer.associate()
        node.ledger.close()
        assert peer.store("1.2.3.5", data_set("1.2.3.5")) == 0xA701

        node.ledger.open()
        assert peer.store("1.2.3.5", data_set("1.2.3.5")) == command.SUCCESS


def test_a_study_is_not_quiet_while_its_association_is_open(node):
    now = timedelta(0), timedelta(minutes=1)
    with node.connect() as peer:
        peer.associate()
        peer.store("1.2.3.5", data_set("1.2.3.5"))
        during = node.ledger.find_quiet_studies(*now)
        peer.send(encode_pdu(RELEASE_RQ, bytes(4)))
        peer.read_pdu()

    assert during == []
    assert node.ledger.find_quiet_studies(*now) == ["1.2.3"]


# -- what breaks the rules ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("noise", "abort"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", (0, 0)),
        (b"\x99\0\0\0\0", (0, 0)),
        (encode_pdu(4, b""), (0, 0)),
        (encode_pdu(5, bytes(4)), (0, 0)),
        (encode_pdu(2, bytes(68)), (0, 0)),
        (b"\1\0\0\1\0\1", (0, 0)),
        (b"\1\0\xff\xff\xff\xff", (0, 0)),
        (encode_pdu(1, bytes(20)), (0, 0)),
        (encode_pdu(1, bytes(68) + b"\x10\0\xff\xff1.2"), (0, 0)),
    ],
    ids=["http", "unknown", "p-data", "release", "accept", "64k", "4g", "short", "item"],
)
def test_anything_but_a_request_is_aborted_at_once(node, noise, abort):
    with node.connect() as peer:
        peer.send(noise)

        assert peer.read_abort() == abort
        assert peer.seconds_until_closed() < 1


ECHO = echo_command()


@pytest.mark.parametrize(
    ("noise", "abort"),
    [
        (associate_request(), (2, 2)),
        (encode_pdu(2, bytes(68)), (2, 2)),
        (encode_pdu(6, bytes(4)), (2, 2)),
        (b"\x99\0\0\0\0\0", (2, 1)),
        (encode_pdu(5, bytes(70_000)), (2, 6)),
        (b"\4\0" + struct.pack(">I", 131_073), (2, 6)),
        (p_data(struct.pack(">IBB", 0xFFFFFFFF, 3, 3)), (2, 6)),
        (p_data(struct.pack(">IBB", 500, 3, 3)), (2, 6)),
        (p_data(b"\0\0\0\0"), (2, 6)),
        (p_data(struct.pack(">IB", 1, 3)), (2, 6)),
        (p_data(pdv(3, b"", is_command=True, is_last=False) * 4_097), (2, 6)),
        (p_data() * 17, (2, 6)),
        (p_data(pdv(5, ECHO, is_command=True)), (0, 0)),
        (p_data(pdv(2, ECHO, is_command=True)), (0, 0)),
        (p_data(pdv(3, b"x", is_command=False)), (0, 0)),
        (p_data(pdv(1, b"\xff" * 30, is_command=True)), (0, 0)),
        (p_data(pdv(1, bytes(9_000), is_command=True, is_last=False)) * 2, (0, 0)),
        (p_data(pdv(3, store_command("1.2"), is_command=True), pdv(1, b"x", is_command=False)), 0),
        (p_data(pdv(3, store_command("1.2"), is_command=True), pdv(1, ECHO, is_command=True)), 0),
        (
            p_data(
                pdv(1, command.encode_command({command.COMMAND_FIELD: 0x7777}), is_command=True)
            ),
            0,
        ),
        (p_data(pdv(1, command.encode_command({command.MESSAGE_ID: 1}), is_command=True)), 0),
    ],
)
def test_a_broken_rule_ends_the_association_with_its_reason(node, noise, abort):
    with node.connect() as peer:
        peer.associate()
        peer.send(noise)

        assert peer.read_abort() == (abort or (0, 0))


def test_an_instance_over_the_limit_is_cut_off_and_leaves_nothing(start):
    node = start(instance="100 KiB")
    with node.connect() as peer:
        peer.associate()
        request = pdv(3, store_command("1.2.3.5"), is_command=True)
        more = pdv(3, bytes(60_000), is_command=False, is_last=False)
        peer.send(p_data(request) + p_data(more) * 2)

        assert peer.read_abort() == (0, 0)

    assert list(node.store.path("incoming").rglob("*.*")) == []


def test_garbage_after_our_abort_is_thrown_away(node):
    with node.connect() as peer:
        peer.associate()
        peer.send(b"\x99\0\0\0\0\0" + b"garbage" * 50_000)

        assert peer.read_abort() == (2, 1)


def test_requests_sent_without_waiting_are_answered_one_by_one(node):
    with node.connect() as peer:
        peer.associate()
        peer.send(p_data(pdv(1, ECHO, is_command=True)) * 100)

        assert {peer.read_response()[command.STATUS] for _ in range(100)} == {command.SUCCESS}


# -- who takes too much ---------------------------------------------------------------------------

FAST = {"first_pdu": "500 ms", "each_pdu": "500 ms", "idle": "700 ms", "message": "600 ms"}


@pytest.mark.parametrize("said", [b"", b"\1", associate_request()[:100]], ids=len)
def test_a_silent_connection_is_closed_in_time(start, said):
    node = start(**FAST)
    with node.connect() as peer:
        peer.send(said)

        assert peer.seconds_until_closed() < 1.2


def test_a_trickle_does_not_extend_the_deadline(start):
    node = start(**FAST)
    with node.connect() as peer:

        def trickle() -> None:
            for byte in associate_request():
                peer.send(bytes([byte]))
                time.sleep(0.05)

        began = time.monotonic()
        with pytest.raises(ConnectionError):
            trickle()

        assert time.monotonic() - began < 2


def test_an_idle_association_is_aborted(start):
    node = start(**FAST)
    with node.connect() as peer:
        peer.associate()

        assert peer.read_abort() == (0, 0)


def test_half_a_pdu_and_silence_ends_the_association(start):
    node = start(**FAST)
    with node.connect() as peer:
        peer.associate()
        peer.send(p_data(pdv(1, ECHO, is_command=True))[:20])

        assert peer.seconds_until_closed() < 1.2


def test_a_message_without_its_end_ends_the_association(start):
    node = start(**FAST)
    with node.connect() as peer:
        peer.associate()
        peer.send(p_data(pdv(3, store_command("1.2.3.5"), is_command=True)))

        assert peer.read_abort() == (0, 0)


def test_stuck_connections_keep_no_good_peer_out(start):
    node = start(associations=4)
    stuck = [node.connect(source="127.0.0.2") for _ in range(20)]
    try:
        for each in stuck[::2]:
            each.send(b"\1\0\0\0")
        began = time.monotonic()
        with node.connect() as peer:
            peer.associate()
            assert peer.echo() == command.SUCCESS
        assert time.monotonic() - began < 1
    finally:
        for each in stuck:
            each.socket.close()


def test_one_peer_cannot_take_all_associations(start):
    node = start(associations=4, associations_per_peer=2)
    with node.connect() as first, node.connect() as second, node.connect() as third:
        first.associate()
        second.associate()
        third.send(associate_request())
        assert third.read_rejection() == (2, 3, 2)

        with node.connect() as other:
            other.associate(associate_request(calling="TESTER"))
            assert other.echo() == command.SUCCESS


def test_room_is_given_back_when_an_association_ends(start):
    node = start(associations=1, associations_per_peer=1)

    for _ in range(3):
        with node.connect() as peer:
            peer.associate()
            peer.send(encode_pdu(RELEASE_RQ, bytes(4)))
            peer.read_pdu()
            peer.seconds_until_closed()


@pytest.mark.parametrize(
    "goodbye", [b"", encode_pdu(RELEASE_RQ, bytes(4))], ids=["gone", "release"]
)
def test_the_place_of_an_association_is_free_before_the_ledger_knows(start, monkeypatch, goodbye):
    node = start(associations=1, associations_per_peer=1, room="10 s")
    written, close = threading.Event(), Rows.close_association

    def close_late(rows: Rows, association_id: str) -> None:
        written.wait(20)
        close(rows, association_id)

    monkeypatch.setattr(Rows, "close_association", close_late)
    with node.connect() as peer:
        peer.associate()
        assert peer.store("1.2.3.5", data_set("1.2.3.5")) == command.SUCCESS
        peer.send(goodbye)

    with node.connect() as peer:
        peer.associate()
        assert peer.echo() == command.SUCCESS
        written.set()


def test_an_association_waits_a_moment_for_another_one_to_end(start):
    node = start(associations=1, associations_per_peer=1, room="10 s")
    with node.connect() as first, node.connect() as second:
        first.associate()
        threading.Timer(0.3, first.socket.close).start()

        second.associate()
        assert second.echo() == command.SUCCESS


def test_idle_associations_cost_next_to_nothing(start):
    node = start()
    peers = [node.connect() for _ in range(8)]
    try:
        for peer in peers:
            peer.associate()
        began = time.process_time()
        time.sleep(0.5)

        assert time.process_time() - began < 0.1
    finally:
        for peer in peers:
            peer.socket.close()


def test_threads_are_given_back_after_rough_treatment(node):
    before = threading.active_count()
    for noise in (b"\x99", b"", encode_pdu(4, b""), associate_request()[:50]):
        for _ in range(5):
            with node.connect() as peer:
                peer.send(noise)

    wait_until(lambda: threading.active_count() <= before)


def test_mutated_sessions_end_and_leave_nothing_behind(start):
    node = start(**FAST)
    session = (
        associate_request()
        + p_data(pdv(1, ECHO, is_command=True))
        + p_data(pdv(3, store_command("1.2.3.5"), is_command=True))
        + p_data(pdv(3, data_set("1.2.3.5"), is_command=False))
        + encode_pdu(RELEASE_RQ, bytes(4))
    )
    rng = random.Random(7)
    before = threading.active_count()
    for _ in range(150):
        mutated = bytearray(session)
        for _ in range(rng.randint(1, 4)):
            mutated[rng.randrange(len(mutated))] = rng.randrange(256)
        with node.connect() as peer, contextlib.suppress(ConnectionError):
            peer.send(bytes(mutated[: rng.randint(1, len(mutated))]))

    with node.connect() as peer:
        peer.associate()
        assert peer.echo() == command.SUCCESS
    wait_until(lambda: threading.active_count() <= before)


# -- how it ends ----------------------------------------------------------------------------------


def test_a_stop_ends_idle_associations_and_lets_nobody_in(start):
    node = start()
    with node.connect() as peer:
        peer.associate()
        stopping = threading.Thread(target=node.receiver.stop)
        stopping.start()

        assert peer.read_abort() == (0, 0)
    stopping.join(2)
    assert not stopping.is_alive()
    with pytest.raises(ConnectionError):
        node.connect()


def test_a_stop_waits_for_the_instance_that_is_coming_in(start):
    node = start()
    content = data_set("1.2.3.5")
    with node.connect() as peer:
        peer.associate()
        peer.send(p_data(pdv(3, store_command("1.2.3.5"), is_command=True)))
        time.sleep(0.1)
        stopping = threading.Thread(target=node.receiver.stop)
        stopping.start()
        time.sleep(0.8)
        peer.send(p_data(pdv(3, content, is_command=False)))

        assert peer.read_response()[command.STATUS] == command.SUCCESS
    stopping.join(2)
    assert len(list(node.store.iterate_incoming())) == 1


def test_the_log_holds_no_word_of_a_peer(node, caplog):
    caplog.set_level("DEBUG")
    with node.connect() as peer:
        peer.associate()
        peer.store("9.9.9.9", data_set("9.9.9.9"))
        peer.store("1.2.3.5", data_set("9.9.9.9"))
        peer.send(associate_request(calling="CANARYTITLE"))
        peer.seconds_until_closed()
    with node.connect() as peer:
        peer.send(associate_request(calling="CANARYTITLE"))
        peer.read_rejection()

    said = " ".join(str(vars(record)) for record in caplog.records)
    assert "instance_refused" in said
    assert "CANARY" not in said
    assert "9.9.9.9" not in said


def test_a_flood_of_complaints_is_one_line(node, caplog):
    for _ in range(20):
        with node.connect() as peer:
            peer.send(b"\x99")
            peer.seconds_until_closed()

    assert len([r for r in caplog.records if "unrecognized_pdu" in r.getMessage()]) == 1
