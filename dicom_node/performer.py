"""Performs the Unified Procedure Steps of a worklist: takes them as requests for what is missing.

    scheduled → claimed → its study fetched, where it is not here → on its walk like every other
        → delivered: COMPLETED, with what was made; impossible: CANCELED, with the reason

Nothing is planned here: a step brings a study to the door, the rules say what follows, and what the
ledger says of the study is what the worklist is told. A step is in the ledger before it is claimed,
and open until the worklist has been told its end, so that a restart goes on with it.

Source: PS3.4 annex CC; IHE RAD TF, AI Workflow for Imaging (AIW-I), Task Performer.
"""

import logging
import random
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from dicom_node import command
from dicom_node.conversation import QueryRefusedError
from dicom_node.delivery import open_peer
from dicom_node.domain import (
    Delivery,
    DeliveryState,
    Mode,
    RemoteSeries,
    Role,
    StepState,
    StudyState,
)
from dicom_node.door_settings import Peer
from dicom_node.errors import DeliveryError
from dicom_node.headers import IMAGE_MODALITIES
from dicom_node.jobs import JobState
from dicom_node.ledger import TAKEN, Job, Ledger, Step
from dicom_node.node_settings import Code, NodeSettings
from dicom_node.outcomes import Rest
from dicom_node.provenance import CODING_SCHEME
from dicom_node.query import find_asked, open_conversation
from dicom_node.store import Store
from dicom_node.worklist import (
    ALREADY_CANCELED,
    ALREADY_COMPLETED,
    ALREADY_IN_PROGRESS,
    GONE,
    NO_LONGER_UPDATED,
    UPS_PULL,
    Output,
    Scheduled,
    Worklist,
)

