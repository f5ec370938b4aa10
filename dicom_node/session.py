"""An association at the door from its acceptance to its end: answered at once, or in its own time.

Step 1 of the walk, between who lets it in (`acceptor`) and what answers its messages (`services`).
"""

import contextlib
import functools
import logging
import time
from collections.abc import Callable

from dicom_node.admission import Pace
from dicom_node.association import Association
from dicom_node.complaints import Complains
from dicom_node.services import Later, Progress, Services
from dicom_node.upper_layer import ProtocolError

_logger = logging.getLogger(__name__)


class Session:
    """An association from its acceptance to its end; one thread has it at a time.

    Attributes:
        heard: when something last came, by the monotonic clock.
        begun: when the message began to come that is not answered yet.
        is_busy: an instance of it is on its way to the disk, and `answer_now` has nothing to do.
    """

    def __init__(
        self,
        association: Association,
        services: Services,
        peer: str,
        complaints: Complains,
        delivering: set[str],
        place: contextlib.ExitStack,
        *,
        messages_per_second: int,
        idle_seconds: float,
    ) -> None:
        """Describe it.

        Args:
            association: that was accepted.
            services: what answers its messages.
            peer: alias.
            complaints: where what it does wrong goes.
            delivering: ids of the associations that deliver now, which it enters and leaves.
            place: gives back what it takes of the admission.
            messages_per_second: of those that store nothing.
            idle_seconds: between two messages.
        """
        self.heard = self.begun = self._began = time.monotonic()
        self.is_busy = False
        self._association = association
        self._wire = association.wire
        self._services = services
        self._peer = peer
        self._complaints = complaints
        self._delivering = delivering
        self._place = place
        self._pace = Pace(messages_per_second)
        self._error: BaseException | None = None
        self._is_too_fast = False
        self._idle_seconds = idle_seconds

    @property
    def descriptor(self) -> int | None:
        """The socket's, by which one may wait for many; not for TLS, which reads ahead."""
        return None if self._wire.is_tls else self._wire.descriptor

    @property
    def has_begun(self) -> bool:
        """Whether there is something to do for it before its peer says more."""
        return self._association.has_begun or self._wire.has_unsent or self._error is not None

    def is_silent(self, now: float) -> bool:
        """Say whether nothing has come for longer than is allowed."""
        return now - self.heard >= self._idle_seconds

    def answer_now(self, now: float, later: Later | None, *, read: bool) -> Progress:
        """Answer what has come whole, without waiting; SLOWLY asks for `answer_next`.

        Args:
            now: by the monotonic clock.
            later: takes what waits for the disk; without it, that is waited for here.
            read: whether something has come.
        """
        self.heard = now
        if not self._association.has_begun:
            self.begun = now
        self._wire.hasten(is_hasty=True)
        try:
            if read:
                self._association.read_now()
            while not self._wire.has_unsent:
                self.is_busy = later is not None
                instances = self._services.stored + self._services.refused
                progress = self._services.answer_now(
                    None if later is None else functools.partial(self._do_later, later)
                )
                if progress is Progress.LATER:
                    self._note_delivery()
                    return progress
                self.is_busy = False
                if progress is not Progress.DONE:
                    return progress
                self.begun = now
                if self._services.stored + self._services.refused > instances:
                    self._note_delivery()
                elif self._pace.take():
                    self._is_too_fast = True
                    return Progress.SLOWLY
                if not self._association.has_begun and not self._wire.has_unsent:
                    return Progress.MORE
        except Exception as error:  # noqa: BLE001 - `answer_next` raises it
            self.is_busy = False
            self._error = error
        return Progress.SLOWLY

    def answer_next(self) -> bool:
        """Answer one message, however long it takes; or end the association, and say False.

        Its place is given back before the ledger is waited for, or the peer to close: somebody else
        may have it then.
        """
        is_over = True
        try:
            is_over = not self._answer_next()
            if is_over:
                self._place.close()
                self._services.close()
                self._association.confirm_release()
        except ProtocolError as error:
            self._place.close()
            self._complaints.note(error.code, who=self._peer)
            if error.abort is not None:
                self._association.abort(error.abort)
        except OSError:
            self._complaints.note("connection_lost", who=self._peer)
        finally:
            if is_over:
                self._end()
        return not is_over

    def _do_later(self, later: Later, do: Callable[[], None]) -> None:
        def work() -> None:
            try:
                do()
            except Exception as error:  # noqa: BLE001 - `answer_next` raises it
                self._error = error
            finally:
                self.is_busy = False

        later(work)

    def _answer_next(self) -> bool:
        """Answer one message; say no when the peer asked for the release."""
        if self._error is not None:
            raise self._error
        self._wire.hasten(is_hasty=False)
        if self._is_too_fast:
            self._slow_down()
        try:
            left = self._idle_seconds - (time.monotonic() - self.heard)
            message = self._association.read_command(max(left, 0.0))
        except TimeoutError:
            raise ProtocolError("idle_timeout") from None
        if message is None:
            return False
        if self._services.answer(*message):
            self._note_delivery()
        else:
            self._slow_down()
        self.heard = time.monotonic()
        return True

    def _slow_down(self) -> None:
        while too_fast := self._pace.take():
            time.sleep(too_fast)
        self._is_too_fast = False

    def _note_delivery(self) -> None:
        if self._services.association_id is not None:
            self._delivering.add(self._services.association_id)

    def _end(self) -> None:
        self._place.close()
        self._services.close()
        if self._services.association_id is not None:
            self._delivering.discard(self._services.association_id)
        self._wire.close()
        services = self._services
        _logger.log(
            # Who only verifies, as a monitor does each minute, is not worth a line.
            logging.INFO if services.stored or services.refused else logging.DEBUG,
            "receive.association_closed",
            extra={
                "peer": self._peer,
                "stored": services.stored,
                "refused": services.refused,
                "seconds": round(time.monotonic() - self._began, 3),
            },
        )
