"""Certificates for a test: an authority, and what it and nobody else has signed."""

import subprocess
from pathlib import Path

from doubles.tools import require_program

SUBJECT = "/CN=127.0.0.1"


def make_authority(folder: Path, name: str = "authority") -> Path:
    """Return the PEM file of a new authority; its key lies beside it."""
    _openssl(
        *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
        *("-days", "2", "-subj", f"/CN={name}"),
        *("-keyout", folder / f"{name}.key", "-out", folder / f"{name}.pem"),
    )
    return folder / f"{name}.pem"


def make_certificate(folder: Path, authority: Path, name: str) -> tuple[Path, Path]:
    """Return the PEM files of a certificate for 127.0.0.1 and of its key."""
    certificate, key, request = (folder / f"{name}.{end}" for end in ("pem", "key", "csr"))
    extensions = folder / f"{name}.ext"
    extensions.write_text("subjectAltName=IP:127.0.0.1\n")
    _openssl(
        *("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
        *("-subj", SUBJECT, "-keyout", key, "-out", request),
    )
    _openssl(
        *("x509", "-req", "-days", "2", "-in", request, "-CA", authority),
        *("-CAkey", authority.with_suffix(".key"), "-CAcreateserial"),
        *("-extfile", extensions, "-out", certificate),
    )
    return certificate, key


def _openssl(*arguments: str | Path) -> None:
    subprocess.run(
        [require_program("openssl", "openssl"), *map(str, arguments)],
        capture_output=True,
        check=True,
        timeout=30,
    )
