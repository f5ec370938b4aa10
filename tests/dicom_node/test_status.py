import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from dicom_node.domain import DeliveryState
from dicom_node.ledger import Ledger
from dicom_node.status import read_status
from doubles.ledger import STUDY, Clock, finish, make_derived, make_plan, receive_and_judge, record


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(tmp_path: Path, clock: Clock) -> Iterator[Ledger]:
    with Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}", clock) as ledger:
        receive_and_judge(ledger, [make_plan()])
        finish(ledger, *(make_derived(number) for number in (1, 2, 3)))
        yield ledger


def test_study_and_job_tell_state_age_and_attempts(ledger: Ledger, clock: Clock) -> None:
    clock.advance(seconds=90)

    status = read_status(ledger, STUDY, clock())

    (study,), (job,) = status["studies"], status["jobs"]
    assert (study["state"], study["age_seconds"], study["instances"]) == ("judged", 90, 1)
    assert (job["state"], job["age_seconds"], job["attempts"]) == ("done", 90, 1)
    assert (job["target"], job["verdict"]) == ("T2w", "pass")


def test_deliveries_that_stand_alike_are_one_entry(ledger: Ledger, clock: Clock) -> None:
    first, *_ = ledger.deliveries()
    record(ledger, first.delivery_id, DeliveryState.PARKED, 0xA900, "does not match")

    deliveries = read_status(ledger, STUDY, clock())["deliveries"]

    told = {(each["state"], each["instances"], each["status"]) for each in deliveries}
    assert told == {("parked", 1, "0xA900"), ("pending", 2, None)}


def test_status_is_json(ledger: Ledger, clock: Clock) -> None:
    json.dumps(read_status(ledger, None, clock()))


def test_unknown_study_is_told(ledger: Ledger, clock: Clock) -> None:
    with pytest.raises(LookupError, match=r"2\.25\.404"):
        read_status(ledger, "2.25.404", clock())


def test_destination_that_is_silent_is_told_with_what_waits(ledger: Ledger, clock: Clock) -> None:
    ledger.record_outage("pacs", "no connection", clock())
    clock.advance(hours=1)

    [told] = read_status(ledger, None, clock())["destinations"]

    assert (told["peer"], told["state"], told["failures"]) == ("pacs", "silent", 1)
    assert (told["pending"], told["oldest_seconds"], told["reason"]) == (3, 3600, "no connection")
