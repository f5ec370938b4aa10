import contextlib
import itertools
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file

from dicom_node.door_settings import TLS
from dicom_node.errors import ConfigurationError, StorageError
from dicom_node.ledger import Ledger
from dicom_node.node_settings import read_node
from dicom_node.part10 import decode_file_meta
from dicom_node.receiver import run_receiver
from dicom_node.receiver_process import ReceiverProcess
from dicom_node.store import Store
from dicom_node.tls import ClientSide
from doubles.certificates import find_fingerprint, make_authority, make_certificate
from doubles.dcmtk import echoscu, storescu
from doubles.raw_peer import EXPLICIT, IMPLICIT, MR, RawPeer, associate_request
from doubles.tools import require_data, require_program

pytestmark = pytest.mark.integration

NODE = """
ae_title: NODE
data_folder: data
models_folder: models
peers:
  scanner: {ae_title: SCANNER, address: 127.0.0.1, roles: [receive]}
receiver:
  port: 0
  storage_classes:
    image: [MRImageStorage, EnhancedMRImageStorage, CTImageStorage]
    passed_over: [SecondaryCaptureImageStorage, ComprehensiveSRStorage]
  limits:  # a busy machine notices late that a peer has closed, and all peers have one address here
    connections: 1000
    connections_per_address: 1000
"""
CT = "1.2.840.10008.5.1.4.1.1.2"
MR_FILE = Path(str(get_testdata_file("MR_small.dcm")))
CODECS = ("gdcm", "openjpeg", "CharLS", "libtorch", "_SimpleITK", "_imaging")


class Running:
    """A receiving process and what is behind it."""

    def __init__(self, folder: Path) -> None:
        (folder / "node.yaml").write_text(NODE)
        self.process = ReceiverProcess(folder)
        self.port = self.process.start()[1]
        self.settings = read_node(folder)
        self.store = Store(self.settings.store_folder)

    def ledger(self) -> Ledger:
        return Ledger(self.settings.ledger_url, lambda: datetime.now(UTC)).open()

    def stored(self) -> list[str]:
        return list(self.store.iterate_incoming())


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A process that the tests share; what they store stays there."""
    one = Running(tmp_path_factory.mktemp("running"))
    yield one
    one.process.stop()


@pytest.fixture
def doomed(tmp_path: Path) -> Iterator[Running]:
    """A process that one test may kill."""
    one = Running(tmp_path)
    yield one
    one.process.stop()


def element(group: int, number: int, value: str) -> bytes:
    raw = value.encode() + b"\0" * (len(value) % 2)
    return struct.pack("<HH2sH", group, number, b"UI", len(raw)) + raw


def data_set(uid: str) -> bytes:
    return (
        element(0x0008, 0x0016, MR)
        + element(0x0008, 0x0018, uid)
        + element(0x0020, 0x000D, "1.2.3")
        + element(0x0020, 0x000E, "1.2.3.4")
        + struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OW", 0, 20_000)
        + bytes(20_000)
    )


def test_the_process_holds_no_codec(running):
    assert echoscu(running.port, called="NODE", calling="SCANNER").returncode == 0

    maps = Path(f"/proc/{running.process.pid}/maps").read_text()
    assert not [name for name in CODECS if name in maps]


def test_no_process_holds_what_the_configuration_was_read_with(running):
    pid = running.process.pid
    serving = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()

    assert serving
    for each in (pid, *serving):
        maps = Path(f"/proc/{each}/maps").read_text()
        assert "pydantic" not in maps
        assert "yaml" not in maps


def test_processes_that_serve_do_without_the_database_library(running):
    pid = running.process.pid
    serving = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()

    assert "/sqlalchemy/" in Path(f"/proc/{pid}/maps").read_text()
    assert serving
    assert not [each for each in serving if "sqlalchemy" in Path(f"/proc/{each}/maps").read_text()]


def test_it_drains_when_asked(doomed):
    assert doomed.process.stop() == 0
    assert not doomed.process.is_alive()


def test_storescu_and_dcmsend_store_what_they_send(running):
    sent = storescu(running.port, MR_FILE, called="NODE", calling="SCANNER")
    program = require_program("dcmsend", "dcmtk")
    titles = ["-v", "-aet", "SCANNER", "-aec", "NODE"]
    again = subprocess.run(
        [program, *titles, "127.0.0.1", str(running.port), str(MR_FILE)],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )

    assert sent.returncode == 0
    assert "with status SUCCESS  : 1" in again.stdout + again.stderr
    with running.ledger() as ledger:
        (instance,) = ledger.read_instances(dcmread(MR_FILE).StudyInstanceUID)
    kept = running.store.read(instance.path)
    assert kept[decode_file_meta(kept).data_set_offset :] in MR_FILE.read_bytes()


def test_a_stranger_gets_no_echo(running):
    assert echoscu(running.port, called="NODE", calling="STRANGER").returncode != 0
    assert echoscu(running.port, called="OTHER", calling="SCANNER").returncode != 0


def test_senders_as_shipped_do_not_stall_on_delayed_acknowledgements(running):
    """DCMTK keeps Nagle's algorithm on: 40 ms a file, unless the receiver acknowledges at once."""
    with RawPeer(running.port) as peer:
        peer.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)
        peer.associate()
        began = time.monotonic()
        for _ in range(20):  # two writes each; refused, so that no disk takes part
            assert peer.store("no uid", b"no data set") == 0x0117
        seconds = time.monotonic() - began

    assert seconds / 20 < 0.02


