"""Stores instances at a DICOMweb archive: STOW-RS, as a courier's carrier beside an association.

    some files → one POST to /studies → what the answer says of each

The answer lists what was stored and what was not, with a reason that is a DIMSE status (PS3.18
section 10.5.3, PS3.4 table B.2-1), so that it is judged as one. Of an instance that it does not
list, the HTTP status says what follows; in a request with others that may be their fault, and it
goes alone the next time.
"""

import json
import uuid
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from dicom_node.association import Context
from dicom_node.dicomweb import JSON, Answer, Service, find_values
from dicom_node.domain import DeliveryState
from dicom_node.outcomes import Outcome, judge_status
from dicom_node.wire import Piece

LONGEST_ANSWER = 4 * 1024**2
"""Bytes; about 600 are said of one instance."""

_WARNING_REASON = "00081196"
_FAILURE_REASON = "00081197"
_FAILED_SOP_SEQUENCE = "00081198"
_REFERENCED_SOP_SEQUENCE = "00081199"
_REFERENCED_SOP_INSTANCE_UID = "00081155"
_PROCESSING_FAILURE = 0x0110
_IS_THERE = frozenset({0x0111, 45070})
"""Reasons of a failure that say that the peer has it already; the second is Azure's own."""

_TAKEN = frozenset({DeliveryState.SENT, DeliveryState.WARNED})
_LISTS = frozenset(
    {HTTPStatus.OK, HTTPStatus.ACCEPTED, HTTPStatus.BAD_REQUEST, HTTPStatus.CONFLICT}
)
"""HTTP statuses whose answer says what became of each instance."""

