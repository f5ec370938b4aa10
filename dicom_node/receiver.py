"""The receiving process: listens, hands each connection on, writes the ledger, drains at last.

A process of its own, so that whatever happens to it happens to nothing else, and with neither
models nor codecs in it. Connections are served by the processes of its `crew`. Before it listens it
finds again what a crash left (`spool.rebuild`). What comes next in the walk, `assembly`, reads what
this process has committed to the ledger.

The node starts it and watches it with `receiver_process`; by hand, for trying things out:

    python -m dicom_node.receiver config
"""

import argparse
import contextlib
import functools
import json
import logging
import os
import resource
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from dicom_node.admission import Admission, Budget
from dicom_node.audit import configure_logging
from dicom_node.commitment import take_report
from dicom_node.complaints import Complaints
from dicom_node.crew import Line, fork_crew
from dicom_node.entrance import read_entrance
from dicom_node.errors import ConfigurationError, DicomNodeError
from dicom_node.hall import Hall
from dicom_node.lifeline import ORPHANED
from dicom_node.network import normalize_address
from dicom_node.recorder import Recorder
from dicom_node.redo_log import RedoLog
from dicom_node.signals import EndRequest
from dicom_node.spool import Spool, rebuild, replay
from dicom_node.store import INCOMING, REDO, Durability, Store

DRAIN_SECONDS = 30.0
"""How long a stop waits for the instances that are coming in."""

HOLD_SECONDS = 10.0
"""How long the processes of a receiver that was killed may take to end."""

RESERVED_DESCRIPTORS = 64
"""For the ledger, the lines between the processes and whatever a library opens for a moment."""

_DESCRIPTORS_PER_ASSOCIATION = 3  # socket, incoming file, its folder while that is synced
_PAUSE_SECONDS = 0.1
_BACKLOG = 128

_logger = logging.getLogger("dicom_node.receiver")
"""By name: in the process that receives, this module is `__main__`, whose lines are not told."""


class Takes(Protocol):
    """Serves connections: a `Hall` in this process, or a `Crew` of others."""

    def take(self, sock: socket.socket, host: str) -> None:
        """Serve a connection that was counted in."""

    def stop(self) -> None:
        """Let associations end where nothing is on its way."""


class Receiver:
    """The listening socket, and who may come in at all."""

    def __init__(
        self, address: tuple[str, int], admission: Admission, complaints: Complaints, behind: Takes
    ) -> None:
        self._address = address
        self._admission = admission
        self._complaints = complaints
        self._behind = behind
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._accept, name="accept", daemon=True)
        self._listener: socket.socket | None = None

    def start(self) -> tuple[str, int]:
        """Listen, and return host and port.

        Raises:
            ConfigurationError: nobody can listen there.
        """
        host, port = self._address
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._listener = socket.create_server((host, port), family=family, backlog=_BACKLOG)
        except OSError as error:
            raise ConfigurationError(
                f"node.yaml: receiver : seen {host} port {port} ({error.strerror}), "
                "wanted an address of this machine and a port that is free"
            ) from None
        self._thread.start()
        return host, self._listener.getsockname()[1]

    def stop(self, seconds: float = DRAIN_SECONDS) -> None:
        """Let nobody in any more, and wait for the instances that are coming in."""
        self._stopping.set()
        if self._listener is not None:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits in accept
            self._thread.join()
            self._listener.close()
        self._behind.stop()
        deadline = time.monotonic() + seconds
        while self._admission.total() and time.monotonic() < deadline:
            time.sleep(_PAUSE_SECONDS)

    def _accept(self) -> None:
        while not self._stopping.is_set() and self._listener is not None:
            try:
                sock, address = self._listener.accept()
            except OSError:
                if self._stopping.is_set():
                    return
                # Out of file descriptors, or a peer that left at once: the others stay.
                self._complaints.note("accept_failed", who="(all)")
                time.sleep(_PAUSE_SECONDS)
                continue
            self._let_in(sock, str(normalize_address(address[0])))

    def _let_in(self, sock: socket.socket, host: str) -> None:
        if not self._admission.enter(host):
            self._complaints.note("too_many_connections", who=host)
            sock.close()
            return
        try:
            self._behind.take(sock, host)
        except OSError:
            self._complaints.note("not_handed_on", who=host)
            self._admission.leave(host)
            sock.close()


