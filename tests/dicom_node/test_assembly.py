from collections.abc import Iterator, Sequence
from copy import deepcopy
from datetime import timedelta
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from highdicom import Volume
from pydicom import Dataset

from dicom_node import assembly, settings
from dicom_node.acquired import write_series
from dicom_node.domain import Closing, Instance, NoticeState, StudyState
from dicom_node.elements import encode
from dicom_node.identifiers import installation_uid
from dicom_node.ledger import Ledger, Noted, Notice
from dicom_node.settings import Configuration
from dicom_node.store import Store
from doubles.ledger import Clock, make_derived, make_instance
from doubles.series import HEAD_MM, make_head, make_series, make_study, write_files
from doubles.studies import CARDS, CONFIG, acquire, label_study, make_judge
from doubles.tools import require_data

QUIET = timedelta(seconds=61)
PAUSE = timedelta(seconds=6)


@pytest.fixture(scope="module")
def configuration() -> Configuration:
    return settings.load(CONFIG, ["query.enabled=false"])


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store").open()


@pytest.fixture
def ledger(tmp_path: Path, clock: Clock) -> Iterator[Ledger]:
    with Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}", clock).open() as ledger:
        yield ledger


class Node:
    """Receives and assembles as the node does, by a clock that a test turns."""

    def __init__(
        self, ledger: Ledger, store: Store, clock: Clock, configuration: Configuration
    ) -> None:
        self.ledger = ledger
        self.store = store
        self.clock = clock
        self._configuration = configuration

    def receive(self, images: Sequence[Dataset], association: str | None = None) -> str:
        instances = [self._keep(image) for image in images]
        self.ledger.record_instances(instances, "modality", association, self.store.quarantine)
        return instances[0].study_instance_uid

    def assemble(self, after: timedelta = QUIET) -> int:
        self.clock.advance(seconds=after.total_seconds())
        return assembly.sweep(self.ledger, self.store, self._configuration, CARDS, self.clock)

    def state(self, study: str) -> StudyState:
        return self.ledger.study_row(study).state

    def targets(self, study: str) -> list[str]:
        return sorted(job.plan.target for job in self.ledger.jobs(study))

    def _keep(self, image: Dataset) -> Instance:
        content = encode(image)
        path = self.store.incoming_name(image.SOPInstanceUID, sha256(content).hexdigest())
        return Instance(
            sop_instance_uid=image.SOPInstanceUID,
            sop_class_uid=image.SOPClassUID,
            series_instance_uid=image.SeriesInstanceUID,
            study_instance_uid=image.StudyInstanceUID,
            transfer_syntax_uid=image.file_meta.TransferSyntaxUID,
            sha256=self.store.write(path, content),
            path=path,
        )


@pytest.fixture
def node(ledger: Ledger, store: Store, clock: Clock, configuration: Configuration) -> Node:
    return Node(ledger, store, clock, configuration)


def test_quiet_study_is_judged_and_its_plans_are_queued(node: Node) -> None:
    study = node.receive([*make_series("T1w", number=1), *make_series("T2w", number=2)])

    assert node.assemble() == 1

    assert node.state(study) is StudyState.JUDGED
    assert node.targets(study) == ["FLAIR"]
    judgement = node.ledger.read_judgement(study)
    assert {each.label.contrast for each in judgement.series if each.label} == {"T1w", "T2w"}
    assert judgement.slots["brain-mr-complete"]["FLAIR"] == "missing"


def test_study_that_is_still_coming_waits(node: Node) -> None:
    study = node.receive(make_series("T1w"))

    assert node.assemble(after=timedelta(seconds=30)) == 0
    assert node.state(study) is StudyState.RECEIVING


def test_open_association_keeps_a_study_waiting(node: Node) -> None:
    study = node.receive(make_series("T1w"), association="a")
    node.clock.advance(seconds=50)
    node.ledger.record_receipts([], alive=["a"])

    assert node.assemble(after=timedelta(seconds=30)) == 0
    assert node.state(study) is StudyState.RECEIVING


