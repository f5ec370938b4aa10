"""Where everything stands, read from the ledger: what `dicom-node status` tells.

Studies, jobs and deliveries with state, age, attempts and the last reason, the files that a person
must compare where a study is held because a UID has several contents, and how far what rules in
shadow mode made is from what the scanners made. Ids only, no patient attribute, so that it may be
pasted into a message.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from datetime import datetime
from statistics import median
from typing import Any

from dicom_node.domain import UID_CONFLICT, Delivery, InquiryState
from dicom_node.ledger import Conflict, Job, Ledger, StudyRow

FIGURES = ("psnr_db", "ssim", "mae")
"""Of a comparison; the mean absolute error is in the target's units."""


def read_status(ledger: Ledger, study: str | None, now: datetime) -> dict[str, Any]:
    """Return one study, or all, as a JSON document.

    Raises:
        LookupError: the ledger does not know the study.
    """
    rows = ledger.studies() if study is None else [ledger.study_row(study)]
    waiting = ledger.find_waiting_studies()
    jobs = ledger.jobs(study)
    return {
        "studies": [
            {**_study(row, now), "reason": _explain_wait(row.study_instance_uid, ledger)}
            if row.study_instance_uid in waiting
            else _study(row, now)
            for row in rows
        ],
        "jobs": [_job(job, now) for job in jobs],
        "shadow": _summarize_comparisons(jobs),
        "deliveries": describe_deliveries(ledger.deliveries(study)),
        "destinations": describe_destinations(ledger, now),
        "conflicts": [
            _conflict(row, each, now)
            for row in rows
            if row.hold_code == UID_CONFLICT
            for each in ledger.conflicts(row.study_instance_uid)
        ],
    }


def _study(row: StudyRow, now: datetime) -> dict[str, Any]:
    return {
        "study_instance_uid": row.study_instance_uid,
        "state": row.state,
        "generation": row.generation,
        "instances": row.seen,
        "age_seconds": _age(row.last_received, now),
        "reason": f"{row.hold_code}: {row.hold_reason}" if row.hold_code else None,
    }


def _explain_wait(study_instance_uid: str, ledger: Ledger) -> str:
    """Return which peers a study waits for, and what they last said."""
    return "; ".join(
        f"waits for {each.question.peer}" + (f": {each.reason}" if each.reason else "")
        for each in ledger.inquiries(study_instance_uid)
        if each.state is InquiryState.DUE
    )


def _job(job: Job, now: datetime) -> dict[str, Any]:
    plan = job.plan
    return {
        "job": plan.plan_id,
        "study_instance_uid": plan.study_instance_uid,
        "rule": plan.rule,
        "target": plan.target,
        "sources": dict(plan.sources),
        "model": plan.model_id,
        "mode": plan.mode,
        "state": job.state,
        "age_seconds": _age(job.changed_at, now),
        "attempts": job.attempt,
        "verdict": job.quality.get("verdict"),
        "reason": job.reason,
    }


def _summarize_comparisons(jobs: Iterable[Job]) -> list[dict[str, Any]]:
    """Return what comparisons with real series gave, for each scanner, target and model.

    `compared` counts the figures; `not_compared` tells, by code, how many there are none of.
    """
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = defaultdict(list)
    for job in jobs:
        if found := job.quality.get("comparison"):
            scanner = (found["manufacturer"], found["model_name"], found["field_strength"])
            groups[*scanner, job.plan.target, job.plan.model_id].append(found)
    return [
        {
            "manufacturer": manufacturer,
            "model_name": model_name,
            "field_strength": field_strength,
            "target": target,
            "model": model,
            "compared": sum("problem" not in each for each in group),
            "not_compared": Counter(each["problem"] for each in group if "problem" in each),
            **{figure: _spread(each.get(figure) for each in group) for figure in FIGURES},
        }
        for (manufacturer, model_name, field_strength, target, model), group in sorted(
            groups.items(), key=lambda item: [str(part) for part in item[0]]
        )
    ]


def _spread(values: Iterable[float | None]) -> dict[str, float] | None:
    """Return median and range of the values that are there, or None."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    told = {"median": median(known), "lowest": min(known), "highest": max(known)}
    return {name: round(value, 4) for name, value in told.items()}


def describe_deliveries(deliveries: Iterable[Delivery]) -> list[dict[str, Any]]:
    """Return deliveries as JSON types; those of one job to one peer that stand alike are one."""
    alike: dict[tuple[Any, ...], list[Delivery]] = defaultdict(list)
    for each in deliveries:
        alike[each.plan_id, each.peer, each.state, each.status, each.reason].append(each)
    return [
        {
            "job": plan_id,
            "peer": peer,
            "state": state,
            "instances": len(group),
            "attempts": max(each.attempts for each in group),
            "status": None if status is None else f"0x{status:04X}",
            "reason": reason,
            "next_attempt": min(each.next_attempt for each in group).isoformat(),
        }
        for (plan_id, peer, state, status, reason), group in alike.items()
    ]


def describe_destinations(ledger: Ledger, now: datetime) -> list[dict[str, Any]]:
    """Return how each peer stands that something is or was to be sent to, as JSON types."""
    outages = ledger.outages()
    found = []
    for peer, backlog in ledger.backlogs().items():
        outage = outages.get(peer)
        found.append(
            {
                "peer": peer,
                "state": "answers" if outage is None else "silent",
                "pending": backlog.pending,
                "oldest_seconds": _age(backlog.pending_since or now, now),
                "parked": backlog.parked,
                "failures": 0 if outage is None else outage.failures,
                "next_call": None if outage is None else outage.next_call.isoformat(),
                "reason": None if outage is None else outage.reason,
            }
        )
    return found


def _conflict(row: StudyRow, conflict: Conflict, now: datetime) -> dict[str, Any]:
    return {
        "study_instance_uid": row.study_instance_uid,
        "sop_instance_uid": conflict.sop_instance_uid,
        "kept": conflict.kept,
        "quarantined": conflict.quarantined,
        "peer": conflict.peer,
        "age_seconds": _age(conflict.received_at, now),
    }


def _age(since: datetime, now: datetime) -> float:
    return round((now - since).total_seconds(), 1)
