"""What the node does for a peer: verification, storage, notices, one message after another.

Step 1 of the walk. No answer says success before `spool` has made it true, and nothing that a peer
sends ends up in a log line or a file name. Statuses: PS3.4 table B.2-1 and PS3.7 annex C.
"""

import enum
import functools
import uuid
from collections import deque
from collections.abc import Callable, Container, Mapping, Sequence

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
from dicom_node.notices import (
    LONGEST_NOTICE,
    NO_LONGER_UPDATED,
    NOTICES,
    PERFORMED_PROCEDURE_STEP,
    decode_notice,
)
from dicom_node.spool import Announced, Origin, Spool, Written
from dicom_node.structure import NO_DATA_SET, check_uid
from dicom_node.upper_layer import ProtocolError

NO_SUCH_SOP_CLASS = 0x0118
SOP_CLASS_NOT_SUPPORTED = 0x0122
UNRECOGNIZED_OPERATION = 0x0211

_REQUESTS = frozenset(
    {0x0001, 0x0010, 0x0020, 0x0021, 0x0030, 0x0100, 0x0110, 0x0120, 0x0130, 0x0140, 0x0150}
)
"""Command fields of every request that DIMSE knows (PS3.7 table E.1-1)."""


Later = Callable[[Callable[[], None]], None]
"""Has something done on another thread."""


