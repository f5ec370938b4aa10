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

from dicom_node.appearance import find_fluid
from dicom_node.contrast import describe, heed_fluid, wants_a_look
from dicom_node.crashpoints import reach
from dicom_node.domain import UID_CONFLICT, Closing, InquiryState, Instance, Origin, Series, Study
from dicom_node.elsewhere import add_answers
from dicom_node.errors import UnusableStudy
from dicom_node.headers import BIRTH, IDENTITY, IMAGE_MODALITIES, SEX, read_header
from dicom_node.identifiers import installation_uid
from dicom_node.ledger import PEER_SILENT, Inquiry, Ledger, StudyRow
from dicom_node.node_settings import Assembly as AssemblySettings
from dicom_node.pixels import READ_ERRORS
from dicom_node.progress import read_progress
from dicom_node.routing import CONFLICTS, Decision, Judge
from dicom_node.rules import Contrasts
from dicom_node.series import count_voxels, split_series
from dicom_node.settings import Configuration
from dicom_node.store import Store
from dicom_node.volumes import read_volume

if TYPE_CHECKING:
    from synthesis.registry import ModelCard

logger = logging.getLogger(__name__)

MOST_LOOKED_AT = 16
"""Series of one study whose pixels are read before it is judged; each takes about a second."""
LARGEST_LOOKED_AT = 2**26
"""Voxels of such a series: as many as 256 slices of 512 by 512, 256 MiB as float32."""

_SILENCE = (Closing.QUIET, Closing.OVERDUE)
"""Reasons that hold whatever the rules say."""


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
    is_asked = configuration.node.query.enabled
    judged, faults = 0, []
    for uid, closings in _find_due(ledger, settings, clock).items():
        try:
            judged += Assembling(ledger, store, judge, clock(), is_asked=is_asked).do(uid, closings)
        except Exception as fault:  # noqa: BLE001 - one study must not starve those after it
            faults.append(fault)
    if faults:
        raise faults[0]
    return judged


def _find_due(
    ledger: Ledger, settings: AssemblySettings, clock: Callable[[], datetime]
) -> dict[str, Sequence[Closing]]:
    """Return the studies that may be judged now, and for which reasons each may be closed."""
    stale = settings.stale_association
    due: dict[str, Sequence[Closing]] = {}
    for uid in ledger.find_quiet_studies(settings.quiet_period, stale):
        due[uid] = (Closing.COMPLETE, Closing.SOURCES, Closing.QUIET)
    for uid in ledger.find_quiet_studies(settings.early_period, stale):
        due.setdefault(uid, (Closing.COMPLETE, Closing.SOURCES))
    for uid in ledger.find_receiving_studies():
        if uid not in due and (
            clock() - ledger.study_row(uid).last_received >= settings.sweep_every
        ):
            due[uid] = (Closing.COMPLETE,)
    for uid in ledger.find_noticed_studies() & due.keys():
        if (progress := read_progress(ledger, uid)) is not None:
            row = ledger.study_row(uid)
            due[uid] = progress.narrow(due[uid], row, clock(), settings.steps_within)
    waiting = ledger.find_waiting_studies()
    return {uid: closings for uid, closings in due.items() if uid not in waiting}


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


def look_closer(study: Study, contrasts: Contrasts, find_path: Callable[[Instance], Path]) -> Study:
    """Return the study with its doubtful labels checked against pixels.

    Args:
        study: labelled by its headers.
        contrasts: the vocabulary.
        find_path: where the file of an instance is.
    """
    doubtful = [series for series in study.series if wants_a_look(series, contrasts)]
    if not doubtful:
        return study
    checked = {id(each): _look(each, contrasts, find_path) for each in doubtful[:MOST_LOOKED_AT]}
    return replace(study, series=tuple(checked.get(id(each), each) for each in study.series))


def _look(series: Series, contrasts: Contrasts, find_path: Callable[[Instance], Path]) -> Series:
    if count_voxels(series) > LARGEST_LOOKED_AT:
        return series
    try:
        paths = [find_path(instance) for instance in series.instances]
        volume, _ = read_volume(paths, series.frames)
    except UnusableStudy:
        return series  # the job will say why; a label is not the place
    fluid = find_fluid(volume.array, volume.affine)
    if fluid is None or series.label is None:
        return series
    return replace(series, label=heed_fluid(series.label, fluid, contrasts))


def find_hold(study: Study, decision: Decision, conflicts: int = 0) -> tuple[str, str] | None:
    """Return why a person must look at the study before anything is made, as code and sentence.

    Args:
        study: of each UID with its first content only.
        decision: what rules say of it; conflicts between sources show when it has been planned.
        conflicts: how many other contents came under its UIDs, and nobody has accepted that.
    """
    doubt = find_doubt(study, conflicts)
    if doubt is not None:
        return doubt
    images = [
        each
        for each in study.series
        if each.modality in IMAGE_MODALITIES and each.origin is Origin.ACQUIRED
    ]
    if decision.gaps and images and all(each.problem for each in images):
        return _summarize_problems(images)
    doubts = [each for each in decision.refusals if each.code in CONFLICTS]
    return (doubts[0].code, doubts[0].reason) if doubts else None