def test_complete_study_is_judged_before_it_is_quiet(node: Node) -> None:
    study = node.receive(make_series("T1w", body_part="EXTREMITY", description="thigh"))
    node.receive(make_series("CT", number=2, body_part="EXTREMITY", description="thigh"))

    assert node.assemble(after=PAUSE) == 1
    assert node.state(study) is StudyState.JUDGED
    assert node.targets(study) == []


def test_incomplete_study_is_not_judged_early(node: Node) -> None:
    study = node.receive(make_series("T1w", body_part="EXTREMITY", description="thigh"))

    assert node.assemble(after=PAUSE) == 0
    assert node.state(study) is StudyState.RECEIVING


def test_study_that_lacks_one_contrast_and_has_its_sources_is_judged_early(node: Node) -> None:
    study = node.receive([*make_series("T1w", number=1), *make_series("T2w", number=2)])

    assert node.assemble(after=PAUSE) == 0
    assert node.assemble(after=timedelta(seconds=20)) == 1

    assert node.targets(study) == ["FLAIR"]
    assert node.ledger.read_judgement(study).closing is Closing.SOURCES


def test_reason_of_closing_and_digest_of_the_rules_are_kept(
    node: Node, configuration: Configuration
) -> None:
    early = node.receive(make_series("T1w", body_part="EXTREMITY", description="thigh"))
    node.receive(make_series("CT", number=2, body_part="EXTREMITY", description="thigh"))
    node.assemble(after=PAUSE)
    late = node.receive(make_series("T1w", key="other"))
    node.assemble()

    judgements = [node.ledger.read_judgement(study) for study in (early, late)]
    assert [each.closing for each in judgements] == [Closing.COMPLETE, Closing.QUIET]
    assert {each.config_digest for each in judgements} == {configuration.digest}


PATIENCE = timedelta(minutes=20)
"""`assembly.steps_within`, as shipped."""


def tell(
    node: Node,
    study: str,
    state: NoticeState,
    images: Sequence[Dataset] = (),
    uid: str = "1.2.9",
) -> None:
    """Tell of one step, or of what an archive has."""
    listed = tuple(image.SOPInstanceUID for image in images)
    is_new = state in {NoticeState.IN_PROGRESS, NoticeState.AVAILABLE}
    notice = Notice(
        sop_instance_uid=uid, studies=(study,) if is_new else (), state=state, instances=listed
    )
    assert node.ledger.record_notice("modality", notice) is Noted.TAKEN


def begin(node: Node, images: Sequence[Dataset]) -> str:
    """Let a step begin, then receive the images."""
    study = images[0].StudyInstanceUID
    tell(node, study, NoticeState.IN_PROGRESS)
    return node.receive(images)


def read_closing(node: Node, study: str) -> Closing | None:
    return node.ledger.read_judgement(study).closing


def test_study_whose_step_is_completed_is_judged_as_soon_as_all_is_here(node: Node) -> None:
    images = make_series("T1w")
    study = begin(node, images[:-1])
    tell(node, study, NoticeState.COMPLETED, images)

    assert node.assemble(after=PAUSE) == 0
    node.receive(images[-1:])
    assert node.assemble(after=PAUSE) == 1

    assert read_closing(node, study) is Closing.PERFORMED
    assert node.targets(study) == ["FLAIR", "T2w"]


def test_step_in_progress_keeps_a_quiet_study_open_but_not_for_ever(node: Node) -> None:
    study = begin(node, [*make_series("T1w", number=1), *make_series("T2w", number=2)])

    assert node.assemble() == 0
    assert node.assemble(after=PATIENCE / 2) == 0
    assert node.assemble(after=PATIENCE / 2) == 1

    assert read_closing(node, study) is Closing.OVERDUE


def test_study_that_lacks_nothing_is_not_kept_waiting_by_its_step(node: Node) -> None:
    images = make_series("T1w", body_part="EXTREMITY", description="thigh")
    study = begin(node, images)
    node.receive(make_series("CT", number=2, body_part="EXTREMITY", description="thigh"))

    assert node.assemble(after=PAUSE) == 1
    assert read_closing(node, study) is Closing.COMPLETE


def test_what_a_step_lists_and_never_comes_is_told_in_the_end(node: Node) -> None:
    images = make_series("T1w")
    study = begin(node, images[:-1])
    tell(node, study, NoticeState.COMPLETED, images)

    assert node.assemble(after=PATIENCE / 2) == 0
    assert node.assemble(after=PATIENCE) == 1

    assert read_closing(node, study) is Closing.OVERDUE


