"""What came of the study, as one JSON document, from ledger, PACS and validators."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dicom_node.demonstration.studies import Parcel
from dicom_node.domain import ContrastLabel, Delivery, DerivedInstance, Role
from dicom_node.jobs import JobState
from dicom_node.ledger import Job, JudgedSeries, Judgement, Ledger, StudyRow


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One job with what it made and what became of that.

    Attributes:
        in_pacs: SOP Instance UIDs of `derived` that the PACS says it holds.
    """

    job: Job
    derived: tuple[DerivedInstance, ...]
    deliveries: tuple[Delivery, ...]
    in_pacs: frozenset[str]

    @property
    def image_series(self) -> str | None:
        """Series Instance UID of the synthetic images, or None when there are none."""
        uids = [one.series_instance_uid for one in self.derived if one.role is Role.IMAGE]
        return uids[0] if uids else None

    @property
    def is_complete(self) -> bool:
        """Whether the job is done and the PACS holds all that it made."""
        made = {one.sop_instance_uid for one in self.derived}
        return self.job.state is JobState.DONE and bool(made) and made <= self.in_pacs


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """All that the report says.

    Attributes:
        validators: which tools judged the derived files.
        problems: what they, and our own conformance checks, found.
        comparisons: target to figures against the series that was held back.
        seconds: stage of the demonstration to wall-clock seconds.
    """

    parcel: Parcel
    pacs: str
    study: StudyRow
    judgement: Judgement
    outcomes: tuple[Outcome, ...]
    validators: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    comparisons: Mapping[ContrastLabel, Mapping[str, float]] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def failures(self) -> tuple[str, ...]:
        """What keeps the demonstration from having succeeded, in sentences."""
        return tuple(self._find_failures())

    def _find_failures(self) -> Iterator[str]:
        if self.study.hold_reason:
            yield f"the study is held: {self.study.hold_reason}"
        for outcome in self.outcomes:
            job = outcome.job
            if job.state is not JobState.DONE:
                yield f"{job.plan.target}: the job is {job.state}: {job.reason}"
            elif not outcome.is_complete:
                missing = len(outcome.derived) - len(outcome.in_pacs)
                yield f"{job.plan.target}: {missing} derived instances are not in the PACS"
        if self.parcel.held_back and not self.outcomes:
            yield "a contrast was held back and nothing was made"
        yield from self.problems


def read_outcomes(ledger: Ledger, study: str, held: Mapping[str, str]) -> tuple[Outcome, ...]:
    """Return the study's jobs, those that still stand.

    Args:
        ledger: open.
        study: Study Instance UID.
        held: SOP Instance UIDs in the PACS, each with its series.
    """
    deliveries = ledger.deliveries(study)
    outcomes = []
    for job in ledger.jobs(study):
        if job.state is JobState.SUPERSEDED:
            continue
        derived = tuple(ledger.derived(job.plan.plan_id))
        outcomes.append(
            Outcome(
                job=job,
                derived=derived,
                deliveries=tuple(d for d in deliveries if d.plan_id == job.plan.plan_id),
                in_pacs=frozenset(d.sop_instance_uid for d in derived) & held.keys(),
            )
        )
    return tuple(outcomes)


def to_document(findings: Findings) -> dict[str, Any]:
    """Return the findings as JSON types."""
    judgement = findings.judgement
    return {
        "completed": not findings.failures,
        "failures": list(findings.failures),
        "study_instance_uid": findings.study.study_instance_uid,
        "study_state": findings.study.state.value,
        "phantom": findings.parcel.is_phantom,
        "note": findings.parcel.note,
        "pacs": findings.pacs,
        "series": [_series_document(one) for one in judgement.series],
        "slots": {rule: dict(slots) for rule, slots in judgement.slots.items()},
        "gaps": [
            {"rule": gap.rule, "target": gap.target, "state": gap.state.value}
            for gap in judgement.gaps
        ],
        "refusals": [
            {"rule": one.rule, "target": one.target, "code": one.code, "reason": one.reason}
            for one in judgement.refusals
        ],
        "jobs": [_job_document(outcome) for outcome in findings.outcomes],
        "comparisons": {label: dict(figures) for label, figures in findings.comparisons.items()},
        "validation": {"tools": list(findings.validators), "problems": list(findings.problems)},
        "seconds": {stage: round(value, 1) for stage, value in findings.seconds.items()},
    }


def _series_document(series: JudgedSeries) -> dict[str, Any]:
    label = series.label
    return {
        "series_instance_uid": series.series_instance_uid,
        "modality": series.modality,
        "instances": series.instances,
        "origin": series.origin.value,
        "label": None if label is None else label.contrast,
        "confidence": 0.0 if label is None else label.confidence,
        "evidence": [] if label is None else list(label.evidence),
        "problem": None if series.problem is None else list(series.problem),
    }


def _job_document(outcome: Outcome) -> dict[str, Any]:
    job, plan = outcome.job, outcome.job.plan
    return {
        "plan_id": plan.plan_id,
        "target": plan.target,
        "modality": plan.target_modality,
        "sources": dict(plan.sources),
        "model": plan.model_id,
        "model_digest": plan.model_digest,
        "rule": plan.rule,
        "rule_reason": plan.rule_reason,
        "mode": plan.mode.value,
        "state": job.state.value,
        "reason": job.reason,
        "attempts": job.attempt,
        "quality": dict(job.quality),
        "record": list(job.record),
        "seconds": dict(job.seconds),
        "derived": [
            {
                "sop_instance_uid": one.sop_instance_uid,
                "series_instance_uid": one.series_instance_uid,
                "role": one.role.value,
                "in_pacs": one.sop_instance_uid in outcome.in_pacs,
            }
            for one in outcome.derived
        ],
        "deliveries": summarize_deliveries(outcome.deliveries),
    }


def summarize_deliveries(deliveries: Sequence[Delivery]) -> list[dict[str, Any]]:
    """Return one line for each peer, role and state, with how many instances and DIMSE statuses."""
    lines: dict[tuple[str, str, str], list[Delivery]] = {}
    for one in deliveries:
        lines.setdefault((one.peer, one.instance.role.value, one.state.value), []).append(one)
    return [
        {
            "peer": peer,
            "role": role,
            "state": state,
            "instances": len(group),
            "attempts": max(one.attempts for one in group),
            "statuses": sorted({f"0x{d.status:04X}" for d in group if d.status is not None}),
            "reasons": sorted({one.reason for one in group if one.reason}),
        }
        for (peer, role, state), group in lines.items()
    ]
