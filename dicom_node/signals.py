"""The signals that ask a process to end, or to look at its rules again, as something to wait for.

Python runs a handler between two steps of the main thread. A signal that comes just before that
thread falls asleep, or to another thread, wakes nobody; and a handler that sets a `threading.Event`
may find its lock taken by the frame below. The byte that the interpreter itself writes to a pipe
when the signal comes (`signal.set_wakeup_fd`) does neither.
"""

import os
import signal
from collections.abc import Callable


class EndRequest:
    """SIGTERM or SIGINT; from now on they do nothing but let `wait` return.

    With `on_hangup` SIGHUP ends nothing either: `wait` calls it and goes on.
    """

    def __init__(self, on_hangup: Callable[[], None] | None = None) -> None:
        self._on_hangup = on_hangup
        self._reading, writing = os.pipe()
        os.set_blocking(writing, False)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        numbers = [signal.SIGTERM, signal.SIGINT]
        for number in numbers if on_hangup is None else [*numbers, signal.SIGHUP]:
            signal.signal(number, lambda *_: None)

    def wait(self) -> None:
        """Return when the process has been asked to end; from then on Ctrl-C ends it at once."""
        while os.read(self._reading, 1)[0] == signal.SIGHUP and self._on_hangup is not None:
            self._on_hangup()
        signal.signal(signal.SIGINT, lambda *_: os._exit(1))