_JITTER = (0.8, 1.0)
_ENDED = frozenset({command.SUCCESS, ALREADY_CANCELED, ALREADY_COMPLETED})

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How far the study of a step is.

    Attributes:
        words: for a person.
        percent: of the way, roughly.
        is_over: nothing more will come of it.
        outputs: what was made and delivered; none: the step cannot be done, and `words` say why.
    """

    words: str
    percent: int
    is_over: bool = False
    outputs: tuple[Output, ...] = ()


class Performer:
    """One worklist, as its worker sees it: `sweep` is called again and again."""

    def __init__(
        self,
        alias: str,
        ledger: Ledger,
        store: Store,
        settings: NodeSettings,
        clock: Callable[[], datetime],
        rng: random.Random | None = None,
    ) -> None:
        """Describe it; the arguments are those of `delivery.Destination`."""
        self._alias = alias
        self._ledger = ledger
        self._store = store
        self._settings = settings
        self._clock = clock
        self._station = find_station(settings)
        query = settings.query
        pauses = (query.first_retry, query.longest_retry)
        self._rest = Rest(pauses, _JITTER, clock, rng or random.SystemRandom())

    def sweep(self) -> int:
        """Claim what is scheduled, tell how far the open steps are, and return how many those are.

        Raises:
            StorageError: the ledger does not answer.
        """
        if not self._rest.is_over():
            return 0
        peer = self._settings.peers[self._alias]
        try:
            with open_peer(self._settings, peer, [UPS_PULL]) as association:
                seconds = self._settings.query.answer.total_seconds()
                worklist = Worklist(association, self._station, seconds)
                for step in self._ledger.find_open_steps(self._alias):
                    self._follow(worklist, step)
                self._claim_some(worklist)
        except (DeliveryError, TimeoutError) as error:
            self._fail(str(error) or "no answer in time")
        else:
            self._rest.end()
        # Not while the worklist waits: a series may take minutes.
        open_steps = self._ledger.find_open_steps(self._alias)
        for step in open_steps:
            if step.state is StepState.CLAIMED and step.next_attempt <= self._clock():
                self._fetch(step)
        return len(open_steps)

    def _claim_some(self, worklist: Worklist) -> None:
        room = self._settings.steps.at_once - len(self._ledger.find_open_steps(self._alias))
        for workitem in self._settings.steps.workitems:
            for scheduled in worklist.find(workitem) if room > 0 else ():
                if room <= 0:
                    break
                room -= self._claim(worklist, scheduled)

    def _claim(self, worklist: Worklist, scheduled: Scheduled) -> bool:
        """Claim a step; False when somebody else has it."""
        try:
            contents = worklist.read(scheduled.sop_instance_uid)
        except QueryRefusedError as refusal:
            logger.warning("step.unreadable step=%s: %s", scheduled.sop_instance_uid, refusal)
            return False
        now = self._clock()
        workitem = scheduled.workitem
        step = Step(
            sop_instance_uid=scheduled.sop_instance_uid,
            peer=self._alias,
            # With none, or several, it is canceled as soon as it is ours: somebody must be told.
            study_instance_uid=contents.studies[0] if len(contents.studies) == 1 else "",
            transaction_uid=f"2.25.{uuid.uuid4().int}",
            workitem=(workitem.value, workitem.scheme, workitem.meaning),
            sources=contents.sources,
            state=StepState.CLAIMING,
            since=now,
            next_attempt=now,
        )
        return self._ledger.begin_step(step) and self._ask_for(worklist, step)

    def _ask_for(self, worklist: Worklist, step: Step) -> bool:
        """Claim a step that is in the ledger; False when it is not this node's, or not yet."""
        status = worklist.change(step, "IN PROGRESS")
        if status == ALREADY_IN_PROGRESS:
            # By this node, if the worklist was not heard before; else by who was faster.
            status = worklist.tell(step, "claimed", 0)
        return self._take(step, status)

    def _take(self, step: Step, status: int) -> bool:
        """Record what came of claiming."""
        if status == command.SUCCESS:
            logger.info(
                "step.claimed step=%s study=%s", step.sop_instance_uid, step.study_instance_uid
            )
            self._ledger.change_step(step, StepState.CLAIMED)
            return True
        is_late = self._clock() - step.since >= self._settings.steps.patience
        if status in {*GONE, *_ENDED} or is_late:
            self._lose(step, status)
        else:
            logger.warning("step.not_claimed step=%s: 0x%04X", step.sop_instance_uid, status)
        return False

    def _follow(self, worklist: Worklist, step: Step) -> None:
        """Say how far a step is, if the worklist has not been told."""
        if step.state is StepState.CLAIMING:
            self._ask_for(worklist, step)
        elif step.next_attempt <= self._clock():
            standing = self._find_standing(step)
            if standing.is_over:
                self._end(worklist, step, standing)
            elif standing.words != step.told:
                self._tell(worklist, step, standing)

    def _find_standing(self, step: Step) -> Standing:
        if not step.study_instance_uid:
            words = "the input of a step must be of one study"
            return Standing(words=words, percent=0, is_over=True)
        standing = Standing(words="the sources are fetched", percent=0)
        if step.state is not StepState.CLAIMED:
            standing = find_standing(self._ledger, step, self._settings.peers)
        is_late = self._clock() - step.since >= self._settings.steps.patience
        if is_late and not standing.is_over:
            words = f"not done in time: {standing.words}"
            return Standing(words=words, percent=standing.percent, is_over=True)
        return standing

    def _tell(self, worklist: Worklist, step: Step, standing: Standing) -> None:
        status = worklist.tell(step, standing.words, standing.percent)
        if status in GONE:
            self._lose(step, status)
        elif status == command.SUCCESS:
            self._ledger.change_step(step, step.state, told=standing.words)
        else:
            logger.warning("step.not_told step=%s: 0x%04X", step.sop_instance_uid, status)

    def _end(self, worklist: Worklist, step: Step, standing: Standing) -> None:
        """Tell the worklist what came of a step, and that it is over."""
        is_done = bool(standing.outputs)
        status = worklist.tell_end(step, standing.outputs, self._clock(), standing.words)
        # One that is over may be so by this node, which then did not live to note it.
        if status in {command.SUCCESS, NO_LONGER_UPDATED}:
            status = worklist.change(step, "COMPLETED" if is_done else "CANCELED")
        if status in _ENDED:
            is_done = status == ALREADY_COMPLETED or (is_done and status != ALREADY_CANCELED)
            state = StepState.COMPLETED if is_done else StepState.CANCELED
            logger.info("step.%s step=%s", state, step.sop_instance_uid)
            reason = None if is_done else standing.words
            self._ledger.change_step(step, state, told=standing.words, reason=reason)
        elif status in GONE:
            self._lose(step, status)
        else:
            logger.error("step.not_ended step=%s: 0x%04X", step.sop_instance_uid, status)
            again = self._clock() + self._settings.query.longest_retry
            self._ledger.change_step(step, step.state, next_attempt=again)

    def _lose(self, step: Step, status: int) -> None:
        logger.warning("step.lost step=%s: 0x%04X", step.sop_instance_uid, status)
        reason = f"the worklist answered 0x{status:04X}"
        self._ledger.change_step(step, StepState.LOST, reason=reason)

    def _fetch(self, step: Step) -> None:
        """Have what a step names come here, of whoever has it; what is here is left."""
        if not step.study_instance_uid:
            return
        query = self._settings.query
        reason = "no peer that may be asked has the study"
        holders = self._find_holders(step)
        is_here = not holders  # then it comes by itself, or never
        for alias in holders:
            try:
                is_here |= self._fetch_from(alias, step)
            except (DeliveryError, TimeoutError) as error:
                reason = f"{alias}: {error or 'no answer in time'}"
                continue
            if is_here:
                break
        again = self._clock() + query.first_retry
        rounds = step.rounds + 1
        if is_here:
            self._ledger.change_step(
                step, StepState.PERFORMED, rounds=rounds, next_attempt=again, reason=""
            )
            return
        logger.warning("step.not_fetched step=%s: %s", step.sop_instance_uid, reason)
        is_last = rounds >= query.rounds
        state = StepState.PERFORMED if is_last else StepState.CLAIMED
        self._ledger.change_step(step, state, rounds=rounds, next_attempt=again, reason=reason)

    def _find_holders(self, step: Step) -> Sequence[str]:
        """Return the peers that may be asked, those first that the step names."""
        peers = self._settings.peers

        def is_unnamed(alias: str) -> bool:
            return peers[alias].ae_title not in step.sources.ae_titles

        return sorted(find_asked(self._settings), key=is_unnamed)

    def _fetch_from(self, alias: str, step: Step) -> bool:
        """Fetch what a peer has of the sources; False when it has nothing of them."""
        study = step.study_instance_uid
        with open_conversation(self._settings, alias, self._ledger, self._store) as conversation:
            listed = _choose(conversation.find_series(alias, study), step)
            own = self._ledger.find_own_series(each.series_instance_uid for each in listed)
            here = self._ledger.count_series(study)
            for each in listed:
                uid = each.series_instance_uid
                if uid not in own and here.get(uid, 0) < (each.instances or 1):
                    conversation.fetch(each)
        return bool(listed)

    def _fail(self, reason: str) -> None:
        self._rest.begin()
        failures = self._rest.failures
        is_alarm = failures == self._settings.delivery.alarm_after
        logger.log(
            logging.ERROR if is_alarm else logging.WARNING,
            "worklist.failed peer=%s failures=%d: %s",
            self._alias,
            failures,
            reason,
        )


