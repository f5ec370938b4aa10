"""Talks with a worklist about its Unified Procedure Steps, as their performer (PS3.4 annex CC).

    C-FIND: what is scheduled → N-GET: of what → N-ACTION: ours → N-SET: how far
        → N-SET: what came of it → N-ACTION: COMPLETED or CANCELED

IHE RAD AIW-I calls these RAD-81 to RAD-85. The UPS Pull SOP Class is negotiated; what messages name
is the UPS Push SOP Class, of which every step is an instance (PS3.4 section CC.3.1).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from pydicom import Dataset

from dicom_node import command
from dicom_node.association import Context
from dicom_node.conversation import QueryRefusedError
from dicom_node.dimse_conversation import (
    LONGEST_ANSWER,
    MOST_ANSWERS,
    decode_identifier,
    encode_identifier,
)
from dicom_node.errors import DeliveryError, RefusedInstance
from dicom_node.ledger import Sources, Step
from dicom_node.network import Requestor
from dicom_node.node_settings import Code
from dicom_node.structure import check_uid

UPS_PUSH = "1.2.840.10008.5.1.4.34.6.1"
UPS_PULL = "1.2.840.10008.5.1.4.34.6.3"

CHANGE_STATE = 1
"""Action Type ID (PS3.4 table CC.2.1-1)."""

ALREADY_CANCELED = 0xB304
ALREADY_COMPLETED = 0xB306
NO_LONGER_UPDATED = 0xC300
WRONG_TRANSACTION = 0xC301
ALREADY_IN_PROGRESS = 0xC302
NO_SUCH_STEP = 0xC307
NOT_IN_PROGRESS = 0xC310

GONE = frozenset({NO_LONGER_UPDATED, WRONG_TRANSACTION, NO_SUCH_STEP, NOT_IN_PROGRESS})
"""Statuses that say that this node has the step no more."""

LONGEST_STEP = 4_194_304
"""Bytes of the contents of a step."""

_MOST_SERIES = 1_000
_LONGEST_TEXT = 1_024  # of an ST
_WARNINGS = range(0xB000, 0xC000)
_UNSPECIFIED = ("110513", "DCM", "Discontinued for unspecified reason")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheduled:
    """A step that may be claimed, as the worklist lists it."""

    sop_instance_uid: str
    workitem: Code


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What a step is about.

    Attributes:
        studies: Study Instance UIDs of its input.
    """

    studies: tuple[str, ...]
    sources: Sources


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """A series that came of a step, and where it is.

    Attributes:
        instances: SOP Class UID and SOP Instance UID.
        ae_titles: of those that have it.
        urls: of the series at DICOMweb archives that have it.
    """

    study_instance_uid: str
    series_instance_uid: str
    instances: tuple[tuple[str, str], ...]
    ae_titles: tuple[str, ...]
    urls: tuple[str, ...]


