import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from dicom_node import command
from dicom_node.recorder import Rows
from dicom_node.upper_layer import encode_pdu
from doubles.raw_peer import (
    EXPLICIT,
    IMPLICIT,
    MR,
    RELEASE_RP,
    RELEASE_RQ,
    VERIFICATION,
    associate_request,
    data_set,
    echo_command,
    p_data,
    pdv,
    store_command,
)
from doubles.receiver import Door, open_door

pytestmark = pytest.mark.integration

ENCAPSULATED_PDF = "1.2.840.10008.5.1.4.1.1.104.1"
DEFLATED = "1.2.840.10008.1.2.1.99"
ECHO = echo_command()

StartNode = Callable[..., Door]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[StartNode]:
    """Give a function that starts a receiver with the given limits.

    It is strict, so that a row is there when its answer is.
    """
    with contextlib.ExitStack() as stack:
        yield lambda **limits: stack.enter_context(open_door(tmp_path, **limits))


@pytest.fixture
def node(start: StartNode) -> Door:
    return start()


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


def test_a_peer_that_may_only_echo_cannot_store(node):
    with node.connect(source="127.0.0.9") as peer:
        assert peer.associate(associate_request(calling="TESTER")) == [0, 3]


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


def test_a_uid_with_leading_zeros_is_taken_and_flagged(node, caplog):
    with node.connect() as peer:
        peer.associate()
        statuses = [peer.store(uid, data_set(uid)) for uid in ("1.02.3", "1.2.0", "1.20.3")]

    assert statuses == [command.SUCCESS] * 3
    (flag,) = [each for each in caplog.records if "uid_nonconformant" in each.getMessage()]
    assert vars(flag)["instances"] == 1
    told = [event.detail.get("uid_nonconformant") for event in node.ledger.events("1.2.3")]
    assert told.count(1) == 1


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


def test_nothing_is_stored_under_the_context_of_verification(node):
    """Or a peer that may only echo could store after all."""
    content = data_set("1.2.3.5", sop_class=VERIFICATION)
    with node.connect(source="127.0.0.9") as peer:
        peer.associate(associate_request(((VERIFICATION, (EXPLICIT,)),), calling="TESTER"))

        assert peer.store("1.2.3.5", content, sop_class_uid=VERIFICATION, context_id=1) == 0x0122

    assert list(node.store.iterate_incoming()) == []


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


# -- who takes too much ---------------------------------------------------------------------------

FAST = {"first_pdu": "500 ms", "each_pdu": "500 ms", "idle": "700 ms", "message": "600 ms"}


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
    # All of them have one address, and a busy machine notices late that they have closed.
    node = start(**FAST, connections=1000, connections_per_address=1000)
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

    wait_until(lambda: node.connections() == 0)
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
