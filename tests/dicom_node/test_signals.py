import signal
import subprocess
import sys

import pytest

PROGRAM = """
from dicom_node.signals import EndRequest
end = EndRequest()
print("waiting", flush=True)
end.wait()
print("ending", flush=True)
input()
"""


def start() -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    return process


@pytest.mark.integration
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_either_signal_ends_the_wait_and_sigterm_may_come_again(number):
    with start() as process:
        process.send_signal(number)
        process.send_signal(signal.SIGTERM)

        out, _ = process.communicate("\n", timeout=10)

    assert (out, process.returncode) == ("ending\n", 0)


@pytest.mark.integration
def test_second_interrupt_ends_at_once():
    with start() as process:
        process.send_signal(signal.SIGINT)
        assert process.stdout is not None
        assert process.stdout.readline() == "ending\n"

        process.send_signal(signal.SIGINT)

        assert process.wait(10) == 1
