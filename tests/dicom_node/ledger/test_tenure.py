from datetime import timedelta

import pytest

from dicom_node.errors import StorageError
from dicom_node.ledger import Ledger
from doubles.ledger import PEER, STUDY, make_instance

LEASE = timedelta(seconds=30)


@pytest.fixture
def other(ledger, url, clock):
    """The ledger as a second node has it."""
    with Ledger(url, clock).open(create=False) as other:
        yield other


def test_second_node_at_one_ledger_is_told_who_has_it(ledger, other):
    ledger.begin_tenure("first", LEASE)

    with pytest.raises(StorageError, match=r"another node works with this ledger \(first\).* 30 s"):
        other.begin_tenure("second", LEASE)

    ledger.record_instances([make_instance()], PEER, None)
    assert ledger.renew_tenure(LEASE)


def test_node_that_was_silent_too_long_is_followed_and_writes_nothing_more(ledger, other, clock):
    ledger.begin_tenure("first", LEASE)
    clock.advance(seconds=31)

    assert other.begin_tenure("second", LEASE) == 2

    with pytest.raises(StorageError, match="taken over"):
        ledger.record_instances([make_instance()], PEER, None)
    assert not ledger.renew_tenure(LEASE)
    other.record_instances([make_instance()], PEER, None)
    assert other.study_row(STUDY).seen == 1


def test_node_that_renews_is_not_followed(ledger, other, clock):
    ledger.begin_tenure("first", LEASE)
    for _ in range(3):
        clock.advance(seconds=20)
        assert ledger.renew_tenure(LEASE)

    with pytest.raises(StorageError, match="first"):
        other.begin_tenure("second", LEASE)


def test_node_that_leaves_is_followed_at_once(ledger, other):
    ledger.begin_tenure("first", LEASE)
    ledger.end_tenure()

    other.begin_tenure("second", LEASE)


@pytest.mark.parametrize("again", [("first", False), ("second", True)])
def test_who_cannot_be_there_any_more_is_not_waited_for(again, ledger, other):
    holder, alone = again
    ledger.begin_tenure("first", LEASE)

    other.begin_tenure(holder, LEASE, alone=alone)

    with pytest.raises(StorageError, match="taken over"):
        ledger.record_instances([make_instance()], PEER, None)


def test_process_of_a_node_is_fenced_with_it_and_a_worker_is_not(ledger, other, url, clock):
    number = ledger.begin_tenure("first", LEASE)
    with Ledger(url, clock).open() as receiver, Ledger(url, clock).open() as worker:
        receiver.write_under(number)
        receiver.record_instances([make_instance()], PEER, None)
        clock.advance(seconds=31)
        other.begin_tenure("second", LEASE)

        with pytest.raises(StorageError, match="taken over"):
            receiver.record_instances([make_instance(2)], PEER, None)
        worker.record_instances([make_instance(2)], PEER, None)
