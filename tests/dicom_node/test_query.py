"""Missing is what the PACS has not either: what it is asked, what it answers, and what follows."""

import logging
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from dicom_node import assembly
from dicom_node.domain import Instance, StudyState
from dicom_node.explain import explain_study
from dicom_node.ledger import Ledger
from dicom_node.query import Inquirer
from dicom_node.rules import Ask, Routing
from dicom_node.settings import Configuration, load
from dicom_node.status import read_status
from dicom_node.store import Store
from doubles.ledger import Clock
from doubles.querying_pacs import QueryingPacs
from doubles.series import make_series as make_images
from doubles.series import write_files
from doubles.studies import BRAIN, CARDS, CONFIG, acquire, make_judge, make_series

pytestmark = pytest.mark.integration

PATIENT = "PHANTOM-1"
STUDY = "1"
RULE = "brain-mr-complete"
FLAIR_HEADER = {
    "ScanningSequence": ["SE", "IR"],
    "RepetitionTime": 9000.0,
    "EchoTime": 120.0,
    "InversionTime": 2500.0,
}


def list_series(series: str, description: str, instances: object = 24, **facts: Any) -> Any:
    """Return a row of the PACS."""
    return {
        "PatientID": PATIENT,
        "StudyDate": "20200102",
        "StudyInstanceUID": STUDY,
        "SeriesInstanceUID": series,
        "SeriesDescription": description,
        "Modality": "MR",
        "NumberOfSeriesRelatedInstances": instances,
        **facts,
    }


HERE = [list_series("1.1", "T1"), list_series("1.2", "T2")]
"""What the PACS lists when it has what the node has."""


class Site:
    """A node without processes beside a PACS; a clock that a test turns."""

    def __init__(self, folder: Path, pacs: QueryingPacs, configuration: Configuration) -> None:
        self.clock = Clock()
        self.pacs = pacs
        self.configuration = configuration
        self.store = Store(folder / "store").open()
        self.ledger = Ledger(f"sqlite:///{folder / 'ledger.sqlite'}", self.clock).open()
        settings = configuration.node
        self.inquirer = Inquirer("pacs", self.ledger, self.store, settings, self.clock)
        self._file = write_files(make_images("T1w", patient_id=PATIENT)[:1], folder / "file")[0]

    def receive(self, *instances: Instance) -> None:
        """Receive headers; their file is one of the patient's."""
        self.ledger.record_instances(instances, "modality", None)
        self.ledger.record_headers(
            {(each.sop_instance_uid, each.sha256): each.header or {} for each in instances}
        )
        for each in instances:
            self.store.write(each.path, self._file.read_bytes())

    def look(self, seconds: float = 61) -> None:
        """Let the node look at its studies, and ask the PACS, some time later."""
        self.clock.advance(seconds=seconds)
        assembly.sweep(self.ledger, self.store, self.configuration, CARDS, self.clock)
        self.inquirer.sweep()

    @property
    def row(self) -> Any:
        return self.ledger.study_row(STUDY)

    @property
    def slots(self) -> dict[str, str]:
        return dict(self.ledger.read_judgement(STUDY).slots[RULE])

    @property
    def targets(self) -> list[str]:
        return sorted(job.plan.target for job in self.ledger.jobs(STUDY))

    @property
    def reasons(self) -> str:
        refusals = self.ledger.read_judgement(STUDY).refusals
        return " ".join(f"{each.code}: {each.reason}" for each in refusals)


MakeSite = Callable[..., Site]


@pytest.fixture
def pacs() -> Iterator[QueryingPacs]:
    with QueryingPacs(HERE) as pacs:
        yield pacs


@pytest.fixture
def make_site(tmp_path: Path, pacs: QueryingPacs) -> Iterator[MakeSite]:
    sites = []

    def make(*overrides: str, **ask: Any) -> Site:
        found = load(
            CONFIG,
            (
                f"peers.pacs.port={pacs.port}",
                "peers.pacs.ae_title=PACS",
                "query.pause=0 s",
                "query.answer=5 s",
                *overrides,
            ),
        )
        rules = tuple(
            rule.model_copy(update={"ask": Ask(peer="pacs", **ask)}) for rule in found.routing.rules
        )
        routing = Routing.model_construct(degraded=None, rules=rules)
        object.__setattr__(found, "routing", routing)
        site = Site(tmp_path, pacs, found)
        sites.append(site)
        return site

    yield make
    for site in sites:
        site.ledger.close()