def test_study_waits_for_what_an_archive_has_but_is_not_ended_by_it(node: Node) -> None:
    images = make_series("T1w")
    study = node.receive(images[:-1])
    tell(node, study, NoticeState.AVAILABLE, images)

    assert node.assemble() == 0
    node.receive(images[-1:])
    assert node.assemble(after=PAUSE) == 0
    assert node.assemble() == 1

    assert read_closing(node, study) is Closing.QUIET


def test_study_whose_step_was_broken_off_is_judged_as_it_is(node: Node) -> None:
    images = make_series("T1w")
    study = begin(node, images[:-1])
    tell(node, study, NoticeState.DISCONTINUED, images)

    assert node.assemble(after=PAUSE) == 0
    assert node.assemble(after=timedelta(seconds=20)) == 1

    assert read_closing(node, study) is Closing.DISCONTINUED


def test_every_step_of_a_study_must_be_over(node: Node) -> None:
    images = make_series("T1w")
    study = begin(node, images)
    tell(node, study, NoticeState.IN_PROGRESS, uid="1.2.10")
    tell(node, study, NoticeState.COMPLETED, images)

    assert node.assemble() == 0
    tell(node, study, NoticeState.COMPLETED, uid="1.2.10")
    assert node.assemble(after=PAUSE) == 1

    assert read_closing(node, study) is Closing.PERFORMED


def test_series_that_no_step_lists_is_not_cut_off(node: Node) -> None:
    images = make_series("T1w")
    study = begin(node, images)
    tell(node, study, NoticeState.COMPLETED, images)
    node.receive(make_series("CT", number=2)[:1])

    assert node.assemble(after=PAUSE) == 0
    assert node.assemble(after=timedelta(seconds=20)) == 1

    assert read_closing(node, study) is Closing.PERFORMED


def test_step_that_made_nothing_does_not_end_a_study(node: Node) -> None:
    study = begin(node, make_series("T1w"))
    tell(node, study, NoticeState.COMPLETED)

    assert node.assemble(after=timedelta(seconds=25)) == 0
    assert node.assemble() == 1

    assert read_closing(node, study) is Closing.QUIET


def test_late_series_reopens_the_study_and_supersedes_what_it_makes_needless(node: Node) -> None:
    study = node.receive(make_series("T1w", body_part="EXTREMITY", description="thigh"))
    node.assemble()
    node.receive(make_series("CT", number=2, body_part="EXTREMITY", description="thigh"))

    node.assemble()

    assert node.ledger.study_row(study).generation == 2
    assert [job.state.value for job in node.ledger.jobs(study)] == ["superseded"]


def test_judging_again_changes_nothing(node: Node) -> None:
    study = node.receive(make_series("T1w"))
    node.assemble()
    jobs = node.ledger.jobs(study)

    node.receive(make_series("T1w"))
    node.assemble()

    assert node.ledger.jobs(study) == jobs


