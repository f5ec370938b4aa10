from collections.abc import Iterator
from datetime import timedelta
from hashlib import sha256
from io import BytesIO
from pathlib import Path

import pytest
from pydicom import Dataset, dcmwrite

from dicom_node.delivery import find_pause, judge_status, sweep
from dicom_node.demonstration.pacs import Orthanc
from dicom_node.domain import Delivery, DeliveryState, DerivedInstance
from dicom_node.ledger import Ledger
from dicom_node.node_settings import NodeSettings, Peer, Receiver, StorageClasses
from dicom_node.part10 import encode_file_meta
from dicom_node.store import Store
from doubles.ledger import (
    Clock,
    finish,
    judge,
    make_derived,
    make_instance,
    make_plan,
    receive_and_judge,
)
from doubles.scripted_pacs import ABORT, EXPLICIT, IMPLICIT, MR, ScriptedPacs

PENDING, SENT, WARNED, PARKED = (
    DeliveryState.PENDING,
    DeliveryState.SENT,
    DeliveryState.WARNED,
    DeliveryState.PARKED,
)
DERIVED_STUDY = "1.2.3.777"
SR = "1.2.840.10008.5.1.4.1.1.88.34"


class Outbox:
    """A ledger with three derived instances that are due to the peer `pacs`."""

    def __init__(self, folder: Path) -> None:
        self.clock = Clock()
        self.folder = folder
        self.store = Store(folder / "store").open()
        self.ledger = Ledger(f"sqlite:///{folder / 'ledger.sqlite'}", self.clock).open()
        self.uids: list[str] = []

    def fill(self, peers: tuple[str, ...] = ("pacs",), sop_class: str = MR) -> None:
        receive_and_judge(self.ledger, [make_plan(deliver_to=peers)])
        derived = [self.write(number, sop_class) for number in (1, 2, 3)]
        self.uids = [each.sop_instance_uid for each in derived]
        finish(self.ledger, *derived)

    def write(self, number: int, sop_class: str) -> DerivedInstance:
        instance = make_derived(number, sop_class_uid=sop_class)
        dataset = Dataset()
        dataset.SOPClassUID = sop_class
        dataset.SOPInstanceUID = instance.sop_instance_uid
        dataset.Rows = 512
        dataset.PatientID = "P1"
        dataset.StudyInstanceUID = DERIVED_STUDY
        dataset.SeriesInstanceUID = f"{DERIVED_STUDY}.1"
        out = BytesIO()
        dcmwrite(out, dataset, implicit_vr=False, little_endian=True)
        meta = encode_file_meta(sop_class, instance.sop_instance_uid, EXPLICIT)
        content = meta + out.getvalue()
        self.store.write(instance.path, content)
        return make_derived(number, sop_class_uid=sop_class, sha256=sha256(content).hexdigest())

    def sweep(self, pacs: ScriptedPacs | Orthanc, **more: ScriptedPacs) -> int:
        peers = {
            alias: Peer(ae_title=each.ae_title, host="127.0.0.1", port=each.port, roles={"send"})
            for alias, each in {"pacs": pacs, **more}.items()
        }
        settings = NodeSettings(
            ae_title="DICOM_NODE",
            data_folder=self.folder,
            models_folder=self.folder,
            receiver=Receiver(storage_classes=StorageClasses(image=("MRImageStorage",))),
            peers=peers,
        )
        return sweep(self.ledger, self.store, settings, self.clock)

    def deliveries(self) -> list[Delivery]:
        return self.ledger.deliveries()

    def states(self) -> list[DeliveryState]:
        return [each.state for each in self.deliveries()]


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[Outbox]:
    one = Outbox(tmp_path)
    yield one
    one.ledger.close()


@pytest.fixture
def outbox(empty: Outbox) -> Outbox:
    empty.fill()
    return empty


@pytest.mark.parametrize(
    ("status", "state"),
    [
        (0x0000, SENT),
        (0xB000, WARNED),
        (0xB006, WARNED),
        (0xB007, WARNED),
        (0x0111, WARNED),
        (0xA700, PENDING),
        (0xA7FF, PENDING),
        (0x0213, PENDING),
        (0x0110, PENDING),
        (0xFE00, PENDING),
        (0xA900, PARKED),
        (0xC000, PARKED),
        (0xCFFF, PARKED),
        (0x0122, PARKED),
        (0x0117, PARKED),
        (0x0124, PARKED),
    ],
)
def test_every_status_means_what_the_catalogue_says(status, state):
    assert judge_status(status).state == state


def test_pauses_double_up_to_the_longest():
    first, longest = timedelta(seconds=30), timedelta(minutes=15)

    pauses = [find_pause(first, longest, attempts).total_seconds() for attempts in range(7)]

    assert pauses == [30, 60, 120, 240, 480, 900, 900]
    assert find_pause(first, longest, 10_000) == longest


@pytest.mark.integration
def test_what_the_peer_takes_is_called_sent(outbox):
    with ScriptedPacs() as pacs:
        assert outbox.sweep(pacs) == 3
        assert outbox.sweep(pacs) == 0

    assert outbox.states() == [SENT] * 3
    assert [each.status for each in outbox.deliveries()] == [0, 0, 0]
    assert pacs.received == outbox.uids
    assert pacs.associations == 1