class Progress(enum.Enum):
    """How far one got without waiting.

    Attributes:
        DONE: a message was answered; the next may lie there.
        LATER: a message was taken, and is answered by what was given to `later`.
        MORE: more of the message must come first.
        SLOWLY: it is for `Services.answer`, which may take its time.
    """

    DONE = enum.auto()
    LATER = enum.auto()
    MORE = enum.auto()
    SLOWLY = enum.auto()


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
        classes: Container[str],
    ) -> None:
        self.association_id: str | None = None
        self.stored = 0
        self.refused = 0
        self._association = association
        self._spool = spool
        self._complaints = complaints
        self._peer = peer
        self._instance_bytes = instance_bytes
        self._classes = classes
        self._is_closed = False

    def answer(self, context_id: int, request: bytes) -> bool:
        """Answer the message that begins with this command set; say whether it was to store.

        Raises:
            ProtocolError: it is none; the association is aborted.
        """
        context = self._association.contexts[context_id]
        store = command.find_store_request(context.abstract_syntax, request)
        if store is None:
            return self._answer_any(context, command.decode_command(request))
        self._answer_store(context, store)
        return True

    def answer_now(self, later: Later | None) -> Progress:
        """Answer the next message if it lies there whole and is one of those that come most.

        Args:
            later: takes what waits for the disk; without it, that is waited for here.

        Raises:
            ProtocolError: the peer has gone.
        """
        association = self._association
        seen = association.see_command()
        if seen is None:
            return Progress.MORE if association.is_for_later() else Progress.SLOWLY
        context = association.contexts[seen[0]]
        store = command.find_store_request(context.abstract_syntax, seen[1])
        if store is None:
            echo = command.find_echo_request(seen[1])
            if echo is None or context.abstract_syntax != VERIFICATION:
                return Progress.SLOWLY
            association.take_command()
            association.send(context.context_id, command.encode_echo_success(echo))
            return Progress.DONE
        if not store.has_data_set or self._spool.recorder.is_hindered:
            return Progress.SLOWLY
        fragments = association.take_message(self._instance_bytes)
        if fragments is None:
            return Progress.MORE if association.is_for_later() else Progress.SLOWLY
        return self._store_now(context, store, fragments, later)

    def _store_now(
        self,
        context: Context,
        request: command.StoreRequest,
        fragments: Sequence[memoryview],
        later: Later | None,
    ) -> Progress:
        try:
            written = self._spool.write(
                _read_announced(context, request), fragments, self._origin()
            )
        except (RefusedInstance, StorageError) as error:
            self._refuse(context, request, error)
            return Progress.DONE
        if later is None or written.is_settled:
            self._settle(context, request, written)
            return Progress.DONE
        later(functools.partial(self._settle, context, request, written))
        return Progress.LATER

    def _settle(self, context: Context, request: command.StoreRequest, written: Written) -> None:
        """Answer for an instance that is written, once it is durable."""
        try:
            written.settle()
        except (RefusedInstance, StorageError) as error:
            self._refuse(context, request, error)
        else:
            self._succeed(context, request)

    def _answer_any(self, context: Context, elements: Mapping[int, int | bytes]) -> bool:
        """Answer a message of any service; say whether it was to store an instance."""
        field = command.number(elements, command.COMMAND_FIELD)
        if field == command.C_CANCEL_RQ:
            return False  # nothing here runs long enough to be canceled
        if field not in _REQUESTS:
            raise ProtocolError("command_field")
        message_id = command.number(elements, command.MESSAGE_ID)
        has_data_set = (
            command.number(elements, command.COMMAND_DATA_SET_TYPE) != command.NO_DATA_SET
        )
        sop_class = _read_bytes(elements, command.AFFECTED_SOP_CLASS_UID)
        sop_instance = _read_bytes(elements, command.AFFECTED_SOP_INSTANCE_UID)
        if field == command.C_STORE_RQ:
            store = command.StoreRequest(message_id, sop_class, sop_instance, has_data_set)
            self._answer_store(context, store)
            return True
        if field == command.N_EVENT_REPORT_RQ and context.abstract_syntax == STORAGE_COMMITMENT:
            status = self._take_report(context, has_data_set)
        elif _is_notice(field, context):
            self._answer_notice(context, elements)
            return False
        else:
            if has_data_set:
                deque(
                    self._association.read_data_set(context.context_id, self._instance_bytes),
                    maxlen=0,
                )  # read, not kept
            status = _status_without_store(field, context)
        self._respond(context, field, message_id, status, _repeat(sop_class, sop_instance))
        return False

    def _respond(
        self,
        context: Context,
        field: int,
        message_id: int,
        status: int,
        more: Mapping[int, int | str],
    ) -> None:
        response: dict[int, int | str] = {
            command.COMMAND_FIELD: field | command.RESPONSE,
            command.MESSAGE_ID_BEING_RESPONDED_TO: message_id,
            command.COMMAND_DATA_SET_TYPE: command.NO_DATA_SET,
            command.STATUS: status,
            **more,
        }
        self._association.send(context.context_id, command.encode_command(response))

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

    def _answer_store(self, context: Context, request: command.StoreRequest) -> None:
        """Take one instance, or say why not."""
        try:
            if not request.has_data_set:
                raise RefusedInstance("no data set came with the request", NO_DATA_SET)
            self._take(context, request)
        except (RefusedInstance, StorageError) as error:
            self._refuse(context, request, error)
        else:
            self._succeed(context, request)

    def _succeed(self, context: Context, request: command.StoreRequest) -> None:
        self.stored += 1
        response = command.encode_store_success(
            context.abstract_syntax, request.message_id, request.sop_instance_uid
        )
        self._association.send(context.context_id, response)

    def _refuse(
        self,
        context: Context,
        request: command.StoreRequest,
        error: RefusedInstance | StorageError,
    ) -> None:
        self.refused += 1
        status = f"0x{error.status:04X}"
        self._complaints.note("instance_refused", who=self._peer, status=status)
        more = _repeat(request.sop_class_uid, request.sop_instance_uid)
        is_ours = isinstance(error, RefusedInstance)
        more[command.ERROR_COMMENT] = str(error) if is_ours else "the node cannot keep it now"
        self._respond(context, command.C_STORE_RQ, request.message_id, error.status, more)

    def _origin(self) -> Origin:
        if self.association_id is None:
            self.association_id = uuid.uuid4().hex
        return Origin(self._peer, self.association_id)

    def _take_report(self, context: Context, has_data_set: bool) -> int:
        """Take what a peer says that it keeps of what it was sent; return the status."""
        data_set = self._read_whole(context, LONGEST_REPORT) if has_data_set else b""
        try:
            explicit = context.transfer_syntax != IMPLICIT_VR_LITTLE_ENDIAN
            report = decode_report(data_set, explicit=explicit)
        except ValueError:
            self._complaints.note("report_refused", who=self._peer)
            return PROCESSING_FAILURE
        return self._spool.recorder.take_report(self._peer, report)

    def _read_whole(self, context: Context, longest: int) -> bytes:
        fragments = self._association.read_data_set(context.context_id, longest)
        return b"".join(bytes(each) for some, _ in fragments for each in some)

    def _answer_notice(self, context: Context, elements: Mapping[int, int | bytes]) -> None:
        """Take what a peer tells of a study; a UID that it left out of an N-CREATE is made here."""
        field = command.number(elements, command.COMMAND_FIELD)
        is_new = field == command.N_CREATE_RQ
        has_data_set = (
            command.number(elements, command.COMMAND_DATA_SET_TYPE) != command.NO_DATA_SET
        )
        data_set = self._read_whole(context, LONGEST_NOTICE) if has_data_set else b""
        named = (
            (command.AFFECTED_SOP_CLASS_UID, command.AFFECTED_SOP_INSTANCE_UID)
            if is_new
            else (command.REQUESTED_SOP_CLASS_UID, command.REQUESTED_SOP_INSTANCE_UID)
        )
        sop_class, sop_instance = (_read_bytes(elements, each) for each in named)
        if is_new and not sop_instance:
            sop_instance = f"2.25.{uuid.uuid4().int}".encode("ascii")
        more: dict[int, int | str] = {**_repeat(sop_class, sop_instance)}
        status = self._take_notice(context, sop_class, sop_instance, data_set, is_new=is_new)
        if status == NO_LONGER_UPDATED:
            status, more[command.ERROR_ID] = PROCESSING_FAILURE, NO_LONGER_UPDATED
        message_id = command.number(elements, command.MESSAGE_ID)
        self._respond(context, field, message_id, status, more)

    def _take_notice(
        self,
        context: Context,
        sop_class: bytes,
        sop_instance: bytes,
        data_set: bytes,
        *,
        is_new: bool,
    ) -> int:
        if sop_class != context.abstract_syntax.encode("ascii"):
            return NO_SUCH_SOP_CLASS
        try:
            notice = decode_notice(
                context.abstract_syntax,
                check_uid(sop_instance),
                data_set,
                self._classes,
                explicit=context.transfer_syntax != IMPLICIT_VR_LITTLE_ENDIAN,
                is_new=is_new,
            )
        except RefusedInstance as error:
            self._complaints.note("notice_refused", who=self._peer, status=f"0x{error.status:04X}")
            return error.status
        return self._spool.recorder.take_notice(self._peer, notice)

    def _take(self, context: Context, request: command.StoreRequest) -> None:
        """Read the data set to its end, whatever is wrong with it, then keep it or refuse it."""
        fragments = self._association.read_data_set(context.context_id, self._instance_bytes)
        try:
            origin = self._origin()
            announced = _read_announced(context, request)
            some, is_last = next(fragments)
            if is_last:
                self._spool.keep(announced, some, origin)
                return
            with self._spool.begin(announced, origin) as incoming:
                while not is_last:
                    incoming.write(some)
                    some, is_last = next(fragments)
                incoming.keep(some)
        except (RefusedInstance, StorageError):
            deque(fragments, maxlen=0)  # the peer must be heard out before it is answered
            raise


