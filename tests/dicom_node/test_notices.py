import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydicom import Dataset
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.dsutils import encode

from dicom_node import command, notices
from dicom_node.domain import NoticeState
from dicom_node.errors import RefusedInstance
from dicom_node.ledger import Ledger, StudyNotice
from dicom_node.node_settings import read_node
from dicom_node.notices import (
    INSTANCE_AVAILABILITY_NOTIFICATION,
    LONGEST_NOTICE,
    PERFORMED_PROCEDURE_STEP,
    decode_notice,
)
from dicom_node.progress import read_progress
from dicom_node.receiver_process import ReceiverProcess
from doubles.raw_peer import EXPLICIT, IMPLICIT, MR, RawPeer, associate_request, p_data, pdv

STUDY, SERIES, STEP = "1.2.3", "1.2.3.4", "1.2.3.9"
RAW_DATA = "1.2.840.10008.5.1.4.1.1.66"
LONG_UID = "1.2.826.0.1.3680043.8.498.12345678901234567890123456789012."
MPPS = (PERFORMED_PROCEDURE_STEP, (EXPLICIT, IMPLICIT))
NODE = """
ae_title: NODE
data_folder: data
models_folder: models
peers:
  scanner: {ae_title: SCANNER, address: 127.0.0.1, roles: [receive, notify]}
  other: {ae_title: OTHER, address: 127.0.0.1, roles: [notify]}
  mute: {ae_title: MUTE, address: 127.0.0.1, roles: [receive]}
receiver:
  port: 0
  storage_classes: {image: [MRImageStorage], passed_over: []}
"""
IN_PROGRESS, COMPLETED = NoticeState.IN_PROGRESS, NoticeState.COMPLETED