def find_worklists(settings: NodeSettings) -> list[str]:
    """Return the aliases of the peers whose steps are performed here."""
    return sorted(alias for alias, peer in settings.peers.items() if "worklist" in peer.roles)


def find_station(settings: NodeSettings) -> Code:
    """Return the code under which worklists know this node."""
    return settings.steps.station or Code(
        value=settings.ae_title, scheme=CODING_SCHEME, meaning="dicom_node"
    )


def find_standing(ledger: Ledger, step: Step, peers: Mapping[str, Peer]) -> Standing:
    """Return how far the study of a step is, from what the ledger says of it."""
    study = step.study_instance_uid
    try:
        row = ledger.study_row(study)
    except LookupError:
        words = step.reason or "the study has not come"
        return Standing(words=words, percent=0, is_over=bool(step.reason))
    if row.state is StudyState.RECEIVING:
        return Standing(words="the study is coming, or looked for at its PACS", percent=20)
    if row.state is StudyState.HELD:
        return Standing(words=f"a person must look at the study: {row.hold_code}", percent=20)
    jobs = [each for each in ledger.jobs(study) if _is_asked_for(each)]
    refused = [f"{each.target}: {each.reason}" for each in ledger.read_judgement(study).refusals]
    if not jobs:
        words = "; ".join(refused) or "the study lacks nothing that a rule makes and sends"
        return Standing(words=words, percent=20, is_over=True)
    return _judge_jobs(jobs, ledger.deliveries(study), peers, refused)


