"""A PostgreSQL of a test's own: one cluster on a free port of this machine, many ledgers."""

import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from stat import S_IXOTH
from tempfile import gettempdir, mkdtemp

from sqlalchemy import create_engine, text

from dicom_node.demonstration.processes import find_free_ports
from doubles.tools import require_module, require_program

PACKAGES = Path("/usr/lib/postgresql")
"""Where Debian puts the servers, a folder for each version, none of them on the search path."""
USER = "postgres"
PATIENCE_SECONDS = 60
MEMORY = Path("/dev/shm")  # noqa: S108 - where Linux has a file system in memory
MEMORY_BYTES = 512 * 1024**2
"""A cluster and its log are smaller. In memory a hundred ledgers are made in a tenth of the time;
what a server loses with its process does not depend on that."""
_TOLD_CHARACTERS = 2_000
_CLEAN_UP = """
cat
pid=$(head -n 1 "$1/data/postmaster.pid")
while [ "/proc/$pid/cwd" -ef "$1/data" ]; do
    kill -QUIT "$pid"
    sleep 0.1
done
until rm -rf "$1"; do sleep 0.1; done
"""
"""Waits for the end of its standard input, then ends a server and removes the folder `$1`."""


class PostgreSQL:
    """A cluster, which does without the service that the package brings.

    Attributes:
        folder: all that it keeps; its owner is whoever the server runs as.
    """

    def __init__(self, folder: Path) -> None:
        """Describe one in the empty `folder`, which the user postgres must be able to reach."""
        require_module("psycopg", "dicom_node[cluster]")
        self._programs = self.find_program("initdb").parent
        self.folder = folder
        (self.port,) = find_free_ports(1)
        self._numbers = itertools.count(1)

    def find_program(self, name: str) -> Path:
        """Return where a program of PostgreSQL's newest version here lies."""
        versions = sorted(PACKAGES.glob("*/bin"), key=lambda path: int(path.parent.name))
        path = str(versions[-1]) if versions else None
        return Path(require_program(name, "postgresql", path))

    def create(self) -> None:
        """Make the cluster.

        Raises:
            PermissionError: a folder above its own is closed to the user that the server runs as.
        """
        if os.getuid() == 0:
            shutil.chown(self.folder, USER)
            for above in self.folder.resolve().parents:
                if not above.stat().st_mode & S_IXOTH:
                    raise PermissionError(
                        f"{above} is closed to the user {USER}, as whom PostgreSQL runs:"
                        " choose a folder below folders that all users may pass"
                    )
        self._run(
            *("initdb", "-D", self.data, "-U", USER, "-A", "trust"),
            *("-E", "UTF8", "--locale=C.UTF-8", "--no-sync"),
        )

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def start(self) -> None:
        """Start it and wait until it takes connections; a crash is recovered from first."""
        options = (
            f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self.folder}"
        )
        self._control("-l", self.folder / "log", "-o", options, "start")

    def stop(self, mode: str = "immediate") -> None:
        """Stop it; `immediate` is a crash, `fast` breaks connections and then goes in order."""
        self._control("-m", mode, "stop")

    def restart(self) -> None:
        """Crash and start again on the same port."""
        self.stop()
        self.start()

    @property
    def pid(self) -> int:
        """The process id of the server."""
        return int((self.data / "postmaster.pid").read_text().split()[0])

    def make_url(self) -> str:
        """Return the URL of a new, empty schema, which is made faster than a database."""
        name = f"test_{next(self._numbers)}"
        self.execute(f"CREATE SCHEMA {name}")
        return f"{self._url}?options=-csearch_path%3D{name}"

    def make_database(self) -> str:
        """Return the URL of a new, empty database, as a site has one for a ledger."""
        name = f"database_{next(self._numbers)}"
        self.execute(f"CREATE DATABASE {name}")
        return self._url.removesuffix(USER) + name

    @property
    def _url(self) -> str:
        return f"postgresql://{USER}@127.0.0.1:{self.port}/{USER}"

    def execute(self, statement: str) -> None:
        """Run one statement as its administrator."""
        url = self._url.replace("postgresql", "postgresql+psycopg", 1)
        engine = create_engine(url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text(statement))
        engine.dispose()

    def read_logs(self) -> str:
        """Return the last lines of the server, and of the programs that control it."""
        said = []
        for name in ("start.log", "log"):
            with suppress(OSError):  # it never ran, or its disk is gone
                said.append((self.folder / name).read_text()[-_TOLD_CHARACTERS:])
        return "\n".join(said)

    def _control(self, *arguments: str | Path) -> None:
        self._run("pg_ctl", "-D", self.data, "-w", "-t", PATIENCE_SECONDS, *arguments)

    def _run(self, program: str, *arguments: str | Path | int) -> None:
        as_user = ("runuser", "-u", USER, "--") if os.getuid() == 0 else ()
        # Into a file: the server would keep a pipe open.
        try:
            with (self.folder / "start.log").open("ab") as log:
                subprocess.run(
                    [*as_user, self._programs / program, *map(str, arguments)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=self.folder,
                    check=True,
                    timeout=2 * PATIENCE_SECONDS,
                )
        except subprocess.SubprocessError as error:
            error.add_note(self.read_logs())
            raise


@contextmanager
def removed_at_the_end(folder: Path) -> Iterator[None]:
    """End the server in `folder`, if it still runs, and remove the folder: also when we are killed.

    A server is a daemon, which nobody's end reaches. So a shell waits for the end of a pipe from
    this process, in a session of its own, so that no signal to this one's reaches it either.
    """
    with subprocess.Popen(  # the end of the block closes the pipe, and waits
        ("/bin/sh", "-c", _CLEAN_UP, "clean-up", folder),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        start_new_session=True,
    ):
        yield


@contextmanager
def run_postgresql(*, in_memory: bool = True) -> Iterator[PostgreSQL]:
    """Give a running cluster in a folder of its own, in memory if there is room, else on the disk.

    Both go at the end, which may be that of this process.
    """
    in_memory = in_memory and MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > MEMORY_BYTES
    folder = Path(mkdtemp(prefix="postgresql-", dir=MEMORY if in_memory else gettempdir()))
    with removed_at_the_end(folder):
        server = PostgreSQL(folder)
        server.create()
        server.start()
        try:
            yield server
        finally:
            server.stop()
