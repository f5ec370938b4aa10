"""Step 4 of the walk: a worker for each peer asks it whether what is not here is really missing.

    study with a gap → C-FIND: its series, and those of other studies of the patient
        → counts compared with what came → C-MOVE to ourselves of what did not come → asked again
        → answered

What is moved comes in by the receiver like everything else. A peer that does not answer is left
alone for a while; after `query.patience` the rule that wanted to know says what follows. A Patient
ID goes into a query, and an answer of another patient is dropped; it never goes into a log.

Source: PS3.4 annex C (Study Root), PS3.7 sections 9.1.2 and 9.1.4.
"""

import logging
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from io import BytesIO
from pathlib import Path

from pydicom import Dataset, config, dcmread
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset
from pydicom.filewriter import write_dataset

from dicom_node import command
from dicom_node.association import Context
from dicom_node.delivery import open_peer
from dicom_node.domain import InquiryState, RemoteSeries
from dicom_node.errors import DeliveryError, StorageError
from dicom_node.headers import IMAGE_MODALITIES
from dicom_node.ledger import Inquiry, Ledger
from dicom_node.network import (
    IMPLICIT_VR_LITTLE_ENDIAN,
    STUDY_ROOT_FIND,
    Message,
    Requestor,
)
from dicom_node.node_settings import NodeSettings
from dicom_node.outcomes import Rest
from dicom_node.pixels import READ_ERRORS
from dicom_node.store import Store

STUDY_ROOT_MOVE = "1.2.840.10008.5.1.4.1.2.2.2"

STUDIES_PER_SWEEP = 20
"""A sweep leaves the rest to the next: a stop is soon."""
MOST_SIBLINGS = 20
"""Other studies of a patient that are looked into; more in a few days are no patient's."""
MOST_ANSWERS = 5_000
"""Of one query; a peer that goes on is broken."""
LONGEST_ANSWER = 65_536
"""Bytes of one answer."""

_TEXTS = ("Modality", "SeriesDescription", "ProtocolName", "BodyPartExamined", "StudyDescription")
_LONGEST_TEXT = 256
_DATE = "%Y%m%d"
_JITTER = (0.8, 1.0)

logger = logging.getLogger(__name__)