class Worklist:
    """What is said over one association; every wait has an end."""

    def __init__(self, association: Requestor, station: Code, seconds: float) -> None:
        """Describe it.

        Args:
            association: that was asked for UPS Pull.
            station: this node's, as a worklist knows it.
            seconds: for the answers to one request.

        Raises:
            DeliveryError: the peer does not offer it.
        """
        context = association.find_context(UPS_PULL)
        if context is None:
            raise DeliveryError("the peer does not offer Unified Procedure Step Pull", retry=True)
        self._context: Context = context
        self._association = association
        self._station = station
        self._seconds = seconds

    def find(self, workitem: Code) -> list[Scheduled]:
        """Return the steps that this node may claim; what was not asked for is dropped.

        Raises:
            DeliveryError: the peer refuses, breaks off, or answers what cannot be read.
            TimeoutError: it says nothing.
        """
        identifier = Dataset()
        identifier.SOPInstanceUID = None
        identifier.ProcedureStepState = "SCHEDULED"
        identifier.InputReadinessState = "READY"
        wanted = Dataset()
        wanted.CodeValue, wanted.CodingSchemeDesignator = workitem.value, workitem.scheme
        wanted.CodeMeaning = None
        identifier.ScheduledWorkitemCodeSequence = [wanted]
        identifier.ScheduledStationNameCodeSequence = []
        elements: dict[int, int | str] = {
            command.AFFECTED_SOP_CLASS_UID: UPS_PULL,
            command.COMMAND_FIELD: command.C_FIND_RQ,
            command.PRIORITY: command.LOW_PRIORITY,
        }
        answers = self._association.ask(
            self._context,
            elements,
            encode_identifier(identifier, self._context),
            longest=LONGEST_ANSWER,
            seconds=self._seconds,
        )
        found: list[Scheduled] = []
        for number, (status, message) in enumerate(answers):
            if status not in command.PENDING:
                raise DeliveryError(f"the worklist refuses the query: 0x{status:04X}", retry=True)
            if number == MOST_ANSWERS:
                raise DeliveryError("the worklist does not stop answering", retry=True)
            answer = decode_identifier(message)
            uids = list(_read_uids([answer], "SOPInstanceUID"))
            if uids and self._may_claim(answer, workitem):
                found.append(Scheduled(sop_instance_uid=uids[0], workitem=workitem))
        return found

    def read(self, sop_instance_uid: str) -> Contents:
        """Return what a step is about.

        Raises:
            DeliveryError: the peer does not tell, or what cannot be read.
            TimeoutError: it says nothing.
        """
        status, answer = self._exchange(command.N_GET_RQ, sop_instance_uid)
        if status != command.SUCCESS and status not in _WARNINGS:
            raise QueryRefusedError(f"the worklist does not tell: 0x{status:04X}", retry=True)
        inputs = list(_read_items(answer, "InputInformationSequence"))
        retrievals = [
            item for each in inputs for item in _read_items(each, "DICOMRetrievalSequence")
        ]
        titles = (str(each.get("RetrieveAETitle") or "").strip() for each in retrievals)
        series = list(_read_uids(inputs, "SeriesInstanceUID"))[:_MOST_SERIES]
        studies = list(_read_uids(inputs, "StudyInstanceUID"))
        return Contents(
            studies=tuple(sorted(set(studies))),
            # An input without a series is the whole study.
            sources=Sources(
                series=tuple(sorted(set(series))) if len(series) == len(inputs) else (),
                ae_titles=tuple(sorted({each for each in titles if each})),
            ),
        )

    def change(self, step: Step, state: str) -> int:
        """Change the state of a step, and return the status."""
        information = Dataset()
        information.ProcedureStepState = state
        information.TransactionUID = step.transaction_uid
        return self._exchange(command.N_ACTION_RQ, step.sop_instance_uid, information)[0]

    def tell(self, step: Step, words: str, percent: int) -> int:
        """Tell how far a step is, and return the status."""
        progress = Dataset()
        progress.ProcedureStepProgress = str(percent)
        progress.ProcedureStepProgressDescription = _clean(words)
        return self._set(step, [progress])

    def tell_end(self, step: Step, outputs: Sequence[Output], now: datetime, words: str) -> int:
        """Tell what came of a step, and return the status.

        Args:
            step: that is over.
            outputs: what was made and delivered; without any it is canceled.
            now: the time.
            words: what was not made, and why.
        """
        progress = Dataset()
        progress.ProcedureStepProgress = "100" if outputs else "0"
        progress.ProcedureStepProgressDescription = _clean(words)
        if not outputs:
            progress.ProcedureStepCancellationDateTime = _write_time(now)
            progress.ReasonForCancellation = _clean(words)
            progress.ProcedureStepDiscontinuationReasonCodeSequence = [_write_code(*_UNSPECIFIED)]
        station = self._station
        performed = Dataset()
        performed.PerformedStationNameCodeSequence = [
            _write_code(station.value, station.scheme, station.meaning)
        ]
        performed.PerformedWorkitemCodeSequence = [_write_code(*step.workitem)]
        performed.PerformedProcedureStepStartDateTime = _write_time(step.since)
        performed.PerformedProcedureStepEndDateTime = _write_time(now)
        performed.OutputInformationSequence = [_write_output(each) for each in outputs]
        return self._set(step, [progress], [performed])

    def _set(
        self, step: Step, progress: list[Dataset], performed: list[Dataset] | None = None
    ) -> int:
        modification = Dataset()
        modification.TransactionUID = step.transaction_uid
        modification.ProcedureStepProgressInformationSequence = progress
        if performed is not None:
            modification.UnifiedProcedureStepPerformedProcedureSequence = performed
        status = self._exchange(command.N_SET_RQ, step.sop_instance_uid, modification)[0]
        return command.SUCCESS if status in _WARNINGS else status

    def _may_claim(self, answer: Dataset, workitem: Code) -> bool:
        """Say whether an answer is what was asked for, and not for other stations alone."""
        if str(answer.get("ProcedureStepState") or "") != "SCHEDULED":
            return False
        if str(answer.get("InputReadinessState") or "") != "READY":
            return False
        codes = _read_codes(answer, "ScheduledWorkitemCodeSequence")
        stations = _read_codes(answer, "ScheduledStationNameCodeSequence")
        ours = (self._station.value, self._station.scheme)
        return (workitem.value, workitem.scheme) in codes and (not stations or ours in stations)

    def _exchange(
        self, field: int, sop_instance_uid: str, data_set: Dataset | None = None
    ) -> tuple[int, Dataset]:
        """Send a request about a step, and return status and data set of the response.

        Raises:
            DeliveryError: the peer breaks off, or answers something else.
            TimeoutError: it says nothing.
        """
        elements: dict[int, int | str] = {
            command.COMMAND_FIELD: field,
            command.REQUESTED_SOP_CLASS_UID: UPS_PUSH,
            command.REQUESTED_SOP_INSTANCE_UID: sop_instance_uid,
        }
        if field == command.N_ACTION_RQ:
            elements[command.ACTION_TYPE_ID] = CHANGE_STATE
        encoded = None if data_set is None else encode_identifier(data_set, self._context)
        message_id = self._association.write(self._context, elements, encoded)
        message = self._association.read(LONGEST_STEP, self._seconds)
        if message is None:
            raise DeliveryError("the worklist left instead of answering", retry=True)
        status = message.read_status(field, message_id)
        return status, decode_identifier(message) if message.data_set else Dataset()


