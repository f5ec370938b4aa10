"""What the node does for a peer: verification and storage, one message after another.

Step 1 of the walk. No answer says success before `spool` has made it true, and nothing that a peer
sends ends up in a log line or a file name. Statuses: PS3.4 table B.2-1 and PS3.7 annex C.
"""

import contextlib
import uuid
from collections import deque
from collections.abc import Mapping

from dicom_node import command
from dicom_node.association import Association, Context
from dicom_node.commitment import (
    LONGEST_REPORT,
    PROCESSING_FAILURE,
    STORAGE_COMMITMENT,
    decode_report,
)
from dicom_node.complaints import Complains
from dicom_node.errors import RefusedInstance, StorageError
from dicom_node.network import IMPLICIT_VR_LITTLE_ENDIAN, VERIFICATION
from dicom_node.spool import Announced, Spool
from dicom_node.structure import NO_DATA_SET, check_uid
from dicom_node.upper_layer import ProtocolError

SOP_CLASS_NOT_SUPPORTED = 0x0122
UNRECOGNIZED_OPERATION = 0x0211

_REQUESTS = frozenset(
    {0x0001, 0x0010, 0x0020, 0x0021, 0x0030, 0x0100, 0x0110, 0x0120, 0x0130, 0x0140, 0x0150}
)
"""Command fields of every request that DIMSE knows (PS3.7 table E.1-1)."""


class Services:
    """The messages of one association, and what the ledger knows of it.

    Attributes:
        association_id: in the ledger, which learns of an association with its first instance.
        stored: how many instances were answered with success.
        refused: how many were not.
    """

    def __init__(
        self,
        association: Association,
        spool: Spool,
        complaints: Complains,
        peer: str,
        instance_bytes: int,
    ) -> None:
        self.association_id: str | None = None
        self.stored = 0
        self.refused = 0
        self._association = association
        self._spool = spool
        self._complaints = complaints
        self._peer = peer
        self._instance_bytes = instance_bytes
        self._is_closed = False

    def answer(self, context_id: int, elements: Mapping[int, int | bytes]) -> bool:
        """Answer one message, and say whether it was to store an instance.

        Raises:
            ProtocolError: it is none; the association is aborted.
        """
        field = command.number(elements, command.COMMAND_FIELD)
        if field == command.C_CANCEL_RQ:
            return False  # nothing here runs long enough to be canceled
        if field not in _REQUESTS:
            raise ProtocolError("command_field")
        message_id = command.number(elements, command.MESSAGE_ID)
        has_data_set = (
            command.number(elements, command.COMMAND_DATA_SET_TYPE) != command.NO_DATA_SET
        )
        context = self._association.contexts[context_id]
        comment = ""
        if field == command.C_STORE_RQ:
            status, comment = self._store(context, elements, has_data_set)
        elif field == command.N_EVENT_REPORT_RQ and context.abstract_syntax == STORAGE_COMMITMENT:
            status = self._take_report(context, has_data_set)
        else:
            if has_data_set:
                deque(
                    self._association.read_data_set(context_id, self._instance_bytes), maxlen=0
                )  # read, not kept
            status = _status_without_store(field, context)
        response: dict[int, int | str] = {
            command.COMMAND_FIELD: field | command.RESPONSE,
            command.MESSAGE_ID_BEING_RESPONDED_TO: message_id,
            command.COMMAND_DATA_SET_TYPE: command.NO_DATA_SET,
            command.STATUS: status,
        }
        if comment:
            response[command.ERROR_COMMENT] = comment
        response.update(_repeatable_uids(elements))
        self._association.send(context_id, command.encode_command(response))
        return field == command.C_STORE_RQ

    def close(self) -> None:
        """Tell the ledger that nothing more comes; once."""
        if self.association_id is None or self._is_closed:
            return
        self._is_closed = True
        try:
            self._spool.recorder.close_association(self.association_id)
        except StorageError:
            # Its heartbeat ends with it, so that assembly goes on all the same.
            self._complaints.note("association_not_closed", who=self._peer)

    def _store(
        self, context: Context, elements: Mapping[int, int | bytes], has_data_set: bool
    ) -> tuple[int, str]:
        """Take one instance; return status and error comment."""
        try:
            if not has_data_set:
                raise RefusedInstance("no data set came with the request", NO_DATA_SET)
            self._take(context, elements)
        except (RefusedInstance, StorageError) as error:
            self.refused += 1
            self._complaints.note(
                "instance_refused", who=self._peer, status=f"0x{error.status:04X}"
            )
            is_ours = isinstance(error, RefusedInstance)
            return error.status, str(error) if is_ours else "the node cannot keep it now"
        self.stored += 1
        return command.SUCCESS, ""

    def _take_report(self, context: Context, has_data_set: bool) -> int:
        """Take what a peer says that it keeps of what it was sent; return the status."""
        data_set = b""
        if has_data_set:
            fragments = self._association.read_data_set(context.context_id, LONGEST_REPORT)
            data_set = b"".join(bytes(each) for some, _ in fragments for each in some)
        try:
            explicit = context.transfer_syntax != IMPLICIT_VR_LITTLE_ENDIAN
            report = decode_report(data_set, explicit=explicit)
        except ValueError:
            self._complaints.note("report_refused", who=self._peer)
            return PROCESSING_FAILURE
        return self._spool.recorder.take_report(self._peer, report)

    def _take(self, context: Context, elements: Mapping[int, int | bytes]) -> None:
        """Read the data set to its end, whatever is wrong with it, then keep it or refuse it."""
        fragments = self._association.read_data_set(context.context_id, self._instance_bytes)
        try:
            if self.association_id is None:
                self.association_id = uuid.uuid4().hex
            announced = _read_announced(context, elements)
            with self._spool.begin(
                announced, peer=self._peer, association=self.association_id
            ) as incoming:
                for some, is_last in fragments:
                    if is_last:
                        incoming.keep(some)
                    else:
                        incoming.write(some)
        except (RefusedInstance, StorageError):
            deque(fragments, maxlen=0)  # the peer must be heard out before it is answered
            raise


