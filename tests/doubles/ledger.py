"""Rows for a ledger: instances, plans and derived instances that say only what a test is about."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any

from dicom_node.domain import (
    ContrastLabel,
    DeliveryState,
    DerivedInstance,
    Instance,
    Mode,
    Role,
    StepState,
    SynthesisPlan,
)
from dicom_node.ledger import Attempt, Ledger, Sources, Step
from dicom_node.store import Store

STUDY = "1.2.3"
SERIES = "1.2.3.4"
PEER = "pacs"
LEASE = timedelta(minutes=1)
START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


STEP = Step(
    sop_instance_uid="2.25.7",
    peer="manager",
    study_instance_uid=STUDY,
    transaction_uid="2.25.8",
    workitem=("COMPLETE", "99SITE", "Complete it"),
    sources=Sources(series=(SERIES,), ae_titles=("PACS",)),
    state=StepState.CLAIMING,
    since=START,
    next_attempt=START,
)


class Clock:
    """A clock that stands still until it is told to go on."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now

    def advance(self, **duration: float) -> None:
        self.now += timedelta(**duration)


def make_instance(number: int = 1, content: str = "first", **changes: Any) -> Instance:
    uid = changes.pop("sop_instance_uid", f"{SERIES}.{number}")
    digest = sha256(f"{uid} {content}".encode()).hexdigest()
    facts = {
        "sop_instance_uid": uid,
        "sop_class_uid": "1.2.840.10008.5.1.4.1.1.4",
        "series_instance_uid": SERIES,
        "study_instance_uid": STUDY,
        "transfer_syntax_uid": "1.2.840.10008.1.2.1",
        "sha256": digest,
        "path": Store.incoming_name(uid, digest),
    }
    return Instance(**(facts | changes))


def make_plan(plan_id: str = "a" * 32, **changes: Any) -> SynthesisPlan:
    facts = {
        "plan_id": plan_id,
        "study_instance_uid": STUDY,
        "generation": 1,
        "rule": "brain",
        "rule_reason": "rule brain expects T2w, and the study holds none",
        "target": ContrastLabel("T2w"),
        "target_modality": "MR",
        "anatomy": "BRAIN",
        "sources": {ContrastLabel("T1w"): SERIES},
        "source_instances": ((make_instance().sop_instance_uid, make_instance().sha256),),
        "model_id": "copy",
        "model_digest": "d",
        "seed": 1,
        "mode": Mode.SEND,
        "priority": 50,
        "deliver_to": (PEER,),
        "config_digest": "c",
        "created_at": START,
    }
    return SynthesisPlan(**(facts | changes))


def make_derived(number: int = 1, role: Role = Role.IMAGE, **changes: Any) -> DerivedInstance:
    facts = {
        "sop_instance_uid": f"2.25.{role}.{number}".replace(role, str(len(role))),
        "sop_class_uid": "1.2.840.10008.5.1.4.1.1.4",
        "series_instance_uid": "2.25.9",
        "role": role,
        "number": number,
        "sha256": "0" * 64,
        "path": f"derived/{'a' * 32}/1/{role}-{number}.dcm",
    }
    return DerivedInstance(**(facts | changes))


def judge(ledger: Ledger, plans: Sequence[SynthesisPlan] = (), study: str = STUDY) -> bool:
    """Judge a study as it is, with these plans."""
    row = ledger.study_row(study)
    return ledger.record_judgement(
        study,
        row.generation,
        seen=row.seen,
        series=(),
        slots={},
        gaps=(),
        plans=plans,
        refusals=(),
    )


def receive_and_judge(ledger: Ledger, plans: Sequence[SynthesisPlan] = ()) -> None:
    """Receive one instance and judge its study."""
    ledger.record_instances([make_instance()], PEER, None)
    assert judge(ledger, plans)


def finish(ledger: Ledger, *instances: DerivedInstance) -> None:
    """Run the next job in the queue to a good end."""
    [job] = ledger.claim(1, LEASE)
    assert ledger.record_derived(
        job.plan.plan_id,
        job.attempt,
        instances or [make_derived()],
        quality={"verdict": "pass"},
        seconds={"predict": 1.5},
        record=["resampled"],
    )


def record(
    ledger: Ledger,
    delivery_id: int,
    state: DeliveryState,
    status: int | None,
    reason: str | None,
    next_attempt: datetime | None = None,
) -> None:
    """Record one attempt to send one instance."""
    ledger.record_attempts(
        [
            Attempt(
                delivery_id=delivery_id,
                state=state,
                status=status,
                reason=reason,
                next_attempt=next_attempt,
            )
        ]
    )