def test_nothing_is_made_before_the_pacs_was_asked(make_site: MakeSite) -> None:
    site = make_site()
    site.receive(*acquire("T1w", "T2w", **BRAIN))

    site.look()

    assert site.row.state is StudyState.RECEIVING
    assert [each.QueryRetrieveLevel for each in site.pacs.asked] == ["SERIES"]
    site.look(seconds=1)
    assert site.row.state is StudyState.JUDGED
    assert site.targets == ["FLAIR"]


def test_complete_study_is_not_asked_about(make_site: MakeSite) -> None:
    site = make_site()
    site.receive(*acquire("T1w", "T2w", "FLAIR", **BRAIN))

    site.look()

    assert site.row.state is StudyState.JUDGED
    assert site.pacs.asked == []


def test_series_that_was_not_routed_is_fetched(make_site: MakeSite) -> None:
    site = make_site()
    site.pacs.rows.append(list_series("1.3", "FLAIR"))

    def send(series: str) -> bool:
        site.receive(*make_series(series, SeriesNumber=3.0, **FLAIR_HEADER, **BRAIN))
        return True

    site.pacs.on_move = send
    site.receive(*acquire("T1w", "T2w", **BRAIN))

    for _ in range(3):
        site.look()

    assert site.pacs.moved == ["1.3"]
    assert site.slots["FLAIR"] == "present"
    assert site.targets == []


def test_slices_that_did_not_come_are_fetched(make_site: MakeSite) -> None:
    site = make_site()
    whole = acquire("T1w", "T2w", **BRAIN)

    def send(series: str) -> bool:
        site.receive(*[each for each in whole if each.series_instance_uid == series])
        return True

    site.pacs.on_move = send
    site.receive(*[each for each in whole if each.sop_instance_uid != "1.2.23"])

    for _ in range(3):
        site.look()

    assert site.pacs.moved == ["1.2"]
    assert site.slots == {"T1w": "present", "T2w": "present", "FLAIR": "missing", "T1c": "missing"}


def test_series_of_which_the_pacs_has_more_is_incomplete(make_site: MakeSite) -> None:
    site = make_site(fetch=False)
    site.receive(*[e for e in acquire("T1w", "T2w", **BRAIN) if e.sop_instance_uid != "1.2.23"])

    site.look()
    site.look()

    assert site.pacs.moved == []
    assert site.slots["T2w"] == "incomplete"
    assert "not_all_came: 23 of 24 instances came" in site.reasons


def test_series_that_the_pacs_does_not_send_is_not_called_missing(make_site: MakeSite) -> None:
    site = make_site()
    site.pacs.rows.append(list_series("1.3", "AX FLAIR"))
    site.pacs.on_move = lambda _: False
    site.receive(*acquire("T1w", "T2w", **BRAIN))

    site.look()
    site.look()

    assert site.slots["FLAIR"] == "ambiguous"
    assert "pacs has series 1.3 of study 1, which is not here and may be FLAIR" in site.reasons
    [inquiry] = site.ledger.inquiries(STUDY)
    assert "does not know this node" in str(inquiry.reason)


def test_series_without_a_name_may_be_what_is_missing(make_site: MakeSite) -> None:
    site = make_site(fetch=False)
    site.pacs.rows.append(list_series("1.3", "SAG"))
    site.receive(*acquire("T1w", "T2w", **BRAIN))

    site.look()
    site.look()

    assert site.slots["FLAIR"] == "ambiguous"
    assert site.targets == []


def test_what_never_comes_is_fetched_so_often_and_no_more(make_site: MakeSite) -> None:
    site = make_site("query.rounds=2")
    site.pacs.rows[1] = list_series("1.2", "T2", instances=99)
    site.receive(*acquire("T1w", "T2w", **BRAIN))

    for _ in range(6):
        site.look()

    assert site.pacs.moved == ["1.2", "1.2"]
    assert site.slots["T2w"] == "incomplete"


def test_peer_without_counts_is_asked_for_the_instances(make_site: MakeSite) -> None:
    site = make_site(fetch=False)
    site.pacs.rows = [
        list_series(series, text, None, SOPInstanceUID=f"{series}.{k}")
        for series, text in (("1.1", "T1"), ("1.2", "T2"))
        for k in range(24)
    ]
    site.receive(*acquire("T1w", "T2w", **BRAIN))

    site.look()
    site.look()

    assert {each.QueryRetrieveLevel for each in site.pacs.asked} == {"SERIES", "IMAGE"}
    assert site.targets == ["FLAIR"]


