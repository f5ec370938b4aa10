import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import senders
from benchmarks.goals import Results
from benchmarks.receivers import SINK, build_limit, running

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[dict[str, object]]]:
    folder = tmp_path_factory.mktemp("bench")
    results = folder / "results.jsonl"
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "benchmarks",
            "--rounds",
            "1",
            "--instances",
            "6",
            "--cases",
            "mr:1,small:2",
            "--receivers",
            "ours;ours, strict;C limit, synced",
            "--only",
            "reception,set-up,disk,sending,answers",
            "--senders",
            "ours;ours × 4;dcmsend;pynetdicom, no delay",
            "--answers",
            "2000",
            "--results",
            results,
            "--work",
            folder,
            "--document",
            _copy_document(folder),
        ],
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "PATH": "/usr/bin:/bin:/usr/sbin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in results.read_text().splitlines()]
    return (folder / "benchmarks.md").read_text(), records


def _copy_document(folder: Path) -> Path:
    copy = folder / "benchmarks.md"
    copy.write_text((ROOT / "docs" / "benchmarks.md").read_text())
    return copy


def test_every_receiver_takes_every_instance_and_ours_keeps_its_bytes(run):
    _, records = run
    received = [record for record in records if record["kind"] == "reception"]

    assert {(each["receiver"], each["study"]) for each in received} == {
        (name, study)
        for name in ("ours", "ours, strict", "C limit, synced")
        for study in ("mr", "small")
    }
    assert [(each["bad"], each["lost"]) for each in received] == [(0, 0)] * 6
    assert all(each["rate"] > 0 for each in received)


def test_every_sender_sends_every_instance_and_is_answered(run):
    _, records = run
    sent = [record for record in records if record["kind"] == "sending"]

    assert {(each["sender"], each["study"]) for each in sent} == {
        (name, study)
        for name in ("ours", "ours × 4", "dcmsend", "pynetdicom, no delay")
        for study in ("mr", "small")
    }
    # pynetdicom's may lose an answer to its own thread, and its association with it.
    whole = [each for each in sent if each["sender"] != senders.PYNETDICOM]
    assert {(each["instances"], each["bad"]) for each in whole} == {(6, 0)}
    assert all(each["rate"] > 0 for each in whole)


def test_no_answer_of_thousands_is_lost(run):
    """Goal S4, a slice of it: pynetdicom's requestor loses some to its own thread."""
    _, records = run
    [answers] = [record for record in records if record["kind"] == "answers"]

    assert (answers["instances"], answers["bad"]) == (2_000, 0)


def test_the_document_keeps_its_words_and_shows_the_goals_that_were_measured(run):
    document, _ = run

    assert document.startswith("# Benchmarks of reception and of sending")
    assert "| R4 | durable / C program that syncs, mr × 1 |" in document
    assert "mr × 16" not in document.partition("## Goals")[2].partition("##")[0]
    assert "| ours, strict |" in document
    assert "| S1 | sending / dcmsend, mr into a C sink |" in document
    assert "| S4 | answers lost" in document
    assert "| ours × 4 |" in document


def test_a_sender_that_dies_at_once_has_no_rate_and_ends_no_run(tmp_path, monkeypatch):
    dying = senders.Sender(("{python}", "-c", "raise SystemExit(1)"))
    monkeypatch.setitem(senders.SENDERS, "dying", dying)
    files = tmp_path / "files"
    files.mkdir()
    (files / "1").touch()
    build_limit(tmp_path)

    with running(SINK, tmp_path / "sink", tmp_path) as sink:
        sent = senders.send_files("dying", sink, files, tmp_path / "work")

    assert sent.bad == 1
    rates = [{"kind": "sending", "rate": rate} for rate in (sent.rate, 3.0, 2.0, 1.0)]
    assert Results(rates).median("sending", "rate") == 2.0
    assert math.isnan(sent.rate)
