"""Lets every process that finds this folder on PYTHONPATH fail in all ways that may print a value.

Python imports a module of this name at its start. Once the process has set up its log, the text of
SABOTEUR_TEXT is in an exception of a thread, in one that nobody can catch, in a warning, in records
of other packages and in a record that cannot be written. A file in SABOTEUR_FOLDER says so.
"""

import logging
import os
import threading
import time
import warnings
from pathlib import Path

TEXT = os.environ.get("SABOTEUR_TEXT", "")


class Unlucky:
    """Fails where nobody can catch it."""

    def __del__(self) -> None:
        raise RuntimeError(TEXT)

    def __repr__(self) -> str:
        return TEXT


def sabotage() -> None:
    while not any(type(each.formatter).__name__ == "EventFormatter" for each in handlers()):
        time.sleep(0.02)
    Unlucky()
    warnings.warn(f"invalid value {TEXT}", stacklevel=1)
    for name in ("pydicom", "pynetdicom.acse", "py.warnings"):
        logging.getLogger(name).warning("the value %s", TEXT)
        try:
            raise ValueError(TEXT)
        except ValueError:
            logging.getLogger(name).exception("the value %s", TEXT, extra={"value": TEXT})
    logging.getLogger("dicom_node.sabotage").error("two values, %s and %s", *[TEXT])
    Path(os.environ["SABOTEUR_FOLDER"], str(os.getpid())).touch()
    raise RuntimeError(TEXT) from KeyError(TEXT)


def handlers() -> list[logging.Handler]:
    return logging.getLogger().handlers


def begin() -> None:
    threading.Thread(target=sabotage, daemon=True).start()


if TEXT:
    begin()
    os.register_at_fork(after_in_child=begin)
