"""The end of step 12: a worker for each destination asks it whether it keeps what it took.

    sent, unconfirmed → N-ACTION, C-FIND or QIDO-RS → kept: committed; lost: sent again

Only for destinations whose setting says how. Storage commitment answers with a report: on the same
association while it is open, else on one that the peer opens to our receiver, in its own time; a
report that does not come is asked for anew under another Transaction UID. A query counts what the
peer lists in each series, and looks for the instances where the count falls short; what was sent
just now may not be listed yet, so that a peer is asked twice before anything is called lost. A peer
that does not offer storage commitment after all is queried instead, if it may be.

Source: PS3.4 annex J, PS3.7 sections 9.1.2, 10.1.1 and 10.1.4.
"""

import logging
import random
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import closing
from datetime import datetime
from functools import partial

from dicom_node import command
from dicom_node.association import Context
from dicom_node.attributes import (
    NUMBER_OF_SERIES_RELATED_INSTANCES,
    QUERY_RETRIEVE_LEVEL,
    SERIES_INSTANCE_UID,
    SOP_INSTANCE_UID,
    STUDY_INSTANCE_UID,
    decode_attributes,
    encode_attributes,
    read_text,
)
from dicom_node.commitment import (
    LONGEST_REPORT,
    MOST_REFERENCES,
    PROCESSING_FAILURE,
    REQUEST_ACTION,
    STORAGE_COMMITMENT,
    WELL_KNOWN_INSTANCE,
    decode_report,
    encode_request,
    judge_loss,
    take_report,
)
from dicom_node.complaints import Alert, raise_alert
from dicom_node.delivery import open_peer
from dicom_node.dicomweb import Service
from dicom_node.domain import Delivery
from dicom_node.door_settings import Peer
from dicom_node.errors import DeliveryError
from dicom_node.ledger import Attempt, Ledger, Unconfirmed
from dicom_node.network import (
    IMPLICIT_VR_LITTLE_ENDIAN,
    STUDY_ROOT_FIND,
    Message,
    Requestor,
)
from dicom_node.node_settings import NodeSettings
from dicom_node.outcomes import Rest
from dicom_node.qido import find_instances
from dicom_node.tls import InsecurePeerError

LOOK_AHEAD = 5_000
"""Instances asked about in one sweep."""

REPORT_SECONDS = 5.0
"""How long the association of a request stays open for the report on it."""

_LONGEST_ANSWER = 65_536
_MOST_ANSWERS = 100_000
_POLL_SECONDS = 0.5
_NO_SUCH_INSTANCE = 0x0112

logger = logging.getLogger(__name__)


