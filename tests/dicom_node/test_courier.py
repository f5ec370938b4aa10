from collections import Counter
from collections.abc import Iterator
from io import BytesIO
from itertools import chain
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread
from pydicom.sequence import Sequence

from dicom_node.courier import REENCODED, find_contexts
from dicom_node.domain import DeliveryState
from dicom_node.part10 import decode_file_meta
from doubles.outbox import Outbox
from doubles.scripted_pacs import EXPLICIT, IMPLICIT, MR, ScriptedPacs
from doubles.window_pacs import WindowPacs

PENDING, SENT, WARNED, PARKED = (
    DeliveryState.PENDING,
    DeliveryState.SENT,
    DeliveryState.WARNED,
    DeliveryState.PARKED,
)
SR = "1.2.840.10008.5.1.4.1.1.88.34"
JPEG_2000 = "1.2.840.10008.1.2.4.90"
PRIVATE = 0x00291001


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    one = Outbox(tmp_path)
    yield one
    one.ledger.close()


def test_each_kind_has_a_context_of_its_own_and_explicit_a_second_chance():
    contexts, served = find_contexts({(MR, EXPLICIT), (SR, JPEG_2000), (SR, IMPLICIT)})

    assert contexts == [(MR, EXPLICIT), (MR, IMPLICIT), (SR, IMPLICIT), (SR, JPEG_2000)]
    assert served == {(MR, EXPLICIT), (SR, JPEG_2000), (SR, IMPLICIT)}


def test_no_association_is_asked_for_more_contexts_than_it_can_have():
    kinds = {(f"1.2.{number}", EXPLICIT) for number in range(100, 200)}

    contexts, served = find_contexts(kinds)

    assert len(contexts) == 128
    assert served == {(f"1.2.{number}", EXPLICIT) for number in range(100, 164)}


def read_data_set(outbox: Outbox, uid: str) -> bytes:
    """Return what lies in the file of an instance behind its header."""
    [path] = [
        each.instance.path for each in outbox.deliveries() if each.instance.sop_instance_uid == uid
    ]
    file = outbox.store.read(path)
    return file[decode_file_meta(file).data_set_offset :]


@pytest.mark.integration
@pytest.mark.parametrize(
    ("syntaxes", "proposed"),
    [
        ([EXPLICIT], [(MR, (EXPLICIT,)), (MR, (IMPLICIT,))]),
        ([IMPLICIT], [(MR, (IMPLICIT,))]),
        ([JPEG_2000], [(MR, (JPEG_2000,))]),
        ([EXPLICIT, JPEG_2000], [(MR, (EXPLICIT,)), (MR, (IMPLICIT,)), (MR, (JPEG_2000,))]),
    ],
    ids=["explicit", "implicit", "compressed", "both"],
)
def test_what_is_proposed_is_what_will_be_sent_and_the_bytes_are_those_of_the_file(
    outbox, syntaxes, proposed
):
    outbox.fill(syntaxes=syntaxes)
    with WindowPacs() as pacs:
        while outbox.sweep(pacs):
            pass

    assert sorted(chain(*pacs.proposed)) == sorted(proposed)
    assert outbox.states() == [SENT] * 3
    assert pacs.data_sets == {uid: read_data_set(outbox, uid) for uid in outbox.uids}
    assert {each.reason for each in outbox.deliveries()} == {None}


@pytest.mark.integration
def test_what_is_to_go_is_kept_before_the_first_of_it_goes(outbox):
    outbox.fill(instances=3)
    with WindowPacs() as pacs:
        while outbox.sweep(pacs):
            pass

    told = [each for each in outbox.ledger.events() if each.name.startswith("delivery.")]
    assert [each.name for each in told] == ["delivery.begun", *["delivery.sent"] * 3]
    assert told[0].detail == {"peer": "pacs", "classes": {MR: 3}}


def fill_richly(outbox: Outbox) -> None:
    """Queue an instance that has every sort of value."""
    item = Dataset()
    item.CodeValue = "T-A0100"
    item.CodingSchemeDesignator = "SRT"
    content = Dataset()
    content.SpecificCharacterSet = "ISO_IR 192"
    content.ImageType = ["DERIVED", "SECONDARY"]
    content.SliceThickness = "1.25"
    content.PixelSpacing = [0.5, 0.75]
    content.RealWorldValueFirstValueMapped = -3
    content.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    content.LUTExplanation = "größer"
    content.AnatomicRegionSequence = Sequence([item, Dataset()])
    content.SimpleFrameList = [1, 2**31]
    content.SelectorFDValue = [0.1, -1e300]
    content.private_block(0x0029, "MAKER", create=True).add_new(1, "LO", "value")
    content.BitsAllocated = 16
    content.PixelRepresentation = 1
    content.SmallestImagePixelValue = -5
    content.add_new("PixelData", "OW", bytes(range(256)) * 4)
    outbox.fill(instances=1, content=content)


@pytest.mark.integration
def test_what_is_read_ahead_is_checked_and_goes_once_in_its_turn(outbox):
    content = Dataset()
    content.BitsAllocated = 8
    content.add_new("PixelData", "OW", bytes(400_000))
    outbox.fill(instances=9, content=content)
    paths = [each.instance.path for each in outbox.deliveries()]
    outbox.store.write(paths[2], b"rotten")
    outbox.store.delete(paths[3])
    tries = Counter()

    def dies_at(uid: str) -> bool:
        tries[uid] += 1
        return uid == outbox.uids[5] and tries[uid] == 1

    with WindowPacs(dies_at=dies_at) as pacs:
        outbox.sweep(pacs)
        middle = outbox.states()
        outbox.clock.advance(minutes=1)
        outbox.sweep(pacs)

    assert middle == [SENT, SENT, PARKED, PENDING, SENT, *[PENDING] * 4]
    assert outbox.states() == [SENT, SENT, PARKED, PENDING, *[SENT] * 5]
    broken = outbox.uids[5]
    assert [uid for uid in pacs.received if uid != broken] == [
        uid for uid in outbox.uids if uid not in {*outbox.uids[2:4], broken}
    ]
    assert pacs.received.count(broken) == 2
    assert [each.attempts for each in outbox.deliveries()] == [1, 1, 1, 2, 1, 2, 1, 1, 1]


