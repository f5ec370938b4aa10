import json
import socket
import ssl
import subprocess
from collections.abc import Callable
from concurrent.futures import Future
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from dicom_node import doctor, trial
from dicom_node.doctor import Finding, State, examine
from dicom_node.door_settings import TLS, Peer
from dicom_node.errors import WorkerLost
from dicom_node.executors import InlineExecutor, JobExecutor
from dicom_node.ledger import Ledger
from dicom_node.settings import load
from doubles.audit import make_certificates, open_repository
from doubles.bench import CONFIGURATION, Bench
from doubles.certificates import find_fingerprint, make_authority, make_certificate
from doubles.ledger import make_instance
from doubles.models import write_copying_model, write_copying_picture_model
from doubles.receiver import open_door
from doubles.scripted_archive import Reply, ScriptedArchive
from doubles.scripted_pacs import MR, ScriptedPacs
from doubles.task_manager import TaskManager
from doubles.tools import require_program

CT = "1.2.840.10008.5.1.4.1.1.2"
REPORT = "1.2.840.10008.5.1.4.1.1.88.34"
MAP = "1.2.840.10008.5.1.4.1.1.30"


class Worker(JobExecutor):
    """Answers every trial alike."""

    def __init__(self, answer: int | Exception) -> None:
        self._answer = answer

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        if isinstance(self._answer, Exception):
            future.set_exception(self._answer)
        else:
            future.set_result(self._answer)
        return future


