"""Rows of the catalogue about messages and data sets: what is answered, and what the log tells."""

import contextlib
import random
import struct
import threading

import pytest

from dicom_node import command
from doubles.catalogue import row
from doubles.door_watch import (
    CT,
    LAST,
    NOBODY,
    RELEASE,
    STORE,
    UNEXPECTED,
    abort_pdu,
    read_all,
    told,
    wait_until,
)
from doubles.raw_peer import (
    associate_request,
    data_set,
    element,
    p_data,
    pdv,
    store_command,
)
from doubles.receiver import open_door

pytestmark = pytest.mark.integration


def nested(depth: int) -> bytes:
    """Return sequences in one another, of undefined length."""
    begin = struct.pack("<HH2sHI", 0x0040, 0xA730, b"SQ", 0, 0xFFFFFFFF)
    begin += struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
    end = struct.pack("<HHI", 0xFFFE, 0xE00D, 0) + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    return begin * depth + end * depth


def pixels_that_claim(length: int) -> bytes:
    return data_set("9.9.9.1")[:-14] + struct.pack("<HH2sHI", 0x7FE0, 0x10, b"OW", 0, length)


ITEMS = struct.pack("<HH2sHI", 0x0040, 0xA730, b"SQ", 0, 8 * 200_000)
ITEMS += struct.pack("<HHI", 0xFFFE, 0xE000, 0) * 200_000
LIE = struct.pack("<HH2sHI", 0x0040, 0xA731, b"UN", 0, 0xFFFFFFF0)
EMPTY_ELEMENT = element(0x0029, 0x1001, b"DS", b"")
ELEMENTS = EMPTY_ELEMENT * 199_995  # beside the six of `data_set`
UID = "9.9.9.1"


@pytest.mark.parametrize(
    ("uid", "content", "status"),
    [
        row("D4", "other instance", "1.2.3.5", data_set(UID), 0xA900),
        row("D4", "other class", UID, data_set(UID, sop_class=CT), 0xA900),
        row("D5", "65 digits", "9.9.9" + "1" * 60, data_set(UID), 0x0117),
        row("D5", "65 digits inside", UID, data_set("9.9.9" + "1" * 60), 0x0117),
        row("D6", "path", "../../CANARY", data_set(UID), 0x0117),
        row("D6", "path inside", UID, data_set("../../CANARY"), 0x0117),
        row("D6", "path as study", UID, data_set(UID, study="../../CANARY"), 0x0117),
        row("D6", "up", "..", data_set(UID), 0x0117),
        row("D6", "empty", "", data_set(UID), 0x0117),
        row("D6", "newline", "9.9.9\n1", data_set(UID), 0x0117),
        row("D6", "nul", "9.9.9\0001", data_set(UID), 0x0117),
        row("D6", "full width", UID, data_set("９.９"), 0x0117),
        row("D8", "study", UID, data_set(UID, study=""), 0xA900),
        row("D8", "series", UID, data_set(UID, series=""), 0xA900),
        row("D8", "instance", UID, data_set(""), 0xA900),
        row("D8", "class", UID, data_set(UID, sop_class=""), 0xA900),
        row("D9", "ff", UID, b"\xff" * 50, 0xC102),
        row("D9", "random", UID, random.Random(9).randbytes(5_000), 0xC102),
        row("D10", "4 GB of pixels", UID, pixels_that_claim(0xFFFFFFF0), 0xC103),
        row("D10", "cut off", UID, data_set(UID, bytes(8_192))[:-4_192], 0xC103),
        row("D10", "by one", UID, data_set(UID)[:-1], 0xC103),
        row("D11", "33", UID, data_set(UID, more=nested(33)), 0xC104),
        row("D11", "5,000", UID, data_set(UID, more=nested(5_000)), 0xC104),
        row("D12", "200,001", UID, data_set(UID, more=ELEMENTS), 0xC104),
        row("D12", "200,000 items", UID, data_set(UID, more=ITEMS), 0xC104),
        row("D12", "4 GB of values", UID, data_set(UID, more=LIE), 0xC103),
    ],
)
def test_what_cannot_be_kept_is_refused_with_one_line_and_the_association_goes_on(
    door, caplog, uid, content, status
):
    before = list(door.store.iterate_incoming())
    with door.connect() as peer:
        peer.associate()

        assert peer.store(uid, content, fragment=60_000) == status
        assert list(door.store.iterate_incoming()) == before
        assert told(caplog) == ["instance_refused"]
        assert peer.echo() == command.SUCCESS
        peer.send(RELEASE)
        read_all(peer)

    assert told(caplog) == ["instance_refused"]