def reserve_descriptors(budget: Budget) -> None:
    """Let this process and its children open as many files as `receiver.limits` may ask for.

    Then no peer, and not all of them together, can bring it to where nothing can be opened.

    Raises:
        ConfigurationError: the system does not let it.
    """
    needed = (
        budget.connections
        + _DESCRIPTORS_PER_ASSOCIATION * budget.associations
        + RESERVED_DESCRIPTORS
    )
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise ConfigurationError(
            f"node.yaml: receiver.limits : seen {budget.connections} connections and "
            f"{budget.associations} associations, which take {needed} open files, wanted fewer of "
            f"them or a higher LimitNOFILE than {hard}"
        )
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def run_receiver(
    folder: Path,
    overrides: Sequence[str],
    forked: Callable[[], None],
    ready: Callable[[str, int], None],
    tenure: int | None = None,
) -> None:
    """Receive until SIGTERM or SIGINT, then drain.

    Args:
        folder: the configuration's.
        overrides: `key=value` settings over those of node.yaml.
        forked: called when threads may be started.
        ready: called with host and port once the receiver listens.
        tenure: number under which its node has the ledger, if it has one.

    Raises:
        ConfigurationError: the configuration is wrong, or the port is taken.
        StorageError: the store or the ledger cannot be used.
    """
    entrance = read_entrance(folder, overrides)
    reserve_descriptors(entrance.budget)
    durability, limits = entrance.durability, entrance.structure
    if durability is Durability.NONE:
        _logger.warning("receiver.durability_none: a power cut loses what was acknowledged")
    store = Store(entrance.door.folder).open()
    held = store.hold(HOLD_SECONDS)
    door = entrance.open_door()
    waited_for = durability is Durability.STRICT

    def build_hall(line: Line) -> Hall:
        spool = Spool(
            store, line, limits, durability, RedoLog(store.path(REDO), store.path(INCOMING))
        )
        return Hall(door, spool, line, line, entrance.beat_seconds)

    replay(store)

    with fork_crew(entrance.processes, build_hall, waited_for=waited_for, keep=[held]) as crew:
        forked()
        end = EndRequest()
        # Not before: the serving processes do without the database library, which is large.
        from dicom_node.ledger import Ledger  # noqa: PLC0415

        is_new = next(store.iterate_incoming(), None) is None
        with Ledger(entrance.ledger_url, _now).open(create=is_new) as ledger:
            ledger.write_under(tenure)
            rebuild(store, ledger, limits)
            with Recorder(
                ledger,
                store,
                waited_for=waited_for,
                tell=crew.tell,
                record_report=functools.partial(take_report, ledger, entrance.patience, _now),
            ) as recorder:
                admission = Admission(entrance.budget, entrance.is_known)
                complaints = Complaints(recorder.keep_alert)
                crew.start(admission, complaints, recorder)
                address = (entrance.host, entrance.port)
                receiver = Receiver(address, admission, complaints, crew)
                ready(*receiver.start())
                end.wait()
                receiver.stop()
    replay(store)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the receiving process."""
    parser = argparse.ArgumentParser(
        prog="python -m dicom_node.receiver",
        description="Receive instances into the store and the ledger, and nothing else.",
    )
    parser.add_argument("folder", type=Path, help="the configuration folder")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--tenure", type=int, metavar="NUMBER", help="of the node in the ledger")
    parser.add_argument("--child", type=int, metavar="FD", help="tell FD; end with standard input")
    options = parser.parse_args(arguments)
    configure_logging()
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core dump would hold patient data

    def begin() -> None:
        if options.child is not None:
            threading.Thread(target=_end_with_parent, name="lifeline", daemon=True).start()

    def listen(host: str, port: int) -> None:
        _tell(options.child, [host, port])

    try:
        run_receiver(options.folder, options.set, begin, listen, options.tenure)
    except DicomNodeError as error:
        _tell(options.child, {type(error).__name__: str(error)})
        return 2 if isinstance(error, ConfigurationError) else 1
    return 0


def _now() -> datetime:
    return datetime.now(UTC)


def _tell(descriptor: int | None, news: object) -> None:
    """Tell the parent, or whoever started this process by hand."""
    if descriptor is None:
        sys.stderr.write(f"{json.dumps(news)}\n")
        return
    with contextlib.suppress(OSError), os.fdopen(descriptor, "w") as pipe:
        json.dump(news, pipe)


def _end_with_parent() -> None:
    """End this process when its parent has, however that ended: the pipe closes with it."""
    while os.read(sys.stdin.fileno(), 1):
        pass
    os._exit(ORPHANED)


if __name__ == "__main__":
    raise SystemExit(main())
