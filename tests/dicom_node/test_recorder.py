import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from dicom_node.complaints import Complaints
from dicom_node.errors import StorageError
from dicom_node.ledger import Ledger, Receipt
from dicom_node.recorder import Recorder
from dicom_node.store import Store
from doubles.door_watch import wait_until
from doubles.ledger import STUDY, Clock, make_instance


def make_receipt(number: int, association: str = "one") -> Receipt:
    return Receipt(instance=make_instance(number), peer="scanner", association_id=association)


class Commits:
    """Stands between a recorder and its ledger, counts, and fails when it is told to."""

    def __init__(self, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows: list[int] = []
        self.failures = 0
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self._record = ledger.record_receipts
        monkeypatch.setattr(ledger, "record_receipts", self.record)

    def record(self, receipts: list[Receipt], **others: object) -> list[Receipt]:
        self.may_go_on.wait(10)
        if self.failures:
            self.failures -= 1
            raise StorageError("the ledger is full", 0xA701)
        contested = self._record(receipts, **others)
        self.rows.append(len(receipts))
        return contested


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}", Clock()).open() as one:
        yield one


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store").open()


@pytest.fixture
def commits(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> Commits:
    return Commits(ledger, monkeypatch)


def test_rows_of_several_peers_and_associations_share_a_commit(ledger, store, commits):
    commits.may_go_on.clear()
    with Recorder(ledger, store, waited_for=False) as recorder:
        for number in range(40):
            recorder.record(make_receipt(number, association=f"a{number % 4}"))
        commits.may_go_on.set()

    assert sum(commits.rows) == 40
    assert len(commits.rows) <= 2
    assert len(ledger.read_instances(STUDY)) == 40


def test_who_waits_goes_on_when_the_row_is_committed(ledger, store):
    with Recorder(ledger, store, waited_for=True) as recorder:
        recorder.record(make_receipt(1))

        assert len(ledger.read_instances(STUDY)) == 1


def test_who_waits_is_told_that_the_row_is_not_there(ledger, store, commits):
    with Recorder(ledger, store, waited_for=True) as recorder:
        commits.failures = 1
        with pytest.raises(StorageError) as failed:
            recorder.record(make_receipt(1))
        recorder.record(make_receipt(2))

    assert failed.value.status == 0xA701
    assert len(ledger.read_instances(STUDY)) == 1


def test_what_was_acknowledged_is_written_when_the_ledger_answers_again(ledger, store, commits):
    commits.failures = 2
    with Recorder(ledger, store, waited_for=False) as recorder:
        recorder.record(make_receipt(1))
        recorder.close_association("one")

    assert len(ledger.read_instances(STUDY)) == 1


def test_nothing_more_is_let_in_while_the_ledger_does_not_answer(ledger, store, commits):
    commits.failures = 10**6
    with Recorder(ledger, store, waited_for=False) as recorder:
        recorder.record(make_receipt(1))
        wait_until(lambda: recorder.is_hindered)
        with pytest.raises(StorageError) as refused:
            recorder.record(make_receipt(2))
        commits.failures = 0

    assert refused.value.status == 0xA701
    assert ledger.read_instances(STUDY)


def test_an_association_is_closed_after_all_that_came_over_it(ledger, store):
    with Recorder(ledger, store, waited_for=False) as recorder:
        recorder.record(make_receipt(1))
        recorder.close_association("one")

        assert len(ledger.read_instances(STUDY)) == 1
        told = [event.name for event in ledger.events()]
        assert told == ["association.opened", "study.received", "association.closed"]


def test_alerts_are_kept_and_no_flood_of_them(ledger, store):
    with Recorder(ledger, store, waited_for=False) as recorder:
        complaints = Complaints(recorder.keep_alert)
        for number in range(1_000):
            complaints.note("calling_ae_title", who=f"10.0.0.{number}", code=3)

    alerts = [each for each in ledger.events() if each.name == "security.calling_ae_title"]
    assert alerts[0].detail == {"who": "10.0.0.0", "code": 3}
    assert len(alerts) < 50


def test_the_end_writes_what_still_waits(ledger, store):
    with Recorder(ledger, store, waited_for=False) as recorder:
        recorder.record(make_receipt(1))

    assert len(ledger.read_instances(STUDY)) == 1
