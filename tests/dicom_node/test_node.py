"""The node as a process: what it starts, survives, refuses and leaves behind."""

import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml

from dicom_node.demonstration.walk import Node
from dicom_node.jobs import JobState
from dicom_node.ledger import Ledger
from doubles.audit import make_certificates
from doubles.certificates import make_authority, make_certificate
from doubles.committing_pacs import CommittingPacs
from doubles.dcmtk import echoscu, storescu
from doubles.models import write_card, write_copying_model
from doubles.node import AE_TITLE, CONFIGURATION, ROOT
from doubles.postgresql import PostgreSQL
from doubles.scripted_pacs import MR, ScriptedPacs
from doubles.series import make_series, make_volume, write_files

pytestmark = pytest.mark.integration

PATIENCE_SECONDS = 60
REPORT = "1.2.840.10008.5.1.4.1.1.88.34"
MAP = "1.2.840.10008.5.1.4.1.1.30"
READY = re.compile(r"^ready dicom=127\.0\.0\.1:(\d+) web=127\.0\.0\.1:(\d+)$", re.MULTILINE)
EXIT_FAILED, EXIT_WRONG = 1, 2
DEPLOY = ROOT / "deploy"
GUIDE = ROOT / "docs" / "guide.md"
NOBODY = 1
"""A port at which nobody listens."""


