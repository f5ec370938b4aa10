"""Several processes at one ledger: nothing is claimed twice, nothing is lost."""

import multiprocessing
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

from dicom_node.ledger import Ledger
from doubles.ledger import PEER, STUDY, make_instance, make_plan, receive_and_judge

PROCESSES = 4
JOBS = 300


def open_ledger(url: str) -> Ledger:
    return Ledger(url, lambda: datetime.now(UTC)).open()


def claim_all(url: str) -> list[tuple[str, int]]:
    claimed = []
    with open_ledger(url) as ledger:
        while jobs := ledger.claim(3, timedelta(minutes=5)):
            claimed += [(job.plan.plan_id, job.attempt) for job in jobs]
    return claimed


def record_some(url: str, first: int) -> None:
    with open_ledger(url) as ledger:
        for number in range(first, first + 50):
            ledger.record_instances([make_instance(number)], PEER, None)


@pytest.fixture(scope="module")
def pool():
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(PROCESSES, mp_context=context) as pool:
        yield pool


@pytest.mark.integration
def test_four_processes_claim_three_hundred_jobs_once_each(url, pool):
    plans = [make_plan(f"{number:032x}") for number in range(JOBS)]
    with open_ledger(url) as ledger:
        receive_and_judge(ledger, plans)

    claims = [claim for claimed in pool.map(claim_all, [url] * PROCESSES) for claim in claimed]

    assert Counter(plan_id for plan_id, _ in claims) == Counter(plan.plan_id for plan in plans)
    assert {attempt for _, attempt in claims} == {1}


@pytest.mark.integration
def test_four_processes_record_at_once_and_nothing_is_lost(url, pool):
    with open_ledger(url) as ledger:
        # Each writes 25 instances that its neighbor writes too.
        list(pool.map(record_some, [url] * PROCESSES, range(0, 25 * PROCESSES, 25)))

        assert ledger.study_row(STUDY).seen == 25 * (PROCESSES + 1)


@pytest.mark.integration
def test_four_processes_that_come_first_make_one_ledger(url, pool):
    list(pool.map(record_some, [url] * PROCESSES, [0] * PROCESSES))

    with open_ledger(url) as ledger:
        assert ledger.study_row(STUDY).seen == 50
