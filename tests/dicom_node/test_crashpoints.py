import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dicom_node import crashpoints

REACH = "from dicom_node.crashpoints import reach; reach('receive.stored'); print('alive')"


def run(code: str = REACH, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_nothing_happens_unless_the_environment_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DICOM_NODE_CRASH_AT", raising=False)

    crashpoints.reach("receive.stored")


def test_another_point_is_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DICOM_NODE_CRASH_AT", "delivery.sent")

    crashpoints.reach("receive.stored")


def test_the_named_point_kills_once(tmp_path: Path) -> None:
    asked = {
        "DICOM_NODE_CRASH_AT": "receive.stored",
        "DICOM_NODE_CRASH_ONCE": str(tmp_path / "once"),
    }

    first, second = run(**asked), run(**asked)

    assert first.returncode == -signal.SIGKILL
    assert second.stdout == "alive\n"


def test_one_in_so_many_passes_dies() -> None:
    passes = (
        "from dicom_node.crashpoints import reach\nfor n in range(10**5): reach('receive.stored')"
    )
    asked = {"DICOM_NODE_CRASH_AT": "receive.stored", "DICOM_NODE_CRASH_ODDS": "1000000000000"}

    assert run(passes, **asked).returncode == 0
    assert run(passes, **asked | {"DICOM_NODE_CRASH_ODDS": "100"}).returncode == -signal.SIGKILL


def test_a_child_takes_the_node_with_it() -> None:
    node = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])

    child = run(DICOM_NODE_CRASH_AT="receive.stored", DICOM_NODE_PID=str(node.pid))

    assert child.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 5
    while node.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert node.returncode == -signal.SIGKILL
