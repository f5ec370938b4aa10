"""Short slices of what `make siege` and `make fuzz` do for longer, and damaged sessions."""

import contextlib
import importlib.util
import os
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dicom_node import command
from dicom_node.part10 import decode_file_meta
from doubles.raw_peer import EXPLICIT, IMPLICIT, RawPeer, associate_request, data_set
from doubles.receiver import Door, open_door
from doubles.tools import require_data
from siege.__main__ import judge_flood
from siege.attacks import hold_stuck, list_sessions, raise_storm, send_malformed
from siege.sessions import damage, damage_bytes, make_sessions, read_captured
from siege.target import Target, besieged

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[1]
CT = "1.2.840.10008.5.1.4.1.1.2"
REFUSALS = {0x0117, 0x0122, 0xA900, 0xC101, 0xC102, 0xC103, 0xC104}
FUZZ_SECONDS = 60


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    with besieged(tmp_path_factory.mktemp("target")) as target:
        yield target


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    with open_door(tmp_path, first_pdu="2 s", each_pdu="2 s", message="2 s", flush="1 s") as door:
        yield door


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """Return a seed of its own for each run; pytest shows it when the test fails."""
    seed = random.SystemRandom().randrange(10**6)
    request.node.add_report_section("setup", "seed", str(seed))
    return seed


def play(door: Door, said: bytes) -> list[int]:
    """Say a session, and return the status of each message that was answered."""
    statuses = []
    with contextlib.suppress(OSError), door.connect() as peer:
        reader = threading.Thread(target=lambda: statuses.extend(read_statuses(peer)))
        reader.start()
        with contextlib.suppress(OSError):
            peer.send(said)
            peer.socket.shutdown(1)
        reader.join(30)
    return statuses


def read_statuses(peer: RawPeer) -> Iterator[int]:
    while (pdu := peer.read_pdu()) is not None:
        if pdu[0] == 4:
            yield command.number(command.decode_command(pdu[1][6:]), command.STATUS)


def wait_until_empty() -> None:
    deadline = time.monotonic() + 20
    while any(thread.name == "connection" for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def assert_is_well(door: Door, caplog: pytest.LogCaptureFixture, acknowledged: int) -> None:
    """A good peer is served, nothing lies there that was not acknowledged, nothing has failed."""
    wait_until_empty()
    kept = [*door.store.iterate_incoming(), *door.store.iterate_quarantine()]
    assert len(kept) <= acknowledged
    assert list(door.store.path("incoming").rglob("*.part")) == []
    with door.connect() as peer:
        peer.associate()
        assert peer.store("1.2.999", data_set("1.2.999", study="1.2.9990")) == command.SUCCESS
    assert [each for each in caplog.records if each.exc_info or each.levelname == "CRITICAL"] == []


def test_damaged_sessions_end_and_leave_nothing_behind(door, caplog, seed):
    rng = random.Random(seed)
    threads = threading.active_count()
    acknowledged = 0
    for number in range(250):
        sessions = make_sessions(f"1.2.3.{number}")
        said = damage(rng, rng.choice(sessions), sessions)
        acknowledged += play(door, said).count(command.SUCCESS)

    assert_is_well(door, caplog, acknowledged)
    wait_until_empty()
    assert threading.active_count() <= threads + 2


def test_damaged_captured_sessions_end_and_leave_nothing_behind(door, caplog, seed):
    sessions = read_captured(require_data("net_pdu", "in-dicom"))
    rng = random.Random(seed)
    assert next(status for each in sessions for status in play(door, each)) == command.SUCCESS
    acknowledged = 0
    for _ in range(250):
        said = damage(rng, rng.choice(sessions), sessions)
        acknowledged += play(door, said).count(command.SUCCESS)

    assert_is_well(door, caplog, acknowledged)


def test_damaged_files_are_stored_whole_or_refused(door, caplog, seed):
    files = [path.read_bytes() for path in require_data("dicom_robustness").rglob("*.dcm")]
    rng = random.Random(seed)
    acknowledged = 0
    with contextlib.ExitStack() as stack:
        peers = {}
        for syntax in (EXPLICIT, IMPLICIT):
            peers[syntax] = stack.enter_context(door.connect())
            peers[syntax].associate(associate_request(((CT, (syntax,)),)))
        for _ in range(300):
            content = rng.choice([each for each in files if len(each) < 50_000])
            uid, syntax, start = "1.2.3.4.5", EXPLICIT, 132
            with contextlib.suppress(ValueError):
                meta = decode_file_meta(content)
                uid, start = meta.sop_instance_uid, meta.data_set_offset
                syntax = IMPLICIT if meta.transfer_syntax_uid == IMPLICIT else EXPLICIT
            sent = damage_bytes(rng, content[start:])
            status = peers[syntax].store(uid, sent, sop_class_uid=CT, context_id=1)
            assert status in {command.SUCCESS, *REFUSALS}
            acknowledged += status == command.SUCCESS

    assert_is_well(door, caplog, acknowledged)


def test_two_thousand_malformed_connections_leave_no_trace(target, seed):
    missed = [
        line for line in judge_flood(send_malformed(target, 2_000, seed), target) if not line[3]
    ]

    assert missed == []


def test_stuck_sockets_keep_no_good_peer_out(target):
    stuck = hold_stuck(target, 200, 4)

    assert stuck.opened >= 200
    assert stuck.refused == 0
    assert max(*stuck.established, *stuck.anew) < 5  # the goal of the long form is stricter
    assert stuck.cpu_percent < 50


def test_a_storm_of_associations_refuses_no_instance_of_who_is_in(target):
    storm = raise_storm(target, instances=60, requests=160, rounds=1)

    assert set(storm.answers) <= {"accepted", "closed", "RJ (2, 3, 2)"}


@pytest.mark.acceptance
def test_a_minute_of_fuzzing_finds_nothing():
    if importlib.util.find_spec("atheris") is None:
        message = "atheris has no wheel for this Python or machine"
        if os.environ.get("CI") == "true" and sys.version_info < (3, 14):
            pytest.fail(message)
        pytest.skip(message)
    done = subprocess.run(
        # By way of a shell, which forks: what a process starts directly inherits its peak memory,
        # here that of all the tests before, and libFuzzer takes it for its own.
        [
            "/bin/sh",
            "-c",
            '"$@"; exit $?',
            "sh",
            sys.executable,
            "-m",
            "siege.fuzz",
            # A machine may stand still for a second; `make fuzz` by itself is stricter.
            f"-max_total_time={FUZZ_SECONDS}",
            "-timeout=10",
        ],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )

    assert done.returncode == 0, done.stderr[-4_000:]
    executed = re.search(r"number_of_executed_units: (\d+)", done.stderr)
    assert executed is not None
    assert int(executed[1]) > 1_000
    assert len(list_sessions()) >= 3
