"""What is to be reached, as ratios between receivers of the same rounds, and whether it was."""

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from benchmarks.measurements import Record
from benchmarks.receivers import (
    LIMIT_SYNCED,
    ORTHANC,
    ORTHANC_SHIPPED,
    OURS,
    OURS_FAST,
    PYNETDICOM_SYNCED,
    SINK,
    SINK_LARGE,
    STORESCP,
    STORESCP_SHIPPED,
)
from benchmarks.senders import DCMSEND, DCMSEND_SHIPPED, PYNETDICOM, PYNETDICOM_SHIPPED
from benchmarks.senders import OURS as OUR_SENDER

Measure = Callable[["Results"], float]


class Results:
    """All records of a run; figures are medians over its rounds."""

    def __init__(self, records: Iterable[Record]) -> None:
        self.records = list(records)

    def median(self, kind: str, figure: str, **where: object) -> float:
        """Return the median of one figure; not a number when nothing was measured.

        A sender of others that loses its association before its first instance has no rate.
        """
        values = [
            record[figure]
            for record in self.records
            if record["kind"] == kind
            and not math.isnan(record[figure])
            and all(record.get(key) == value for key, value in where.items())
        ]
        return statistics.median(values) if values else float("nan")

    def received(self, receiver: str, study: str, associations: int, figure: str) -> float:
        """Return one figure of a reception."""
        return self.median(
            "reception", figure, receiver=receiver, study=study, associations=associations
        )

    def ratio(self, one: str, other: str, study: str, associations: int) -> float:
        """Return how many times as many instances `one` took in a second as `other` did."""
        return self.received(one, study, associations, "rate") / self.received(
            other, study, associations, "rate"
        )


@dataclass(frozen=True)
class Goal:
    """One thing to reach.

    Attributes:
        bar: the measure is to be at least this, or at most if `at_most`.
    """

    name: str
    text: str
    measure: Measure
    bar: float
    at_most: bool = False

    def is_reached(self, value: float) -> bool:
        """Say whether `value` reaches the bar."""
        return value <= self.bar if self.at_most else value >= self.bar


def _ratio(one: str, other: str, study: str, associations: int) -> Measure:
    return lambda results: results.ratio(one, other, study, associations)


def _shipped(sender: str, other: str) -> Measure:
    return lambda results: (
        results.median("shipped", "rate", receiver=OURS, sender=sender)
        / results.median("shipped", "rate", receiver=other, sender=sender)
    )


def _compare(kind: str, figure: str, one: str, other: str) -> Measure:
    return lambda results: (
        results.median(kind, figure, receiver=one) / results.median(kind, figure, receiver=other)
    )


def _reception_goals() -> list[Goal]:
    goals = []
    for study, associations, bar in (
        ("mr", 1, 1.2), ("mr", 4, 1.2), ("small", 1, 1.2), ("small", 4, 1.2),
        ("mr", 16, 1.0), ("ct", 1, 1.0), ("ct", 4, 1.0),
    ):  # fmt: skip
        text = f"without durability / {STORESCP}, {study} × {associations}"
        goals.append(Goal("R1", text, _ratio(OURS_FAST, STORESCP, study, associations), bar))
    for study in ("mr", "small", "ct"):
        for associations, bar in ((1, 3.0), (4, 4.0), (16, 15.0)):
            text = f"durable / Orthanc, {study} × {associations}"
            goals.append(Goal("R3", text, _ratio(OURS, ORTHANC, study, associations), bar))
    for associations in (1, 4, 16):
        text = f"durable / C program that syncs, mr × {associations}"
        goals.append(Goal("R4", text, _ratio(OURS, LIMIT_SYNCED, "mr", associations), 0.6))
    for associations, bar in ((1, 4.0), (4, 6.0), (16, 8.0)):
        text = f"durable / pynetdicom that syncs, mr × {associations}"
        measure = _ratio(OURS, PYNETDICOM_SYNCED, "mr", associations)
        goals.append(Goal("R5", text, measure, bar))
    return goals