def find_doubt(study: Study, conflicts: int) -> tuple[str, str] | None:
    """Return why it is not sure whose study it is, as code and sentence; the rest is `find_hold`'s.

    Args:
        study: of each UID with its first content only.
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
    return None


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


def read_headers(instances: Iterable[Instance], store: Store) -> tuple[Instance, ...]:
    """Return the instances with their headers, which are read where the ledger has none yet."""
    return tuple(
        instance
        if instance.header is not None
        else replace(instance, header=read_header(store.path(instance.path)))
        for instance in instances
    )


def label_study(
    row: StudyRow,
    instances: Sequence[Instance],
    inquiries: Sequence[Inquiry],
    ledger: Ledger,
    store: Store,
    judge: Judge,
) -> Study:
    """Return a study of the ledger, labelled, with what peers answered about it.

    Args:
        row: of the study.
        instances: of it, with headers.
        inquiries: about it.
        ledger: knows which instances are our own.
        store: where the files are.
        judge: whose vocabulary the labels have.
    """
    study = build_study(
        row.study_instance_uid,
        instances,
        judge.contrasts,
        own_uids=ledger.own_uids(instance.sop_instance_uid for instance in instances),
        creator_uid=installation_uid(judge.namespace),
        generation=row.generation,
    )
    return add_answers(study, inquiries, judge.contrasts, ledger, store)


class Assembling:
    """One look at studies that may be judged."""

    def __init__(
        self, ledger: Ledger, store: Store, judge: Judge, now: datetime, *, is_asked: bool
    ) -> None:
        self._ledger = ledger
        self._store = store
        self._judge = judge
        self._now = now
        self._is_asked = is_asked

    def do(self, study_instance_uid: str, closings: Sequence[Closing]) -> bool:
        """Judge one study, if one of `closings` holds; return whether that was recorded.

        A study of which peers are to be asked first waits for them, and is judged later.
        """
        ledger, judge = self._ledger, self._judge
        row = ledger.study_row(study_instance_uid)
        received = ledger.read_instances(study_instance_uid)
        instances = read_headers(received, self._store)
        _keep_headers(received, instances, ledger)
        conflicts = len(ledger.conflicts(study_instance_uid))
        inquiries = ledger.inquiries(study_instance_uid)
        study = label_study(row, instances, inquiries, ledger, self._store, judge)
        reach("assembly.labelled")
        decision = judge.find_gaps(study)
        closing = self._find_closing(study, decision, closings)
        if closing is not None:  # pixels are read only of a study whose time has come
            study = look_closer(study, judge.contrasts, lambda each: self._store.path(each.path))
            decision = judge.find_gaps(study)
            closing = self._find_closing(study, decision, closings)
        if closing is None:
            return False
        reach("routing.judged")
        doubt = find_doubt(study, conflicts)
        if doubt is not None:
            return _hold(study, doubt, ledger, row.seen)
        if self._is_asked and self._ask(row, decision, inquiries):
            return False
        silent = [each.question.peer for each in inquiries if each.state is InquiryState.SILENT]
        hold = find_hold(study, decision, conflicts) or self._find_silence(decision, silent)
        if hold is not None:
            return _hold(study, hold, ledger, row.seen)
        decision = judge.plan(study, decision, self._now)
        hold = find_hold(study, decision)
        if hold is not None:
            return _hold(study, hold, ledger, row.seen)
        reach("routing.planned")
        return self._record(study, decision, closing, row.seen)

    def _find_closing(
        self, study: Study, decision: Decision, closings: Sequence[Closing]
    ) -> Closing | None:
        """Return the best of the reasons to judge a study now, or None."""
        if Closing.COMPLETE in closings and _is_complete(decision):
            return Closing.COMPLETE
        for over in (Closing.PERFORMED, Closing.DISCONTINUED):
            if over in closings:
                return over
        if Closing.SOURCES in closings and self._judge.has_all_sources(study, decision):
            return Closing.SOURCES
        return next((each for each in _SILENCE if each in closings), None)

    def _ask(self, row: StudyRow, decision: Decision, inquiries: Sequence[Inquiry]) -> bool:
        """Let peers be asked what a rule wants to know; return whether an answer is waited for."""
        asked = {each.question.peer for each in inquiries}
        new = [each for each in self._judge.find_questions(decision) if each.peer not in asked]
        if new:
            self._ledger.ask(row.study_instance_uid, row.generation, new)
        waits = self._judge.find_silence(
            decision,
            [each.question.peer for each in inquiries if each.state is InquiryState.SILENT],
        )
        if waits == "wait" and not new:
            again = [each.question for each in inquiries if each.state is InquiryState.SILENT]
            self._ledger.ask(row.study_instance_uid, row.generation, again)
        return bool(new) or waits == "wait"

    def _find_silence(self, decision: Decision, silent: Sequence[str]) -> tuple[str, str] | None:
        """Return why a study is held for a peer that did not answer, as code and sentence."""
        if self._judge.find_silence(decision, silent) != "hold":
            return None
        return (
            PEER_SILENT,
            f"{', '.join(silent)} did not say whether it has what is missing here; "
            "release the study when it answers again, and it is asked once more",
        )

    def _record(self, study: Study, decision: Decision, closing: Closing, seen: int) -> bool:
        recorded = self._ledger.record_judgement(
            study.study_instance_uid,
            study.generation,
            seen=seen,
            series=study.series,
            slots={
                rule: {label: state.value for label, state in states.items()}
                for rule, states in decision.slots.items()
            },
            gaps=decision.gaps,
            plans=decision.plans,
            refusals=decision.refusals,
            closing=closing,
            config_digest=self._judge.config_digest,
        )
        if recorded:
            reach("assembly.recorded")
            logger.info(
                "study %s judged, %s: %d gaps, %d plans, %d refusals",
                study.study_instance_uid,
                closing,
                len(decision.gaps),
                len(decision.plans),
                len(decision.refusals),
            )
        return recorded


def _keep_headers(before: Sequence[Instance], after: Sequence[Instance], ledger: Ledger) -> None:
    """Keep the headers that were read for the first time."""
    ledger.record_headers(
        {
            (new.sop_instance_uid, new.sha256): new.header
            for old, new in zip(before, after, strict=True)
            if old.header is None and new.header is not None
        }
    )


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
