"""Steps 3 to 6 of the walk: a sweep that judges studies which are quiet, or complete before that.

It reads the headers that came since the last look, tells volumes apart and labels them, asks the
rules, and commits labels, gaps, plans and refusals at once. A study that changed meanwhile is
judged by a later sweep; a crash anywhere before the commit leaves nothing behind. `dicom-node
explain` builds and judges studies with the same functions, and records nothing.
"""

import hashlib
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

from pydicom import config, dcmread

from dicom_node.contrast import describe
from dicom_node.crashpoints import reach
from dicom_node.domain import Instance, Origin, Series, Study
from dicom_node.headers import BIRTH, IDENTITY, IMAGE_MODALITIES, SEX, read_header
from dicom_node.identifiers import installation_uid
from dicom_node.ledger import UID_CONFLICT, Ledger
from dicom_node.pixels import READ_ERRORS
from dicom_node.routing import CONFLICTS, Decision, Judge
from dicom_node.rules import Contrasts
from dicom_node.series import split_series
from dicom_node.settings import Configuration
from dicom_node.store import Store

if TYPE_CHECKING:
    from synthesis.registry import ModelCard

logger = logging.getLogger(__name__)


def sweep(
    ledger: Ledger,
    store: Store,
    configuration: Configuration,
    cards: Sequence["ModelCard"],
    clock: Callable[[], datetime],
) -> int:
    """Judge every study that is quiet, or whose protocols are complete; return how many.

    Args:
        ledger: where studies stand.
        store: where their files are.
        configuration: the rules, and when a study is quiet.
        cards: of the models that are there.
        clock: the time, aware UTC.
    """
    namespace = configuration.node.installation or store.namespace()
    settings = configuration.node.assembly
    judge = build_judge(configuration, cards, namespace)
    quiet = ledger.find_quiet_studies(settings.quiet_period, settings.stale_association)
    due = dict.fromkeys(quiet, False)
    for uid in sorted(set(ledger.find_receiving_studies()) - set(quiet)):
        if clock() - ledger.study_row(uid).last_received >= settings.sweep_every:
            due[uid] = True
    judged, faults = 0, []
    for uid, only_complete in due.items():
        try:
            judged += _assemble(uid, ledger, store, judge, clock(), only_complete=only_complete)
        except Exception as fault:  # noqa: BLE001 - one study must not starve those after it
            faults.append(fault)
    if faults:
        raise faults[0]
    return judged


def build_judge(
    configuration: Configuration, cards: Sequence["ModelCard"], namespace: UUID
) -> Judge:
    """Return what decides by this configuration, with these models."""
    return Judge(
        routing=configuration.routing,
        contrasts=configuration.contrasts,
        policy=configuration.models,
        cards=cards,
        namespace=namespace,
        config_digest=configuration.digest,
    )


def build_study(
    study_instance_uid: str,
    instances: Iterable[Instance],
    contrasts: Contrasts,
    *,
    own_uids: set[str] | frozenset[str] = frozenset(),
    creator_uid: str = "",
    generation: int = 1,
) -> Study:
    """Return a study with the volumes that `instances` make, labelled.

    Args:
        study_instance_uid: of all of them.
        instances: their headers read; of each UID one. Of a study whose every UID belongs to
            another study there is none.
        contrasts: the vocabulary.
        own_uids: SOP Instance UIDs that this node made.
        creator_uid: Instance Creator UID of this installation.
        generation: of the study.
    """
    series = tuple(
        describe(
            each,
            contrasts,
            is_own=any(i.sop_instance_uid in own_uids for i in each.instances),
            creator_uid=creator_uid,
        )
        for each in split_series(list(instances))
    )
    return Study(study_instance_uid=study_instance_uid, generation=generation, series=series)


def find_hold(study: Study, decision: Decision, conflicts: int = 0) -> tuple[str, str] | None:
    """Return why a person must look at the study before anything is made, as code and sentence.

    Args:
        study: of each UID with its first content only.
        decision: what rules say of it; conflicts between sources show when it has been planned.
        conflicts: how many other contents came under its UIDs, and nobody has accepted that.
    """
    if conflicts:
        return (
            UID_CONFLICT,
            f"{conflicts} contents came under UIDs of others and lie in quarantine; compare them, "
            "then release the study to go on with the first ones",
        )
    identities = _find_values(study, IDENTITY)
    for key, name in ((IDENTITY, "Patient IDs"), (BIRTH, "birth dates"), (SEX, "sexes")):
        if (count := len(_find_values(study, key))) > 1:
            return (
                "identity_conflict",
                f"the study holds {count} different {name}; correct them at the source",
            )
    if identities == {""}:
        return "identity_missing", "the study has no Patient ID; it cannot be filed safely"
    images = [
        each
        for each in study.series
        if each.modality in IMAGE_MODALITIES and each.origin is Origin.ACQUIRED
    ]
    if decision.gaps and images and all(each.problem for each in images):
        return _summarize_problems(images)
    doubts = [each for each in decision.refusals if each.code in CONFLICTS]
    return (doubts[0].code, doubts[0].reason) if doubts else None


