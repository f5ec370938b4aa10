"""Dask's workers, on this machine or on many, as the executor of jobs: the one door to it.

What Dask does by itself and must not do here, each seen and tested: it starts a job again on
another worker when one dies (`allowed-failures` must be 0 in the *scheduler's* configuration, or no
job is handed out), and once more when the worker of a finished one dies whose result somebody
still holds (results are read and let go at once). It calls a job cancelled that runs on and keeps
its place (its worker is started again). It waits for ever for a resource that nobody offers (no
more jobs are handed out than there are places for). So a job runs once for each time that it is
handed out, and the ledger alone decides how often that is.

Workers get ids, a number and the configuration's folder, which must lead to the same store and the
same ledger from wherever they are (docs/scale.md).
"""

import logging
import os
import resource
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import timedelta
from importlib.util import find_spec
from typing import Any, TypeVar

from dicom_node.audit import configure_logging
from dicom_node.errors import ConfigurationError, WorkerLost
from dicom_node.executors import JobExecutor, as_lost, run_within
from dicom_node.node_settings import DaskExecutor

T = TypeVar("T")

ALLOWED_FAILURES = "distributed.scheduler.allowed-failures"
HTTP_ROUTES = "distributed.scheduler.http.routes"

ANSWER_SECONDS = 5.0
"""How long a scheduler may take for a question, and a worker to end."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _View:
    """What the scheduler says: how many jobs it has places for, and what is not as it should be."""

    places: int
    problems: tuple[str, ...]


class DaskCluster(JobExecutor):
    """The workers of one Dask scheduler, which is called when it is first needed, and again.

    Args of the constructor: what node.yaml says, and how long a job may take before its worker
    ends itself.
    """

    def __init__(self, settings: DaskExecutor, limit: timedelta) -> None:
        self._settings = settings
        self._limit = limit
        self._lock = threading.Lock()
        self._client: Any = None
        self._running: dict[Future[Any], Any] = {}
        self._view: _View | None = None

    def capacity(self) -> int:
        """Return for how many jobs there are workers; 0 while the scheduler does not answer."""
        self._view = self._look()
        return min(self._settings.workers, self._view.places)

    def problems(self) -> Iterator[str]:
        """Yield what keeps jobs from being run, or from being run once, as last seen."""
        if self._view is None:
            self._view = self._look()
        yield from self._view.problems

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Run `fn` on a worker that offers what a job needs."""
        outer: Future[T] = Future()
        outer.set_running_or_notify_cancel()
        try:
            inner = self._connect().submit(
                _run_on_worker,
                self._limit,
                fn,
                *args,
                **kwargs,
                key=f"job-{uuid.uuid4().hex}",
                pure=False,
                retries=0,
                resources=dict(self._settings.resources),
            )
        except Exception as error:  # noqa: BLE001 - the door of a library with many errors
            outer.set_exception(as_lost(error))
            return outer
        with self._lock:
            self._running[outer] = inner
        inner.add_done_callback(lambda done: self._finish(outer, done))
        return outer

    def end(self, future: Future[Any]) -> None:
        """Give a job up, and start its worker again: nothing else frees the place that it has."""
        with self._lock:
            inner = self._running.pop(future, None)
        if inner is None:
            return
        future.set_exception(WorkerLost("the job was given up"))
        try:
            client = self._connect()
            workers = [
                worker
                for worker, keys in client.sync(
                    client.scheduler.processing, workers=None, callback_timeout=ANSWER_SECONDS
                ).items()
                if inner.key in keys
            ]
            inner.cancel()
            if workers:
                client.restart_workers(workers, timeout=ANSWER_SECONDS, raise_for_error=False)
        except Exception as error:  # noqa: BLE001 - the lease has ended the job; this is tidying up
            _logger.warning("cluster.worker_not_ended error=%s", type(error).__name__)

    def end_all(self) -> None:
        """Give up every job of ours."""
        for future in list(self._running):
            self.end(future)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Leave the scheduler; what still runs is given up."""
        self.end_all()
        client, self._client = self._client, None
        if client is not None:
            client.close(timeout=ANSWER_SECONDS)

    def _finish(self, outer: Future[Any], inner: Any) -> None:
        """Hand on how a job ended, and let its result go, so that nothing can run it again."""
        with self._lock:
            is_ours = self._running.pop(outer, None) is not None
        try:
            if is_ours and inner.status == "finished":
                outer.set_result(inner.result(ANSWER_SECONDS))
            elif is_ours and inner.status == "error":
                outer.set_exception(_read_loss(inner.exception(ANSWER_SECONDS)))
            elif is_ours:
                outer.set_exception(WorkerLost("the Dask scheduler has lost the job"))
        except Exception as error:  # noqa: BLE001 - whatever it is, the result is not to be had
            outer.set_exception(as_lost(error))
        finally:
            inner.release()

    def _look(self) -> _View:
        """Ask the scheduler about itself and its workers."""
        address = self._settings.scheduler
        try:
            client = self._connect()
            identity = client.sync(
                client.scheduler.identity, n_workers=-1, callback_timeout=ANSWER_SECONDS
            )
            failures, routes = (
                client.run_on_scheduler(_find_setting(), key, callback_timeout=ANSWER_SECONDS)
                for key in (ALLOWED_FAILURES, HTTP_ROUTES)
            )
        except Exception as error:  # noqa: BLE001 - the door of a library with many errors
            said = type(error).__name__
            return _View(0, (f"the Dask scheduler {address} does not answer ({said})",))
        workers = [
            each for each in identity["workers"].values() if each["status"] in {"running", "paused"}
        ]
        return _View(
            places=sum(map(self._count_places, workers)) if failures == 0 else 0,
            problems=tuple(self._find_problems(workers, failures, routes)),
        )

    def _count_places(self, worker: Mapping[str, Any]) -> int:
        offers = (
            int(worker["resources"].get(name, 0) // amount)
            for name, amount in self._settings.resources.items()
        )
        return min([int(worker["nthreads"]), *offers])

    def _find_problems(
        self, workers: list[Mapping[str, Any]], failures: object, routes: object
    ) -> Iterator[str]:
        address = self._settings.scheduler
        if failures != 0:
            yield (
                f"the Dask scheduler {address} has {ALLOWED_FAILURES} {failures}, wanted 0: it "
                "would run lost jobs again by itself (start it with deploy/dask.yaml)"
            )
        if routes:
            yield (
                f"the Dask scheduler {address} answers plain HTTP: wanted {HTTP_ROUTES} [] (start "
                "it with deploy/dask.yaml and --no-dashboard)"
            )
        if not any(map(self._count_places, workers)):
            wanted = " and ".join(f"{name}={n:g}" for name, n in self._settings.resources.items())
            offered = f" that offers {wanted} (dask worker --resources)" if wanted else ""
            yield f"the Dask scheduler {address} has {len(workers)} workers, and none{offered}"
        if any(worker["nthreads"] > 1 for worker in workers):
            yield "a Dask worker has several threads, wanted --nthreads 1: a job takes a process"

    def _connect(self) -> Any:
        """Return a client that is connected; one that has lost its scheduler is replaced."""
        with self._lock:
            if self._client is not None and self._client.status == "running":
                return self._client
            if self._client is not None:
                self._client.close(timeout=ANSWER_SECONDS)
            self._client = None
            from distributed import Client, Security  # noqa: PLC0415 - an extra, at its one door

            _let_our_log_speak()
            tls = self._settings.tls
            security = None
            if tls is not None:
                security = Security(
                    tls_ca_file=str(tls.ca),
                    tls_client_cert=str(tls.certificate),
                    tls_client_key=str(tls.key),
                    require_encryption=True,
                )
            self._client = Client(
                self._settings.scheduler,
                security=security,
                timeout=ANSWER_SECONDS,
                set_as_default=False,
                name="dicom_node",
            )
            return self._client


def check_installed() -> None:
    """Check that Dask is here.

    Raises:
        ConfigurationError: it is not.
    """
    if find_spec("distributed") is None:
        raise ConfigurationError(
            "executor.kind dask needs distributed: pip install '.[cluster]' in the clone"
        )


def _find_setting() -> Callable[[str], object]:
    """Return a function of Dask's own, which every scheduler has."""
    import dask.config  # noqa: PLC0415 - an extra, at its one door

    get: Callable[[str], object] = dask.config.get
    return get


def _read_loss(error: BaseException | None) -> WorkerLost:
    if error is None or type(error).__name__ == "KilledWorker":
        return WorkerLost("the worker process ended before its job did")
    return as_lost(error)


def _run_on_worker(limit: timedelta, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
    """Run `fn` in a worker of Dask, under the rules that hold for a worker of our own."""
    configure_logging()
    _let_our_log_speak()
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold patient images
    return run_within(limit, fn, *args, **kwargs)


def _let_our_log_speak() -> None:
    """Take Dask's own handlers away: what it logs goes through the filter as all else does."""
    for name in list(logging.root.manager.loggerDict):
        if name.partition(".")[0] in {"distributed", "tornado", "bokeh"}:
            logger = logging.getLogger(name)
            logger.handlers.clear()
            logger.propagate = True
