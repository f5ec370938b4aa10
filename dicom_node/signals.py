"""The signals that ask a process to end, as something to wait for.

Python runs a handler between two steps of the main thread. A signal that comes just before that
thread falls asleep, or to another thread, wakes nobody; and a handler that sets a `threading.Event`
may find its lock taken by the frame below. The byte that the interpreter itself writes to a pipe
when the signal comes (`signal.set_wakeup_fd`) does neither.
"""

import os
import signal


class EndRequest:
    """SIGTERM or SIGINT; from now on they do nothing but let `wait` return."""

    def __init__(self) -> None:
        self._reading, writing = os.pipe()
        os.set_blocking(writing, False)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)

    def wait(self) -> None:
        """Return when the process has been asked to end; from then on Ctrl-C ends it at once."""
        os.read(self._reading, 1)
        signal.signal(signal.SIGINT, lambda *_: os._exit(1))
