"""Threads that do what would hold up others: as many as there is to do at once, ended when idle."""

import queue
import threading
from collections.abc import Callable

_IDLE_SECONDS = 1.0

Work = Callable[[], None]


class Hands:
    """Does each piece of work on a thread of its own, one that is idle if there is any."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._idle = 0
        self._queue: queue.SimpleQueue[Work] = queue.SimpleQueue()

    def do(self, work: Work) -> None:
        """Have it done.

        Raises:
            RuntimeError: the system gives no more threads.
        """
        with self._lock:
            is_idle = self._idle > 0
            self._idle -= is_idle
        if is_idle:
            self._queue.put(work)
        else:
            threading.Thread(target=self._run, args=(work,), name=self._name, daemon=True).start()

    def _run(self, work: Work | None) -> None:
        while work is not None:
            work()
            work = self._next()

    def _next(self) -> Work | None:
        with self._lock:
            self._idle += 1
        try:
            return self._queue.get(timeout=_IDLE_SECONDS)
        except queue.Empty:
            with self._lock:
                if self._idle:
                    self._idle -= 1
                    return None
        return self._queue.get()  # every idle thread was counted on: something is on its way