class Running:
    """A receiving process with what it keeps; it may be started again.

    Attributes:
        answers: the command sets that pynetdicom heard.
    """

    def __init__(self, folder: Path) -> None:
        (folder / "node.yaml").write_text(NODE)
        self._folder = folder
        self.answers: list[Dataset] = []
        self.start()

    def start(self) -> None:
        self.process = ReceiverProcess(self._folder)
        self.port = self.process.start()[1]

    @contextmanager
    def ledger(self) -> Iterator[Ledger]:
        url = read_node(self._folder).ledger_url
        with Ledger(url, lambda: datetime.now(UTC)).open(create=False) as ledger:
            yield ledger

    def notices(self, study: str) -> tuple[StudyNotice, ...]:
        with self.ledger() as ledger:
            return ledger.notices(study)

    @contextmanager
    def call(self, ae_title: str = "SCANNER") -> Iterator[Association]:
        ae = AE(ae_title)
        for each in (PERFORMED_PROCEDURE_STEP, INSTANCE_AVAILABILITY_NOTIFICATION, MR):
            ae.add_requested_context(each)
        hears = [(evt.EVT_DIMSE_RECV, lambda event: self.answers.append(event.message.command_set))]
        association = ae.associate("127.0.0.1", self.port, ae_title="NODE", evt_handlers=hears)
        assert association.is_established
        try:
            yield association
        finally:
            association.release()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A process that the tests share; each has a study of its own."""
    one = Running(tmp_path_factory.mktemp("running"))
    yield one
    one.process.stop()


def make_step(status: str | None, study: str | None = STUDY) -> Dataset:
    step = Dataset()
    step.PatientName = "CANARY^PATIENT"
    if status is not None:
        step.PerformedProcedureStepStatus = status
    if study is not None:
        scheduled = Dataset()
        scheduled.StudyInstanceUID = study
        step.ScheduledStepAttributesSequence = [scheduled]
        step.PerformedSeriesSequence = []
    return step


def make_reference(uid: str, sop_class: str = MR, availability: str | None = None) -> Dataset:
    reference = Dataset()
    reference.ReferencedSOPClassUID = sop_class
    reference.ReferencedSOPInstanceUID = uid
    if availability is not None:
        reference.InstanceAvailability = availability
    return reference


def make_end(
    status: str, images: Sequence[Dataset] = (), others: Sequence[Dataset] = ()
) -> Dataset:
    series = Dataset()
    series.SeriesInstanceUID = SERIES
    series.ReferencedImageSequence = list(images)
    series.ReferencedNonImageCompositeSOPInstanceSequence = list(others)
    step = make_step(status, None)
    step.PerformedSeriesSequence = [series]
    return step


def make_availability(study: str, references: Sequence[Dataset]) -> Dataset:
    series = Dataset()
    series.SeriesInstanceUID = SERIES
    series.ReferencedSOPSequence = list(references)
    told = Dataset()
    told.ReferencedPerformedProcedureStepSequence = []
    told.StudyInstanceUID = study
    told.ReferencedSeriesSequence = [series]
    return told


def decode(step: Dataset, sop_class: str = PERFORMED_PROCEDURE_STEP, *, is_new=True, explicit=True):
    raw = encode(step, is_implicit_vr=not explicit, is_little_endian=True)
    return decode_notice(sop_class, STEP, raw, {MR}, explicit=explicit, is_new=is_new)


@pytest.mark.parametrize("explicit", [True, False])
def test_only_what_completion_needs_is_read(explicit):
    begun = decode(make_step("IN PROGRESS"), explicit=explicit)
    end = make_end("COMPLETED", [make_reference("1.2.7")], [make_reference("1.2.8", RAW_DATA)])
    ended = decode(end, is_new=False, explicit=explicit)

    assert (begun.studies, begun.state, begun.instances) == ((STUDY,), IN_PROGRESS, ())
    # What the node does not take will not come.
    assert (ended.studies, ended.state, ended.instances) == ((), COMPLETED, ("1.2.7",))
    assert "CANARY" not in f"{begun}{ended}"


def test_change_without_a_list_leaves_the_list():
    assert decode(make_step(None, None), is_new=False).instances is None


def test_reason_of_a_discontinuation_is_kept_as_its_code():
    step = make_end("DISCONTINUED")
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "110501", "DCM", "Canary"
    step.PerformedProcedureStepDiscontinuationReasonCodeSequence = [code]
    told = decode(step, is_new=False).reason
    code.CodeValue = "Mr Canary"

    assert (told, decode(step, is_new=False).reason) == ("DCM:110501", None)


def test_only_what_is_available_is_expected():
    references = [
        make_reference("1.2.5", availability="ONLINE"),
        make_reference("1.2.6", availability="NEARLINE"),
        make_reference("1.2.7", availability="UNAVAILABLE"),
    ]

    told = decode(make_availability(STUDY, references), INSTANCE_AVAILABILITY_NOTIFICATION)

    assert (told.state, told.instances) == (NoticeState.AVAILABLE, ("1.2.5", "1.2.6"))


@pytest.mark.parametrize(
    ("make", "is_new", "status"),
    [
        (lambda: make_step("COMPLETED"), True, 0x0106),
        (lambda: make_step("ALMOST"), True, 0x0106),
        (lambda: make_step("ALMOST", None), False, 0x0106),
        (lambda: make_step("IN PROGRESS", "1.2..3"), True, 0x0106),
        (lambda: make_end("COMPLETED", [make_reference("../../etc")]), False, 0x0106),
        (lambda: make_step(None), True, 0x0120),
        (lambda: make_step("IN PROGRESS", None), True, 0x0120),
        (lambda: make_step("IN PROGRESS", ""), True, 0x0120),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom warns of what these tests write
def test_notice_that_lacks_what_it_must_have_is_refused(make, is_new, status):
    with pytest.raises(RefusedInstance) as refused:
        decode(make(), is_new=is_new)

    assert refused.value.status == status


def test_notice_of_more_instances_than_any_study_has_is_refused(monkeypatch):
    monkeypatch.setattr(notices, "MOST_INSTANCES", 10)
    references = [make_reference(f"1.2.{number}") for number in range(11)]

    with pytest.raises(RefusedInstance, match="too many"):
        decode(make_end("COMPLETED", references), is_new=False)


@pytest.mark.parametrize(
    "raw", [b"garbage, and much of it", b"\x40\x00\x52\x02CS\xff\x00", b"\x40"]
)
def test_notice_that_cannot_be_decoded_is_refused(raw):
    with pytest.raises(RefusedInstance) as refused:
        decode_notice(PERFORMED_PROCEDURE_STEP, STEP, raw, {MR}, explicit=True, is_new=True)

    assert refused.value.status == 0x0110


@pytest.mark.integration
def test_step_is_followed_from_its_beginning_to_its_end(running):
    study = "1.2.10"
    with running.call() as scanner:
        begun, _ = scanner.send_n_create(
            make_step("IN PROGRESS", study), PERFORMED_PROCEDURE_STEP, "1.2.10.9"
        )
        before = running.notices(study)
        end = make_end("COMPLETED", [make_reference("1.2.10.1")])
        ended, _ = scanner.send_n_set(end, PERFORMED_PROCEDURE_STEP, "1.2.10.9")

    assert (begun.Status, ended.Status) == (0x0000, 0x0000)
    assert [each.AffectedSOPInstanceUID for each in running.answers[-2:]] == ["1.2.10.9"] * 2
    assert [(each.state, each.peer) for each in before] == [(IN_PROGRESS, "scanner")]
    [told] = running.notices(study)
    assert (told.state, told.instances) == (COMPLETED, {"1.2.10.1"})


@pytest.mark.integration
def test_step_without_a_uid_gets_one(running):
    with running.call() as scanner:
        answer, _ = scanner.send_n_create(
            make_step("IN PROGRESS", "1.2.11"), PERFORMED_PROCEDURE_STEP
        )

    [told] = running.notices("1.2.11")
    assert (answer.Status, running.answers[-1].AffectedSOPInstanceUID) == (0, told.sop_instance_uid)
    assert told.sop_instance_uid.startswith("2.25.")


@pytest.mark.integration
def test_step_that_is_known_unknown_of_others_or_over_is_not_changed(running):
    begin, end = make_step("IN PROGRESS", "1.2.12"), make_end("COMPLETED")
    with running.call() as scanner, running.call("OTHER") as other:
        statuses = [
            scanner.send_n_create(begin, PERFORMED_PROCEDURE_STEP, "1.2.12.9")[0],
            scanner.send_n_create(begin, PERFORMED_PROCEDURE_STEP, "1.2.12.9")[0],
            scanner.send_n_set(end, PERFORMED_PROCEDURE_STEP, "1.2.12.8")[0],
            other.send_n_set(end, PERFORMED_PROCEDURE_STEP, "1.2.12.9")[0],
            scanner.send_n_set(end, PERFORMED_PROCEDURE_STEP, "1.2.12.9")[0],
            scanner.send_n_set(end, PERFORMED_PROCEDURE_STEP, "1.2.12.9")[0],
        ]

    told = [each.Status for each in statuses]
    assert told == [0x0000, 0x0111, 0x0112, 0x0112, 0x0000, 0x0110]
    assert statuses[-1].ErrorID == 0xA710


@pytest.mark.integration
def test_archive_tells_of_more_instances_than_one_message_inside_the_receiver_holds(running):
    references = [
        make_reference(f"{LONG_UID}{number}", availability="ONLINE") for number in range(3_000)
    ]
    with running.call() as archive:
        answer, _ = archive.send_n_create(
            make_availability("1.2.13", references), INSTANCE_AVAILABILITY_NOTIFICATION, "1.2.13.9"
        )

    [told] = running.notices("1.2.13")
    assert answer.Status == 0x0000
    assert (told.state, len(told.instances)) == (NoticeState.AVAILABLE, 3_000)


@pytest.mark.integration
def test_peer_that_may_not_notify_is_not_offered_it(running):
    contexts = [MPPS, (INSTANCE_AVAILABILITY_NOTIFICATION, (IMPLICIT,)), (MR, (EXPLICIT,))]
    with RawPeer(running.port) as mute, RawPeer(running.port) as other:
        mute_results = mute.associate(associate_request(contexts, calling="MUTE"))
        other_results = other.associate(associate_request(contexts, calling="OTHER"))

    assert (mute_results, other_results) == ([3, 3, 0], [0, 0, 3])


def make_request(field: int, sop_class: str = PERFORMED_PROCEDURE_STEP, uid: str = STEP) -> bytes:
    is_set = field == command.N_SET_RQ
    return command.encode_command(
        {
            command.REQUESTED_SOP_CLASS_UID
            if is_set
            else command.AFFECTED_SOP_CLASS_UID: sop_class,
            command.COMMAND_FIELD: field,
            command.MESSAGE_ID: 7,
            command.COMMAND_DATA_SET_TYPE: command.A_DATA_SET,
            command.REQUESTED_SOP_INSTANCE_UID
            if is_set
            else command.AFFECTED_SOP_INSTANCE_UID: uid,
        }
    )


@pytest.mark.integration
@pytest.mark.parametrize(
    ("request_", "context_id", "status"),
    [
        (make_request(command.N_CREATE_RQ), 1, 0x0110),
        (make_request(command.N_SET_RQ), 1, 0x0110),
        (make_request(command.N_CREATE_RQ, MR), 1, 0x0118),
        (make_request(command.N_CREATE_RQ), 3, 0x0211),  # the context of storage
        (make_request(command.N_SET_RQ, INSTANCE_AVAILABILITY_NOTIFICATION), 5, 0x0211),
        (make_request(0x0150), 1, 0x0211),  # N-DELETE
        (make_request(command.N_CREATE_RQ, uid="1..2"), 1, 0x0117),
    ],
)
def test_message_that_is_no_notice_is_answered_and_leaves_the_association(
    running, request_, context_id, status
):
    contexts = [MPPS, (MR, (EXPLICIT,)), (INSTANCE_AVAILABILITY_NOTIFICATION, (EXPLICIT,))]
    with RawPeer(running.port) as peer:
        peer.associate(associate_request(contexts))
        for _ in range(2):
            peer.send(
                p_data(
                    pdv(context_id, request_, is_command=True),
                    pdv(context_id, b"garbage, and much of it", is_command=False),
                )
            )
            response = peer.read_response()
            assert command.number(response, command.STATUS) == status
            assert command.number(response, command.MESSAGE_ID_BEING_RESPONDED_TO) == 7


@pytest.mark.integration
def test_notice_without_end_is_not_read_to_its_end(running):
    piece = pdv(1, bytes(100_000), is_command=False, is_last=False)
    with RawPeer(running.port) as peer:
        peer.associate(associate_request([MPPS]))
        peer.send(p_data(pdv(1, make_request(command.N_CREATE_RQ), is_command=True)))
        for _ in range(LONGEST_NOTICE // 100_000 + 1):
            peer.send(p_data(piece))

        assert peer.read_abort() is not None


@pytest.mark.integration
def test_step_goes_on_after_a_restart(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    running = Running(tmp_path)
    try:
        with running.call() as scanner:
            scanner.send_n_create(make_step("IN PROGRESS"), PERFORMED_PROCEDURE_STEP, STEP)
        running.process.stop()
        running.start()
        with running.call() as scanner:
            end = make_end("COMPLETED", [make_reference("1.2.3.5")])
            answer, _ = scanner.send_n_set(end, PERFORMED_PROCEDURE_STEP, STEP)
    finally:
        running.process.stop()

    with running.ledger() as ledger:
        progress = read_progress(ledger, STUDY)
        names = [each.name for each in ledger.events(STUDY)]
    assert answer.Status == 0x0000
    assert progress is not None
    assert progress.find_missing() == {"1.2.3.5"}
    assert names == ["notice.in_progress", "notice.completed"]
    assert "CANARY" not in caplog.text