def test_headers_are_read_once(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    study = node.receive(make_series("T1w", body_part="EXTREMITY", description="thigh"))
    node.assemble(after=PAUSE)
    monkeypatch.setattr(assembly, "read_header", lambda path: pytest.fail(f"{path} again"))

    node.assemble()

    assert node.targets(study) == ["CT"]


def test_two_patients_in_one_study_hold_it(node: Node) -> None:
    other = make_series("T2w", number=2)
    for image in other:
        image.PatientID = "SOMEBODY-ELSE"
    study = node.receive([*make_series("T1w"), *other])

    node.assemble()

    row = node.ledger.study_row(study)
    assert (row.state, row.hold_code) == (StudyState.HELD, "identity_conflict")
    assert "SOMEBODY" not in str(row.hold_reason)
    assert node.targets(study) == []


def change(images: Sequence[Dataset], **changes: object) -> list[Dataset]:
    """Return other contents under the same UIDs."""
    changed = [deepcopy(image) for image in images]
    for image in changed:
        for keyword, value in changes.items():
            setattr(image, keyword, value)
    return changed


def test_study_with_a_contested_uid_is_held_until_a_person_releases_it(node: Node) -> None:
    images = make_series("T1w")
    study = node.receive([*images, *change(images[:2], InstanceNumber=99)])

    node.assemble()

    row = node.ledger.study_row(study)
    assert (row.state, row.hold_code) == (StudyState.HELD, "uid_conflict")
    assert str(row.hold_reason).startswith("2 contents")
    assert node.targets(study) == []

    node.ledger.release_study(study, "M. Meier", "the second was a test")
    node.assemble(after=PAUSE)

    assert node.state(study) is StudyState.JUDGED
    assert node.targets(study) == ["FLAIR", "T2w"]


def test_a_conflict_after_the_judgement_stops_what_was_queued(node: Node) -> None:
    images = make_series("T1w")
    study = node.receive(images)
    node.assemble()
    jobs = node.ledger.jobs(study)
    node.receive(change(images[:1], InstanceNumber=99))

    assert node.ledger.claim(9, QUIET) == []
    node.assemble()
    assert node.ledger.study_row(study).hold_code == "uid_conflict"
    assert node.ledger.claim(9, QUIET) == []

    node.ledger.release_study(study, "M. Meier", "the second was a test")
    node.assemble()
    claimed = {job.plan.plan_id for job in node.ledger.claim(9, QUIET)}
    assert claimed == {job.plan.plan_id for job in jobs}


def test_study_whose_every_uid_belongs_to_another_is_held(node: Node) -> None:
    images = make_series("T1w")
    first = node.receive(images)
    second = node.receive(change(images, StudyInstanceUID="1.2.3.99"))

    assert node.assemble() == 2

    assert second == "1.2.3.99"
    assert {node.ledger.study_row(each).hold_code for each in (first, second)} == {"uid_conflict"}


def test_study_without_a_patient_id_is_held(node: Node) -> None:
    study = node.receive(make_series("T1w", patient_id=""))

    node.assemble()

    assert node.ledger.study_row(study).hold_code == "identity_missing"


def test_study_of_which_nothing_can_be_used_is_held_with_the_reason(node: Node) -> None:
    images = make_series("T1w")
    study = node.receive([image for k, image in enumerate(images) if k != 2])

    node.assemble()

    row = node.ledger.study_row(study)
    assert (row.state, row.hold_code) == (StudyState.HELD, "slice_gap")
    judgement = node.ledger.read_judgement(study)
    assert judgement.series[0].problem is not None


def test_study_that_no_rule_is_for_is_judged_without_plans(node: Node) -> None:
    study = node.receive(make_series("T1w", body_part="CHEST", description="thorax"))

    node.assemble()

    assert node.state(study) is StudyState.JUDGED
    assert node.targets(study) == []


def test_file_that_cannot_be_read_does_not_stop_the_sweep(node: Node) -> None:
    study = node.receive(make_series("T1w"))
    broken = node.receive(make_series("T2w", key="another", patient_id="2"))
    for instance in node.ledger.read_instances(broken):
        node.store.path(instance.path).write_bytes(b"gone bad")

    assert node.assemble() == 2
    assert node.state(study) is StudyState.JUDGED
    assert node.state(broken) is StudyState.JUDGED
    assert node.targets(broken) == []


def test_a_fault_in_one_study_does_not_starve_the_others(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = node.receive(make_series("T1w", key="broken"))
    sound = node.receive(make_series("T1w", key="sound"))
    read = node.ledger.read_instances

    def fail_on_the_first(study: str) -> tuple[Instance, ...]:
        if study == broken:
            raise RuntimeError("a fault of the program")
        return read(study)

    monkeypatch.setattr(node.ledger, "read_instances", fail_on_the_first)

    with pytest.raises(RuntimeError):
        node.assemble()

    assert node.state(sound) is StudyState.JUDGED


def test_series_with_our_creator_uid_is_our_own(node: Node) -> None:
    images = make_series("T2w", number=2)
    for image in images:
        image.InstanceCreatorUID = installation_uid(node.store.namespace())
    study = node.receive([*make_series("T1w"), *images])

    node.assemble()

    assert node.targets(study) == ["FLAIR", "T2w"]


def test_result_that_a_pacs_sends_back_ten_thousand_times_makes_no_work(node: Node) -> None:
    study = node.receive([*make_series("T1w", number=1), *make_series("T2w", number=2)])
    node.assemble()
    (job,) = node.ledger.claim(9, QUIET)
    result = make_derived(sop_instance_uid="2.25.42")
    assert node.ledger.record_derived(
        job.plan.plan_id, job.attempt, [result], quality={}, seconds={}, record=[]
    )
    back = make_instance(sop_instance_uid="2.25.42", study_instance_uid=study)
    before = node.ledger.study_row(study)

    for _ in range(10):
        node.ledger.record_instances([back] * 1000, "pacs", None)
    node.assemble()

    after = node.ledger.study_row(study)
    assert (after.state, after.generation) == (before.state, before.generation)
    assert node.targets(study) == ["FLAIR"]


def test_usable_study_is_not_held() -> None:
    study = label_study(acquire("T1w", BodyPartExamined="BRAIN"))

    assert assembly.find_hold(study, make_judge().find_gaps(study)) is None


def test_folder_is_read_as_studies(tmp_path: Path) -> None:
    write_files(make_series("T1w"), tmp_path / "one")
    write_files(make_series("T2w", key="other"), tmp_path / "two")
    (tmp_path / "notes.txt").write_text("not DICOM")

    studies = assembly.read_folder(tmp_path)

    assert sorted(len(instances) for instances in studies.values()) == [6, 6]
    assert all(each.header for instances in studies.values() for each in instances)


@pytest.mark.parametrize(("fluid", "label"), [(0.25, None), (2.4, "T2w")])
def test_label_of_words_alone_is_checked_against_the_pixels(
    node: Node, fluid: float, label: str | None
) -> None:
    affine = np.diag([HEAD_MM, HEAD_MM, HEAD_MM, 1.0])
    volume = Volume(array=make_head(fluid), affine=affine, coordinate_system="PATIENT")
    images = write_series(
        make_study(), volume, modality="MR", number=1, description="AX T2", acquisition={}
    )
    study = node.receive(images)

    assert node.assemble() == 1

    (series,) = node.ledger.read_judgement(study).series
    assert series.label is not None
    assert series.label.contrast == label
    assert any("the pixels show" in line for line in series.label.evidence)


def read_labels(*parts: str) -> dict[str, tuple[str | None, str]]:
    """Return series description to label and origin of the real studies in a folder."""
    labels = {}
    for instances in assembly.read_folder(require_data(*parts)).values():
        for series in label_study(instances).series:
            header = series.instances[0].header or {}
            assert series.label is not None
            labels[header.get("SeriesDescription", "")] = (
                series.label.contrast,
                series.origin.value,
            )
    return labels


@pytest.mark.integration
def test_real_limb_study_is_labelled() -> None:
    labels = read_labels("sts_ctmrpet_dicom", "STS_015")

    assert labels["IBSI_1_STS_015_MR_T1_image"] == ("T1w", "acquired")
    assert labels["IBSI_1_STS_015_CT_image"] == ("CT", "acquired")
    assert labels["IBSI_1_STS_015_PET_image"] == ("FDG PET", "derived")


@pytest.mark.integration
def test_real_limb_mr_without_its_ct_wants_one() -> None:
    folder = require_data("sts_ctmrpet_dicom", "STS_015", "MR_T1", "image")
    (instances,) = assembly.read_folder(folder).values()
    study = label_study(instances)

    decision = make_judge().find_gaps(study)

    assert [gap.target for gap in decision.gaps] == ["CT"]
    assert assembly.find_hold(study, decision) is None


@pytest.mark.integration
@pytest.mark.parametrize(
    ("folder", "code"),
    [
        ("gantrytilting", "gantry_tilt"),
        ("sliceincrement", "slice_gap"),
        ("slicecount", "one_slice"),
    ],
)
def test_real_series_that_is_no_volume_is_refused_by_name(folder: str, code: str) -> None:
    path = require_data("dicom_syntax", "dicom2nifti", "failing", folder)

    problems = {
        series.problem[0] if series.problem else ""
        for instances in assembly.read_folder(path).values()
        for series in label_study(instances).series
    }

    assert problems == {code}