class Confirmation:
    """What one destination is asked, as its worker sees it: `sweep` is called again and again."""

    def __init__(
        self,
        alias: str,
        ledger: Ledger,
        settings: NodeSettings,
        clock: Callable[[], datetime],
        rng: random.Random | None = None,
    ) -> None:
        """Describe it; the arguments are those of `delivery.Destination`."""
        self._alias = alias
        self._peer = settings.peers[alias]
        self._ways = _find_ways(self._peer)
        self._ledger = ledger
        self._settings = settings
        self._patience = settings.delivery
        self._clock = clock
        patience = settings.delivery
        self._rest = Rest(
            (patience.first_retry, patience.longest_retry),
            (1 - patience.jitter, 1 + patience.jitter),
            clock,
            rng or random.SystemRandom(),
        )

    def sweep(self) -> int:
        """Ask about what may be asked about now, and return how many instances that was.

        Raises:
            StorageError: the ledger does not answer.
        """
        now = self._clock()
        if not self._rest.is_over():
            return 0
        if self._alias in self._ledger.outages():
            return 0
        jobs = self._ledger.find_unconfirmed(self._alias, now, LOOK_AHEAD)
        if not jobs:
            return 0
        try:
            if self._peer.dicomweb is not None:
                self._search(jobs)
            else:
                self._call(jobs)
        except (DeliveryError, TimeoutError) as error:
            self._fail(error)
        else:
            self._rest.end()
        return sum(len(each.deliveries) for each in jobs)

    def _call(self, jobs: list[Unconfirmed]) -> None:
        """Ask over an association.

        Raises:
            DeliveryError: there is none, or the peer breaks off.
            TimeoutError: it says nothing.
        """
        with open_peer(self._settings, self._peer, self._ways) as association:
            context = next(filter(None, map(association.find_context, self._ways)), None)
            if context is None:
                raise DeliveryError("the peer does not offer it", retry=True)
            if context.abstract_syntax == STUDY_ROOT_FIND:
                self._compare(jobs, partial(_find_listed, association, context))
            else:
                self._request(association, context, jobs)

    def _search(self, jobs: list[Unconfirmed]) -> None:
        """Ask a DICOMweb service.

        Raises:
            DeliveryError: it does not answer.
        """
        with closing(Service(self._alias, self._peer)) as service:
            self._compare(
                jobs, lambda study, series, sent: sent & find_instances(service, study, series)
            )

    def _fail(self, error: DeliveryError | TimeoutError) -> None:
        """Leave the peer alone for a while."""
        self._rest.begin()
        failures = self._rest.failures
        logger.log(
            logging.ERROR if failures == self._patience.alarm_after else logging.WARNING,
            "commitment.not_asked peer=%s failures=%d: %s",
            self._alias,
            failures,
            str(error) or "no response in time",
        )
        if isinstance(error, InsecurePeerError):
            raise_alert("tls_failed", who=self._alias, reason=error.reason)
            facts = {"reason": error.reason}
            self._ledger.note_alert(Alert(event="tls_failed", who=self._alias, facts=facts))

    def _request(self, association: Requestor, context: Context, jobs: list[Unconfirmed]) -> None:
        """Ask for storage commitment, and wait a moment for the reports.

        Raises:
            DeliveryError: the peer breaks off.
            TimeoutError: it says nothing.
        """
        asked: list[str] = []
        for job in jobs:
            for start in range(0, len(job.deliveries), MOST_REFERENCES):
                some = job.deliveries[start : start + MOST_REFERENCES]
                transaction_uid = f"2.25.{uuid.uuid4().int}"
                again = self._clock() + self._patience.report_within
                self._ledger.record_request(transaction_uid, some, again)
                status = self._ask(association, context, transaction_uid, some)
                if status == command.SUCCESS:
                    asked.append(transaction_uid)
                else:
                    logger.error(
                        "commitment.refused peer=%s status=0x%04X instances=%d",
                        self._alias,
                        status,
                        len(some),
                    )
        deadline = time.monotonic() + REPORT_SECONDS
        while asked and time.monotonic() < deadline and self._ledger.find_unanswered(asked):
            try:
                message = association.read(LONGEST_REPORT, _POLL_SECONDS)
            except TimeoutError:
                continue
            if message is None:
                return
            self._hear(association, message)

    def _ask(
        self,
        association: Requestor,
        context: Context,
        transaction_uid: str,
        deliveries: tuple[Delivery, ...],
    ) -> int:
        """Send one N-ACTION and return its status; reports that come first are taken."""
        instances = [each.instance for each in deliveries]
        message_id = association.write(
            context,
            {
                command.COMMAND_FIELD: command.N_ACTION_RQ,
                command.REQUESTED_SOP_CLASS_UID: STORAGE_COMMITMENT,
                command.REQUESTED_SOP_INSTANCE_UID: WELL_KNOWN_INSTANCE,
                command.ACTION_TYPE_ID: REQUEST_ACTION,
            },
            encode_request(
                transaction_uid,
                instances,
                explicit=context.transfer_syntax != IMPLICIT_VR_LITTLE_ENDIAN,
            ),
        )
        while True:
            message = association.read(LONGEST_REPORT)
            if message is None:
                raise DeliveryError("the peer left instead of answering", retry=True)
            if not self._hear(association, message):
                return message.read_status(command.N_ACTION_RQ, message_id)

    def _hear(self, association: Requestor, message: Message) -> bool:
        """Take and answer a report; False when the message is none."""
        if message.elements.get(command.COMMAND_FIELD) != command.N_EVENT_REPORT_RQ:
            return False
        try:
            report = decode_report(message.data_set, explicit=message.is_explicit)
        except ValueError:
            status = PROCESSING_FAILURE
        else:
            status = (
                take_report(self._ledger, self._patience, self._clock, self._alias, report)
                or command.SUCCESS
            )
        association.write(
            message.context,
            {
                command.AFFECTED_SOP_CLASS_UID: STORAGE_COMMITMENT,
                command.COMMAND_FIELD: command.N_EVENT_REPORT_RQ | command.RESPONSE,
                command.MESSAGE_ID_BEING_RESPONDED_TO: command.number(
                    message.elements, command.MESSAGE_ID
                ),
                command.STATUS: status,
                command.AFFECTED_SOP_INSTANCE_UID: WELL_KNOWN_INSTANCE,
            },
        )
        return True

    def _compare(
        self, jobs: list[Unconfirmed], find_listed: Callable[[str, str, set[str]], set[str]]
    ) -> None:
        """Look what the peer lists of each job.

        Args:
            jobs: all of which has been sent.
            find_listed: takes study, series and what was sent of it, and returns what is listed.

        Raises:
            DeliveryError: the peer refuses the query, or breaks off.
            TimeoutError: it says nothing.
        """
        for job in jobs:
            [plan_id] = {each.plan_id for each in job.deliveries}
            by_series: dict[str, set[str]] = defaultdict(set)
            for instance in self._ledger.derived(plan_id):
                by_series[instance.series_instance_uid].add(instance.sop_instance_uid)
            listed: set[str] = set()
            for series, instances in by_series.items():
                study = job.study_instance_uid
                listed |= find_listed(study, series, instances)
            kept: list[Delivery] = []
            missing: list[Delivery] = []
            for each in job.deliveries:
                (kept if each.instance.sop_instance_uid in listed else missing).append(each)
            lost = {each: _NO_SUCH_INSTANCE for each in missing if each.ask_at is not None}
            self._ledger.record_finding(
                self._alias,
                kept,
                lost,
                [each for each in missing if each.ask_at is None],
                self._clock() + self._patience.report_within,
                self._judge_loss,
            )
            level = logging.ERROR if lost else logging.INFO
            logger.log(
                level,
                "commitment.queried peer=%s kept=%d lost=%d",
                self._alias,
                len(kept),
                len(lost),
            )

    def _judge_loss(self, delivery: Delivery, reason: int) -> Attempt | None:
        return judge_loss(delivery, reason, self._patience, self._clock())


