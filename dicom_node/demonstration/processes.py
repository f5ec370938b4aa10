"""Free ports, and child processes that end when we do."""

import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

LOOPBACK = "127.0.0.1"
STOP_SECONDS = 20.0
"""A node that drains needs a few seconds; one that hangs is killed."""


def find_free_ports(count: int) -> tuple[int, ...]:
    """Return `count` distinct TCP ports that nobody listens on now, on any address.

    Another program may take one before it is used; the caller then sees a refused start.
    """
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("", 0))
        return tuple(one.getsockname()[1] for one in sockets)


class Child:
    """One program that runs beside us, its output in a file.

    Attributes:
        log: where its standard output and error go.
    """

    def __init__(self, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        self.log = log
        self._command = tuple(command)
        self._environment = dict(environment)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it in a session of its own, so that a Ctrl-C at the terminal reaches only us."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own programs, no shell
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The process id of the running program."""
        if self._process is None:
            raise RuntimeError("the program was not started")
        return self._process.pid

    def poll(self) -> int | None:
        """Return the exit status, or None while it runs; negative is the signal that ended it."""
        return None if self._process is None else self._process.poll()

    def wait_for(self, is_ready: Callable[[], bool], seconds: float) -> None:
        """Return once `is_ready()` holds.

        Raises:
            RuntimeError: the program ended first, or `seconds` passed; the message holds the end of
                its log.
        """
        deadline = time.monotonic() + seconds
        while not is_ready():
            status = self.poll()
            if status is not None or time.monotonic() > deadline:
                what = f"ended with {status}" if status is not None else f"not ready in {seconds} s"
                raise RuntimeError(f"{self._command[0]} {what}:\n{self.read_log()[-2000:]}")
            time.sleep(0.05)

    def read_log(self) -> str:
        """Return everything that it wrote."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def stop(self) -> int | None:
        """End it by SIGTERM, by SIGKILL when it does not obey, and return its exit status."""
        if self._process is None:
            return None
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
        return self._process.wait()