@pytest.mark.integration
def test_a_real_pacs_holds_what_is_called_sent(outbox, orthanc):
    assert outbox.sweep(orthanc) == 3

    assert outbox.states() == [SENT] * 3
    assert set(orthanc.find_instances(DERIVED_STUDY)) == set(outbox.uids)


@pytest.mark.integration
@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
def test_a_peer_gets_the_transfer_syntax_that_it_takes(outbox, syntax):
    with ScriptedPacs(syntaxes=(syntax,)) as pacs:
        assert outbox.sweep(pacs) == 3

    assert {each.Rows for each in pacs.datasets.values()} == {512}


@pytest.mark.integration
def test_each_instance_keeps_its_own_status(outbox):
    statuses = dict(zip(outbox.uids, (0xB000, 0xA700, 0xC000), strict=True))
    with ScriptedPacs(statuses.__getitem__) as pacs:
        outbox.sweep(pacs)

    assert outbox.states() == [WARNED, PENDING, PARKED]
    assert [each.status for each in outbox.deliveries()] == [0xB000, 0xA700, 0xC000]
    assert pacs.received == outbox.uids


@pytest.mark.integration
def test_what_failed_is_tried_again_after_its_pause_and_nothing_else(outbox):
    statuses = dict(zip(outbox.uids, (0, 0xA700, 0), strict=True))
    with ScriptedPacs(lambda uid: statuses[uid]) as pacs:
        outbox.sweep(pacs)
        statuses[outbox.uids[1]] = 0
        outbox.clock.advance(seconds=20)
        outbox.sweep(pacs)
        early = list(pacs.received)
        outbox.clock.advance(seconds=20)
        outbox.sweep(pacs)

    assert early == outbox.uids
    assert pacs.received == [*outbox.uids, outbox.uids[1]]
    assert outbox.states() == [SENT] * 3


@pytest.mark.integration
def test_an_association_that_breaks_leaves_the_rest_due(outbox):
    statuses = dict(zip(outbox.uids, (0, ABORT, 0), strict=True))
    with ScriptedPacs(lambda uid: statuses[uid]) as pacs:
        outbox.sweep(pacs)
        after_break = outbox.states()
        statuses[outbox.uids[1]] = 0
        outbox.clock.advance(minutes=1)
        outbox.sweep(pacs)

    assert after_break == [SENT, PENDING, PENDING]
    assert outbox.states() == [SENT] * 3
    assert pacs.received.count(outbox.uids[0]) == 1


@pytest.mark.integration
def test_an_absent_peer_is_tried_ever_more_rarely(outbox):
    with ScriptedPacs() as gone:
        pass
    outbox.sweep(gone)
    first = outbox.deliveries()[0].next_attempt - outbox.clock.now
    outbox.clock.advance(minutes=1)
    outbox.sweep(gone)
    second = outbox.deliveries()[0].next_attempt - outbox.clock.now

    assert timedelta(seconds=24) <= first <= timedelta(seconds=36)
    assert timedelta(seconds=48) <= second <= timedelta(seconds=72)
    assert outbox.states() == [PENDING] * 3
    assert {each.attempts for each in outbox.deliveries()} == {2}


@pytest.mark.integration
def test_a_peer_that_refuses_for_good_is_asked_slowly(outbox):
    with ScriptedPacs(known="OTHER") as pacs:
        outbox.sweep(pacs)

    pause = outbox.deliveries()[0].next_attempt - outbox.clock.now
    assert pause >= timedelta(minutes=12)
    assert "RJ(1,1,3)" in str(outbox.deliveries()[0].reason)


@pytest.mark.integration
def test_what_nobody_takes_in_time_waits_for_a_person(outbox):
    with ScriptedPacs() as gone:
        pass
    outbox.clock.advance(hours=73)
    outbox.sweep(gone)

    assert outbox.states() == [PARKED] * 3


@pytest.mark.integration
def test_a_class_that_the_peer_does_not_take_is_parked(empty):
    empty.fill(sop_class=SR)
    with ScriptedPacs() as pacs:
        assert empty.sweep(pacs) == 0

    assert pacs.received == []
    assert empty.states() == [PARKED] * 3


@pytest.mark.integration
def test_a_file_that_changed_on_disk_is_not_sent(outbox):
    outbox.store.write(outbox.deliveries()[1].instance.path, b"rotten")
    with ScriptedPacs() as pacs:
        assert outbox.sweep(pacs) == 2

    assert outbox.states() == [SENT, PARKED, SENT]


@pytest.mark.integration
def test_a_study_that_receives_again_sends_nothing(outbox):
    outbox.ledger.record_instances([make_instance(2)], "scanner", None)
    with ScriptedPacs() as pacs:
        assert outbox.sweep(pacs) == 0

    assert pacs.associations == 0
    assert judge(outbox.ledger)


@pytest.mark.integration
def test_an_absent_peer_holds_up_nobody_else(empty):
    empty.fill(peers=("pacs", "other"))
    with ScriptedPacs() as gone:
        pass
    with ScriptedPacs() as pacs:
        assert empty.sweep(gone, other=pacs) == 3

    assert sorted(empty.states()) == [PENDING] * 3 + [SENT] * 3
