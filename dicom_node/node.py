"""The node: the one place that builds every part, in order, and takes them down again.

    lock → store, ledger → what a crash left → receiver → timers → health → ready

What a crash can leave is put right before the first sweep: half-written files go, received files
without a row get one (the receiver does that before it listens), jobs that ran are queued again.
The steps after reception are sweeps on timers that know nothing of one another; each reads what the
step before it has committed.
"""

import fcntl
import logging
import os
import resource
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler

from dicom_node import assembly, retention, withdrawal
from dicom_node.audit_trail import AuditTrail
from dicom_node.cluster import DaskCluster, check_installed
from dicom_node.confirmation import Confirmation
from dicom_node.delivery import (
    Destination,
    find_alerts,
    find_confirming,
    find_destinations,
    find_oldest_pending,
    park_unserved,
)
from dicom_node.dispatch import Dispatch
from dicom_node.errors import ConfigurationError, StorageError
from dicom_node.executors import JobExecutor, ProcessPool
from dicom_node.health import Health, HealthServer
from dicom_node.ledger import Ledger
from dicom_node.live_rules import LiveRules
from dicom_node.node_settings import DaskExecutor, NodeSettings
from dicom_node.performer import Performer, find_worklists
from dicom_node.query import Inquirer, find_asked
from dicom_node.receiver_process import ReceiverProcess
from dicom_node.settings import Configuration
from dicom_node.signals import EndRequest
from dicom_node.store import Store
from dicom_node.timers import Timer
from dicom_node.tls import CertificateWatch
from dicom_node.warmth import Warmth

LOCK = "node.lock"

JOB_LIMIT = timedelta(hours=1)
"""A job takes minutes; one that takes longer hangs, and its worker is ended."""

PATIENCE = timedelta(seconds=5)
"""How long a stop waits for sweeps, and then for jobs. What is not done by then loses nothing but
time: the next start does it again."""

RECEIVER_WATCH = timedelta(seconds=1)
"""A receiver that died is back well within 5 s (reliability catalogue, row E9)."""

TENURE = timedelta(seconds=30)
"""How long a ledger in PostgreSQL waits for a node that is silent before another may follow."""

RENEWALS = 6
"""In each tenure; several may be late or lost."""

UNSERVED_EVERY = timedelta(hours=1)
"""How often it is looked for what waits for peers that are not configured any more."""

CERTIFICATE_EVERY = timedelta(minutes=1)
"""How soon it is noticed that the certificate was changed, or has ended."""

