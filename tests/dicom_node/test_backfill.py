"""What a PACS holds of some days is judged by what it is called, and fetched when there is time."""

import getpass
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from dicom_node.backfill import Backfill, list_days
from dicom_node.cli import main
from dicom_node.ledger import Ledger
from dicom_node.settings import load
from doubles.ledger import Clock
from doubles.querying_pacs import QueryingPacs
from doubles.studies import BRAIN, CONFIG, NOW, make_instance, make_judge

pytestmark = pytest.mark.integration

DAYS = list(list_days(date(2026, 1, 1), date(2026, 1, 2)))


def list_study(study: str, *descriptions: str, day: str = "20260101", **facts: Any) -> Any:
    """Yield the rows of a study, one for each series."""
    for number, text in enumerate(descriptions, 1):
        yield {
            "PatientID": f"P{study}",
            "StudyDate": day,
            "StudyInstanceUID": study,
            "SeriesInstanceUID": f"{study}.{number}",
            "SeriesDescription": text,
            "Modality": "MR",
            "NumberOfSeriesRelatedInstances": 1,
            **BRAIN,
            **facts,
        }


ROWS = [
    *list_study("1", "T1", "T2", "FLAIR"),
    *list_study("2", "T1", "T2"),
    *list_study("3", "T1", "T2", day="20260102"),
    *list_study("4", "DWI", "T2", day="20260102", StudyDescription="cochlear implant"),
    *list_study("5", "T1", BodyPartExamined="KNEE"),
    *list_study("6", "T1", day="20260109"),
]


@pytest.fixture
def pacs() -> Iterator[QueryingPacs]:
    with QueryingPacs(ROWS) as pacs:
        yield pacs


@pytest.fixture
def walk(pacs: QueryingPacs) -> Backfill:
    overrides = [f"peers.pacs.port={pacs.port}", "peers.pacs.ae_title=PACS", "query.pause=0 s"]
    return Backfill("pacs", load(CONFIG, overrides).node, make_judge(), lambda: NOW, lambda _: None)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}", Clock()).open() as ledger:
        yield ledger


def test_dry_run_counts_what_is_lacking_made_and_refused(walk: Backfill) -> None:
    told = list(walk.estimate(DAYS).describe())

    assert told == [
        "brain-mr-complete: of 4 studies 3 lack FLAIR, 2 would be made, 1 refused because of "
        "ruled_out 1",
        "brain-mr-complete: of 4 studies 1 lack T1w, 0 would be made, 1 refused because of "
        "ruled_out 1",
    ]


def test_studies_that_lack_something_are_sent_here_and_the_rest_is_not(
    walk: Backfill, pacs: QueryingPacs, ledger: Ledger
) -> None:
    assert list(walk.run(DAYS, ledger)) == ["2", "3"]
    assert pacs.moved == ["2.1", "2.2", "3.1", "3.2"]


def test_study_that_is_here_is_passed_over(
    walk: Backfill, pacs: QueryingPacs, ledger: Ledger
) -> None:
    instances = [make_instance(f"2.{k}.1", {}, series=f"2.{k}", study="2") for k in (1, 2)]
    ledger.record_instances(instances, "pacs", None)
    row = ledger.study_row("2")
    ledger.hold_study("2", row.generation, "a_test", "not receiving any more", seen=row.seen)

    assert list(walk.run(DAYS, ledger)) == ["3"]


def test_nothing_is_fetched_while_the_node_has_work(
    walk: Backfill, pacs: QueryingPacs, ledger: Ledger
) -> None:
    ledger.record_instances([make_instance("9.1", {}, series="9", study="9")], "modality", None)
    waits = []

    def wait(seconds: float) -> None:
        waits.append(list(pacs.moved))
        row = ledger.study_row("9")
        ledger.hold_study("9", row.generation, "a_test", "over", seen=row.seen)

    assert next(walk.run(DAYS, ledger, wait)) == "2"
    assert waits == [[]]


def test_command_tells_the_estimate_and_refuses_unknown_peers(
    pacs: QueryingPacs, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    sets = [
        f"peers.pacs.port={pacs.port}",
        "peers.pacs.ae_title=PACS",
        f"data_folder={tmp_path / 'data'}",
    ]
    common = ["--config", str(CONFIG), *(word for each in sets for word in ("--set", each))]
    days = ["backfill", "--from", "2026-01-01", "--to", "2026-01-02", "--dry-run", *common]

    with pytest.raises(SystemExit) as ended:
        main(days)
    assert ended.value.code == 0
    assert "of 4 studies 3 lack FLAIR, 2 would be made" in capsys.readouterr().out

    with pytest.raises(SystemExit) as ended:
        main([*days, "--peer", "nobody"])
    assert ended.value.code == 2

    with pytest.raises(SystemExit) as ended:
        main(["explain", "--query", "StudyInstanceUID=2", "--json", *common])
    assert ended.value.code == 0
    assert '"FLAIR": "missing"' in capsys.readouterr().out


def test_who_asked_the_archive_is_kept_with_the_keys_and_no_patient(
    pacs: QueryingPacs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    sets = [f"peers.pacs.port={pacs.port}", "peers.pacs.ae_title=PACS", f"data_folder={data}"]
    common = ["--config", str(CONFIG), *(word for each in sets for word in ("--set", each))]
    with Ledger(f"sqlite:///{data / 'ledger.sqlite'}", lambda: NOW).open() as ledger:
        for words in (
            ["backfill", "--from", "2026-01-01", "--to", "2026-01-02", "--dry-run"],
            ["explain", "--query", "StudyInstanceUID=2", "--query", "PatientID=P2"],
        ):
            with pytest.raises(SystemExit) as ended:
                main([*words, *common])
            assert ended.value.code == 0
        acts = ledger.find_acts(9)

    assert [(each.name, each.detail) for each in reversed(acts)] == [
        ("archive.asked", {"by": getpass.getuser(), "peer": "pacs", "keys": keys})
        for keys in (
            {"StudyDate": "20260101"},
            {"StudyDate": "20260102"},
            {"StudyInstanceUID": "2", "PatientID": ""},
        )
    ]


def test_days_are_listed_with_both_ends() -> None:
    assert [date(2026, 1, 1), date(2026, 1, 2)] == DAYS
