"""dicom3tools over what came out: every error counts that the sources do not have themselves.

`dciodvfy` judges one object against its IOD, `dcentvfy` a set of objects for one patient, study
and series that agree. Exit codes are no verdict: dciodvfy ends with 0 after some of its errors.
"""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

NEWER_THAN_THE_TOOL = frozenset(
    {
        "Error - </(0008,001c)> - Attribute with an even group number is not a recognized "
        "standard attribute"
    }
)
"""Synthetic Data (0008,001C) is in the Standard since 2024; Debian's dciodvfy is of 2022."""


def find_validators() -> tuple[str, str] | None:
    """Return the paths of dciodvfy and dcentvfy, or None where they are not installed."""
    paths = shutil.which("dciodvfy"), shutil.which("dcentvfy")
    return (paths[0], paths[1]) if paths[0] and paths[1] else None


def find_errors(
    validators: tuple[str, str], derived: Sequence[Path], sources: Sequence[Path]
) -> list[str]:
    """Return what the tools say against the derived files and not against the sources.

    Args:
        validators: dciodvfy and dcentvfy.
        derived: files to judge.
        sources: files of the same study as it was received.
    """
    dciodvfy, dcentvfy = validators
    inherited = {line for path in sources for line in _judge_object(dciodvfy, path)}
    found = [
        f"{path.name}: {line}"
        for path in derived
        for line in _judge_object(dciodvfy, path)
        if line not in inherited
    ]
    quarrels = set(_judge_set(dcentvfy, sources))
    return found + [
        line for line in _judge_set(dcentvfy, [*sources, *derived]) if line not in quarrels
    ]


def _judge_object(dciodvfy: str, path: Path) -> list[str]:
    return [line for line in _run([dciodvfy, "-new", str(path)]) if line not in NEWER_THAN_THE_TOOL]


def _judge_set(dcentvfy: str, paths: Sequence[Path]) -> list[str]:
    return _run([dcentvfy, *map(str, paths)])


def _run(command: Sequence[str]) -> list[str]:
    """Return the lines that speak of an error; without any, an exit code that does.

    A warning is not one: dcentvfy of 2022 places Accession Number differently for two IODs and
    warns of its own table. The tools print names in the bytes of the file.
    """
    done = subprocess.run(  # noqa: S603 - validators of the system, no shell
        command, capture_output=True, check=False
    )
    text = (done.stdout + done.stderr).decode("utf-8", "replace")
    errors = [line for line in text.splitlines() if line.startswith("Error")]
    silent = [f"{Path(command[0]).name} ended with {done.returncode}"] if done.returncode else []
    return errors or silent
