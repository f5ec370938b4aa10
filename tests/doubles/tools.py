"""Programs and images that a machine may lack: a skip with advice, under CI a failure."""

import os
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

import pytest

SEARCH_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin"
BESIDE_THE_CLONE = Path(__file__).resolve().parents[3] / "shared" / "data"


def require_program(name: str, package: str, path: str | None = None) -> str:
    """Return the path of a program, looked for on `path` or the usual one, or end the test."""
    found = shutil.which(name, path=path or SEARCH_PATH)
    if found is None:
        give_up(f"{name} is missing: apt-get install --no-install-recommends {package}")
    return found


def require_module(name: str, package: str) -> None:
    """End the test unless a module of an extra can be imported."""
    if find_spec(name) is None:
        give_up(f"{name} is missing: pip install '{package}'")


def find_data() -> Path | None:
    """Return the folder of real test images, or None where there is none."""
    folder = Path(os.environ.get("DICOM_NODE_DATA", BESIDE_THE_CLONE))
    return folder if folder.is_dir() else None


def require_data(*parts: str) -> Path:
    """Return a file or folder of the real test images, or skip: they are nobody's to install."""
    folder = find_data()
    if folder is None or not folder.joinpath(*parts).exists():
        pytest.skip(f"DICOM_NODE_DATA does not lead to {'/'.join(parts)}")
    return folder.joinpath(*parts)


def give_up(message: str) -> NoReturn:
    """End the test because something is missing."""
    if os.environ.get("CI") == "true":
        pytest.fail(message, pytrace=False)
    pytest.skip(message)
