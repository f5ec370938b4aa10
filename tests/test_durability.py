"""Short slices of `make durability`: what was acknowledged outlives kills and power cuts."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from doubles.tools import require_module, require_program

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[1]
SECONDS = 600

Run = Callable[..., tuple[dict[str, Any], int]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Give a function that runs the command, and returns its result and exit status."""

    def run_command(*options: str) -> tuple[dict[str, Any], int]:
        results = tmp_path / "results.jsonl"
        done = subprocess.run(
            [sys.executable, "-m", "durability", *options, "--results", results],
            env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
            capture_output=True,
            text=True,
            check=False,
            timeout=SECONDS,
        )
        assert results.exists(), done.stdout + done.stderr
        print(done.stdout)  # noqa: T201 - the seed, where a test fails
        return json.loads(results.read_text()), done.returncode

    return run_command


def require_postgresql() -> None:
    require_program("runuser", "util-linux")
    require_module("psycopg", "dicom_node[cluster]")


@pytest.mark.parametrize(("ledger", "cycles"), [("sqlite", 15), ("postgresql", 4)])
def test_nothing_acknowledged_is_lost_to_kills(run, ledger, cycles):
    if ledger == "postgresql":
        require_postgresql()

    result, status = run("--fault", "kill", "--ledger", ledger, "--cycles", str(cycles))

    assert (result["lost"], result["findings"], status) == (0, [], 0)
    assert result["cycles"] == cycles
    assert result["acknowledged"] > cycles


@pytest.mark.mounts
@pytest.mark.parametrize(
    ("durability", "ledger", "cycles"),
    [("synced", "sqlite", 15), ("strict", "sqlite", 8), ("synced", "postgresql", 4)],
)
def test_nothing_acknowledged_is_lost_to_power_cuts(run, durability, ledger, cycles):
    if ledger == "postgresql":
        require_postgresql()
    options = ("--durability", durability, "--ledger", ledger, "--cycles", str(cycles))

    result, status = run("--fault", "cut", *options)

    assert (result["lost"], result["findings"], status) == (0, [], 0)
    assert result["cycles"] == cycles
    assert result["acknowledged"] > cycles


@pytest.mark.mounts
def test_power_cuts_take_what_was_not_synced(run):
    """The control: a loop that loses nothing here would prove nothing above."""
    result, status = run("--fault", "cut", "--cycles", "3", "--durability", "none")

    assert result["lost"] > 0
    assert status == 1