def test_killed_and_started_again_it_listens_on_the_same_port(doomed):
    os.kill(doomed.process.pid, signal.SIGKILL)
    deadline = time.monotonic() + 5
    while doomed.process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.02)

    assert doomed.process.start()[1] == doomed.port
    assert echoscu(doomed.port, called="NODE", calling="SCANNER").returncode == 0


def test_it_ends_with_the_process_that_started_it(tmp_path):
    (tmp_path / "node.yaml").write_text(NODE)
    code = (
        "import sys, os\nfrom pathlib import Path\n"
        "from dicom_node.receiver_process import ReceiverProcess\n"
        f"process = ReceiverProcess(Path({str(tmp_path)!r}))\nprocess.start()\n"
        "print(process.pid, flush=True)\nos.kill(os.getpid(), 9)\n"
    )
    parent = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    child = int(parent.stdout)

    deadline = time.monotonic() + 5
    while Path(f"/proc/{child}").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not Path(f"/proc/{child}").exists()


def test_a_port_that_is_taken_is_a_mistake_in_the_configuration(running, tmp_path):
    (tmp_path / "node.yaml").write_text(NODE)
    second = ReceiverProcess(tmp_path, [f"receiver.port={running.port}"])

    with pytest.raises(ConfigurationError, match="port"):
        second.start()


def test_a_store_that_is_not_ours_is_told(tmp_path):
    (tmp_path / "node.yaml").write_text(NODE)
    (tmp_path / "data" / "store").mkdir(parents=True)
    (tmp_path / "data" / "store" / "somebody").write_text("else")

    with pytest.raises(StorageError, match="mount"):
        ReceiverProcess(tmp_path).start()


def test_no_acknowledged_instance_is_lost_to_a_kill(doomed):
    acknowledged: list[str] = []
    for cycle in range(4):
        pid = doomed.process.pid
        killer = threading.Timer(0.1 + 0.07 * cycle, os.kill, (pid, signal.SIGKILL))
        killer.start()
        try:
            with RawPeer(doomed.port) as peer:
                peer.associate()
                for number in range(1_000):
                    uid = f"1.2.3.{cycle}.{number}"
                    if peer.store(uid, data_set(uid)) == 0:
                        acknowledged.append(uid)
        except (ConnectionError, AssertionError):
            pass  # it was killed
        killer.join()
        doomed.process.start()

    with doomed.ledger() as ledger:
        instances = ledger.read_instances("1.2.3")
        paths = {instance.path for instance in instances}
    assert acknowledged
    assert set(acknowledged) <= {instance.sop_instance_uid for instance in instances}
    assert set(doomed.stored()) == paths
    assert not list(doomed.store.path("incoming").rglob("*.part"))


def find_workers(process: ReceiverProcess) -> list[int]:
    """Return the processes that serve its connections."""
    tasks = Path(f"/proc/{process.pid}/task").iterdir()
    return [int(pid) for task in tasks for pid in (task / "children").read_text().split()]