@pytest.mark.parametrize(
    ("uid", "content"),
    [
        row("D11", "32", "1.2.11.1", data_set("1.2.11.1", more=nested(32))),
        row("D5", "64 digits", "1" * 64, data_set("1" * 64)),
        row("D12", "200,000", "1.2.12", data_set("1.2.12", more=EMPTY_ELEMENT * 199_994)),
        row("D29", "first", "1.2.29", data_set("1.2.29")),
        row("D29", "again", "1.2.29", data_set("1.2.29")),
    ],
)
def test_what_can_be_kept_is_kept_and_not_told(door, caplog, uid, content):
    with door.connect() as peer:
        peer.associate()

        assert peer.store(uid, content) == command.SUCCESS
        peer.send(RELEASE)
        read_all(peer)

    assert [kept for kept in door.stored() if content in kept] != []
    assert told(caplog) == []


@pytest.mark.catalogue("D29")
def test_the_same_instance_again_is_stored_once(door):
    with door.connect() as peer:
        peer.associate()
        before = len(list(door.store.iterate_incoming()))
        statuses = [peer.store("1.2.29.9", data_set("1.2.29.9")) for _ in range(3)]

    assert statuses == [command.SUCCESS] * 3
    assert len(list(door.store.iterate_incoming())) == before + 1


@pytest.mark.catalogue("D12")
def test_too_many_bytes_outside_the_pixels_are_refused(tmp_path, caplog):
    text = struct.pack("<HH2sHI", 0x0040, 0xA160, b"UT", 0, 60_000) + b" " * 60_000
    with open_door(tmp_path, outside_pixels="100 KiB") as door, door.connect() as peer:
        peer.associate()

        assert peer.store("1.2.3.1", data_set("1.2.3.1", more=text)) == command.SUCCESS
        assert peer.store(UID, data_set(UID, more=text * 2)) == 0xC104

        assert told(caplog) == ["instance_refused"]


@pytest.mark.catalogue("D13")
def test_an_instance_over_the_limit_is_cut_off_and_leaves_nothing(tmp_path, caplog):
    with open_door(tmp_path, instance="3 MiB") as door, door.connect() as peer:
        peer.associate()
        piece = p_data(pdv(3, bytes(65_000), is_command=False, is_last=False))
        with contextlib.suppress(ConnectionError):
            peer.send(p_data(STORE) + piece * 60)

        assert read_all(peer) == [abort_pdu(0, 0)]
        wait_until(lambda: door.connections() == 0)
        assert list(door.store.path("incoming").rglob("*.*")) == []

    assert told(caplog) == ["instance_too_large"]


@pytest.mark.catalogue("D13")
def test_an_instance_of_just_the_limit_is_taken(tmp_path):
    content = data_set("1.2.3.1", bytes(2**20 - len(data_set("1.2.3.1", b""))))
    with open_door(tmp_path, instance="1 MiB") as door:
        with door.connect() as peer:
            peer.associate()
            assert peer.store("1.2.3.1", content) == command.SUCCESS
        with door.connect() as peer:
            peer.associate()
            peer.send(p_data(pdv(3, store_command(UID), is_command=True)))
            for start in range(0, 2**20 + 1, 2**16):
                piece = (content + b"\0")[start : start + 2**16]
                peer.send(p_data(pdv(3, piece, is_command=False, is_last=len(piece) == 1)))
            assert peer.read_abort() == (0, 0)


@pytest.mark.parametrize(
    ("field", "has_data"),
    [
        row("D1", "C-FIND", 0x0020, True),
        row("D1", "C-MOVE", 0x0021, True),
        row("D1", "N-CREATE", 0x0140, False),
        row("D1", "N-DELETE", 0x0150, False),
    ],
)
def test_a_service_that_is_not_offered_is_not_recognized(door, caplog, field, has_data):
    elements = {
        command.COMMAND_FIELD: field,
        command.MESSAGE_ID: 5,
        command.COMMAND_DATA_SET_TYPE: command.A_DATA_SET if has_data else command.NO_DATA_SET,
    }
    request = pdv(3, command.encode_command(elements), is_command=True)
    query = pdv(3, b"CANARY", is_command=False) if has_data else b""
    with door.connect() as peer:
        peer.associate()
        peer.send(p_data(request, query))

        response = peer.read_response()
        assert response[command.STATUS] == 0x0211
        assert response[command.MESSAGE_ID_BEING_RESPONDED_TO] == 5
        assert peer.echo() == command.SUCCESS
        peer.send(RELEASE)
        read_all(peer)

    assert told(caplog) == []


