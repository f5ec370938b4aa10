"""A PACS that hangs: connections are taken, nothing is said. Each rule says what follows."""

import os
import shutil
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from dicom_node.demonstration.pacs import Orthanc
from dicom_node.domain import StudyState
from doubles.dcmtk import storescu
from doubles.node import AE_TITLE, CONFIGURATION, NodeUnderTest
from doubles.series import make_series, write_files

pytestmark = pytest.mark.acceptance

POLICIES = ("wait", "go_on", "hold")
QUICK = ("query.answer=1 s", "query.first_retry=1 s", "query.patience=3 s")


@contextmanager
def hung(orthanc: Orthanc) -> Iterator[None]:
    """Have it hang for the block: the kernel goes on taking connections for it."""
    os.kill(orthanc.child.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(orthanc.child.pid, signal.SIGCONT)


def write_rules(folder: Path) -> Path:
    """Write a configuration with the shipped rule for brains once for each policy."""
    shutil.copytree(CONFIGURATION, folder)
    path = folder / "routing.yaml"
    document = yaml.safe_load(path.read_text())
    brain = next(each for each in document["rules"] if each["name"] == "brain-mr-complete")
    document["rules"] = [
        {
            **brain,
            "name": policy.replace("_", "-"),
            "study": {"any_series": {"keyword": "StudyDescription", "equals": policy}},
            "ask": {"peer": "pacs", "when_silent": policy},
        }
        for policy in POLICIES
    ]
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return folder


def send(node: NodeUnderTest, policy: str, folder: Path) -> str:
    """Send a brain that lacks FLAIR, and return its UID."""
    facts = {"key": f"silence {policy}", "patient_id": f"SILENT-{policy}", "description": policy}
    images = [
        image
        for number, label in enumerate(("T1w", "T2w"), 1)
        for image in make_series(label, number=number, **facts)
    ]
    write_files(images, folder / policy)
    assert storescu(node.port, folder / policy, called=AE_TITLE).returncode == 0
    return str(images[0].StudyInstanceUID)


def test_each_rule_says_what_follows_when_the_pacs_hangs(
    orthanc, make_node, copying_models, tmp_path
):
    overrides = (f"models_folder={copying_models}", *QUICK)
    node = make_node(overrides, configuration=write_rules(tmp_path / "config"))
    node.start()

    def states() -> Sequence[tuple[StudyState, str | None]]:
        with node.ledger() as ledger:
            rows = [ledger.study_row(study) for study in studies]
        return [(row.state, row.hold_code) for row in rows]

    def plans(study: str) -> list[str]:
        with node.ledger() as ledger:
            return [str(job.plan.target) for job in ledger.jobs(study)]

    with hung(orthanc):
        studies = [send(node, policy, tmp_path) for policy in POLICIES]
        waiting, _, held = studies
        decided = [
            (StudyState.RECEIVING, None),
            (StudyState.JUDGED, None),
            (StudyState.HELD, "peer_silent"),
        ]
        node.wait_until(lambda: states() == decided)
        assert [plans(study) for study in studies] == [[], ["FLAIR"], []]

    node.wait_until(lambda: plans(waiting) == ["FLAIR"])
    assert (states()[-1], plans(held)) == ((StudyState.HELD, "peer_silent"), [])
    assert "SILENT-" not in node.read_log()
    assert node.stop() == 0