def test_contrast_in_another_study_of_the_day_is_not_missing(make_site: MakeSite) -> None:
    site = make_site(siblings_within_days=0)
    site.pacs.rows.append(list_series("5.1", "T2 FLAIR", StudyInstanceUID="5"))
    site.receive(*acquire("T1w", "T2w", **BRAIN))

    site.look()
    site.look()

    [study_query] = [each for each in site.pacs.asked if each.QueryRetrieveLevel == "STUDY"]
    assert (study_query.PatientID, study_query.StudyDate) == (PATIENT, "20200102-20200102")
    assert site.slots["FLAIR"] == "ambiguous"
    assert "series 5.1 of study 5" in site.reasons


def test_sibling_that_the_node_has_judged_fills_the_slot(make_site: MakeSite) -> None:
    site = make_site(siblings_within_days=0)
    site.pacs.rows.append(list_series("5.1", "AX", StudyInstanceUID="5"))
    flair = make_series("5.1", **FLAIR_HEADER, **BRAIN)
    sibling = [Instance(**{**_fields(each), "study_instance_uid": "5"}) for each in flair]
    site.receive(*sibling)
    site.receive(*acquire("T1w", "T2w", **BRAIN))

    for _ in range(4):
        site.look()

    assert site.slots["FLAIR"] == "present"
    assert "FLAIR" not in site.targets


def _fields(instance: Instance) -> dict[str, Any]:
    return {name: getattr(instance, name) for name in Instance.__dataclass_fields__}


@pytest.mark.parametrize(
    "facts",
    [
        {"PatientID": "SOMEBODY-ELSE"},
        {"PatientID": PATIENT.lower()},
        {"StudyDate": "20200301"},
        {"StudyDate": ""},
    ],
)
def test_answer_that_was_not_asked_for_is_dropped(
    make_site: MakeSite, facts: dict[str, str]
) -> None:
    site = make_site(siblings_within_days=7)
    site.pacs.honors_keys = False
    site.pacs.rows.append(list_series("5.1", "T2 FLAIR", **{"StudyInstanceUID": "5", **facts}))
    site.receive(*acquire("T1w", "T2w", **BRAIN))

    site.look()
    site.look()

    assert site.slots["FLAIR"] == "missing"


@pytest.mark.parametrize("patient", ["*", "PH?NTOM", "", "A\\B"])
def test_patient_id_that_matches_others_is_not_asked_for(
    make_site: MakeSite, tmp_path: Path, patient: str
) -> None:
    site = make_site(siblings_within_days=7)
    image = make_images("T1w")[0]
    image.PatientID = patient
    site._file = write_files([image], tmp_path / "other")[0]
    site.receive(*acquire("T1w", "T2w", **BRAIN))

    site.look()

    assert {each.QueryRetrieveLevel for each in site.pacs.asked} == {"SERIES"}


