"""The audit trail from the ledger to a repository, which may be away for long."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from dicom_node import audit_trail
from dicom_node.audit_trail import AuditTrail
from dicom_node.complaints import Alert
from dicom_node.elements import encode
from dicom_node.headers import IDENTITY
from dicom_node.ledger import Ledger
from dicom_node.settings import load
from dicom_node.store import Store
from doubles.audit import Repository, make_certificates, open_repository
from doubles.bench import CONFIGURATION
from doubles.ledger import STUDY, Clock, finish, make_instance, make_plan, receive_and_judge

pytestmark = pytest.mark.integration
LEASE = timedelta(seconds=30)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(tmp_path: Path, clock: Clock) -> Iterator[Ledger]:
    with Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}", clock).open() as ledger:
        yield ledger


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[Repository]:
    (tmp_path / "tls").mkdir()
    make_certificates(tmp_path / "tls")
    with open_repository(tmp_path / "tls") as repository:
        yield repository


@pytest.fixture
def make_trail(tmp_path, clock, ledger, repository):
    """Return a function that builds the trail as a node does."""
    store = Store(tmp_path / "store")
    store.open()
    files = tmp_path / "tls"

    def make(*overrides: str) -> AuditTrail:
        tls = f"certificate: {files}/node.pem, key: {files}/node.key, ca: {files}/authority.pem"
        audit = f"audit={{host: 127.0.0.1, port: {repository.port}, tls: {{{tls}}}}}"
        node = load(CONFIGURATION, [f"data_folder={tmp_path}", audit, *overrides]).node
        return AuditTrail(node, node.audit, ledger, store, clock)

    make.store = store
    return make


def keep(store: Store, ledger: Ledger) -> None:
    """Receive an instance whose file says whose it is."""
    instance = make_instance()
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = instance.sop_class_uid, instance.sop_instance_uid
    dataset.PatientID = "PATIENT-1"
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    store.write(instance.path, encode(dataset))
    ledger.record_instances([instance], "pacs", None)


def find_codes(repository: Repository) -> list[str | None]:
    return [
        each.find("EventIdentification/EventID").get("csd-code") for each in repository.messages
    ]


def find_patients(repository: Repository) -> set[str | None]:
    return {
        each.get("ParticipantObjectID")
        for message in repository.messages
        for each in message.iter("ParticipantObjectIdentification")
        if each.get("ParticipantObjectTypeCodeRole") == "1"
    }


def test_what_happens_is_told_once_and_in_order(make_trail, ledger, repository):
    ledger.begin_tenure("node", LEASE)
    trail = make_trail()
    trail.sweep()
    receive_and_judge(ledger, [make_plan()])
    finish(ledger)
    ledger.note_alert(Alert(event="tls_failed", who="pacs", facts={}))
    trail.sweep()
    trail.sweep()
    ledger.end_tenure()
    trail.finish()

    assert find_codes(repository) == ["110100", "110104", "110103", "110103", "110113", "110100"]
    assert trail.find_delay() == timedelta(0)


def test_trail_goes_on_after_a_restart(make_trail, ledger, repository):
    ledger.begin_tenure("node", LEASE)
    make_trail().sweep()
    ledger.note_act("login", "M. Meier")
    make_trail().sweep()

    assert find_codes(repository) == ["110100", "110114"]


def test_what_was_before_the_trail_is_not_told(make_trail, ledger, repository):
    receive_and_judge(ledger)
    ledger.begin_tenure("node", LEASE)
    make_trail().sweep()

    assert find_codes(repository) == ["110100"]


def test_nothing_is_lost_while_the_repository_is_away(
    make_trail, ledger, repository, clock, monkeypatch
):
    monkeypatch.setattr(audit_trail, "BATCH", 20)
    ledger.begin_tenure("node", LEASE)
    trail = make_trail()
    repository.mood = "cut"
    trail.sweep()
    for _ in range(50):
        ledger.note_act("login", "M. Meier")
    clock.advance(days=3)
    [alert] = trail.find_alerts()
    assert "has taken nothing for 72.0 h" in alert
    repository.mood = "read"
    trail.sweep()

    assert find_codes(repository) == ["110100", *["110114"] * 50]
    assert list(trail.find_alerts()) == []


def test_repository_that_is_away_is_left_alone_for_a_while(make_trail, ledger, repository, clock):
    ledger.begin_tenure("node", LEASE)
    trail = make_trail()
    repository.mood = "cut"
    trail.sweep()
    repository.mood = "read"
    clock.advance(seconds=5)
    trail.sweep()
    assert repository.streams == []

    clock.advance(seconds=6)
    trail.sweep()
    assert find_codes(repository) == ["110100"]


def test_pseudonym_is_told_unless_the_configuration_says_otherwise(make_trail, ledger, repository):
    ledger.begin_tenure("node", LEASE)
    header = {IDENTITY: "0123456789abcdef"}
    ledger.record_instances([make_instance(header=header)], "pacs", None)
    make_trail().sweep()

    [pseudonym] = find_patients(repository)
    assert len(pseudonym) == 32
    assert "0123456789abcdef" not in pseudonym


@pytest.mark.parametrize(("patient", "told"), [("none", set()), ("identifier", {"PATIENT-1"})])
def test_patient_is_told_as_the_configuration_wants(
    make_trail, ledger, repository, tmp_path, patient, told
):
    ledger.begin_tenure("node", LEASE)
    keep(make_trail.store, ledger)
    make_trail(f"audit.patient={patient}").sweep()

    assert find_patients(repository) == told


def test_pseudonym_stays_when_the_study_has_been_judged(make_trail, ledger, repository, tmp_path):
    ledger.begin_tenure("node", LEASE)
    keep(make_trail.store, ledger)
    trail = make_trail()
    trail.sweep()
    ledger.note_act("patient_seen", "M. Meier", study=STUDY)
    trail.sweep()

    assert len(repository.streams) == 2
    assert len(find_patients(repository)) == 1
