import pytest

from dicom_node import complaints
from dicom_node.complaints import QUIET_SECONDS, Complaints


class Seconds:
    """A monotonic clock that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> Seconds:
    clock = Seconds()
    monkeypatch.setattr(complaints, "time", clock)
    return clock


def test_the_same_complaint_is_counted_and_not_repeated(caplog, seconds):
    one = Complaints()
    for _ in range(50):
        one.note("idle_timeout", who="scanner")
    seconds.now += QUIET_SECONDS
    one.note("idle_timeout", who="scanner")

    assert [record.getMessage() for record in caplog.records] == ["receive.idle_timeout"] * 2
    assert vars(caplog.records[1])["left_out"] == 49


def test_another_peer_or_event_is_told_at_once(caplog, seconds):
    one = Complaints()
    one.note("idle_timeout", who="scanner")
    one.note("idle_timeout", who="pacs")
    one.note("pdu_timeout", who="scanner")

    assert len(caplog.records) == 3


def test_a_thousand_addresses_do_not_fill_the_memory(seconds):
    one = Complaints()
    for number in range(5_000):
        one.note("tls_failed", who=str(number))

    assert len(one._said) <= 1_024
