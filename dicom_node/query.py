"""Step 4 of the walk: a worker for each peer asks it whether what is not here is really missing.

    study with a gap → its series there, and those of other studies of the patient
        → counts compared with what came → what did not come is fetched → asked again → answered

A PACS is asked over DIMSE, a DICOMweb archive over HTTP (`conversation`). A peer that does not
answer is left alone for a while; after `query.patience` the rule that wanted to know says what
follows. A Patient ID goes into a query, and an answer of another patient is dropped; it never goes
into a log.
"""

import logging
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from datetime import datetime
from pathlib import Path

from pydicom import config, dcmread

from dicom_node.conversation import Conversation, Patient, QueryRefusedError, read_date
from dicom_node.delivery import open_peer
from dicom_node.dicomweb import Service
from dicom_node.dimse_conversation import STUDY_ROOT_MOVE, DimseConversation
from dicom_node.domain import InquiryState, RemoteSeries
from dicom_node.errors import DeliveryError, StorageError
from dicom_node.headers import IMAGE_MODALITIES
from dicom_node.ledger import Inquiry, Ledger
from dicom_node.network import STUDY_ROOT_FIND
from dicom_node.node_settings import NodeSettings
from dicom_node.outcomes import Rest
from dicom_node.pixels import READ_ERRORS
from dicom_node.store import Store
from dicom_node.wado import open_retrieval
from dicom_node.web_conversation import WebConversation

STUDIES_PER_SWEEP = 20
"""A sweep leaves the rest to the next: a stop is soon."""

_JITTER = (0.8, 1.0)

logger = logging.getLogger(__name__)


class Inquirer:
    """One peer that is asked, as its worker sees it: `sweep` is called again and again."""

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
        self._patience = settings.query
        self._clock = clock
        pauses = (settings.query.first_retry, settings.query.longest_retry)
        self._rest = Rest(pauses, _JITTER, clock, rng or random.SystemRandom())

    def sweep(self) -> int:
        """Ask about the studies that wait for it, and return how many were asked about.

        Raises:
            StorageError: the ledger does not answer.
        """
        now = self._clock()
        due = self._ledger.find_due_inquiries(self._alias, now, STUDIES_PER_SWEEP)
        if not self._rest.is_over():
            self._give_up(due, "the peer does not answer")
            return 0
        if not due:
            return 0
        try:
            with open_conversation(
                self._settings, self._alias, self._ledger, self._store
            ) as conversation:
                for inquiry in due:
                    self._ask(conversation, inquiry)
        except (DeliveryError, TimeoutError) as error:
            self._fail(due, str(error) or "no answer in time")
        else:
            self._rest.end()
        return len(due)

    def _ask(self, conversation: Conversation, inquiry: Inquiry) -> None:
        """Ask about one study, fetch what is there and not here, and record what was found.

        Raises:
            DeliveryError: the peer breaks off.
            TimeoutError: it says nothing.
        """
        now = self._clock()
        try:
            found = list(self._find(conversation, inquiry))
        except QueryRefusedError as refusal:
            logger.warning("query.refused study=%s: %s", inquiry.study_instance_uid, refusal)
            self._postpone(inquiry, now + self._patience.longest_retry, str(refusal))
            return
        lacking = self._find_lacking(inquiry, found)
        if not lacking or not inquiry.question.fetch:
            self._ledger.record_inquiry(inquiry, InquiryState.ANSWERED, found=found)
            return
        if inquiry.rounds >= self._patience.rounds:
            reason = f"{len(lacking)} series did not come whole in {inquiry.rounds} tries"
            self._answer_short(inquiry, found, reason)
            return
        try:
            for each in lacking:
                conversation.fetch(each)
        except QueryRefusedError as refusal:
            self._answer_short(inquiry, found, str(refusal))
            return
        logger.info(
            "query.fetched study=%s peer=%s series=%d",
            inquiry.study_instance_uid,
            self._alias,
            len(lacking),
        )
        self._ledger.record_inquiry(
            inquiry,
            InquiryState.DUE,
            found=found,
            rounds=inquiry.rounds + 1,
            next_attempt=now + self._patience.first_retry,
        )

    def _answer_short(self, inquiry: Inquiry, found: Sequence[RemoteSeries], reason: str) -> None:
        """Take what the peer lists for an answer, though it does not give it."""
        logger.error("query.not_fetched study=%s: %s", inquiry.study_instance_uid, reason)
        self._ledger.record_inquiry(inquiry, InquiryState.ANSWERED, found=found, reason=reason)

    def _find(self, conversation: Conversation, inquiry: Inquiry) -> Iterator[RemoteSeries]:
        """Yield the series of images that the peer lists, of this study and of its siblings."""
        study = inquiry.study_instance_uid
        studies = [study]
        days = inquiry.question.siblings_within_days
        if days is not None and (patient := self._read_patient(study)) is not None:
            studies += conversation.find_siblings(study, patient, days)
        listed = [
            each
            for uid in studies
            for each in conversation.find_series(self._alias, uid)
            if each.header.get("Modality") in IMAGE_MODALITIES
        ]
        own = self._ledger.find_own_series(each.series_instance_uid for each in listed)
        yield from (each for each in listed if each.series_instance_uid not in own)

    def _find_lacking(self, inquiry: Inquiry, found: Sequence[RemoteSeries]) -> list[RemoteSeries]:
        """Return the series of the study of which the peer has more than came here."""
        here = self._ledger.count_series(inquiry.study_instance_uid)
        return [
            each
            for each in found
            if each.study_instance_uid == inquiry.study_instance_uid
            and here.get(each.series_instance_uid, 0)
            < (1 if each.instances is None else each.instances)
        ]

    def _read_patient(self, study_instance_uid: str) -> Patient | None:
        """Return whose study it is, or None where a query could not name the patient alone."""
        for instance in self._ledger.read_instances(study_instance_uid):
            patient = _read_patient(self._store.path(instance.path))
            if patient is not None and patient.date is not None:
                return patient
        return None

    def _fail(self, due: Sequence[Inquiry], reason: str) -> None:
        """Leave the peer alone for a while."""
        self._rest.begin()
        failures = self._rest.failures
        is_alarm = failures == self._settings.delivery.alarm_after
        logger.log(
            logging.ERROR if is_alarm else logging.WARNING,
            "query.failed peer=%s failures=%d: %s",
            self._alias,
            failures,
            reason,
        )
        self._give_up(due, reason)

    def _give_up(self, due: Sequence[Inquiry], reason: str) -> None:
        """Call the peer silent where it has been asked for long enough."""
        for inquiry in due:
            if self._clock() - inquiry.since >= self._patience.patience:
                self._ledger.record_inquiry(inquiry, InquiryState.SILENT, reason=reason)

    def _postpone(self, inquiry: Inquiry, until: datetime, reason: str) -> None:
        state = InquiryState.DUE
        if self._clock() - inquiry.since >= self._patience.patience:
            state = InquiryState.SILENT
        self._ledger.record_inquiry(inquiry, state, reason=reason, next_attempt=until)


