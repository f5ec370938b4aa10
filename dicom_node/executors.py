"""Where a job runs: in this process, or in worker processes that may die without harm.

Workers beyond this machine are in `cluster`.

Each is a `concurrent.futures.Executor`, so dispatch does not know which one it has. Whatever ends
a job other than its own return leaves as `WorkerLost`; the ledger alone decides what then happens.
A function is named by a string and imported where it runs, so that the node itself never loads
torch, SimpleITK or codecs.

Every worker has a pool of its own: a `ProcessPoolExecutor` whose child dies is broken for good and
takes all its jobs with it, and here that is one job.
"""

import faulthandler
import multiprocessing
import os
import pkgutil
import resource
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future, ProcessPoolExecutor
from datetime import timedelta
from typing import Any, TextIO, TypeVar

from dicom_node.audit import configure_logging, describe_error, find_stream
from dicom_node.errors import WorkerLost
from dicom_node.lifeline import end_with_parent

T = TypeVar("T")

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
)
"""What torch, scikit-learn, numpy and SimpleITK read when they are imported."""

_STANDARD_OUTPUT, _STANDARD_ERROR = 1, 2


class JobExecutor(Executor):
    """An executor whose workers can be ended while they are at a job."""

    def capacity(self) -> int:
        """Return how many jobs may run at once, now."""
        return 1

    def submit_to_each(
        self, fn: Callable[..., T], /, *args: Any, **kwargs: Any
    ) -> Sequence[Future[T]]:
        """Run `fn` once in each worker that is this node's own, after what that one is at."""
        return ()

    def problems(self) -> Iterator[str]:
        """Yield sentences for the admin on what keeps jobs from being run."""
        yield from ()

    def end(self, future: Future[Any]) -> None:
        """End the worker that is at `future`, which then ends as `WorkerLost`."""

    def end_all(self) -> None:
        """End every worker now; their jobs end as `WorkerLost`."""


class InlineExecutor(JobExecutor):
    """Runs a job in the caller's thread: for tests and for finding faults with a debugger."""

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Run `fn` now; the future that returns is done."""
        future: Future[T] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # noqa: BLE001 - a future carries whatever its function raised
            future.set_exception(as_lost(error))
        return future


class ProcessPool(JobExecutor):
    """Worker processes, each started when it is first needed and replaced when it dies.

    Args:
        workers: how many jobs may run at once.
        threads: how many threads each worker's numerical libraries may use.
        limit: how long a job may take; the worker of one that takes longer ends.
    """

    def __init__(self, workers: int, threads: int, limit: timedelta) -> None:
        self._slots = [_Slot(threads, limit) for _ in range(workers)]

    def capacity(self) -> int:
        """Return how many workers there are."""
        return len(self._slots)

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Run `fn` in the worker that has the least to do, after what that one is at."""
        return min(self._slots, key=lambda slot: len(slot.futures)).submit(fn, *args, **kwargs)

    def submit_to_each(
        self, fn: Callable[..., T], /, *args: Any, **kwargs: Any
    ) -> Sequence[Future[T]]:
        """Run `fn` once in each worker, after what that one is at."""
        return [slot.submit(fn, *args, **kwargs) for slot in self._slots]

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the workers, after the jobs that they are at."""
        for slot in self._slots:
            slot.shutdown(wait=wait, cancel_futures=cancel_futures)

    def end(self, future: Future[Any]) -> None:
        """End the worker that is at `future`, which then ends as `WorkerLost`."""
        for slot in self._slots:
            if future in slot.futures:
                slot.kill()

    def end_all(self) -> None:
        """End every worker now; their jobs end as `WorkerLost`."""
        for slot in self._slots:
            slot.kill()


class _Slot:
    """One worker process and the pool of one that holds it."""

    def __init__(self, threads: int, limit: timedelta) -> None:
        self._threads = threads
        self._limit = limit
        self._lock = threading.Lock()
        self._pool = self._build()
        self.futures: set[Future[Any]] = set()

    def _build(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(
            max_workers=1,
            mp_context=multiprocessing.get_context("spawn"),  # CUDA does not survive a fork
            initializer=_begin_worker,
            initargs=(self._threads,),
        )

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        outer: Future[T] = Future()
        outer.set_running_or_notify_cancel()
        with self._lock:
            try:
                inner = self._pool.submit(run_within, self._limit, fn, *args, **kwargs)
            except BrokenExecutor:  # it died between two jobs
                self._pool = self._build()
                inner = self._pool.submit(run_within, self._limit, fn, *args, **kwargs)
            self.futures.add(outer)
            pool = self._pool
        inner.add_done_callback(lambda done: self._finish(pool, done, outer))
        return outer

    def _finish(self, pool: ProcessPoolExecutor, inner: Future[T], outer: Future[T]) -> None:
        error = CancelledError() if inner.cancelled() else inner.exception()
        with self._lock:
            self.futures.discard(outer)
            # After an error a worker may be in any state (a CUDA context that failed stays so).
            if error is not None and self._pool is pool:
                self._pool = self._build()
        if error is None:
            outer.set_result(inner.result())
        else:
            pool.shutdown(wait=False)
            outer.set_exception(as_lost(error))

    def shutdown(self, *, wait: bool, cancel_futures: bool) -> None:
        self._pool.shutdown(wait=wait, cancel_futures=cancel_futures)

    def kill(self) -> None:
        # The standard library has a public way from Python 3.14 on (kill_workers).
        for process in list((self._pool._processes or {}).values()):
            process.kill()


def call(name: str, *args: Any) -> Any:
    """Import what `name` (`module:function`) names, here in the worker, and call it.

    Raises:
        WorkerLost: the function raised. The text names class and place only: the message of a
            foreign error may hold what the patient's header holds.
    """
    try:
        return pkgutil.resolve_name(name)(*args)
    except Exception as error:  # noqa: BLE001 - the door of the worker: nothing else passes
        raise as_lost(error) from None


def as_lost(error: BaseException) -> WorkerLost:
    """Return what ended a job as `WorkerLost`, which says class and place, and no message."""
    if isinstance(error, WorkerLost):
        return error
    if isinstance(error, BrokenExecutor):
        return WorkerLost("the worker process ended before its job did")
    return WorkerLost(describe_error(error))


def run_within(limit: timedelta, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
    """Run `fn` in the worker; end the worker if it hangs, also inside a library's machine code."""
    faulthandler.dump_traceback_later(limit.total_seconds(), exit=True, file=find_stream())
    try:
        return fn(*args, **kwargs)
    finally:
        faulthandler.cancel_dump_traceback_later()


def _begin_worker(threads: int) -> None:
    """Make this process a worker: deaf to the node's signals, bounded, tied to its node."""
    end_with_parent()
    configure_logging(stream=_take_standard_error())
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the node drains, and ends its workers itself
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold patient images
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))


def _take_standard_error() -> TextIO:
    """Return what was standard error, for the log alone; whatever else is printed goes nowhere.

    Machine code prints past the filter of the log and may quote what it has read: libjpeg shows the
    first bytes of what is no JPEG.
    """
    log = os.fdopen(os.dup(_STANDARD_ERROR), "w")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (_STANDARD_OUTPUT, _STANDARD_ERROR):
        os.dup2(nowhere, descriptor)
    os.close(nowhere)
    return log