_WORDS: Mapping[int, str] = {
    HTTPStatus.BAD_REQUEST: "the peer cannot understand it",
    HTTPStatus.CONFLICT: "the peer finds that it conflicts with what it holds or takes",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "it is too large for the peer",
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: "the peer does not take its transfer syntax",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Waiting:
    """An instance that is in the next request."""

    number: int
    sop_instance_uid: str
    file: Piece


class StowSender:
    """A DICOMweb archive to which instances are sent, some in a request.

    Attributes:
        window: how many are in a request at most.
        takes_files: True: an instance is sent as a file, with its file meta information.
    """

    takes_files = True

    def __init__(self, service: Service, window: int) -> None:
        self.window = window
        self._service = service
        self._number = 0
        self._waiting: list[_Waiting] = []
        self._outcomes: deque[tuple[int, Outcome]] = deque()

    def find_context(
        self, abstract_syntax: str, transfer_syntax: str | None = None
    ) -> Context | None:
        """Return the context of an instance: nothing is negotiated, and each says what it is."""
        return Context(
            context_id=0,
            abstract_syntax=abstract_syntax,
            transfer_syntax=transfer_syntax or "",
        )

    def begin_store(
        self, context: Context, sop_class_uid: str, sop_instance_uid: str, data_set: Piece
    ) -> int:
        """Put the file of an instance into the next request, and return its number."""
        self._number += 1
        self._waiting.append(
            _Waiting(number=self._number, sop_instance_uid=sop_instance_uid, file=data_set)
        )
        return self._number

    def read_outcome(self) -> tuple[int, Outcome]:
        """Return the number of an instance and what became of it, once its request is answered.

        Raises:
            AssociationRejectedError: the service says no to this node, or to everybody now.
            DeliveryError: it does not answer; whether it has the instances is not known.
        """
        if not self._outcomes:
            self._post()
        return self._outcomes.popleft()

    def has_input(self) -> bool:
        """Say whether the service has said something unasked, or has gone."""
        return self._service.has_input()

    def release(self, seconds: float | None = None) -> None:
        """End the connection; HTTP has no farewell that takes any time."""
        self._service.close()

    def abort(self) -> None:
        """End the connection."""
        self._service.close()

    def _post(self) -> None:
        boundary = uuid.uuid4().hex
        answer = self._service.ask(
            "POST",
            "/studies",
            accept=JSON,
            longest=LONGEST_ANSWER,
            body=list(_join((each.file for each in self._waiting), boundary)),
            kind=f'multipart/related; type="application/dicom"; boundary={boundary}',
        )
        listed = read_listed(answer) if answer.status in _LISTS else {}
        is_alone = len(self._waiting) == 1
        for each in self._waiting:
            outcome = listed.get(each.sop_instance_uid)
            self._outcomes.append(
                (each.number, outcome or _judge_http(answer.status, is_alone=is_alone))
            )
        self._waiting.clear()


def open_stow(service: Service, window: int) -> StowSender:
    """Return the archive once it is connected.

    Raises:
        DeliveryError: it does not answer.
    """
    service.connect()
    return StowSender(service, window)


def read_listed(answer: Answer) -> dict[str, Outcome]:
    """Return what an answer says of instances, by SOP Instance UID; nothing if it is not JSON."""
    try:
        document = json.loads(answer.body)
    except (ValueError, RecursionError):
        return {}
    stored = {
        uid: _judge_stored(_find_number(item, _WARNING_REASON) or 0)
        for uid, item in _find_items(document, _REFERENCED_SOP_SEQUENCE)
    }
    failed = {
        uid: _judge_failed(_find_number(item, _FAILURE_REASON) or _PROCESSING_FAILURE)
        for uid, item in _find_items(document, _FAILED_SOP_SEQUENCE)
    }
    return stored | failed


def _judge_stored(reason: int) -> Outcome:
    outcome = judge_status(reason)
    if outcome.state in _TAKEN:
        return outcome
    words = "the peer took it with a warning"
    return Outcome(state=DeliveryState.WARNED, reason=words, status=reason)


def _judge_failed(reason: int) -> Outcome:
    outcome = judge_status(reason)
    if reason in _IS_THERE:
        words = "the peer says that it has it already"
        return Outcome(state=DeliveryState.WARNED, reason=words, status=reason)
    if outcome.state in _TAKEN:  # a code for warnings, about what was not stored
        words = "the peer failed in a way that it does not explain"
        return Outcome(state=DeliveryState.PENDING, reason=words, status=reason)
    return outcome


def _find_items(document: Any, sequence: str) -> Iterator[tuple[str, Any]]:
    """Yield UID and item of each instance in a sequence of DICOM JSON (PS3.18 annex F)."""
    for item in find_values(document, sequence):
        for uid in find_values(item, _REFERENCED_SOP_INSTANCE_UID):
            if isinstance(uid, str):
                yield uid, item


def _find_number(item: Any, tag: str) -> int | None:
    return next((each for each in find_values(item, tag) if isinstance(each, int)), None)


def _judge_http(status: int, *, is_alone: bool) -> Outcome:
    """Say what an HTTP status means for an instance that its answer does not list."""
    told = f"HTTP {status}"
    if status < HTTPStatus.MULTIPLE_CHOICES:
        reason = f"{told}: the peer does not say what became of it"
        return Outcome(state=DeliveryState.PENDING, reason=reason)
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        reason = f"{told}: the peer failed to process it"
        return Outcome(state=DeliveryState.PENDING, reason=reason)
    if not is_alone:
        reason = f"{told}: the peer refused a request with others in it; it goes alone next"
        return Outcome(state=DeliveryState.PENDING, reason=reason)
    reason = f"{told}: {_WORDS.get(status, 'the peer refuses it')}"
    return Outcome(state=DeliveryState.PARKED, reason=reason)


def _join(files: Iterator[Piece], boundary: str) -> Iterator[Piece]:
    """Yield the pieces of a multipart/related body (RFC 2387); the files are not copied."""
    for file in files:
        yield f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        yield file
        yield b"\r\n"
    yield f"--{boundary}--\r\n".encode()