def _find_ways(peer: Peer) -> list[str]:
    """Return the SOP classes by which a peer may be asked, the best first."""
    ways = [STORAGE_COMMITMENT] if peer.commitment == "storage_commitment" else []
    if "query" in peer.roles:
        ways.append(STUDY_ROOT_FIND)
    return ways


def _find_listed(
    association: Requestor, context: Context, study: str, series: str, sent: set[str]
) -> set[str]:
    """Return those of the SOP Instance UIDs of a series that the peer lists."""
    keys = {STUDY_INSTANCE_UID: study, SERIES_INSTANCE_UID: series}
    whole = {**keys, QUERY_RETRIEVE_LEVEL: "SERIES", NUMBER_OF_SERIES_RELATED_INSTANCES: ""}
    counts = _find(association, context, whole, NUMBER_OF_SERIES_RELATED_INSTANCES)
    if any(each.isdigit() and int(each) >= len(sent) for each in counts):
        return sent
    each = {**keys, QUERY_RETRIEVE_LEVEL: "IMAGE", SOP_INSTANCE_UID: ""}
    return sent & set(_find(association, context, each, SOP_INSTANCE_UID))


def _find(
    association: Requestor, context: Context, identifier: Mapping[int, str], wanted: int
) -> list[str]:
    """Return the attribute `wanted` of all that a C-FIND finds.

    Raises:
        DeliveryError: the peer refuses, or answers what cannot be read.
        TimeoutError: it says nothing.
    """
    explicit = context.transfer_syntax != IMPLICIT_VR_LITTLE_ENDIAN
    elements: dict[int, int | str] = {
        command.AFFECTED_SOP_CLASS_UID: STUDY_ROOT_FIND,
        command.COMMAND_FIELD: command.C_FIND_RQ,
        command.PRIORITY: 0,
    }
    keys = encode_attributes(identifier, explicit=explicit)
    found: list[str] = []
    for status, message in association.ask(context, elements, keys, longest=_LONGEST_ANSWER):
        if status not in command.PENDING:
            raise DeliveryError(f"the peer refuses the query: 0x{status:04X}", retry=True)
        if len(found) == _MOST_ANSWERS:
            raise DeliveryError("the peer does not stop answering", retry=True)
        try:
            found.append(read_text(decode_attributes(message.data_set, explicit=explicit), wanted))
        except ValueError:
            raise DeliveryError("the peer's answer cannot be read", retry=True) from None
    return found