@pytest.mark.integration
def test_a_peer_that_takes_implicit_vr_only_gets_every_value_and_it_is_told(outbox, caplog):
    fill_richly(outbox)
    caplog.set_level("INFO")
    with ScriptedPacs(syntaxes=(IMPLICIT,)) as pacs:
        assert outbox.sweep(pacs) == 1

    [delivery] = outbox.deliveries()
    sent = pacs.datasets[outbox.uids[0]]
    stored = dcmread(BytesIO(outbox.store.read(delivery.instance.path)))
    assert [each.tag for each in sent] == [each.tag for each in stored]
    assert [(each.tag, each.VR, each.value) for each in sent if each.tag != PRIVATE] == [
        (each.tag, each.VR, each.value) for each in stored if each.tag != PRIVATE
    ]
    assert sent[PRIVATE].value.rstrip() == stored[PRIVATE].value.encode()
    assert (delivery.state, delivery.reason) == (SENT, REENCODED)
    assert "delivery.implicit_vr peer=pacs instances=1" in caplog.text
    [event] = [each for each in outbox.ledger.events() if each.name == "delivery.sent"]
    assert event.detail["reason"] == REENCODED


@pytest.mark.integration
def test_a_peer_that_takes_both_gets_the_bytes_of_the_file(outbox):
    fill_richly(outbox)
    with ScriptedPacs(syntaxes=(IMPLICIT, EXPLICIT)) as pacs:
        outbox.sweep(pacs)

    [delivery] = outbox.deliveries()
    assert pacs.encoded[outbox.uids[0]] == read_data_set(outbox, outbox.uids[0])
    assert delivery.reason is None


@pytest.mark.integration
def test_nothing_is_decompressed_for_a_peer_that_does_not_take_it(outbox):
    outbox.fill(syntaxes=[JPEG_2000])
    with ScriptedPacs() as pacs:
        assert outbox.sweep(pacs) == 0

    assert pacs.received == []
    assert outbox.states() == [PARKED] * 3
    assert {each.reason for each in outbox.deliveries()} == {
        f"the peer does not accept its SOP class in {JPEG_2000}"
    }


@pytest.mark.integration
def test_each_instance_keeps_its_status_when_answers_come_last_first(outbox):
    outbox.fill(instances=12)
    wanted = [(0x0000, SENT), (0xB000, WARNED), (0xA700, PENDING), (0xC000, PARKED)] * 3
    statuses = {uid: status for uid, (status, _) in zip(outbox.uids, wanted, strict=True)}
    with WindowPacs(grant=4, answers=statuses.__getitem__) as pacs:
        assert outbox.sweep(pacs, window=6) == 6

    assert pacs.most_under_way == 4
    assert pacs.received == outbox.uids
    assert pacs.answered != outbox.uids
    assert [(each.status, each.state) for each in outbox.deliveries()] == wanted


@pytest.mark.integration
@pytest.mark.parametrize(("window", "asked"), [(1, None), (8, 8)])
def test_a_peer_that_grants_no_window_gets_one_instance_at_a_time(outbox, window, asked):
    outbox.fill()
    with WindowPacs(grant=None) as pacs:
        assert outbox.sweep(pacs, window=window) == 3

    assert pacs.asked == [asked]
    assert pacs.most_under_way == 1


@pytest.mark.integration
def test_everything_under_way_when_the_peer_dies_is_sent_again(outbox):
    outbox.fill(instances=9)
    deaths = Counter()
    fatal = outbox.uids[6]

    def dies_at(uid: str) -> bool:
        deaths[uid] += 1
        return uid == fatal and deaths[uid] == 1

    # The first goes alone; then four are awaited, answered, and the next four are under way.
    with WindowPacs(grant=4, dies_at=dies_at) as pacs:
        outbox.sweep(pacs, window=4)
        before = outbox.states()
        outbox.clock.advance(minutes=1)
        outbox.sweep(pacs, window=4)

    unknown = [uid for uid, state in zip(outbox.uids, before, strict=True) if state is not SENT]
    assert fatal in unknown
    assert set(outbox.uids[:5]).isdisjoint(unknown)
    assert outbox.states() == [SENT] * 9
    assert {uid: pacs.received.count(uid) for uid in outbox.uids[:5]} == dict.fromkeys(
        outbox.uids[:5], 1
    )
    assert {each.attempts for each in outbox.deliveries()} <= {1, 2}


@pytest.mark.integration
def test_an_instance_on_which_a_peer_always_dies_takes_no_other_with_it(outbox):
    outbox.fill(instances=6)
    fatal = outbox.uids[2]
    with WindowPacs(grant=6, dies_at=fatal.__eq__) as pacs:
        for _ in range(4):
            outbox.sweep(pacs, window=6)
            outbox.clock.advance(minutes=20)

    states = dict(zip(outbox.uids, outbox.states(), strict=True))
    assert states.pop(fatal) is PENDING
    assert set(states.values()) == {SENT}