def is_running(pid: int) -> bool:
    """Say whether a process is more than a name that nobody has asked for since it ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def count_sockets(pid: int) -> int:
    links = Path(f"/proc/{pid}/fd").iterdir()
    count = 0
    for link in links:
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            count += str(link.readlink()).startswith("socket:")
    return count


def test_connections_are_shared_out_among_the_processes(tmp_path):
    (tmp_path / "node.yaml").write_text(NODE)
    process = ReceiverProcess(tmp_path, ["receiver.processes=3"])
    port = process.start()[1]
    workers = find_workers(process)

    with contextlib.ExitStack() as stack:
        for _ in range(6):
            peer = stack.enter_context(RawPeer(port))
            peer.associate()
            assert peer.echo() == 0
        shares = [count_sockets(pid) for pid in workers]

    assert process.stop() == 0
    assert shares == [3, 3, 3]  # its line to the receiver, and two peers
    assert not [pid for pid in workers if is_running(pid)]


def test_a_peer_is_counted_over_all_processes(tmp_path):
    (tmp_path / "node.yaml").write_text(NODE)
    overrides = ["receiver.processes=2", "receiver.limits.associations_per_peer=3"]
    process = ReceiverProcess(tmp_path, overrides)
    port = process.start()[1]

    with contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(RawPeer(port)).associate()
        fourth = stack.enter_context(RawPeer(port))
        fourth.send(associate_request())
        assert fourth.read_rejection() == (2, 3, 2)
    with RawPeer(port) as again:
        again.associate()
    process.stop()


def test_a_peer_that_closes_and_comes_again_at_once_finds_room(running):
    """Its last instances may have no row yet, and the end of its connections may not be noticed."""
    for number in range(40):
        uid = f"1.2.3.88.{number}"
        with RawPeer(running.port) as peer:
            peer.associate()
            assert peer.store(uid, data_set(uid)) == 0


def test_a_serving_process_that_dies_takes_the_receiver_along(doomed):
    with RawPeer(doomed.port) as peer:
        peer.associate()
        acknowledged = [f"1.2.3.77.{number}" for number in range(20)]
        for uid in acknowledged:
            assert peer.store(uid, data_set(uid)) == 0
        for pid in find_workers(doomed.process):
            os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 5
        while doomed.process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not doomed.process.is_alive()

    doomed.process.start()
    with doomed.ledger() as ledger:
        recorded = {instance.sop_instance_uid for instance in ledger.read_instances("1.2.3")}
    assert set(acknowledged) <= recorded


def test_a_killed_receiver_takes_its_serving_processes_along(doomed):
    workers = find_workers(doomed.process)
    os.kill(doomed.process.pid, signal.SIGKILL)

    doomed.process.start()

    assert workers
    assert not [pid for pid in workers if is_running(pid)]


def test_without_a_descriptor_a_connection_is_closed_and_nothing_else_happens(doomed):
    workers = find_workers(doomed.process)
    for starved in ([doomed.process.pid], workers):
        deadline = time.monotonic() + 20
        while any(count_sockets(pid) > 1 for pid in workers) and time.monotonic() < deadline:
            time.sleep(0.02)
        before = {pid: resource.prlimit(pid, resource.RLIMIT_NOFILE) for pid in starved}
        with contextlib.ExitStack() as stack:
            for pid in starved:
                taken = {int(each.name) for each in Path(f"/proc/{pid}/fd").iterdir()}
                free = next(number for number in itertools.count() if number not in taken)
                resource.prlimit(pid, resource.RLIMIT_NOFILE, (free, before[pid][1]))
                stack.callback(resource.prlimit, pid, resource.RLIMIT_NOFILE, before[pid])
            RawPeer(doomed.port).socket.close()  # accept has a descriptor before it waits
            with RawPeer(doomed.port) as peer:
                peer.socket.settimeout(1)
                peer.send(associate_request())
                with contextlib.suppress(TimeoutError):
                    assert peer.read_pdu() is None

        assert doomed.process.is_alive()
        with RawPeer(doomed.port) as peer:
            peer.associate()
            assert peer.echo() == 0


def test_limits_that_take_more_descriptors_than_the_system_gives_are_refused(tmp_path):
    (tmp_path / "node.yaml").write_text(NODE)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    process = ReceiverProcess(tmp_path, [f"receiver.limits.connections={hard}"])

    with pytest.raises(ConfigurationError, match="open files"):
        process.start()


def test_two_receivers_cannot_have_one_store(running, tmp_path, monkeypatch):
    monkeypatch.setattr("dicom_node.receiver.HOLD_SECONDS", 0.1)
    (tmp_path / "node.yaml").write_text(NODE)

    with pytest.raises(StorageError, match="another receiver"):
        run_receiver(tmp_path, [f"data_folder={running.settings.data_folder}"], print, print)


def read_raw(path: Path) -> tuple[str, str, str, bytes]:
    """Return class, UID, syntax and data set of a file, as well as they can be guessed."""
    content = path.read_bytes()
    try:
        meta = decode_file_meta(content)
    except ValueError:
        return CT, "1.2.3.4.5", EXPLICIT, content[132:]
    return (
        meta.sop_class_uid,
        meta.sop_instance_uid,
        meta.transfer_syntax_uid,
        content[meta.data_set_offset :],
    )


def test_malformed_files_are_stored_or_refused_and_the_node_goes_on(running):
    files = sorted(require_data("dicom_robustness").rglob("*.dcm"))
    accepted = 0
    for path in files:
        sop_class, uid, syntax, content = read_raw(path)
        syntax = IMPLICIT if syntax == IMPLICIT else EXPLICIT
        sop_class = sop_class if sop_class.startswith("1.2.840.10008.5") else CT
        with RawPeer(running.port) as peer:
            request = associate_request(((sop_class, (syntax,)),))
            if peer.associate(request) != [0]:
                continue
            status = peer.store(uid, content, sop_class_uid=sop_class, context_id=1)
        assert status in {0x0000, 0x0117, 0xA900, 0xC102, 0xC103, 0xC104}, path.name
        accepted += status == 0

    assert accepted > len(files) // 3
    assert echoscu(running.port, called="NODE", calling="SCANNER").returncode == 0


def test_studies_that_cannot_be_used_are_stored_all_the_same(running):
    """Holding a study is assembly's part; the door keeps what can be kept."""
    folder = require_data("dicom_syntax", "dicom2nifti", "failing")
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix == ".dcm"]

    before = len(running.stored())

    sent = storescu(running.port, *files, called="NODE", calling="SCANNER")

    assert sent.returncode == 0
    assert len(running.stored()) - before == len(files) > 0


