"""Values of the domain as the JSON documents and rows of the ledger, and back."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Any

from sqlalchemy import Row

from dicom_node.domain import (
    ContrastLabel,
    DerivedInstance,
    Gap,
    Instance,
    Label,
    Mode,
    Origin,
    Refusal,
    RemoteSeries,
    Series,
    SlotState,
    SynthesisPlan,
)
from dicom_node.records import JudgedSeries


def encode_json(document: Any) -> str:
    """Return a document as JSON; a number that JSON does not know (NaN, infinity) becomes null."""
    try:
        return json.dumps(document, allow_nan=False)
    except ValueError:
        return json.dumps(_without_strange_numbers(document))


def _without_strange_numbers(document: Any) -> Any:
    if isinstance(document, float):
        return document if math.isfinite(document) else None
    if isinstance(document, Mapping):
        return {key: _without_strange_numbers(value) for key, value in document.items()}
    if isinstance(document, list | tuple):
        return [_without_strange_numbers(value) for value in document]
    return document


def plan_document(plan: SynthesisPlan) -> dict[str, Any]:
    """Return `plan` as JSON types."""
    return {**asdict(plan), "created_at": plan.created_at.isoformat()}


def read_plan(document: Mapping[str, Any], generation: int) -> SynthesisPlan:
    """Return the plan of `document`, as wanted by `generation`."""
    return SynthesisPlan(
        **{
            **document,
            "generation": generation,
            "target": ContrastLabel(document["target"]),
            "sources": {ContrastLabel(key): uid for key, uid in document["sources"].items()},
            "source_instances": tuple((uid, sha) for uid, sha in document["source_instances"]),
            "mode": Mode(document["mode"]),
            "deliver_to": tuple(document["deliver_to"]),
            "truth_instances": tuple(
                (uid, sha) for uid, sha in document.get("truth_instances", ())
            ),
            "source_frames": {
                ContrastLabel(key): tuple(frames)
                for key, frames in document.get("source_frames", {}).items()
            },
            "truth_frames": tuple(document.get("truth_frames", ())),
            "created_at": datetime.fromisoformat(document["created_at"]),
        }
    )


def series_document(series: Series) -> dict[str, Any]:
    """Return what is kept of `series` with a judgement."""
    return {
        "series_instance_uid": series.series_instance_uid,
        "modality": series.modality,
        "origin": series.origin.value,
        "frame_of_reference_uid": series.frame_of_reference_uid,
        "instances": len(series.instances),
        "label": None if series.label is None else asdict(series.label),
        "problem": series.problem,
    }


def read_series(document: Mapping[str, Any]) -> JudgedSeries:
    """Return the judged series of `document`."""
    label, problem = document["label"], document["problem"]
    return JudgedSeries(
        **{
            **document,
            "origin": Origin(document["origin"]),
            "label": None if label is None else _read_label(label),
            "problem": None if problem is None else (problem[0], problem[1]),
        }
    )


def _read_label(document: Mapping[str, Any]) -> Label:
    return Label(
        contrast=document["contrast"],
        confidence=document["confidence"],
        evidence=tuple(document["evidence"]),
        attributes=document["attributes"],
        candidates=tuple(document["candidates"]),
    )


def read_remote(document: Mapping[str, Any]) -> RemoteSeries:
    """Return the series of a peer of `document`."""
    return RemoteSeries(**document)


def read_gap(document: Mapping[str, Any]) -> Gap:
    """Return the gap of `document`."""
    return Gap(**{**document, "state": SlotState(document["state"])})


def read_refusal(document: Mapping[str, Any]) -> Refusal:
    """Return the refusal of `document`."""
    return Refusal(**document)


def read_instance(row: Row[Any]) -> Instance:
    """Return the instance of a row of `instance`."""
    return Instance(
        sop_instance_uid=row.sop_instance_uid,
        sop_class_uid=row.sop_class_uid,
        series_instance_uid=row.series_instance_uid,
        study_instance_uid=row.study_instance_uid,
        transfer_syntax_uid=row.transfer_syntax_uid,
        sha256=row.sha256,
        path=row.path,
        header=row.header,
    )


def read_derived(row: Row[Any]) -> DerivedInstance:
    """Return the derived instance of a row of `derived`."""
    return DerivedInstance(
        sop_instance_uid=row.sop_instance_uid,
        sop_class_uid=row.sop_class_uid,
        series_instance_uid=row.series_instance_uid,
        role=row.role,
        number=row.number,
        sha256=row.sha256,
        path=row.path,
    )
