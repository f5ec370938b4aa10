"""Asks a peer what it holds by C-FIND, and has it sent here by C-MOVE (PS3.4 annex C, Study Root).

What is moved comes in by the receiver like everything else.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from io import BytesIO

from pydicom import Dataset, config
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset
from pydicom.filewriter import write_dataset

from dicom_node import command
from dicom_node.association import Context
from dicom_node.conversation import Conversation, Level, QueryRefusedError, Row
from dicom_node.domain import RemoteSeries
from dicom_node.errors import DeliveryError
from dicom_node.network import (
    IMPLICIT_VR_LITTLE_ENDIAN,
    STUDY_ROOT_FIND,
    Message,
    Requestor,
)
from dicom_node.node_settings import NodeSettings
from dicom_node.pixels import READ_ERRORS

STUDY_ROOT_MOVE = "1.2.840.10008.5.1.4.1.2.2.2"

MOST_ANSWERS = 5_000
"""Of one query; a peer that goes on is broken."""
LONGEST_ANSWER = 65_536
"""Bytes of one answer."""


class DimseConversation(Conversation):
    """Queries over one association."""

    def __init__(self, association: Requestor, settings: NodeSettings) -> None:
        self._association = association
        self._ae_title = settings.ae_title
        self._limits = settings.query

    def fetch(self, series: RemoteSeries) -> None:
        """Have a series sent to this node; see `Conversation`."""
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

    def _find(
        self,
        level: Level,
        keys: Mapping[str, str],
        wanted: Sequence[str],
        character_set: str | Sequence[str] = "",
    ) -> list[Row]:
        identifier = Dataset()
        if character_set:
            identifier.SpecificCharacterSet = character_set
        identifier.QueryRetrieveLevel = level
        for keyword in wanted:
            setattr(identifier, keyword, None)
        with config.disable_value_validation():
            for keyword, value in keys.items():
                setattr(identifier, keyword, value)
        elements: dict[int, int | str] = {
            command.AFFECTED_SOP_CLASS_UID: STUDY_ROOT_FIND,
            command.COMMAND_FIELD: command.C_FIND_RQ,
            command.PRIORITY: command.LOW_PRIORITY,
        }
        found: list[Row] = []
        for status, message in self._request(
            STUDY_ROOT_FIND, elements, identifier, self._limits.answer
        ):
            if status not in command.PENDING:
                raise QueryRefusedError(f"the peer refuses the query: 0x{status:04X}", retry=True)
            if len(found) == MOST_ANSWERS:
                raise DeliveryError("the peer does not stop answering", retry=True)
            answer = decode_identifier(message)
            found.append({each: str(answer.get(each) or "").strip() for each in (*keys, *wanted)})
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
            encode_identifier(identifier, context),
            longest=LONGEST_ANSWER,
            seconds=patience.total_seconds(),
        )


def encode_identifier(identifier: Dataset, context: Context) -> bytes:
    """Return a data set in the transfer syntax of a context."""
    buffer = DicomBytesIO()
    buffer.is_little_endian = True
    buffer.is_implicit_VR = context.transfer_syntax == IMPLICIT_VR_LITTLE_ENDIAN
    with config.disable_value_validation():
        write_dataset(buffer, identifier)
    return buffer.getvalue()


def decode_identifier(message: Message) -> Dataset:
    """Return the data set of a message.

    Raises:
        QueryRefusedError: it cannot be read.
    """
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