def _is_asked_for(job: Job) -> bool:
    """Say whether a job makes what is missing, for others to have."""
    plan = job.plan
    is_sent = plan.truth is None and plan.mode is not Mode.SHADOW and bool(plan.deliver_to)
    return is_sent and job.state is not JobState.SUPERSEDED


def _judge_jobs(
    jobs: Sequence[Job],
    deliveries: Iterable[Delivery],
    peers: Mapping[str, Peer],
    refused: Sequence[str],
) -> Standing:
    """Return how far a study is of which something is made; `refused` is what is not."""
    by_plan: dict[str, list[Delivery]] = defaultdict(list)
    for each in deliveries:
        if each.instance.role is not Role.WITHDRAWAL:
            by_plan[each.plan_id].append(each)
    states = {each.state for each in jobs}
    done = [each for each in jobs if each.state is JobState.DONE]
    sent = [each for job in done for each in by_plan[job.plan.plan_id]]
    failed = [f"{each.plan.target}: {each.state}" for each in jobs if each not in done]
    if states & {JobState.QUEUED, JobState.RUNNING}:
        return Standing(words=f"{len(done)} of {len(jobs)} contrasts are made", percent=40)
    if JobState.HELD in states:
        return Standing(words="a person must look at what was made", percent=60)
    if any(each.state is DeliveryState.PARKED for each in sent):
        return Standing(words="a person must look at what was not taken", percent=80)
    if any(each.state not in TAKEN for each in sent):
        return Standing(words="what was made is delivered", percent=80)
    outputs = tuple(
        output
        for job in done
        for output in _list_outputs(job.plan.study_instance_uid, by_plan[job.plan.plan_id], peers)
    )
    words = "; ".join([*failed, *refused]) or "made and delivered"
    return Standing(words=words, percent=100, is_over=True, outputs=outputs)


def _list_outputs(
    study: str, deliveries: Iterable[Delivery], peers: Mapping[str, Peer]
) -> Iterable[Output]:
    """Yield the series that were delivered, and where they are."""
    instances: dict[str, dict[str, str]] = defaultdict(dict)
    takers: dict[str, set[str]] = defaultdict(set)
    for each in deliveries:
        series = each.instance.series_instance_uid
        instances[series][each.instance.sop_instance_uid] = each.instance.sop_class_uid
        takers[series].add(each.peer)
    for series, found in instances.items():
        known = [peers[alias] for alias in sorted(takers[series]) if alias in peers]
        urls = [peer.dicomweb.url for peer in known if peer.dicomweb is not None]
        yield Output(
            study_instance_uid=study,
            series_instance_uid=series,
            instances=tuple((sop_class, uid) for uid, sop_class in found.items()),
            ae_titles=tuple(
                peer.ae_title for peer in known if peer.ae_title and peer.dicomweb is None
            ),
            urls=tuple(f"{url}/studies/{study}/series/{series}" for url in urls),
        )


def _choose(listed: Iterable[RemoteSeries], step: Step) -> list[RemoteSeries]:
    """Return the series of images that are sources of a step."""
    wanted = step.sources.series
    return [
        each
        for each in listed
        if each.header.get("Modality") in IMAGE_MODALITIES
        and (not wanted or each.series_instance_uid in wanted)
    ]
