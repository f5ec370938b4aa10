"""A Dask scheduler with workers on free ports of this machine, under an authority of its own."""

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from dicom_node.cluster import DaskCluster
from dicom_node.demonstration.processes import Child, find_free_ports
from dicom_node.door_settings import TLS
from dicom_node.node_settings import DaskExecutor
from doubles.certificates import make_authority, make_certificate
from doubles.tools import require_module

ROOT = Path(__file__).resolve().parents[2]
CONFIGURATION = ROOT / "deploy" / "dask.yaml"
PATIENCE_SECONDS = 60.0
LIMIT = timedelta(minutes=5)


class Dask:
    """A scheduler and its workers, as deploy/dask.yaml wants them, with mutual TLS.

    Attributes:
        address: of the scheduler.
    """

    def __init__(self, folder: Path, **settings: str) -> None:
        """Describe them; `settings` of the scheduler go over deploy/dask.yaml."""
        require_module("distributed", "dicom_node[cluster]")
        port, self.http_port = find_free_ports(2)
        self.address = f"tls://127.0.0.1:{port}"
        self._folder = folder
        self._ca = make_authority(folder)
        self._settings = {f"DASK_DISTRIBUTED__SCHEDULER__{k}": v for k, v in settings.items()}
        self._workers: list[Child] = []
        self.scheduler = self._build(
            "scheduler",
            *("--protocol", "tls", "--host", "127.0.0.1", "--port", str(port)),
            *("--no-dashboard", "--dashboard-address", f"127.0.0.1:{self.http_port}"),
        )

    def start(self, workers: int = 1, resources: str = "GPU=1") -> None:
        self.scheduler.start()
        for _ in range(workers):
            self.add_worker(resources)

    def add_worker(
        self,
        resources: str = "GPU=1",
        *,
        ca: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Child:
        """Start one more worker, whose certificate `ca` signs."""
        name = f"worker-{len(self._workers) + 1}"
        worker = self._build(
            "worker",
            *(self.address, "--host", "127.0.0.1", "--nthreads", "1", "--name", name),
            *("--memory-limit", "0", "--local-directory", str(self._folder / name)),
            *(("--resources", resources) if resources else ()),
            *("--no-dashboard", "--dashboard-address", "127.0.0.1:0"),
            ca=ca,
            environment=environment,
        )
        worker.start()
        self._workers.append(worker)
        return worker

    def stop(self) -> None:
        for each in (*self._workers, self.scheduler):
            each.stop()

    def tls(self, ca: Path | None = None, name: str = "node") -> TLS:
        """Return the files of a new certificate, of this cluster's authority or of another one."""
        authority = ca or self._ca
        certificate, key = (authority.with_name(f"{name}.{end}") for end in ("pem", "key"))
        if not certificate.exists():
            make_certificate(authority.parent, authority, name)
        return TLS(certificate=certificate, key=key, ca=authority)

    def executor(self, **changes: object) -> DaskCluster:
        """Return the node's side of it."""
        settings = {
            "kind": "dask",
            "scheduler": self.address,
            "resources": {"GPU": 1.0},
            "tls": self.tls(),
        }
        limit = changes.pop("limit", LIMIT)
        assert isinstance(limit, timedelta)
        return DaskCluster(DaskExecutor(**(settings | changes)), limit)

    def describe(self) -> str:
        """Return what node.yaml says of it under `executor`, in YAML."""
        files = ", ".join(f"{name}: {path}" for name, path in self.tls())
        tls = f"{{{files}}}"
        return f"{{kind: dask, scheduler: '{self.address}', resources: {{GPU: 1}}, tls: {tls}}}"

    def read_logs(self) -> str:
        return "".join(each.read_log() for each in (self.scheduler, *self._workers))

    def _build(
        self,
        role: str,
        *arguments: str,
        ca: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Child:
        tls = self.tls(ca, role)
        program = str(Path(sys.executable).with_name("dask"))
        files = {"--tls-ca-file": tls.ca, "--tls-cert": tls.certificate, "--tls-key": tls.key}
        words = [word for option, path in files.items() for word in (option, str(path))]
        variables = {
            **os.environ,
            "DASK_CONFIG": str(CONFIGURATION),
            # Without the root, tests/dicom_node would be taken for the package of that name.
            "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
            **self._settings,
            **(environment or {}),
        }
        log = self._folder / f"{role}.log"
        return Child([program, role, *arguments, *words], log, variables)


@contextmanager
def run_dask(folder: Path, workers: int = 1, **settings: str) -> Iterator[Dask]:
    """Give a scheduler with workers."""
    dask = Dask(folder, **settings)
    try:
        dask.start(workers)
        yield dask
    finally:
        dask.stop()


def wait_until(holds: Callable[[], bool], seconds: float = PATIENCE_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def start_and_wait(marker: str, gate: str) -> None:
    """Leave a line that says that this was started, and wait until there is a file `gate`."""
    start_and(marker, 0)
    wait_until(Path(gate).exists, 10 * PATIENCE_SECONDS)


def start_and(marker: str, seconds: float) -> int:
    """Leave a line that says that this was started, sleep, and return the process id."""
    with Path(marker).open("a") as file:
        file.write(f"{os.getpid()}\n")
    time.sleep(seconds)
    return os.getpid()