def find_server_context(folder: Path, name: str) -> ssl.SSLContext:
    """Return the TLS settings of a peer with certificates in `folder`."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=folder / "authority.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(folder / f"{name}.pem", folder / f"{name}.key")
    return context


QUICK = Worker(700)


@pytest.fixture
def find(tmp_path: Path) -> Callable[..., dict[str, Finding]]:
    """Return a function that examines the shipped configuration with overrides."""
    write_copying_model(tmp_path / "models")
    write_copying_model(tmp_path / "models", "limb-ct-boosting")

    def find(*overrides: str, worker: JobExecutor = QUICK) -> dict[str, Finding]:
        folders = (f"data_folder={tmp_path / 'data'}", f"models_folder={tmp_path / 'models'}")
        configuration = load(CONFIGURATION, [*folders, "receiver.port=1", *overrides])
        return {each.check: each for each in examine(configuration, worker)}

    return find


def test_model_of_pictures_is_tried_on_a_picture(tmp_path):
    write_copying_picture_model(tmp_path, "gray", "DX", "DX bone", "DX")

    assert trial.run(tmp_path, "gray") > 0


def test_peer_that_takes_everything_is_well(find):
    with ScriptedPacs(classes=(MR, CT, REPORT, MAP), ae_title="ORTHANC") as pacs:
        found = find(f"peers.pacs.port={pacs.port}")["peer pacs"]

    assert found.state is State.OK
    assert "MRImageStorage" in found.detail


def test_peer_that_does_not_take_a_class_is_told_by_its_name(find):
    with ScriptedPacs(classes=(MR, CT, MAP), ae_title="ORTHANC") as pacs:
        found = find(f"peers.pacs.port={pacs.port}")["peer pacs"]

    assert found.state is State.FAILED
    assert "Comprehensive3DSRStorage" in found.detail


def test_peer_that_does_not_offer_the_commitment_it_is_asked_for_is_told(find):
    with ScriptedPacs(classes=(MR, CT, REPORT, MAP), ae_title="ORTHANC") as pacs:
        how = "peers.pacs.commitment=storage_commitment"
        found = find(f"peers.pacs.port={pacs.port}", how)["peer pacs"]

    assert found.state is State.FAILED
    assert "does not take StorageCommitmentPushModel" in found.detail


@pytest.mark.parametrize(("double", "state"), [(TaskManager, State.OK), (ScriptedPacs, "failed")])
def test_worklist_must_offer_its_steps(find, double, state):
    workitem = "steps.workitems=[{value: COMPLETE, scheme: 99SITE, meaning: Complete it}]"
    with double(ae_title="MANAGER") as manager:
        called = f"ae_title: MANAGER, host: 127.0.0.1, port: {manager.port}, roles: [worklist]"
        found = find(f"peers.manager={{{called}}}", workitem)["peer manager"]

    assert found.state == state
    assert "UnifiedProcedureStepPull" in found.detail


def test_what_to_enter_at_a_worklist_is_told():
    called = "ae_title: MANAGER, host: m.example, port: 104, roles: [worklist]"
    workitem = "steps.workitems=[{value: COMPLETE, scheme: 99SITE, meaning: Complete it}]"
    node = load(CONFIGURATION, [f"peers.manager={{{called}}}", workitem]).node

    [line] = [each for each in doctor.describe_for_pacs(node) if each.startswith("manager: ")]

    assert "(COMPLETE, 99SITE)" in line
    assert "(DICOM_NODE, 99SYNTH)" in line


def test_peer_that_is_not_there_is_told_with_its_address(find):
    found = find("peers.pacs.port=1")["peer pacs"]

    assert found.state is State.FAILED
    assert "ORTHANC at 127.0.0.1 port 1" in found.detail


@pytest.mark.integration
def test_dicomweb_service_that_lists_what_it_holds_is_well(find, orthanc):
    service = f"peers.archive={{roles: [send], dicomweb: {{url: '{orthanc.http}/dicom-web'}}}}"

    found = find(service)["peer archive"]

    assert found.state is State.OK
    assert found.detail == "its DICOMweb service answers a search"


@pytest.mark.integration
def test_dicomweb_service_that_wants_a_token_is_told(find):
    with ScriptedArchive(lambda _: Reply(status=401)) as archive:
        service = f"peers.archive={{roles: [send], dicomweb: {{url: '{archive.url}'}}}}"
        found = find(service)["peer archive"]

    assert found.state is State.FAILED
    assert "HTTP 401" in found.detail


def test_node_that_does_not_run_is_only_a_warning(find):
    assert find()["door"].state is State.WARNING


def test_model_tells_seconds_and_memory(find):
    found = find()["model brain-any-unet25d"]

    assert found.state is State.OK
    assert found.detail == "the first answer took 0.0 s, the next 0.0 s; 700 MB"


def test_model_that_does_not_work_fails(find):
    worker = Worker(WorkerLost("UntrustedModel at registry.py:1"))

    assert find(worker=worker)["model brain-any-unet25d"].state is State.FAILED


def test_altered_card_fails(find, tmp_path):
    (tmp_path / "models" / "brain-any-unet25d" / "card.yaml").write_text("id: other\n")

    assert find()["models"].state is State.FAILED


def test_rule_whose_model_is_not_there_fails(find, tmp_path):
    found = find(f"models_folder={tmp_path / 'none'}")["models"]

    assert found.state is State.FAILED
    assert "brain-any-unet25d" in found.detail or "limb-ct-boosting" in found.detail


def test_ledger_is_opened_and_counted(find, tmp_path):
    before = find()["ledger"].detail
    Bench(tmp_path / "data", tmp_path / "models").ledger.close()

    assert before == "there is none yet; the first start makes it"
    assert find()["ledger"].detail.startswith("0 instances")


def test_lost_ledger_fails(find, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "store").mkdir()

    assert find()["ledger"].state is State.FAILED


@pytest.mark.integration
def test_certificate_that_fits_is_told_with_its_days(find, tmp_path):
    authority = make_authority(tmp_path)
    certificate, key = make_certificate(tmp_path, authority, "node")

    found = find(f"receiver.tls={{certificate: {certificate}, key: {key}, ca: {authority}}}")["tls"]

    assert found.state is State.WARNING
    assert found.detail == (
        "certificate, key and authority fit; 1 days are left; "
        f"fingerprint {find_fingerprint(certificate)}"
    )


@pytest.mark.integration
def test_certificate_of_another_authority_fails(find, tmp_path):
    authority = make_authority(tmp_path)
    certificate, key = make_certificate(tmp_path, authority, "node")
    other = make_authority(tmp_path, "other")

    found = find(f"receiver.tls={{certificate: {certificate}, key: {key}, ca: {other}}}")["tls"]

    assert found.state is State.FAILED


@pytest.mark.integration
def test_peer_without_certificates_of_its_own_is_warned_of(find, tmp_path):
    authority = make_authority(tmp_path)
    certificate, key = make_certificate(tmp_path, authority, "node")
    own = f"peers.modality.certificates=['{find_fingerprint(certificate)}']"

    found = find(f"receiver.tls={{certificate: {certificate}, key: {key}, ca: {authority}}}", own)

    assert found["identity pacs"].state is State.WARNING
    assert "peers.pacs.certificates" in found["identity pacs"].detail
    assert "identity modality" not in found


def test_peer_that_is_called_in_plain_over_a_network_is_warned_of(find):
    remote = "peers.remote={ae_title: A, host: pacs.example, port: 1, roles: [query]}"

    found = find(remote)

    assert found["secrecy remote"].state is State.WARNING
    assert "secrecy pacs" not in found


@pytest.mark.integration
def test_peer_that_is_called_with_tls_is_told_with_its_certificate(find, tmp_path):
    authority = make_authority(tmp_path)
    certificate, key = make_certificate(tmp_path, authority, "node")
    shown, _ = make_certificate(tmp_path, authority, "pacs")
    pin = find_fingerprint(shown)
    with ScriptedPacs(
        classes=(MR, CT, REPORT, MAP), ae_title="ORTHANC", tls=find_server_context(tmp_path, "pacs")
    ) as pacs:
        found = find(
            f"receiver.tls={{certificate: {certificate}, key: {key}, ca: {authority}}}",
            f"peers.pacs.port={pacs.port}",
            "peers.pacs.tls=true",
            f"peers.pacs.certificates=['{pin}']",
        )

    assert found["peer pacs"].state is State.OK
    assert found["certificate pacs"].state is State.WARNING
    assert found["certificate pacs"].detail == f"1 days are left; fingerprint {pin}"


def test_audit_repository_is_called_and_told_with_its_certificate(find, tmp_path):
    tls = make_certificates(tmp_path)
    with open_repository(tmp_path) as repository:
        found = find(f"audit={{host: 127.0.0.1, port: {repository.port}, tls: {tls}}}")["audit"]

    assert found.state is State.WARNING  # it ends in two days
    assert found.detail.startswith("answers; 1 days are left; fingerprint ")
    assert repository.streams == [b""]


def test_audit_repository_that_is_away_fails(find, tmp_path):
    tls = make_certificates(tmp_path)
    found = find(f"audit={{host: 127.0.0.1, port: 1, tls: {tls}}}")["audit"]

    assert found.state is State.FAILED
    assert found.detail.startswith("127.0.0.1 port 1: ")


@pytest.mark.integration
def test_trial_runs_a_model_for_real(find):
    found = find(worker=InlineExecutor())["model brain-any-unet25d"]

    assert found.state is State.OK


def test_pacs_is_told_title_host_and_port():
    node = load(CONFIGURATION).node

    lines = "\n".join(doctor.describe_for_pacs(node))

    assert "AE title DICOM_NODE, host 127.0.0.1, port 11112, no TLS" in lines
    assert '["DICOM_NODE", "127.0.0.1", 11112]' in lines


@pytest.mark.integration
def test_line_for_dcmtk_echoes_the_node(tmp_path):
    with open_door(tmp_path) as door:
        node = load(CONFIGURATION, ["ae_title=NODE", f"receiver.port={door.port}"]).node
        scanner = Peer(ae_title="SCANNER", address="127.0.0.1", roles={"receive"})
        node = node.model_copy(update={"peers": {"scanner": scanner}})
        [line] = [each for each in doctor.describe_for_pacs(node) if "echoscu" in each]
        words = line.partition(": ")[2].split()
        done = subprocess.run([require_program(words[0], "dcmtk"), *words[1:]], check=False)

    assert done.returncode == 0


def test_pacs_is_told_to_use_tls_where_the_node_does(tmp_path):
    authority = make_authority(tmp_path)
    certificate, key = make_certificate(tmp_path, authority, "node")
    files = f"{{certificate: {certificate}, key: {key}, ca: {authority}}}"
    lines = list(doctor.describe_for_pacs(load(CONFIGURATION, [f"receiver.tls={files}"]).node))

    [orthanc] = [line for line in lines if line.startswith("Orthanc")]
    entered = json.loads(f"{{{orthanc.partition(': ')[2]}}}")
    assert entered["DicomModalities"]["node"]["UseDicomTls"] is True
    assert any(line.startswith("dcm4chee") for line in lines)
    assert all("+tls" in line for line in lines if "echoscu" in line)


def test_node_answers_its_own_echo_as_a_peer_would(find, tmp_path):
    with open_door(tmp_path / "door") as door:
        found = find(
            "ae_title=NODE",
            f"receiver.port={door.port}",
            "peers.modality.ae_title=SCANNER",
            "peers.pacs.roles=[send, query]",
        )["door"]

    assert found.state is State.OK


def test_node_answers_its_own_echo_over_tls(find, tmp_path):
    authority = make_authority(tmp_path)
    certificate, key = make_certificate(tmp_path, authority, "node")
    files = f"{{certificate: {certificate}, key: {key}, ca: {authority}}}"
    with open_door(
        tmp_path / "door", tls=TLS(certificate=certificate, key=key, ca=authority)
    ) as door:
        found = find(
            "ae_title=NODE",
            f"receiver.port={door.port}",
            f"receiver.tls={files}",
            "peers.modality.ae_title=SCANNER",
            "peers.pacs.address=10.1.2.3",
        )["door"]

    assert found.state is State.OK


def test_host_without_an_address_fails(find):
    found = find("peers.pacs.host=nowhere.invalid")["address pacs"]

    assert found.state is State.FAILED
    assert "nowhere.invalid has no address" in found.detail


def test_peer_that_calls_from_elsewhere_than_its_host_is_warned_of(find):
    found = find("peers.pacs.address=10.1.2.3", "peers.pacs.host=127.0.0.1")["address pacs"]

    assert found.state is State.WARNING
    assert "its host is 127.0.0.1, and it may call from 10.1.2.3/32 only" in found.detail


def test_peer_that_has_never_stored_here_is_told(find, tmp_path):
    url = f"sqlite:///{tmp_path / 'data' / 'ledger.sqlite'}"
    (tmp_path / "data").mkdir()
    with Ledger(url, lambda: datetime(2026, 11, 27, 8, 0, tzinfo=UTC)).open() as ledger:
        ledger.record_instances([make_instance()], "pacs", None)
    found = find()

    assert found["heard pacs"].detail == "stored here last at 2026-11-27 08:00 UTC"
    assert found["heard modality"].state is State.WARNING


def test_peer_that_cannot_be_told_of_withdrawals_is_warned_of(find):
    with ScriptedPacs(classes=(MR, CT, REPORT, MAP), ae_title="ORTHANC") as pacs:
        found = find(f"peers.pacs.port={pacs.port}")

    assert found["withdrawal pacs"].state is State.WARNING


def test_open_address_is_told_as_this_machine():
    node = load(CONFIGURATION, ["receiver.host=0.0.0.0", "receiver.allow_plain=[10.0.0.0/8]"]).node

    assert f"host {socket.gethostname()}," in "\n".join(doctor.describe_for_pacs(node))