class QueryRefusedError(DeliveryError):
    """A peer said no to one query; others may succeed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Patient:
    """Whose study it is, as one of its files says.

    Attributes:
        date: of the study; None when the file does not say it.
    """

    patient_id: str
    character_set: str | Sequence[str]
    date: datetime | None


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
        self._peer = settings.peers[alias]
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
            with open_peer(
                self._settings, self._peer, [STUDY_ROOT_FIND, STUDY_ROOT_MOVE]
            ) as association:
                conversation = Conversation(association, self._settings)
                for inquiry in due:
                    self._ask(conversation, inquiry)
        except (DeliveryError, TimeoutError) as error:
            self._fail(due, str(error) or "no answer in time")
        else:
            self._rest.end()
        return len(due)

    def _ask(self, conversation: "Conversation", inquiry: Inquiry) -> None:
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
                conversation.move(each)
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

    def _find(self, conversation: "Conversation", inquiry: Inquiry) -> Iterator[RemoteSeries]:
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

    def _read_patient(self, study_instance_uid: str) -> _Patient | None:
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


class Conversation:
    """Queries over one association, no faster than the settings let them be."""

    def __init__(self, association: Requestor, settings: NodeSettings) -> None:
        self._association = association
        self._ae_title = settings.ae_title
        self._limits = settings.query

    def find_siblings(self, study: str, patient: _Patient, days: int) -> list[str]:
        """Return other studies of the patient within some days.

        A peer may compare without case, or answer with more than it was asked for; what is not of
        this patient, or not of these days, is dropped.
        """
        if patient.date is None:
            return []
        first, last = patient.date - timedelta(days), patient.date + timedelta(days)
        identifier = Dataset()
        identifier.SpecificCharacterSet = patient.character_set
        identifier.QueryRetrieveLevel = "STUDY"
        identifier.PatientID = patient.patient_id
        identifier.StudyDate = f"{first:{_DATE}}-{last:{_DATE}}"
        identifier.StudyInstanceUID = ""
        uids = []
        for answer in self._find(identifier):
            uid = str(answer.get("StudyInstanceUID") or "")
            date = _read_date(answer)
            is_of_patient = str(answer.get("PatientID") or "").strip() == patient.patient_id
            if is_of_patient and uid not in ("", study) and date and first <= date <= last:
                uids.append(uid)
        return sorted(set(uids))[:MOST_SIBLINGS]

    def find_studies(self, keys: Mapping[str, str]) -> list[str]:
        """Return the studies that match a query; an answer that says otherwise is dropped.

        Args:
            keys: DICOM keywords of study and patient to what is looked for.
        """
        identifier = Dataset()
        identifier.QueryRetrieveLevel = "STUDY"
        identifier.StudyInstanceUID = ""
        with config.disable_value_validation():
            for keyword, value in keys.items():
                setattr(identifier, keyword, value)
        single = {key: value for key, value in keys.items() if not set(value) & set("*?-\\")}
        found = {
            str(answer.get("StudyInstanceUID") or "")
            for answer in self._find(identifier)
            if all(str(answer.get(key) or value) == value for key, value in single.items())
        }
        return sorted(found - {""})

    def find_series(self, alias: str, study: str) -> Iterator[RemoteSeries]:
        """Yield the series that the peer lists of a study."""
        identifier = Dataset()
        identifier.QueryRetrieveLevel = "SERIES"
        identifier.StudyInstanceUID = study
        for keyword in ("SeriesInstanceUID", "NumberOfSeriesRelatedInstances", *_TEXTS):
            setattr(identifier, keyword, None)
        for answer in self._find(identifier):
            uid = str(answer.get("SeriesInstanceUID") or "")
            if not uid or str(answer.get("StudyInstanceUID") or study) != study:
                continue
            texts = {keyword: str(answer.get(keyword) or "").strip() for keyword in _TEXTS}
            count = str(answer.get("NumberOfSeriesRelatedInstances") or "").strip()
            yield RemoteSeries(
                peer=alias,
                study_instance_uid=study,
                series_instance_uid=uid,
                instances=int(count) if count.isdecimal() else self._count(study, uid),
                header={key: text[:_LONGEST_TEXT] for key, text in texts.items() if text},
            )

    def move(self, series: RemoteSeries) -> None:
        """Have a series sent to this node.

        Raises:
            QueryRefusedError: the peer does not send it, or not all of it.
            DeliveryError: the peer breaks off.
            TimeoutError: it says nothing.
        """
        identifier = Dataset()
        identifier.QueryRetrieveLevel = "SERIES"
        identifier.StudyInstanceUID = series.study_instance_uid
        identifier.SeriesInstanceUID = series.series_instance_uid
        elements: dict[int, int | str] = {
            command.AFFECTED_SOP_CLASS_UID: STUDY_ROOT_MOVE,
            command.COMMAND_FIELD: command.C_MOVE_RQ,
            command.PRIORITY: command.LOW_PRIORITY,
            command.MOVE_DESTINATION: self._ae_title,
        }
        for status, _ in self._request(STUDY_ROOT_MOVE, elements, identifier, self._limits.move):
            if status not in command.PENDING:
                raise QueryRefusedError(_explain_move(status), retry=True)

    def _count(self, study: str, series: str) -> int | None:
        """Return how many instances of a series the peer lists, where it keeps no count."""
        identifier = Dataset()
        identifier.QueryRetrieveLevel = "IMAGE"
        identifier.StudyInstanceUID = study
        identifier.SeriesInstanceUID = series
        identifier.SOPInstanceUID = None
        with suppress(QueryRefusedError):
            return len({str(each.get("SOPInstanceUID")) for each in self._find(identifier)})
        return None

    def _find(self, identifier: Dataset) -> list[Dataset]:
        """Return what a C-FIND finds.

        Raises:
            QueryRefusedError: the peer refuses, answers without end, or with what cannot be read.
            DeliveryError: the peer breaks off.
            TimeoutError: it says nothing.
        """
        elements: dict[int, int | str] = {
            command.AFFECTED_SOP_CLASS_UID: STUDY_ROOT_FIND,
            command.COMMAND_FIELD: command.C_FIND_RQ,
            command.PRIORITY: command.LOW_PRIORITY,
        }
        found: list[Dataset] = []
        for status, message in self._request(
            STUDY_ROOT_FIND, elements, identifier, self._limits.answer
        ):
            if status not in command.PENDING:
                raise QueryRefusedError(f"the peer refuses the query: 0x{status:04X}", retry=True)
            if len(found) == MOST_ANSWERS:
                raise DeliveryError("the peer does not stop answering", retry=True)
            found.append(_decode(message))
        return found

    def _request(
        self,
        sop_class: str,
        elements: Mapping[int, int | str],
        identifier: Dataset,
        patience: timedelta,
    ) -> Iterator[tuple[int, Message]]:
        """Yield status and response up to the one that says success, without that one."""
        context = self._association.find_context(sop_class)
        if context is None:
            raise QueryRefusedError("the peer does not offer it", retry=True)
        time.sleep(self._limits.pause.total_seconds())
        yield from self._association.ask(
            context,
            elements,
            _encode(identifier, context),
            longest=LONGEST_ANSWER,
            seconds=patience.total_seconds(),
        )


def find_asked(settings: NodeSettings) -> list[str]:
    """Return the aliases of the peers that may be asked what they hold."""
    if not settings.query.enabled:
        return []
    return sorted(alias for alias, peer in settings.peers.items() if "query" in peer.roles)


def _read_patient(path: Path) -> _Patient | None:
    """Return what a file says of its patient; None when that could match other patients."""
    try:
        with config.disable_value_validation():
            header = dcmread(path, specific_tags=["SpecificCharacterSet", "PatientID", "StudyDate"])
            patient_id = header.get("PatientID")
            character_set = header.get("SpecificCharacterSet") or "ISO_IR 6"
            date = _read_date(header)
    except (*READ_ERRORS, StorageError):
        return None
    is_one = isinstance(patient_id, str) and bool(patient_id.strip())
    if not is_one or any(letter in patient_id for letter in "*?"):
        return None
    return _Patient(patient_id=patient_id.strip(), character_set=character_set, date=date)


def _read_date(header: Dataset) -> datetime | None:
    try:
        return datetime.strptime(str(header.get("StudyDate") or ""), _DATE)  # noqa: DTZ007 - a day
    except ValueError:
        return None


def _encode(identifier: Dataset, context: Context) -> bytes:
    buffer = DicomBytesIO()
    buffer.is_little_endian = True
    buffer.is_implicit_VR = context.transfer_syntax == IMPLICIT_VR_LITTLE_ENDIAN
    with config.disable_value_validation():
        write_dataset(buffer, identifier)
    return buffer.getvalue()


def _decode(message: Message) -> Dataset:
    is_implicit = message.context.transfer_syntax == IMPLICIT_VR_LITTLE_ENDIAN
    try:
        with config.disable_value_validation():
            answer = read_dataset(BytesIO(message.data_set), is_implicit, is_little_endian=True)
            for element in answer:  # decoded here, so that what cannot be read shows here
                str(element.value)
            return answer
    except READ_ERRORS:
        raise QueryRefusedError("the peer's answer cannot be read", retry=True) from None


def _explain_move(status: int) -> str:
    if status == 0xA801:  # noqa: PLR2004 - PS3.4 table C.4-2
        return "the peer does not know this node as a move destination: 0xA801"
    return f"the peer did not send what it lists: 0x{status:04X}"
