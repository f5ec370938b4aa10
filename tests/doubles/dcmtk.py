"""DCMTK's command line as the other side: an SCU that is not ours."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

from doubles.tools import require_program


def echoscu(
    port: int, *, called: str, calling: str = "STORESCU", options: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    """Verify by C-ECHO."""
    return _run("echoscu", ["-aet", calling, "-aec", called, *options, "127.0.0.1", str(port)])


def storescu(
    port: int,
    *paths: Path,
    called: str,
    calling: str = "STORESCU",
    options: Sequence[str] = (),
) -> subprocess.CompletedProcess[str]:
    """Send files and folders (all files below them) by C-STORE."""
    arguments = ["-aet", calling, "-aec", called, "+sd", "+r", "-R", "-nh", *options]
    return _run("storescu", [*arguments, "127.0.0.1", str(port), *map(str, paths)])


def _run(program: str, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [require_program(program, "dcmtk"), *arguments],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=300,
        check=False,
    )