LOW_DISK_BYTES = 1024**3
"""Below it /healthz fails; some time later the receiver stops taking associations."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Addresses:
    """Where the node listens, as host and port."""

    dicom: tuple[str, int]
    web: tuple[str, int]


def serve(
    configuration: Configuration, overrides: Sequence[str], announce: Callable[[Addresses], None]
) -> None:
    """Run the node until SIGTERM or SIGINT, then drain; a second Ctrl-C ends it at once.

    Args:
        configuration: read from its folder.
        overrides: with which it was read; child processes read it again.
        announce: called once, when the node is ready.

    Raises:
        ConfigurationError: an address cannot be had.
        StorageError: another node has the data folder, or store or ledger cannot be used.
    """
    node = Node(configuration, overrides)
    end = EndRequest(node.read_rules)
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold patient data
    os.environ["DICOM_NODE_PID"] = str(os.getpid())
    with _locked(configuration.node.data_folder), node:
        addresses = node.addresses
        logger.info("node.ready dicom=%s:%d web=%s:%d", *addresses.dicom, *addresses.web)
        announce(addresses)
        end.wait()
        logger.info("node.draining")
    logger.info("node.stopped")
    if node.unfinished:
        # A peer that does not answer holds a sending thread; Python would wait for it.
        logger.warning("node.unfinished sweeps=%s", ",".join(node.unfinished))
        os._exit(0)


class Node:
    """The parts of a running node; a context manager that starts and stops them.

    Attributes:
        addresses: where it listens, once it is started.
        unfinished: names of the sweeps that still ran when it had been stopped.
    """

    addresses: Addresses
    unfinished: Sequence[str] = ()

    def __init__(self, configuration: Configuration, overrides: Sequence[str] = ()) -> None:
        node = configuration.node
        self._configuration = configuration
        self._store = Store(node.store_folder)
        self._ledger = Ledger(node.ledger_url, now)
        self._receiver = ReceiverProcess(configuration.folder, overrides)
        self._executor = build_executor(node, JOB_LIMIT)
        self._dispatch = Dispatch(
            self._ledger,
            self._executor,
            lease=node.dispatch.lease,
            max_attempts=node.dispatch.attempts,
            config_folder=configuration.folder,
            overrides=overrides,
        )
        self._warmth = Warmth(self._executor, configuration.folder, overrides)
        tls = node.receiver.tls
        self._certificate = None if tls is None else CertificateWatch(tls, now)
        self._audit = (
            AuditTrail(node, node.audit, self._ledger, self._store, now) if node.audit else None
        )
        self._rules = LiveRules(configuration)
        self._noted = ""
        self._destinations: list[Destination] = []
        self._timers = (
            Timer("assembly", self._assemble, node.assembly.sweep_every),
            Timer("dispatch", self._dispatch.sweep, node.dispatch.sweep_every),
            *self._build_inquirers(),
            *self._build_performers(),
            *self._build_deliveries(),
            Timer("retention", self._forget, node.retention.sweep_every),
            Timer("receiver", self._watch_receiver, RECEIVER_WATCH),
            Timer("tenure", self._stay, TENURE / RENEWALS),
            *self._build_certificate_watch(),
            *self._build_audit(),
        )
        self._number: int | None = None
        self._parts = ExitStack()

    def __enter__(self) -> "Node":
        with ExitStack() as parts:
            open_records(self._configuration, self._store, self._ledger)
            parts.callback(self._ledger.close)
            self._number = self._ledger.begin_tenure(
                name_holder(self._configuration.node.data_folder),
                TENURE,
                alone=self._configuration.node.ledger.kind == "sqlite",
            )
            parts.callback(self._leave)
            self._recover()
            dicom = self._receiver.start(self._number)
            parts.callback(self._receiver.stop)
            parts.callback(self._executor.shutdown, wait=False)
            parts.callback(self._dispatch.drain, PATIENCE)
            self._start_timers(parts)
            web = self._start_health(parts)
            self.addresses = Addresses(dicom=dicom, web=web)
            self._parts = parts.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._parts.close()

    def read_health(self) -> Health:
        """Return how the node is now."""
        free = shutil.disk_usage(self._configuration.node.data_folder).free
        problems = [problem for timer in self._timers for problem in timer.problems()]
        if free < LOW_DISK_BYTES:
            problems.append(f"disk: {free} bytes are free; wanted {LOW_DISK_BYTES}")
        counts: Mapping[str, int] = {}
        alerts = [*self._executor.problems(), *self._warmth.problems()]
        gauges: dict[str, float] = {"disk_free_bytes": free}
        try:
            self._ledger.check()
            counts = self._ledger.counts()
            backlogs, outages = self._ledger.backlogs(), self._ledger.outages()
            alerts += find_alerts(backlogs, outages, self._configuration.node, now())
            alerts += withdrawal.find_alerts(self._ledger, self._rules.routing)
            if self._rules.problem is not None:
                alerts.append(f"the last good rules hold, because of: {self._rules.problem}")
            gauges["oldest_pending_delivery_seconds"] = find_oldest_pending(backlogs, now())
            if self._audit is not None:
                alerts += self._audit.find_alerts()
                gauges["audit_delay_seconds"] = self._audit.find_delay().total_seconds()
        except StorageError as error:
            problems.append(f"ledger: {error}")
        if self._certificate is not None and self._certificate.left is not None:
            alerts += self._certificate.find_alerts()
            gauges["certificate_left_seconds"] = self._certificate.left.total_seconds()
        for timer in self._timers:
            gauge = f"{timer.name.partition(' ')[0]}_sweep_age_seconds"
            gauges[gauge] = max(timer.age(), gauges.get(gauge, 0.0))
        return Health(problems=tuple(problems), alerts=tuple(alerts), counts=counts, gauges=gauges)

    def _recover(self) -> None:
        """Put right what the end of an earlier run has left, before anything else moves."""
        parts = self._store.sweep_parts()
        self._ledger.close_all_associations()
        jobs = self._ledger.return_running()
        if parts or jobs:
            logger.warning("node.recovered parts=%d jobs=%d", parts, len(jobs))

    def _start_timers(self, parts: ExitStack) -> None:
        """Let the sweeps run, the first time at once.

        A late tick is never dropped, several late ones are one, and a sweep never runs twice at a
        time.
        """
        scheduler = BackgroundScheduler(
            timezone=UTC,
            # A thread for each: a destination that is silent for long must not take another's.
            executors={"default": ThreadPoolExecutor(len(self._timers))},
            job_defaults={"misfire_grace_time": None, "coalesce": True, "max_instances": 1},
        )
        for timer in self._timers:
            seconds = timer.period.total_seconds()
            scheduler.add_job(timer.tick, "interval", seconds=seconds, next_run_time=now())

        def stop() -> None:
            scheduler.shutdown(wait=False)
            for destination in self._destinations:
                destination.stop()
            deadline = time.monotonic() + PATIENCE.total_seconds()
            self.unfinished = [
                timer.name for timer in self._timers if not timer.wait(deadline - time.monotonic())
            ]
            for destination in self._destinations:
                if f"delivery {destination.alias}" not in self.unfinished:
                    destination.close()

        scheduler.start()
        parts.callback(stop)

    def _start_health(self, parts: ExitStack) -> tuple[str, int]:
        web = self._configuration.node.web
        server = HealthServer(web.host, web.port, self.read_health)
        try:
            address = server.start()
        except OSError as error:
            raise ConfigurationError(
                f"node.yaml: web : seen {web.host} port {web.port} ({error.strerror}), "
                "wanted an address of this machine and a port that is free"
            ) from None
        parts.callback(server.stop)
        return address

    def read_rules(self) -> None:
        """Take the rules of the files at once; what is wrong with them is told by `read_health`."""
        self._rules.refresh(at_once=True)

    def _assemble(self) -> None:
        rules = self._rules.look()
        if rules.configuration.digest != self._noted:
            self._noted = rules.configuration.digest
            self._ledger.note_rules(self._noted)
        if self._configuration.node.dispatch.warm:
            self._warmth.sweep(rules.configuration.routing, rules.cards)
        assembly.sweep(self._ledger, self._store, rules.configuration, rules.cards, now)
        namespace = self._configuration.node.installation or self._store.namespace()
        withdrawal.sweep(self._ledger, self._store, rules.configuration.routing, namespace)

    def _build_inquirers(self) -> Iterator[Timer]:
        """Yield a timer for each peer that may be asked: one that is silent delays no other."""
        node = self._configuration.node
        for alias in find_asked(node):
            inquirer = Inquirer(alias, self._ledger, self._store, node, now)
            yield Timer(f"query {alias}", inquirer.sweep, node.query.sweep_every)

    def _build_performers(self) -> Iterator[Timer]:
        """Yield a timer for each worklist whose steps are performed here."""
        node = self._configuration.node
        for alias in find_worklists(node):
            performer = Performer(alias, self._ledger, self._store, node, now)
            yield Timer(f"worklist {alias}", performer.sweep, node.steps.sweep_every)

    def _build_deliveries(self) -> Iterator[Timer]:
        """Yield timers for each destination: none waits for another, nor for a commitment."""
        node = self._configuration.node
        for alias in find_destinations(node):
            destination = Destination(alias, self._ledger, self._store, node, now)
            self._destinations.append(destination)
            yield Timer(f"delivery {alias}", destination.sweep, node.delivery.sweep_every)
        for alias in find_confirming(node):
            confirmation = Confirmation(alias, self._ledger, node, now)
            yield Timer(f"confirmation {alias}", confirmation.sweep, node.delivery.sweep_every)
        yield Timer("unserved", self._park_unserved, UNSERVED_EVERY)

    def _build_certificate_watch(self) -> Iterator[Timer]:
        if self._certificate is not None:
            yield Timer("certificate", self._certificate.sweep, CERTIFICATE_EVERY)

    def _build_audit(self) -> Iterator[Timer]:
        if self._audit is not None and (audit := self._configuration.node.audit) is not None:
            yield Timer("audit", self._audit.sweep, audit.sweep_every)

    def _park_unserved(self) -> None:
        park_unserved(self._ledger, self._configuration.node, now)

    def _forget(self) -> None:
        node = self._configuration.node
        confirming = find_confirming(node)
        retention.sweep(self._ledger, self._store, node.retention, now(), confirming)

    def _stay(self) -> None:
        """Keep the ledger; end at once when another node has it, for what this one does, that does.

        The children end with this process.
        """
        if not self._ledger.renew_tenure(TENURE):
            logger.critical("node.followed: another node has taken over the ledger")
            os._exit(1)

    def _leave(self) -> None:
        """Let another node follow at once."""
        with suppress(StorageError):  # it follows when the lease runs out
            self._ledger.end_tenure()
            if self._audit is not None:
                self._audit.finish()

    def _watch_receiver(self) -> None:
        if not self._receiver.is_alive():
            logger.error("receiver.died")
            self._receiver.start(self._number)


def open_records(configuration: Configuration, store: Store, ledger: Ledger) -> None:
    """Open store and ledger; where one has been worked in, the other must not be empty.

    A ledger of an earlier version is brought to this one.

    Raises:
        StorageError: one of them cannot be used, or is missing: perhaps its disk is not mounted.
    """
    store.open()
    is_new = not store.path("installation").exists()
    ledger.open(create=is_new, migrate=True)
    if is_new and (missing := len(ledger.known_paths())):
        raise StorageError(
            f"the ledger knows {missing} received files, and the store is a new one: mount the "
            "disk that belongs there"
        )
    store.namespace()


def build_executor(node: NodeSettings, limit: timedelta) -> JobExecutor:
    """Return where jobs run; `limit` is how long one may take.

    Raises:
        ConfigurationError: what that needs is not installed.
    """
    if isinstance(node.executor, DaskExecutor):
        check_installed()
        return DaskCluster(node.executor, limit)
    workers = node.executor.workers
    return ProcessPool(workers, count_threads(workers), limit)


def name_holder(data_folder: Path) -> str:
    """Return under which name a node has the ledger: machine, folder, and start of the machine.

    Whoever comes again under it holds the lock of the folder, so that the one before has ended.
    """
    boot = Path("/proc/sys/kernel/random/boot_id")
    since = boot.read_text().strip() if boot.exists() else ""
    return f"{socket.gethostname()}:{data_folder} {since}".rstrip()


def count_threads(workers: int) -> int:
    """Return how many threads each of `workers` may use, so that together they fill the machine."""
    return max(1, len(os.sched_getaffinity(0)) // workers)


def now() -> datetime:
    """Return the time, aware UTC."""
    return datetime.now(UTC)


@contextmanager
def _locked(data_folder: Path) -> Iterator[None]:
    """Hold the data folder for this process: two nodes on one store would undo each other's work.

    The kernel drops the lock with the process, however that ends.
    """
    try:
        data_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(data_folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigurationError(
            f"node.yaml: data_folder : seen {data_folder} ({error.strerror}), wanted a folder in "
            "which the user that runs the node may write"
        ) from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StorageError(f"another node works in {data_folder}: stop it first") from None
        yield
    finally:
        os.close(descriptor)
