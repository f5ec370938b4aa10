"""Why the node does what it does with a study: labels, rules, slots, plans, refusals, with reasons.

Judged anew by the same functions as `assembly` uses, from what the ledger knows of a study or from
a folder of files. Nothing is sent and nothing is written.
"""

from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from dicom_node.assembly import (
    build_study,
    find_hold,
    label_study,
    look_closer,
    read_folder,
    read_headers,
)
from dicom_node.domain import Instance, RemoteSeries, Series, Study, StudyState
from dicom_node.elsewhere import describe_remote
from dicom_node.identifiers import installation_uid
from dicom_node.jobs import JobState
from dicom_node.ledger import Ledger, StudyRow
from dicom_node.progress import read_progress
from dicom_node.routing import Decision, Judge
from dicom_node.status import describe_deliveries
from dicom_node.store import Store


def explain_study(
    study_instance_uid: str, ledger: Ledger, store: Store, judge: Judge, now: datetime
) -> dict[str, Any]:
    """Return why the node does what it does with a study that it has received, and what went out.

    Raises:
        LookupError: the ledger does not know the study.
        StorageError: the ledger does not answer.
    """
    row = ledger.study_row(study_instance_uid)
    instances = read_headers(ledger.read_instances(study_instance_uid), store)
    inquiries = ledger.inquiries(study_instance_uid)
    study = label_study(row, instances, inquiries, ledger, store, judge)
    study = look_closer(study, judge.contrasts, lambda each: store.path(each.path))
    explanation = _explain(study, judge, now, conflicts=len(ledger.conflicts(study_instance_uid)))
    deliveries = describe_deliveries(ledger.deliveries(study_instance_uid))
    answers = [
        {
            "peer": each.question.peer,
            "state": each.state.value,
            "series_there": len(each.found),
            "reason": each.reason,
        }
        for each in inquiries
    ]
    held = [
        {"job": each.plan.plan_id, "target": each.plan.target, "reason": each.reason}
        for each in ledger.jobs(study_instance_uid)
        if each.state is JobState.HELD
    ]
    progress = read_progress(ledger, study_instance_uid)
    found = {
        "held": held,
        "deliveries": deliveries,
        "inquiries": answers,
        "notices": [] if progress is None else progress.describe(),
        "steps": [
            {
                "peer": each.peer,
                "step": each.sop_instance_uid,
                "state": each.state.value,
                "told": each.told,
                "reason": each.reason or None,
            }
            for each in ledger.steps(study_instance_uid)
        ],
        "closing": _read_closing(ledger, row),
    }
    return {**explanation, **{key: value for key, value in found.items() if value}}


def _read_closing(ledger: Ledger, row: StudyRow) -> str | None:
    """Return why the present generation of a study was not waited for any longer, if it is over."""
    if row.state is not StudyState.JUDGED:
        return None
    return ledger.read_judgement(row.study_instance_uid).closing


def explain_folder(folder: Path, judge: Judge, now: datetime) -> list[dict[str, Any]]:
    """Return what the node would do with each study whose files are below `folder`.

    Raises:
        LookupError: there is no DICOM file below it.
    """
    studies = read_folder(folder)
    if not studies:
        raise LookupError("the folder holds no DICOM file that can be read")
    return [_explain_files(uid, instances, judge, now) for uid, instances in studies.items()]


def explain_listed(
    study_instance_uid: str, listed: Iterable[RemoteSeries], judge: Judge, now: datetime
) -> dict[str, Any]:
    """Return what the node would do with a study of which it knows what its series are called."""
    series = tuple(describe_remote(each, judge.contrasts) for each in listed)
    study = Study(study_instance_uid=study_instance_uid, generation=1, series=series)
    return _tell(study, judge.judge(study, now), None)


def _explain_files(
    study_instance_uid: str, instances: Iterable[Instance], judge: Judge, now: datetime
) -> dict[str, Any]:
    """Explain files as if they had been received one after another."""
    contents = {(each.sop_instance_uid, each.sha256): each for each in instances}
    firsts: dict[str, Instance] = {}
    for (uid, _), each in contents.items():
        firsts.setdefault(uid, each)
    study = build_study(
        study_instance_uid,
        firsts.values(),
        judge.contrasts,
        creator_uid=installation_uid(judge.namespace),
    )
    study = look_closer(study, judge.contrasts, lambda each: Path(each.path))
    return _explain(study, judge, now, conflicts=len(contents) - len(firsts))


def _explain(study: Study, judge: Judge, now: datetime, conflicts: int) -> dict[str, Any]:
    decision = judge.find_gaps(study)
    hold = find_hold(study, decision, conflicts)
    if hold is None:
        planned = judge.plan(study, decision, now)
        hold = find_hold(study, planned)
        decision = planned if hold is None else decision
    return _tell(study, decision, hold)


def _tell(study: Study, decision: Decision, hold: tuple[str, str] | None) -> dict[str, Any]:
    elsewhere = [
        {
            "peer": each.remote.peer,
            "study_instance_uid": each.remote.study_instance_uid,
            "series_instance_uid": each.remote.series_instance_uid,
            "label": each.label.contrast,
            "instances": each.remote.instances,
        }
        for each in study.elsewhere
    ]
    return {
        **({"elsewhere": elsewhere} if elsewhere else {}),
        "study_instance_uid": study.study_instance_uid,
        "series": [_series(each) for each in study.series],
        "rules": [
            {"rule": each.rule, "matched": each.matched, "reasons": list(each.reasons)}
            for each in decision.rules
        ],
        "slots": _slots(decision),
        "plans": [
            {
                "target": plan.target,
                "sources": dict(plan.sources),
                "model": plan.model_id,
                "because": plan.rule_reason,
                **({"compared_with": plan.truth} if plan.truth else {}),
            }
            for plan in decision.plans
        ],
        "refusals": _refusals(decision, hold),
    }


def _series(series: Series) -> dict[str, Any]:
    label = series.label
    return {
        "series_instance_uid": series.series_instance_uid,
        "modality": series.modality,
        "label": label.contrast if label is not None else None,
        "confidence": label.confidence if label is not None else 0.0,
        "evidence": list(label.evidence) if label is not None else [],
        "origin": series.origin.value,
    }


def _slots(decision: Decision) -> dict[str, str]:
    """Return the state of each slot; of several rules that expect it, as the first sees it."""
    slots: dict[str, str] = {}
    for states in decision.slots.values():
        for label, state in states.items():
            slots.setdefault(label, state.value)
    return slots


def _refusals(decision: Decision, hold: tuple[str, str] | None) -> list[Mapping[str, str | None]]:
    """Return every gap that stays one, and why; a held study fills none of its gaps."""
    if hold is None:
        return [
            {"target": each.target, "reason": f"{each.code}: {each.reason}"}
            for each in decision.refusals
        ]
    targets: list[str | None] = list(dict.fromkeys(gap.target for gap in decision.gaps)) or [None]
    reason = f"the study is held, {hold[0]}: {hold[1]}"
    return [{"target": target, "reason": reason} for target in targets]
