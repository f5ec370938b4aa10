import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from dicom_node.domain import DeliveryState, Mode
from dicom_node.ledger import Ledger
from dicom_node.status import read_status
from doubles.ledger import (
    LEASE,
    STUDY,
    Clock,
    finish,
    make_derived,
    make_plan,
    receive_and_judge,
    record,
)


def compare(ledger: Ledger, model_name: str, found: Mapping[str, object]) -> None:
    """Run the next job in the queue to its end, with the figures that shadow mode keeps."""
    [job] = ledger.claim(1, LEASE)
    scanner = {"manufacturer": "ACME", "model_name": model_name, "field_strength": 3}
    assert ledger.record_derived(
        job.plan.plan_id,
        job.attempt,
        [],
        quality={"verdict": "pass", "comparison": {**scanner, **found}},
        seconds={},
        record=[],
    )


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


def test_comparisons_are_told_for_each_scanner(tmp_path: Path, clock: Clock) -> None:
    magnets = [("Magnet 3", 20.0), ("Magnet 3", 30.0), ("Magnet 3", 22.0), ("Magnet 7", 40.0)]
    with Ledger(f"sqlite:///{tmp_path / 'shadow.sqlite'}", clock) as ledger:
        plans = [make_plan(str(number), mode=Mode.SHADOW) for number in range(len(magnets) + 1)]
        receive_and_judge(ledger, plans)
        for model_name, psnr in magnets:
            found = {"psnr_db": psnr, "ssim": 0.5, "mae": 9.0}
            compare(ledger, model_name, found)
        compare(ledger, "Magnet 3", {"problem": "registration"})
        told = read_status(ledger, None, clock())["shadow"]

    assert [(each["model_name"], each["compared"]) for each in told] == [
        ("Magnet 3", 3),
        ("Magnet 7", 1),
    ]
    assert told[0]["psnr_db"] == {"median": 22, "lowest": 20, "highest": 30}
    assert told[0]["not_compared"] == {"registration": 1}
    assert (told[0]["target"], told[0]["field_strength"]) == ("T2w", 3)