def _find_values(study: Study, key: str) -> set[str]:
    """Return what the headers of a study say of the patient, under one key."""
    return {
        header[key]
        for each in study.series
        if each.origin is not Origin.OWN
        for instance in each.instances
        if (header := instance.header or {}) and key in header
    }


def read_folder(folder: Path) -> dict[str, list[Instance]]:
    """Return the instances of the DICOM files below `folder`, by study; other files are left out.

    Their `path` is the file's own path and not one of the store.
    """
    studies: dict[str, list[Instance]] = defaultdict(list)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        instance = _read_instance(path)
        if instance is not None:
            studies[instance.study_instance_uid].append(instance)
    return dict(studies)


def _read_instance(path: Path) -> Instance | None:
    try:
        with config.disable_value_validation():
            image = dcmread(path, stop_before_pixels=True)
            return Instance(
                sop_instance_uid=str(image.SOPInstanceUID),
                sop_class_uid=str(image.SOPClassUID),
                series_instance_uid=str(image.SeriesInstanceUID),
                study_instance_uid=str(image.StudyInstanceUID),
                transfer_syntax_uid=str(image.file_meta.TransferSyntaxUID),
                sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
                path=str(path),
                header=read_header(path),
            )
    except READ_ERRORS:
        return None


def _assemble(
    study_instance_uid: str,
    ledger: Ledger,
    store: Store,
    judge: Judge,
    now: datetime,
    *,
    only_complete: bool,
) -> bool:
    """Judge one study; return whether the judgement was recorded."""
    row = ledger.study_row(study_instance_uid)
    instances = _read_headers(ledger.read_instances(study_instance_uid), ledger, store)
    conflicts = len(ledger.conflicts(study_instance_uid))
    study = build_study(
        study_instance_uid,
        instances,
        judge.contrasts,
        own_uids=ledger.own_uids(instance.sop_instance_uid for instance in instances),
        creator_uid=installation_uid(judge.namespace),
        generation=row.generation,
    )
    reach("assembly.labelled")
    decision = judge.find_gaps(study)
    if only_complete and not _is_complete(decision):
        return False
    reach("routing.judged")
    hold = find_hold(study, decision, conflicts)
    if hold is not None:
        return _hold(study, hold, ledger, row.seen)
    decision = judge.plan(study, decision, now)
    hold = find_hold(study, decision)
    if hold is not None:
        return _hold(study, hold, ledger, row.seen)
    reach("routing.planned")
    recorded = ledger.record_judgement(
        study_instance_uid,
        row.generation,
        seen=row.seen,
        series=study.series,
        slots={
            rule: {label: state.value for label, state in states.items()}
            for rule, states in decision.slots.items()
        },
        gaps=decision.gaps,
        plans=decision.plans,
        refusals=decision.refusals,
    )
    if recorded:
        reach("assembly.recorded")
        logger.info(
            "study %s judged, %s: %d gaps, %d plans, %d refusals",
            study_instance_uid,
            "complete" if only_complete else "quiet",
            len(decision.gaps),
            len(decision.plans),
            len(decision.refusals),
        )
    return recorded


def _read_headers(
    instances: Sequence[Instance], ledger: Ledger, store: Store
) -> tuple[Instance, ...]:
    """Return the instances with their headers, and keep those that are read for the first time."""
    complete = tuple(
        instance
        if instance.header is not None
        else replace(instance, header=read_header(store.path(instance.path)))
        for instance in instances
    )
    ledger.record_headers(
        {
            (after.sop_instance_uid, after.sha256): after.header
            for before, after in zip(instances, complete, strict=True)
            if before.header is None and after.header is not None
        }
    )
    return complete


def _is_complete(decision: Decision) -> bool:
    """Say whether rules apply to a study and it lacks nothing that they require or would make."""
    return bool(decision.slots) and not decision.gaps


def _hold(study: Study, hold: tuple[str, str], ledger: Ledger, seen: int) -> bool:
    code, reason = hold
    held = ledger.hold_study(
        study.study_instance_uid, study.generation, code, reason, study.series, seen=seen
    )
    if held:
        reach("assembly.recorded")
        level = logging.ERROR if code == UID_CONFLICT else logging.WARNING
        logger.log(level, "study %s held: %s", study.study_instance_uid, code)
    return held


def _summarize_problems(images: Sequence[Series]) -> tuple[str, str]:
    """Return the commonest problem of series that are all unusable, and each of them in words."""
    problems = {each.series_instance_uid: each.problem for each in images if each.problem}
    largest = max(images, key=lambda each: (len(each.instances), each.series_instance_uid))
    code = largest.problem[0] if largest.problem else ""
    told = "; ".join(
        f"series {uid}: {code}, {why}" for uid, (code, why) in list(problems.items())[:5]
    )
    return code, f"no series can be worked with ({told})"