def _read_items(data_set: Dataset, keyword: str) -> Iterator[Dataset]:
    yield from data_set.get(keyword) or ()


def _read_codes(data_set: Dataset, keyword: str) -> set[tuple[str, str]]:
    return {
        (str(each.get("CodeValue") or ""), str(each.get("CodingSchemeDesignator") or ""))
        for each in _read_items(data_set, keyword)
    }


def _read_uids(data_sets: Iterable[Dataset], keyword: str) -> Iterator[str]:
    """Yield the UIDs of an attribute; what is none is passed over."""
    for each in data_sets:
        try:
            yield check_uid(str(each.get(keyword) or "").encode())
        except RefusedInstance:
            continue


def _write_code(value: str, scheme: str, meaning: str) -> Dataset:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, scheme, meaning
    return code


def _write_output(output: Output) -> Dataset:
    """Return an item of the Output Information Sequence (PS3.3 table 10-3b)."""
    item = Dataset()
    item.TypeOfInstances = "DICOM"
    item.StudyInstanceUID = output.study_instance_uid
    item.SeriesInstanceUID = output.series_instance_uid
    item.ReferencedSOPSequence = []
    for sop_class, sop_instance in output.instances:
        reference = Dataset()
        reference.ReferencedSOPClassUID = sop_class
        reference.ReferencedSOPInstanceUID = sop_instance
        item.ReferencedSOPSequence.append(reference)
    item.DICOMRetrievalSequence = []
    for title in output.ae_titles:
        retrieval = Dataset()
        retrieval.RetrieveAETitle = title
        item.DICOMRetrievalSequence.append(retrieval)
    item.WADORSRetrievalSequence = []
    for url in output.urls:
        retrieval = Dataset()
        retrieval.RetrieveURL = url
        item.WADORSRetrievalSequence.append(retrieval)
    for keyword in ("DICOMRetrievalSequence", "WADORSRetrievalSequence"):
        if not item.get(keyword):
            delattr(item, keyword)
    return item


def _write_time(moment: datetime) -> str:
    return f"{moment:%Y%m%d%H%M%S}+0000"


def _clean(words: str) -> str:
    """Return a text of our own as an ST or LT in the default repertoire may be."""
    return words.encode("ascii", "replace").decode()[:_LONGEST_TEXT].replace("\\", "/")
