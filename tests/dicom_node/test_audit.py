import io
import logging
import sys
import threading
import warnings
from collections.abc import Callable

import pytest

from dicom_node import audit

CANARY = "DOE^JANE"


@pytest.fixture
def log() -> Callable[[], list[str]]:
    """Configure the log for one test, and return a function that gives its lines."""
    stream = io.StringIO()
    audit.configure_logging("DEBUG", stream)
    return lambda: stream.getvalue().splitlines()


def test_event_is_one_line_with_its_fields(log):
    logging.getLogger("dicom_node.dispatch").info(
        "job.started plan=%s", "6f", extra={"attempt": 1, "study": "1.2"}
    )

    [line] = log()
    at, words = line.split(" ", 1)
    assert words == "INFO dicom_node.dispatch job.started plan=6f attempt=1 study=1.2"
    assert at.endswith("Z")
    assert len(at) == len("2026-11-22T21:50:01.123Z")


def test_line_stays_one_line(log):
    logging.getLogger("dicom_node").warning("first\nsecond\x1b[31m\u2028third")

    [line] = log()
    assert line.endswith(r"first\nsecond\x1b[31m\u2028third")


@pytest.mark.parametrize("name", ["pydicom", "pynetdicom.acse", "highdicom.base", "py.warnings"])
def test_other_packages_are_not_told_below_error(log, name):
    logging.getLogger(name).warning("the value %s is odd", CANARY)

    assert log() == []


def test_other_packages_tell_only_where_from_error_on(log):
    logging.getLogger("pydicom").error("the value %s is odd", CANARY, extra={"value": CANARY})

    [line] = log()
    assert "ERROR pydicom message withheld, see test_audit.py:" in line
    assert CANARY not in line


def test_exception_is_told_by_class_and_place(log):
    try:
        try:
            raise KeyError(CANARY)
        except KeyError as error:
            raise ValueError(CANARY) from error
    except ValueError:
        logging.getLogger("dicom_node.work").exception("job.failed")

    [line] = log()
    assert "job.failed error=ValueError at test_audit.py:" in line
    assert "from KeyError at test_audit.py:" in line
    assert CANARY not in line


def test_exception_deep_in_a_library_names_our_own_line_too(log, tmp_path):
    place = tmp_path / "dicom_node" / "ours.py"
    place.parent.mkdir()
    scope: dict[str, object] = {}
    exec(compile("import json\ndef read(x):\n    json.loads(x)\n", str(place), "exec"), scope)  # noqa: S102

    try:
        scope["read"]("{")
    except ValueError as error:
        told = audit.describe_error(error)

    assert told.startswith("JSONDecodeError at decoder.py:")
    assert told.endswith(" via ours.py:3")


def test_warning_is_told_by_class_and_place(log):
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = audit._log_warning
        warnings.warn(f"invalid value {CANARY}", UserWarning, stacklevel=1)

    [line] = log()
    assert "warning.raised class=UserWarning at=test_audit.py:" in line
    assert CANARY not in line


def test_uncaught_exception_is_told_without_its_message(log):
    try:
        raise RuntimeError(CANARY)
    except RuntimeError as error:
        sys.excepthook(type(error), error, error.__traceback__)

    [line] = log()
    assert "CRITICAL dicom_node.audit process.failed error=RuntimeError at test_audit.py:" in line
    assert CANARY not in line


def test_uncaught_exception_of_a_thread_is_told_too(log):
    def fail() -> None:
        raise RuntimeError(CANARY)

    # pytest puts its own hook around a test; ours is asked directly.
    try:
        fail()
    except RuntimeError as error:
        failed = threading.ExceptHookArgs((type(error), error, error.__traceback__, None))
        threading.excepthook(failed)

    assert CANARY not in "".join(log())
    assert "error=RuntimeError" in log()[0]


def test_exception_that_nobody_can_catch_is_told_without_its_message(log):
    class Fails:
        def __del__(self) -> None:
            raise RuntimeError(CANARY)

        def __repr__(self) -> str:
            return CANARY

    Fails()

    [line] = log()
    assert "ERROR dicom_node.audit exception.ignored error=RuntimeError at test_audit.py:" in line
    assert CANARY not in line


def test_interrupt_is_no_failure(log):
    sys.excepthook(KeyboardInterrupt, KeyboardInterrupt(), None)

    assert log() == []


def test_record_that_cannot_be_written_shows_nothing(log, capsys):
    logging.getLogger("dicom_node").info("two %s %s", CANARY)  # noqa: PLE1206 - a mistake, on purpose

    assert CANARY not in capsys.readouterr().err


def test_configuring_twice_tells_once(log):
    stream = io.StringIO()
    audit.configure_logging("INFO", stream)
    audit.configure_logging("INFO", stream)

    logging.getLogger("dicom_node").info("node.started")

    assert len(stream.getvalue().splitlines()) == 1
