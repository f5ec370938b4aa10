"""A ledger with one judged study and its queued jobs, and a clock that a test turns."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from dicom_node.domain import (
    ContrastLabel,
    DerivedInstance,
    Instance,
    Mode,
    Role,
    SynthesisPlan,
)
from dicom_node.ledger import Ledger

STUDY = "2.25.1"
T1W = ContrastLabel("T1w")
FLAIR = ContrastLabel("FLAIR")


class Clock:
    """A clock that stands still until it is turned."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def turn(self, by: timedelta) -> None:
        self.now += by


def open_ledger(folder: Path, clock: Clock) -> Ledger:
    return Ledger(f"sqlite:///{folder / 'ledger.sqlite'}", clock).open()


def make_instances(paths: Mapping[str, str], study: str = STUDY) -> list[Instance]:
    """Return one instance per item: path to SHA-256."""
    return [
        Instance(
            sop_instance_uid=f"{study}.1.{number}",
            sop_class_uid="1.2.840.10008.5.1.4.1.1.4",
            series_instance_uid=f"{study}.1",
            study_instance_uid=study,
            transfer_syntax_uid="1.2.840.10008.1.2.1",
            sha256=sha256,
            path=path,
        )
        for number, (path, sha256) in enumerate(paths.items())
    ]


def make_plan(
    number: int = 1, instances: Sequence[Instance] = (), **changes: object
) -> SynthesisPlan:
    facts = {
        "plan_id": f"{number:032x}",
        "study_instance_uid": STUDY,
        "generation": 1,
        "rule": "brain",
        "rule_reason": "brain expects FLAIR, and the study holds none",
        "target": FLAIR,
        "target_modality": "MR",
        "anatomy": "BRAIN",
        "sources": {T1W: f"{STUDY}.1"},
        "source_instances": tuple(
            sorted((each.sop_instance_uid, each.sha256) for each in instances)
        ),
        "model_id": "stub",
        "model_digest": "d" * 64,
        "seed": 0,
        "mode": Mode.SEND,
        "priority": 0,
        "deliver_to": ("pacs",),
        "config_digest": "c" * 64,
        "created_at": datetime(2026, 1, 1, tzinfo=UTC),
    }
    return SynthesisPlan(**(facts | changes))  # type: ignore[arg-type]


def judge(ledger: Ledger, plans: Sequence[SynthesisPlan], instances: Sequence[Instance]) -> None:
    """Let `plans` be queued as the judgement of a study that holds `instances`."""
    ledger.record_instances(instances, "modality", None)
    row = ledger.study_row(STUDY)
    assert ledger.record_judgement(
        STUDY,
        row.generation,
        seen=row.seen,
        series=(),
        slots={},
        gaps=(),
        plans=plans,
        refusals=(),
    )


def make_derived(path: str, number: int = 1) -> DerivedInstance:
    return DerivedInstance(
        sop_instance_uid=f"2.25.9.{number}",
        sop_class_uid="1.2.840.10008.5.1.4.1.1.4",
        series_instance_uid="2.25.9",
        role=Role.IMAGE,
        number=number,
        sha256="0" * 64,
        path=path,
    )
