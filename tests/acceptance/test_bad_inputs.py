"""Bad inputs go through the same door as good ones: answered, held with a reason, and survived."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydicom import dcmread
from pynetdicom import AE, build_context

from dicom_node.demonstration.pacs import Orthanc
from dicom_node.demonstration.studies import Parcel
from dicom_node.domain import StudyState
from dicom_node.jobs import JobState
from dicom_node.network import open_association
from doubles import bad_inputs
from doubles.dcmtk import storescu
from doubles.forms import CLUSTERED, EMBEDDED, IN_BOTH_FORMS, IN_ONE_FORM, Form
from doubles.node import AE_TITLE, CONFIGURATION, SCANNER, NodeUnderTest

pytestmark = pytest.mark.acceptance

MR = "1.2.840.10008.5.1.4.1.1.4"
ENCAPSULATED_PDF = "1.2.840.10008.5.1.4.1.1.104.1"
JPEG_12_BIT = "1.2.840.10008.1.2.4.51"
"""JPEG Extended: no codec here decodes it at 12 bits."""
ABSTRACT_SYNTAX_NOT_SUPPORTED, TRANSFER_SYNTAXES_NOT_SUPPORTED = 3, 4
UNDECODABLE, TRUNCATED = 0xC102, 0xC103


@pytest.fixture(scope="module")
def node(
    orthanc: Orthanc, copying_models: Path, form: Form, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[NodeUnderTest]:
    """One node of each form for all: what one input does to it, the next one sees."""
    folder = tmp_path_factory.mktemp("bad-inputs") / "node"
    overrides = [f"models_folder={copying_models}", *form.take_ledger()]
    node = NodeUnderTest(folder, orthanc, overrides)
    node.start()
    yield node
    assert node.stop() == 0


@pytest.fixture(scope="module")
def t1w(phantom: Parcel) -> list[Path]:
    return [path for path in phantom.files if path.parent.name == "T1w"]


def run(node: NodeUnderTest, *words: str) -> str:
    """Run a command of the node beside it, and return what it says."""
    program = Path(sys.executable).with_name("dicom-node")
    sets = [word for override in node.overrides for word in ("--set", override)]
    command = [program, *words, "--config", CONFIGURATION, *sets]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    ("form", "fault"),
    [
        *((EMBEDDED, fault) for fault in bad_inputs.STUDIES),
        (CLUSTERED, "two contents under one UID"),
    ],
    indirect=["form"],
)
def test_faulty_study_is_acknowledged_and_held_with_a_reason(fault, node, t1w, tmp_path):
    break_it, code = bad_inputs.STUDIES[fault]
    study = break_it(bad_inputs.copy_study(t1w, fault))
    uid = str(study[0].StudyInstanceUID)

    answer = storescu(node.port, bad_inputs.save(study, tmp_path / "study"), called=AE_TITLE)
    assert answer.returncode == 0, answer.stderr
    node.wait_for(uid)

    with node.ledger() as ledger:
        row = ledger.study_row(uid)
        assert (row.state, row.hold_code) == (StudyState.HELD, code)
        assert ledger.jobs(uid) == []
    reasons = [one["reason"] for one in json.loads(run(node, "explain", uid, "--json"))["refusals"]]
    assert any(code in reason for reason in reasons), reasons


@IN_BOTH_FORMS
@pytest.mark.parametrize(
    ("spoil", "status"),
    [
        (lambda data: b"this is no DICOM data set, whatever it is" * 4, UNDECODABLE),
        (lambda data: data[: len(data) // 2], TRUNCATED),
    ],
    ids=["not DICOM", "truncated"],
)
def test_what_cannot_be_kept_faithfully_is_refused(spoil, status, node, t1w):
    instance = bad_inputs.copy_study(t1w[:1], "refused")[0]
    data = spoil(bad_inputs.encode(instance))

    with open_association(
        "127.0.0.1",
        node.port,
        called_ae_title=AE_TITLE,
        calling_ae_title=SCANNER,
        sop_classes=[MR],
    ) as association:
        context = association.find_context(MR)
        answer = association.store(context, MR, str(instance.SOPInstanceUID), data)

    assert answer == status
    with node.ledger() as ledger, pytest.raises(LookupError):
        ledger.study_row(str(instance.StudyInstanceUID))


@IN_ONE_FORM
@pytest.mark.parametrize(
    ("sop_class", "syntax", "result"),
    [
        (ENCAPSULATED_PDF, "1.2.840.10008.1.2.1", ABSTRACT_SYNTAX_NOT_SUPPORTED),
        (MR, JPEG_12_BIT, TRANSFER_SYNTAXES_NOT_SUPPORTED),
    ],
    ids=["encapsulated PDF", "compressed, codec missing"],
)
def test_what_the_node_could_not_use_is_not_negotiated(sop_class, syntax, result, node):
    scanner = AE(SCANNER)
    contexts = [build_context(MR, "1.2.840.10008.1.2.1"), build_context(sop_class, syntax)]

    association = scanner.associate("127.0.0.1", node.port, contexts, ae_title=AE_TITLE)

    try:
        assert [context.result for context in association.rejected_contexts] == [result]
        assert [context.abstract_syntax for context in association.accepted_contexts] == [MR]
    finally:
        association.release()


@IN_BOTH_FORMS
def test_node_still_completes_a_good_study(node, phantom, tmp_path):
    good = [dcmread(path) for path in phantom.files]

    answer = storescu(node.port, bad_inputs.save(good, tmp_path / "good"), called=AE_TITLE)
    assert answer.returncode == 0, answer.stderr
    node.wait_for(phantom.study_instance_uid)

    with node.ledger() as ledger:
        assert [job.state for job in ledger.jobs(phantom.study_instance_uid)] == [JobState.DONE]


@IN_BOTH_FORMS
def test_a_contested_content_stops_a_finished_study_until_it_is_released(node, phantom, tmp_path):
    uid = phantom.study_instance_uid
    *_, contested = bad_inputs.with_two_contents([dcmread(phantom.files[0])])
    with node.ledger() as ledger:
        finished = [(job.plan.plan_id, job.state, job.attempt) for job in ledger.jobs(uid)]

    answer = storescu(node.port, bad_inputs.save([contested], tmp_path / "more"), called=AE_TITLE)
    assert answer.returncode == 0, answer.stderr
    with node.ledger() as ledger:
        node.wait_until(lambda: ledger.study_row(uid).hold_code == "uid_conflict")
        (conflict,) = ledger.conflicts(uid)
        assert conflict.kept in {each.path for each in ledger.read_instances(uid)}
        run(node, "release", uid, "--by", "M. Meier", "--why", "sent by mistake")
        node.wait_until(lambda: ledger.study_row(uid).state is StudyState.JUDGED)
        now = [(job.plan.plan_id, job.state, job.attempt) for job in ledger.jobs(uid)]
        assert now == finished

    assert f"study={uid}" in node.read_log()