def test_a_document_is_refused_by_its_presentation_context(running):
    with RawPeer(running.port) as peer:
        pdf = ("1.2.840.10008.5.1.4.1.1.104.1", (EXPLICIT,))

        assert peer.associate(associate_request((pdf,))) == [3]


def test_a_receiver_without_durability_says_so(tmp_path, capfd):
    (tmp_path / "node.yaml").write_text(NODE)
    process = ReceiverProcess(tmp_path, ["receiver.durability=none"])

    process.start()
    process.stop()

    assert "WARNING dicom_node.receiver receiver.durability_none" in capfd.readouterr().err


def test_a_changed_certificate_is_shown_without_a_restart(tmp_path):
    (tmp_path / "node.yaml").write_text(NODE)
    authority = make_authority(tmp_path)
    make_certificate(tmp_path, authority, "node")
    new, new_key = make_certificate(tmp_path, authority, "new")
    peer = ClientSide(TLS(certificate=new, key=new_key, ca=authority))
    files = "{certificate: node.pem, key: node.key, ca: authority.pem}"
    process = ReceiverProcess(tmp_path, [f"receiver.tls={files}", "receiver.processes=2"])
    _, port = process.start()
    try:
        before = {peer.look_at("127.0.0.1", port, 10).fingerprint for _ in range(4)}
        for source, target in ((new, "node.pem"), (new_key, "node.key")):
            (tmp_path / target).write_bytes(source.read_bytes())
        after = {peer.look_at("127.0.0.1", port, 10).fingerprint for _ in range(4)}
    finally:
        process.stop()

    assert find_fingerprint(new) not in before
    assert after == {find_fingerprint(new)}