@pytest.mark.parametrize(
    ("request_of", "status"),
    [
        row("D2", "none", {"has_data": False}, 0xC101),
        row("D3", "other class", {"sop_class_uid": CT}, 0x0122),
    ],
)
def test_a_request_that_does_not_fit_is_refused_with_one_line(door, caplog, request_of, status):
    with door.connect() as peer:
        peer.associate()
        peer.send(p_data(pdv(3, store_command(UID, **request_of), is_command=True)))
        if request_of.get("has_data", True):
            peer.send(p_data(LAST))

        response = peer.read_response()
        assert response[command.STATUS] == status
        comment = response[command.ERROR_COMMENT]
        assert 0 < len(comment) <= 64
        peer.send(RELEASE)
        read_all(peer)

    assert told(caplog) == ["instance_refused"]


@pytest.mark.catalogue("D7")
def test_a_uid_with_leading_zeros_is_taken_and_told_once(door, caplog):
    uid = "9.9.9.07"
    with door.connect() as peer:
        peer.associate()
        assert peer.store(uid, data_set(uid, study="9.9.9.070")) == command.SUCCESS
        peer.send(RELEASE)
        read_all(peer)

    (flag,) = [each for each in caplog.records if "uid_nonconformant" in each.getMessage()]
    assert vars(flag)["instances"] == 1


@pytest.mark.catalogue("D30")
def test_another_content_under_the_same_uid_is_taken_and_set_aside(door, caplog):
    with door.connect() as peer:
        peer.associate()
        contents = [data_set("1.2.30.1", pixel, study="1.2.30") for pixel in (b"\1\2", b"\3\4")]
        statuses = [peer.store("1.2.30.1", each) for each in contents * 2]
        peer.send(RELEASE)
        read_all(peer)

    assert statuses == [command.SUCCESS] * 4
    (first,) = door.stored("1.2.30")
    assert first.endswith(contents[0])
    aside = [door.store.read(path) for path in door.store.iterate_quarantine()]
    assert len([each for each in aside if each.endswith(contents[1])]) == 1
    assert [event for event in told(caplog) if event == "uid_conflict"] == ["uid_conflict"]


@pytest.mark.catalogue("D31")
def test_of_two_contents_at_once_one_has_the_uid(door):
    both = threading.Barrier(2)
    statuses = []

    def send(pixel: bytes) -> None:
        with door.connect() as peer:
            peer.associate()
            both.wait(20)
            statuses.append(peer.store("1.2.31.1", data_set("1.2.31.1", pixel, study="1.2.31")))

    senders = [threading.Thread(target=send, args=(pixel,)) for pixel in (b"\5\6", b"\7\x08")]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()

    assert statuses == [command.SUCCESS] * 2
    (first,) = door.stored("1.2.31")
    others = [door.store.read(path)[-2:] for path in door.store.iterate_quarantine()]
    assert {first[-2:]} | (set(others) & {b"\5\6", b"\7\x08"}) == {b"\5\6", b"\7\x08"}


@pytest.mark.catalogue("D41")
def test_a_file_begins_with_zeros_of_our_own(door):
    with door.connect() as peer:
        peer.associate()
        assert peer.store("1.2.41", data_set("1.2.41", study="1.2.41.1")) == command.SUCCESS

    (kept,) = door.stored("1.2.41.1")
    assert kept[:132] == bytes(128) + b"DICM"


@pytest.mark.catalogue("D42")
def test_no_line_holds_a_word_of_a_peer(door, caplog):
    caplog.set_level("DEBUG")
    with door.connect() as peer:
        peer.associate()
        peer.store("9.9.9.42", data_set("9.9.9.42", study="9.9.9"))
        peer.store("9.9.9.43", data_set("9.9.9.44"))
        peer.send(associate_request(calling=NOBODY))
        peer.seconds_until_closed()
    for request in (associate_request(calling=NOBODY), associate_request(called=NOBODY)):
        with door.connect() as peer:
            peer.send(request)
            peer.read_rejection()

    assert set(told(caplog)) == {
        *("instance_refused", UNEXPECTED, "calling_ae_title", "called_ae_title")
    }