class Running:
    """A node on free ports, and what a test asks of it."""

    def __init__(self, folder: Path, *overrides: str, configuration: Path = CONFIGURATION) -> None:
        folder.mkdir(exist_ok=True)
        self.node = Node(
            configuration,
            (
                f"data_folder={folder / 'data'}",
                "receiver.port=0",
                "web.port=0",
                "assembly.quiet_period=500 ms",
                "assembly.sweep_every=200 ms",
                "dispatch.sweep_every=200 ms",
                "dispatch.warm=false",
                "delivery.sweep_every=200 ms",
                "query.enabled=false",
                *overrides,
            ),
            folder / "node.log",
        )

    @property
    def pid(self) -> int:
        return self.node.child.pid

    @property
    def web_port(self) -> int:
        return int(READY.findall(self.node.child.read_log())[-1][1])

    def ask(self, path: str) -> str:
        address = f"http://127.0.0.1:{self.web_port}{path}"
        with urllib.request.urlopen(address, timeout=10) as answer:
            return answer.read().decode()

    def count(self, metric: str) -> int:
        found = re.search(
            rf"^{re.escape(metric)} (\d+)(?:\.\d+)?$", self.ask("/metrics"), re.MULTILINE
        )
        assert found is not None
        return int(found[1])

    def find_receiver(self) -> int:
        """Return the process id of the child that receives."""
        for status in Path("/proc").glob("[0-9]*/stat"):
            try:
                parent = int(status.read_text().rsplit(")", 1)[1].split()[1])
                command = (status.parent / "cmdline").read_bytes()
            except OSError:
                continue
            if parent == self.pid and b"dicom_node.receiver" in command:
                return int(status.parent.name)
        raise AssertionError("the node has no receiver")


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_taken(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    write_copying_model(tmp_path / "models")
    started = []

    def start(*overrides: str, folder: str = "node", **options: Path) -> Running:
        models = f"models_folder={tmp_path / 'models'}"
        running = Running(tmp_path / folder, models, *overrides, **options)
        started.append(running.node)
        running.node.start()
        return running

    yield start
    for node in started:
        node.stop()


def test_study_comes_back_completed(start, tmp_path):
    files = write_files(make_series("T1w", make_volume((12, 40, 40))), tmp_path / "study")

    with ScriptedPacs(classes=(MR, REPORT, MAP), ae_title="ORTHANC") as pacs:
        running = start(f"peers.pacs.port={pacs.port}")
        assert storescu(running.node.port, *files, called=AE_TITLE).returncode == 0
        states = [JobState.DONE, JobState.HELD, JobState.FAILED]
        wait_until(
            lambda: sum(running.count(f'dicom_node_jobs{{state="{each}"}}') for each in states) == 2
        )
        wait_until(lambda: running.count('dicom_node_deliveries{state="pending"}') == 0)

        assert running.count('dicom_node_jobs{state="failed"}') == 0
        assert len(pacs.received) == running.count('dicom_node_deliveries{state="sent"}')
        assert running.node.stop() == 0


def release_one_of_two(running: Running, folder: Path) -> None:
    """Wait until both results of a study are held, and let one go, to have something to send."""
    wait_until(lambda: running.count('dicom_node_jobs{state="held"}') == 2)
    url = f"sqlite:///{folder / 'node' / 'data' / 'ledger.sqlite'}"
    with Ledger(url, lambda: datetime.now(UTC)).open(create=False) as ledger:
        ledger.release(ledger.jobs()[0].plan.plan_id, "a test", "to have something to send")


def test_a_destination_that_never_answers_delays_no_other(start, tmp_path):
    files = write_files(make_series("T1w", make_volume((12, 40, 40))), tmp_path / "study")
    configuration = tmp_path / "config"
    shutil.copytree(CONFIGURATION, configuration)
    routing = configuration / "routing.yaml"
    # Before the other: whoever waited for it would have waited by then.
    routing.write_text(routing.read_text().replace("send_to: [pacs]", "send_to: [dead, pacs]"))

    with (
        socket.create_server(("127.0.0.1", 0)) as dead,  # lets connect, and then says nothing
        ScriptedPacs(classes=(MR, REPORT, MAP), ae_title="ORTHANC") as pacs,
    ):
        running = start(
            f"peers.pacs.port={pacs.port}",
            "peers.dead={ae_title: DEAD, roles: [send]}",
            "peers.dead.host=127.0.0.1",
            f"peers.dead.port={dead.getsockname()[1]}",
            configuration=configuration,
        )
        assert storescu(running.node.port, *files, called=AE_TITLE).returncode == 0
        release_one_of_two(running, tmp_path)
        wait_until(lambda: running.count('dicom_node_deliveries{state="sent"}') > 0)
        wait_until(
            lambda: len(pacs.received) == running.count('dicom_node_deliveries{state="pending"}')
        )
        is_waiting = "destination.does_not_answer" not in running.node.child.read_log()

    assert is_waiting


def test_what_a_pacs_reports_to_the_receiving_process_is_committed(start, tmp_path):
    files = write_files(make_series("T1w", make_volume((12, 40, 40))), tmp_path / "study")

    with CommittingPacs(classes=(MR, REPORT, MAP), ae_title="ORTHANC") as pacs:
        running = start(f"peers.pacs.port={pacs.port}", "peers.pacs.commitment=storage_commitment")
        assert storescu(running.node.port, *files, called=AE_TITLE).returncode == 0
        release_one_of_two(running, tmp_path)
        wait_until(lambda: len(pacs.requests) > 0)

        assert pacs.call_back(running.node.port, pacs.report(0)) == 0
        committed = running.count('dicom_node_deliveries{state="committed"}')

    assert committed == len(pacs.requests[0].ReferencedSOPSequence)


class Kept:
    """A ledger that is backed up and restored as docs/guide.md says, on either database."""

    def __init__(self, server: PostgreSQL | None, folder: Path, monkeypatch) -> None:
        self._server = server
        self._folder = folder
        self._monkeypatch = monkeypatch
        self.overrides: tuple[str, ...] = ()
        if server is not None:
            self.overrides = ("ledger={kind: postgresql, dsn_env: DICOM_NODE_LEDGER}",)
            self._use(server.make_database())

    def url(self, data: Path) -> str:
        is_server = self._server is not None
        return os.environ["DICOM_NODE_LEDGER"] if is_server else f"sqlite:///{data}/ledger.sqlite"

    def back_up(self, data: Path, copy: Path) -> None:
        """Run what stands in the guide under "Back up and restore"."""
        if self._server is not None:
            self._run("pg_dump")
        script = find_command(r"deploy/backup .*")
        folders = script.replace("/var/lib/dicom-node", str(data)).split()[:2]
        subprocess.run([ROOT / folders[0], folders[1], copy], check=True)

    def restore(self) -> None:
        """Fill an empty database; files are where they are already."""
        if self._server is not None:
            self._use(self._server.make_database())
            self._run("pg_restore")

    def _run(self, program: str) -> None:
        assert self._server is not None
        command = find_command(rf"{program} .*")
        folder = self._server.find_program(program).parent
        environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
        subprocess.run(["bash", "-euc", command], check=True, cwd=self._folder, env=environment)

    def _use(self, url: str) -> None:
        self._monkeypatch.setenv("DICOM_NODE_LEDGER", url)


def find_command(pattern: str) -> str:
    """Return a command that the guide tells to type."""
    [found] = re.findall(rf"^    ({pattern})$", GUIDE.read_text(), re.MULTILINE)
    return str(found)


@pytest.fixture(params=["SQLite", "PostgreSQL"])
def kept(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch) -> Kept:
    if request.param == "SQLite":
        return Kept(None, tmp_path, monkeypatch)
    return Kept(request.getfixturevalue("postgresql"), tmp_path, monkeypatch)


def test_backup_of_a_running_node_goes_on_where_it_was(start, kept, tmp_path):
    files = write_files(make_series("T1w", make_volume((12, 40, 40))), tmp_path / "study")
    data, copy = tmp_path / "node" / "data", tmp_path / "copy"
    soon = (*kept.overrides, "delivery.first_retry=1 s", "delivery.longest_retry=1 s")
    running = start(*soon)  # nobody answers at its PACS, so that everything waits
    assert storescu(running.node.port, *files, called=AE_TITLE).returncode == 0
    wait_until(lambda: running.count('dicom_node_jobs{state="held"}') == 2)
    with Ledger(kept.url(data), lambda: datetime.now(UTC)).open(create=False) as ledger:
        ledger.release(ledger.jobs()[0].plan.plan_id, "a test", "to have something to send")
    waiting = running.count('dicom_node_deliveries{state="pending"}')
    (data / "accounts.json").write_text("{}")

    kept.back_up(data, copy)
    assert running.node.stop() == 0
    shutil.rmtree(data)
    copy.rename(data)
    kept.restore()

    assert (data / "accounts.json").read_text() == "{}"
    assert stat.S_IMODE(data.stat().st_mode) == 0o700
    with ScriptedPacs(classes=(MR, REPORT, MAP), ae_title="ORTHANC") as pacs:
        restored = start(f"peers.pacs.port={pacs.port}", *soon)
        wait_until(lambda: restored.count('dicom_node_deliveries{state="pending"}') == 0)

        assert restored.count("dicom_node_instances") == len(files)
        assert restored.count('dicom_node_jobs{state="held"}') == 1
        assert len(pacs.received) == waiting > 0


def test_node_says_that_it_is_well(start):
    running = start()

    assert json.loads(running.ask("/healthz")) == {"status": "ok", "problems": []}


def test_no_process_of_the_node_leaves_a_core_file(start):
    running = start()

    for process in (running.pid, running.find_receiver()):
        limits = Path(f"/proc/{process}/limits").read_text()
        assert re.search(r"^Max core file size\s+0\s+0", limits, re.MULTILINE)


def test_alerts_and_dashboard_ask_for_what_the_node_tells(start, tmp_path):
    tls = make_certificates(tmp_path)
    running = start(f"receiver.tls={tls}", f"audit={{host: 127.0.0.1, port: {NOBODY}, tls: {tls}}}")
    wait_until(lambda: "dicom_node_certificate_left_seconds" in running.ask("/metrics"))
    told = running.ask("/metrics")

    for file in ("alerts.yaml", "grafana-dashboard.json"):
        asked = re.findall(
            r'dicom_node_\w+(?:{state="\w+"})?', (DEPLOY / file).read_text().replace("\\", "")
        )
        assert len(asked) > 10
        known = [each for each in asked if re.search(rf"^{re.escape(each)}[ {{]", told, re.M)]
        assert known == asked


def test_audit_repository_that_is_away_delays_nothing(start, tmp_path):
    tls = make_certificates(tmp_path)
    running = start(f"audit={{host: 127.0.0.1, port: {NOBODY}, tls: {tls}}}")
    wait_until(lambda: "audit.not_told" in running.node.child.read_log())
    wait_until(lambda: running.count("dicom_node_audit_delay_seconds") > 0)

    assert json.loads(running.ask("/healthz"))["status"] == "ok"
    assert echoscu(running.node.port, called=AE_TITLE).returncode == 0
    assert running.node.stop() == 0


def test_node_says_that_its_certificate_ends(start, tmp_path):
    authority = make_authority(tmp_path)
    certificate, key = make_certificate(tmp_path, authority, "node")
    running = start(f"receiver.tls={{certificate: {certificate}, key: {key}, ca: {authority}}}")

    wait_until(lambda: json.loads(running.ask("/healthz"))["status"] == "attention")

    assert "expires in 1 days" in running.ask("/healthz")
    assert running.count("dicom_node_certificate_left_seconds") > 0


def test_node_with_a_certificate_that_has_ended_does_not_start(start, tmp_path):
    authority = make_authority(tmp_path)
    dates = {"starts": timedelta(days=-2), "lasts": timedelta(days=1)}
    certificate, key = make_certificate(tmp_path, authority, "node", **dates)

    with pytest.raises(
        RuntimeError, match=rf"ended with {EXIT_WRONG}(?s:.*)receiver\.tls\.certificate : seen"
    ):
        start(f"receiver.tls={{certificate: {certificate}, key: {key}, ca: {authority}}}")


@pytest.mark.parametrize("numbers", [[signal.SIGTERM], [signal.SIGINT, signal.SIGTERM]])
def test_signals_drain_and_end_with_0(numbers, start):
    running = start()

    for number in numbers:
        os.kill(running.pid, number)

    assert running.node.stop() == 0
    assert not is_taken(running.node.port)


def test_hangup_takes_new_rules_and_wrong_ones_leave_the_last_good_ones(start, tmp_path):
    folder = shutil.copytree(CONFIGURATION, tmp_path / "config")
    routing = folder / "routing.yaml"
    good = routing.read_text()
    running = start(configuration=folder)
    url = f"sqlite:///{tmp_path / 'node' / 'data' / 'ledger.sqlite'}"

    routing.write_text(good.replace("mode: send", "mode: sent"))
    os.kill(running.pid, signal.SIGHUP)
    wait_until(lambda: running.count("dicom_node_alerts") == 1)
    routing.write_text(good.replace("mode: send", "mode: shadow"))
    os.kill(running.pid, signal.SIGHUP)
    wait_until(lambda: running.count("dicom_node_alerts") == 0)

    def read_digests() -> list[str]:
        with Ledger(url, lambda: datetime.now(UTC)).open(create=False) as ledger:
            found = [each for each in ledger.events() if each.name == "rules.hold"]
        return [each.detail["config_digest"] for each in found]

    wait_until(lambda: len(read_digests()) == 2)
    assert len(set(read_digests())) == 2
    assert running.node.stop() == 0


def test_second_node_on_the_same_folder_ends(start, tmp_path):
    start()

    with pytest.raises(
        RuntimeError, match=rf"ended with {EXIT_FAILED}(?s:.*)another node works in"
    ):
        start()


def test_second_node_at_one_ledger_ends_and_follows_when_the_first_has_left(
    start, postgresql, monkeypatch
):
    monkeypatch.setenv("DICOM_NODE_LEDGER", postgresql.make_url())
    ledger = "ledger={kind: postgresql, dsn_env: DICOM_NODE_LEDGER}"
    first = start(ledger)

    with pytest.raises(
        RuntimeError, match=rf"ended with {EXIT_FAILED}(?s:.*)another node works with this ledger"
    ):
        start(ledger, folder="other")

    assert echoscu(first.node.port, called=AE_TITLE).returncode == 0
    assert first.node.stop() == 0
    start(ledger, folder="other")


def test_taken_port_is_a_mistake_of_the_configuration(start):
    port = start().node.port

    with pytest.raises(RuntimeError, match=rf"ended with {EXIT_WRONG}(?s:.*)receiver"):
        start(f"receiver.port={port}", folder="other")


def test_killed_receiver_is_back_on_the_same_port(start):
    running = start()
    first = running.find_receiver()

    os.kill(first, signal.SIGKILL)

    wait_until(lambda: echoscu(running.node.port, called=AE_TITLE).returncode == 0)
    assert running.find_receiver() != first


def test_killed_node_leaves_nobody_on_its_port(start):
    running = start()

    os.kill(running.pid, signal.SIGKILL)

    wait_until(lambda: not is_taken(running.node.port))


def test_store_without_its_ledger_is_refused(start, tmp_path):
    running = start()
    assert running.node.stop() == 0
    (tmp_path / "node" / "data" / "ledger.sqlite").unlink()

    with pytest.raises(RuntimeError, match=f"ended with {EXIT_FAILED}"):
        start()


def test_ledger_without_its_store_is_refused_until_the_store_is_back(start, tmp_path):
    files = write_files(make_series("T1w", make_volume((3, 8, 8))), tmp_path / "study")
    running = start()
    assert storescu(running.node.port, *files, called=AE_TITLE).returncode == 0
    assert running.node.stop() == 0
    store = tmp_path / "node" / "data" / "store"
    store.rename(tmp_path / "unmounted")

    for _ in range(2):
        with pytest.raises(
            RuntimeError, match=rf"ended with {EXIT_FAILED}(?s:.*)knows 3 received files"
        ):
            start()

    shutil.rmtree(store)
    (tmp_path / "unmounted").rename(store)
    start()


def test_node_itself_loads_no_torch(start):
    running = start()
    wait_until(lambda: "dicom_node_assembly_sweep_age_seconds" in running.ask("/metrics"))

    assert "torch" not in Path(f"/proc/{running.pid}/maps").read_text()


def test_model_is_ready_in_the_worker_before_any_study_comes(start):
    running = start("dispatch.warm=true")

    wait_until(lambda: "model.ready" in running.node.child.read_log())
    assert "model.ready model=brain-any-unet25d workers=1" in running.node.child.read_log()
    assert running.count("dicom_node_alerts") == 0


def test_model_that_cannot_answer_is_an_alert_and_reception_goes_on(start, tmp_path):
    folder = tmp_path / "models" / "brain-any-unet25d"
    (folder / "learnt" / "table.json").unlink()
    write_card(folder, yaml.safe_load((folder / "card.yaml").read_text()))
    running = start("dispatch.warm=true")

    wait_until(lambda: running.count("dicom_node_alerts") == 1)
    assert echoscu(running.node.port, called=AE_TITLE).returncode == 0
    assert "model.broken model=brain-any-unet25d" in running.node.child.read_log()


def test_broken_model_stops_judging_and_not_reception(start, tmp_path):
    (tmp_path / "models" / "brain-any-unet25d" / "card.yaml").write_text("id: other\n")
    running = start()

    wait_until(lambda: "sweep.failed name=assembly" in running.node.child.read_log())
    assert echoscu(running.node.port, called=AE_TITLE).returncode == 0


def test_data_folder_that_cannot_be_made_is_a_mistake_of_the_configuration(start):
    with pytest.raises(RuntimeError, match=rf"ended with {EXIT_WRONG}(?s:.*)data_folder : seen"):
        start("data_folder=/proc/nowhere")