def _read_announced(context: Context, request: command.StoreRequest) -> Announced:
    """Check what a C-STORE request says of its instance.

    Raises:
        RefusedInstance: the context is not for its class, or its UID is not valid.
    """
    sop_class_uid = context.abstract_syntax
    is_storage = sop_class_uid != VERIFICATION
    if not is_storage or request.sop_class_uid != sop_class_uid.encode("ascii"):
        raise RefusedInstance("the context is not for this SOP class", SOP_CLASS_NOT_SUPPORTED)
    return Announced(sop_class_uid, check_uid(request.sop_instance_uid), context.transfer_syntax)


def _is_notice(field: int, context: Context) -> bool:
    """Say whether a message tells of a study: a step is begun and changed, the rest only told."""
    if field == command.N_SET_RQ:
        return context.abstract_syntax == PERFORMED_PROCEDURE_STEP
    return field == command.N_CREATE_RQ and context.abstract_syntax in NOTICES


def _status_without_store(field: int, context: Context) -> int:
    if field != command.C_ECHO_RQ:
        return UNRECOGNIZED_OPERATION
    return command.SUCCESS if context.abstract_syntax == VERIFICATION else SOP_CLASS_NOT_SUPPORTED


def _read_bytes(elements: Mapping[int, int | bytes], element: int) -> bytes:
    value = elements.get(element, b"")
    return value if isinstance(value, bytes) else b""


def _repeat(sop_class_uid: bytes, sop_instance_uid: bytes) -> dict[int, str]:
    """Return those of a request's UIDs that are fit to be repeated in its response."""
    uids: dict[int, str] = {}
    for element, value in (
        (command.AFFECTED_SOP_CLASS_UID, sop_class_uid),
        (command.AFFECTED_SOP_INSTANCE_UID, sop_instance_uid),
    ):
        try:
            uids[element] = check_uid(value)
        except RefusedInstance:
            continue
    return uids
