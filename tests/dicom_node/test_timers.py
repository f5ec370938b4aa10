import threading
from datetime import timedelta

from dicom_node.errors import StorageError
from dicom_node.timers import Timer

PERIOD = timedelta(seconds=1)


def raising(error: Exception):
    def sweep() -> None:
        raise error

    return sweep


def test_failed_sweep_is_a_problem_until_one_succeeds():
    errors = [StorageError("the disk is full")]

    def sweep() -> None:
        if errors:
            raise errors.pop()

    timer = Timer("delivery", sweep, PERIOD)

    timer.tick()
    told = list(timer.problems())
    timer.tick()

    assert told == ["delivery: the disk is full"]
    assert list(timer.problems()) == []


def test_foreign_error_is_told_without_its_text():
    timer = Timer("assembly", raising(ValueError("Doe^Jane")), PERIOD)

    timer.tick()

    (problem,) = timer.problems()
    assert problem.startswith("assembly: ValueError at test_timers.py:")


def test_same_failure_is_logged_once(caplog):
    timer = Timer("delivery", raising(StorageError("the disk is full")), PERIOD)

    for _ in range(3):
        timer.tick()

    assert len(caplog.records) == 1


def test_waiting_tells_whether_the_sweep_has_ended():
    began, go_on = threading.Event(), threading.Event()

    def sweep() -> None:
        began.set()
        go_on.wait(10)

    timer = Timer("delivery", sweep, PERIOD)
    thread = threading.Thread(target=timer.tick)
    thread.start()
    began.wait(10)

    while_running = timer.wait(0.01)
    go_on.set()
    thread.join()

    assert (while_running, timer.wait(0.01)) == (False, True)