@contextmanager
def open_conversation(
    settings: NodeSettings, alias: str, ledger: Ledger | None = None, store: Store | None = None
) -> Iterator[Conversation]:
    """Give a conversation with a peer, over what it speaks.

    Args:
        settings: peers, and how patient to be with them.
        alias: of the peer, which has the role query.
        ledger: where what a DICOMweb archive gives is recorded.
        store: where it is kept; without the two nothing is fetched.

    Raises:
        DeliveryError: the peer does not answer.
    """
    peer = settings.peers[alias]
    if peer.dicomweb is None:
        ways = [STUDY_ROOT_FIND, STUDY_ROOT_MOVE]
        with open_peer(settings, peer, ways) as association:
            yield DimseConversation(association, settings)
        return
    with ExitStack() as stack:
        service = stack.enter_context(closing(Service(alias, peer)))
        retrieval = None
        if ledger is not None and store is not None:
            retrieval = stack.enter_context(open_retrieval(service, alias, settings, ledger, store))
        yield WebConversation(service, settings.query, retrieval)


def find_asked(settings: NodeSettings) -> list[str]:
    """Return the aliases of the peers that may be asked what they hold."""
    if not settings.query.enabled:
        return []
    return sorted(alias for alias, peer in settings.peers.items() if "query" in peer.roles)


def _read_patient(path: Path) -> Patient | None:
    """Return what a file says of its patient; None when that could match other patients."""
    try:
        with config.disable_value_validation():
            header = dcmread(path, specific_tags=["SpecificCharacterSet", "PatientID", "StudyDate"])
            patient_id = header.get("PatientID")
            character_set = header.get("SpecificCharacterSet") or "ISO_IR 6"
            date = read_date(str(header.get("StudyDate") or ""))
    except (*READ_ERRORS, StorageError):
        return None
    is_one = isinstance(patient_id, str) and bool(patient_id.strip())
    if not is_one or any(letter in patient_id for letter in "*?"):
        return None
    return Patient(patient_id=patient_id.strip(), character_set=character_set, date=date)