def _read_announced(context: Context, elements: Mapping[int, int | bytes]) -> Announced:
    """Check what a C-STORE request says of its instance.

    Raises:
        RefusedInstance: the context is not for its class, or its UID is not valid.
    """
    sop_class = elements.get(command.AFFECTED_SOP_CLASS_UID)
    is_storage = context.abstract_syntax != VERIFICATION
    if not is_storage or sop_class != context.abstract_syntax.encode("ascii"):
        raise RefusedInstance("the context is not for this SOP class", SOP_CLASS_NOT_SUPPORTED)
    sop_instance = elements.get(command.AFFECTED_SOP_INSTANCE_UID, b"")
    return Announced(
        sop_class_uid=context.abstract_syntax,
        sop_instance_uid=check_uid(sop_instance if isinstance(sop_instance, bytes) else b""),
        transfer_syntax_uid=context.transfer_syntax,
    )


def _status_without_store(field: int, context: Context) -> int:
    if field != command.C_ECHO_RQ:
        return UNRECOGNIZED_OPERATION
    return command.SUCCESS if context.abstract_syntax == VERIFICATION else SOP_CLASS_NOT_SUPPORTED


def _repeatable_uids(elements: Mapping[int, int | bytes]) -> dict[int, str]:
    """Return the UIDs of a request that are fit to be repeated in its response."""
    uids: dict[int, str] = {}
    for element in (command.AFFECTED_SOP_CLASS_UID, command.AFFECTED_SOP_INSTANCE_UID):
        value = elements.get(element)
        with contextlib.suppress(RefusedInstance):
            if isinstance(value, bytes):
                uids[element] = check_uid(value)
    return uids