def _sending_goals() -> list[Goal]:
    def sent(sender: str, other: str, study: str, sink: str) -> Measure:
        return lambda results: (
            results.median("sending", "rate", sender=sender, study=study, receiver=sink)
            / results.median("sending", "rate", sender=other, study=study, receiver=sink)
        )

    goals = []
    for name, other, bar in (
        ("S1", DCMSEND, 1.5),
        ("S3", PYNETDICOM_SHIPPED, 50.0),
        ("S3", PYNETDICOM, 5.0),
    ):
        for study, sink in (("mr", SINK), ("small", SINK), ("ct", SINK_LARGE)):
            text = f"sending / {other}, {study} into a C sink"
            goals.append(Goal(name, text, sent(OUR_SENDER, other, study, sink), bar))
    text = f"sending / {DCMSEND_SHIPPED}, mr into {STORESCP_SHIPPED}"
    measure = sent(OUR_SENDER, DCMSEND_SHIPPED, "mr", STORESCP_SHIPPED)
    goals.insert(3, Goal("S2", text, measure, 50.0))
    return goals


GOALS: Sequence[Goal] = (
    *_reception_goals(),
    Goal(
        "R6",
        "p99 of a durable C-STORE / Orthanc's, mr × 16",
        lambda results: (
            results.received(OURS, "mr", 16, "p99") / results.received(ORTHANC, "mr", 16, "p99")
        ),
        1 / 20,
        at_most=True,
    ),
    *(
        Goal("R7", f"{sender} as shipped into us / into {other}", _shipped(sender, other), 20.0)
        for sender in ("dcmsend", "storescu")
        for other in (STORESCP_SHIPPED, ORTHANC_SHIPPED)
    ),
    Goal(
        "R8",
        "64 idle associations, percent of a core",
        lambda results: results.median("idle", "core_percent", receiver=OURS),
        5.0,
        at_most=True,
    ),
    Goal(
        "R8",
        "64 idle associations, MiB each",
        lambda results: results.median("idle", "mib_each", receiver=OURS),
        1.5,
        at_most=True,
    ),
    *(
        Goal(
            "R9",
            f"{text} / {other}'s, mr × 16",
            lambda results, other=other, figure=figure: (
                results.received(OURS, "mr", 16, figure) / results.received(other, "mr", 16, figure)
            ),
            1.0,
            at_most=True,
        )
        for text, figure in (
            ("memory, shared pages once (PSS)", "memory_mib"),
            ("memory, shared pages each time (peak RSS, summed)", "peak_mib"),
        )
        for other in (ORTHANC, STORESCP)
    ),
    Goal(
        "L1",
        f"C-ECHO / {STORESCP}'s",
        _compare("set-up", "echo_ms", OURS, STORESCP),
        1.0,
        at_most=True,
    ),
    Goal(
        "L2",
        "association set-up, 1 context, ms",
        lambda results: results.median("set-up", "one_ms", receiver=OURS),
        3.0,
        at_most=True,
    ),
    Goal(
        "L2",
        "association set-up, 100 contexts, ms",
        lambda results: results.median("set-up", "hundred_ms", receiver=OURS),
        10.0,
        at_most=True,
    ),
    Goal(
        "E1",
        "ledger rows in groups, 16 writers, a second",
        lambda results: results.median("ledger", "rate", grouped=True),
        8_000.0,
    ),
    Goal(
        "E1",
        "ledger rows in groups / a commit for each",
        lambda results: (
            results.median("ledger", "rate", grouped=True)
            / results.median("ledger", "rate", grouped=False)
        ),
        2.0,
    ),
    *_sending_goals(),
    Goal(
        "S4",
        "answers lost, of 10,000 to small instances in a row",
        lambda results: results.median("answers", "bad"),
        0.0,
        at_most=True,
    ),
    Goal(
        "gate",
        "responses that were no success, of all receivers and senders of ours",
        lambda results: sum(
            record["bad"]
            for record in results.records
            if str(record.get("receiver", "")).startswith("ours")
            or str(record.get("sender", "")).startswith("ours")
        ),
        0.0,
        at_most=True,
    ),
    Goal(
        "gate",
        "data sets that were not stored byte for byte",
        lambda results: sum(record.get("lost", 0) for record in results.records),
        0.0,
        at_most=True,
    ),
)
