"""The node's log: one line for each event on stderr, and no patient attribute in any of them.

    2026-11-22T21:50:01.123Z INFO dicom_node.dispatch job.started plan=6f… attempt=1

Our own modules name UIDs and ids only, so their messages pass. Everybody else's may quote what they
read (pydicom and pynetdicom echo values, UIDs and titles of peers), so below ERROR they are dropped
and from ERROR on only their place is told. Of an exception the class and the place are told, never
the message or the traceback; warnings are handled likewise. Control characters are escaped: a line
is one line.
"""

import logging
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from dicom_node.complaints import AUDIT

OWN_PACKAGES = ("dicom_node", "synthesis")
"""Packages that keep the rule that no message holds a patient attribute."""

_STANDARD_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

_logger = logging.getLogger(__name__)


def configure_logging(level: int | str = logging.INFO, stream: TextIO | None = None) -> None:
    """Send every log record, warning and uncaught exception of this process through the filter.

    Each process of the node calls it once, first of all; `stream` is stderr unless given.
    """
    logging.addLevelName(AUDIT, "AUDIT")
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.addFilter(is_ours_or_serious)
    handler.setFormatter(EventFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    # A failing log would print the arguments of the record, raw, on stderr.
    logging.raiseExceptions = False
    warnings.showwarning = _log_warning
    sys.excepthook = _log_uncaught
    sys.unraisablehook = _log_ignored
    threading.excepthook = lambda failed: _log_uncaught(
        failed.exc_type, failed.exc_value, failed.exc_traceback
    )


def find_stream() -> TextIO:
    """Return where `configure_logging` has sent the log of this process."""
    streams = (each.stream for each in logging.getLogger().handlers if hasattr(each, "stream"))
    return next(streams, sys.stderr)


def is_ours_or_serious(record: logging.LogRecord) -> bool:
    """Say whether a record may be told at all."""
    return _is_ours(record) or record.levelno >= logging.ERROR


def describe_error(error: BaseException) -> str:
    """Return class and place of an exception and of what caused it, without their messages."""
    return " from ".join(
        f"{type(each).__name__} at {_place(each.__traceback__)}" for each in _causes(error)
    )


class EventFormatter(logging.Formatter):
    """One line: time, level, logger, message, `extra` fields, class and place of an error."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        at = datetime.fromtimestamp(record.created, UTC)
        place = f"{Path(record.pathname).name}:{record.lineno}"
        words = [
            f"{at:%Y-%m-%dT%H:%M:%S}.{at.microsecond // 1000:03d}Z",
            record.levelname,
            record.name,
            record.getMessage() if _is_ours(record) else f"message withheld, see {place}",
        ]
        if _is_ours(record):
            words += [f"{key}={value}" for key, value in _extra(record)]
        if record.exc_info is not None and record.exc_info[1] is not None:
            words.append(f"error={describe_error(record.exc_info[1])}")
        return "".join(_escape(character) for character in " ".join(words))


def _is_ours(record: logging.LogRecord) -> bool:
    return record.name.partition(".")[0] in OWN_PACKAGES


def _extra(record: logging.LogRecord) -> Iterator[tuple[str, Any]]:
    return (
        (key, value) for key, value in sorted(vars(record).items()) if key not in _STANDARD_FIELDS
    )


def _escape(character: str) -> str:
    if character.isprintable():
        return character
    return character.encode("unicode_escape").decode("ascii")


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception, then what it was raised from, each once."""
    told: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in told:
        told.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def _place(trace: TracebackType | None) -> str:
    """Return where an exception was raised, and the last line of ours on the way there."""
    frames = traceback.extract_tb(trace)
    if not frames:
        return "an unknown place"
    ours = [frame for frame in frames if set(Path(frame.filename).parts) & set(OWN_PACKAGES)]
    places = [frames[-1], *ours[-1:]] if ours and ours[-1] != frames[-1] else [frames[-1]]
    return " via ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in places)


def _log_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    _logger.debug(
        "warning.raised class=%s at=%s:%d", category.__name__, Path(filename).name, lineno
    )


def _log_uncaught(
    kind: type[BaseException], error: BaseException | None, trace: TracebackType | None
) -> None:
    if error is None or issubclass(kind, (KeyboardInterrupt, SystemExit)):
        return
    _logger.critical("process.failed", exc_info=(kind, error, trace))


def _log_ignored(ignored: "sys.UnraisableHookArgs") -> None:
    """Tell of an exception that nothing can catch, as in a destructor."""
    if ignored.exc_value is not None:
        exc_info = (ignored.exc_type, ignored.exc_value, ignored.exc_traceback)
        _logger.error("exception.ignored", exc_info=exc_info)