def test_patient_id_goes_into_no_log_and_no_row(
    make_site: MakeSite, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level(logging.DEBUG, "dicom_node")
    site = make_site(siblings_within_days=7)
    site.pacs.rows.append(list_series("5.1", "T2 FLAIR", StudyInstanceUID="5"))
    site.receive(*acquire("T1w", "T2w", **BRAIN))
    site.look()
    site.pacs.status = 0xC001
    site.ledger.reopen_study(STUDY, "a test", "to ask again")
    site.look()
    site.look()

    assert any(each.get("PatientID") == PATIENT for each in site.pacs.asked)
    assert PATIENT not in caplog.text
    assert PATIENT.encode() not in b"".join(
        path.read_bytes() for path in tmp_path.glob("ledger.sqlite*")
    )


@pytest.mark.parametrize(
    ("when_silent", "state", "targets"),
    [
        ("wait", StudyState.RECEIVING, []),
        ("go_on", StudyState.JUDGED, ["FLAIR"]),
        ("hold", StudyState.HELD, []),
    ],
)
@pytest.mark.parametrize("trouble", ["silent", "refuses", "gone"])
def test_rule_says_what_follows_when_the_pacs_does_not_answer(
    make_site: MakeSite, trouble: str, when_silent: str, state: StudyState, targets: list[str]
) -> None:
    gone = ["peers.pacs.port=9"] if trouble == "gone" else []
    site = make_site("query.answer=300 ms", *gone, when_silent=when_silent)
    site.pacs.silent = trouble == "silent"
    site.pacs.status = 0xA700 if trouble == "refuses" else 0
    site.receive(*acquire("T1w", "T2w", **BRAIN))

    site.look()
    assert site.row.state is StudyState.RECEIVING
    for _ in range(2):
        site.look(seconds=timedelta(minutes=11).total_seconds())
    site.look(seconds=1)

    assert (site.row.state, site.targets) == (state, targets)
    assert site.row.hold_code == ("peer_silent" if when_silent == "hold" else None)


def test_study_that_waits_goes_on_when_the_pacs_answers_again(make_site: MakeSite) -> None:
    site = make_site(when_silent="wait")
    site.pacs.status = 0xA700
    site.receive(*acquire("T1w", "T2w", **BRAIN))
    for _ in range(3):
        site.look(seconds=700)

    site.pacs.status = 0
    for _ in range(3):
        site.look(seconds=700)

    assert site.targets == ["FLAIR"]


def test_study_that_is_held_for_a_silent_pacs_goes_on_when_it_is_released(
    make_site: MakeSite,
) -> None:
    site = make_site(when_silent="hold")
    site.pacs.status = 0xA700
    site.receive(*acquire("T1w", "T2w", **BRAIN))
    for _ in range(4):
        site.look(seconds=700)
    assert site.row.hold_code == "peer_silent"

    site.pacs.status = 0
    site.ledger.release_study(STUDY, "M. Meier", "the PACS is up again")
    site.look()
    site.look()

    assert site.targets == ["FLAIR"]


def test_requests_come_no_faster_than_the_pause_lets_them(make_site: MakeSite) -> None:
    site = make_site("query.pause=200 ms")
    site.receive(*acquire("T1w", "T2w", **BRAIN))

    start = time.monotonic()
    site.look()

    assert site.pacs.asked
    assert time.monotonic() - start >= 0.2 * len(site.pacs.asked)


def test_study_that_reopens_is_asked_about_again(make_site: MakeSite) -> None:
    site = make_site()
    site.receive(*acquire("T1w", "T2w", **BRAIN))
    site.look()
    site.look()
    asked = len(site.pacs.asked)

    site.receive(*make_series("1.9", SeriesDescription="T1 again", **BRAIN))
    site.look()

    assert len(site.pacs.asked) > asked


def test_waiting_is_told_in_status_and_in_explain(make_site: MakeSite) -> None:
    site = make_site()
    site.pacs.status = 0xA700
    site.receive(*acquire("T1w", "T2w", **BRAIN))
    site.look()

    (told,) = read_status(site.ledger, STUDY, site.clock.now)["studies"]
    assert told["reason"] == "waits for pacs: the peer refuses the query: 0xA700"

    judge = make_judge(routing=site.configuration.routing)
    explained = explain_study(STUDY, site.ledger, site.store, judge, site.clock.now)
    assert [each["state"] for each in explained["inquiries"]] == ["due"]


def test_series_at_the_pacs_and_the_reason_of_closing_are_explained(make_site: MakeSite) -> None:
    site = make_site(siblings_within_days=0)
    site.pacs.rows.append(list_series("5.1", "T2 FLAIR", StudyInstanceUID="5"))
    site.receive(*acquire("T1w", "T2w", **BRAIN))
    site.look()
    site.look()

    judge = make_judge(routing=site.configuration.routing)
    explained = explain_study(STUDY, site.ledger, site.store, judge, site.clock.now)

    assert explained["closing"] == "quiet"
    assert [each["label"] for each in explained["elsewhere"]] == ["FLAIR"]
    assert explained["slots"]["FLAIR"] == "ambiguous"


def test_our_own_result_at_the_pacs_fills_no_slot(make_site: MakeSite) -> None:
    site = make_site()
    site.pacs.rows.append(list_series("7.7", "AI SYNTH FLAIR"))
    site.receive(*acquire("T1w", "T2w", **BRAIN))

    for _ in range(6):
        site.look()

    assert site.slots["FLAIR"] == "missing"
    assert site.targets == ["FLAIR"]
