"""Certificates for a test: an authority, and what it and nobody else has signed, or has revoked."""

import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

from doubles.tools import require_program

SUBJECT = "/CN=127.0.0.1"

_AUTHORITY = """
[ca]
default_ca = authority
[authority]
database = {name}.index
new_certs_dir = .
certificate = {name}.pem
private_key = {name}.key
default_md = sha256
default_crl_days = 2
rand_serial = yes
unique_subject = no
policy = any
[any]
commonName = supplied
"""


def make_authority(folder: Path, name: str = "authority") -> Path:
    """Return the PEM file of a new authority; its key and its book lie beside it."""
    _openssl(
        folder,
        *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
        *("-days", "2", "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.pem"),
    )
    (folder / f"{name}.index").touch()
    (folder / f"{name}.cnf").write_text(_AUTHORITY.format(name=name))
    return folder / f"{name}.pem"


def make_certificate(
    folder: Path,
    authority: Path,
    name: str,
    *,
    starts: timedelta = timedelta(0),
    lasts: timedelta = timedelta(days=2),
    host: str = "IP:127.0.0.1",
) -> tuple[Path, Path]:
    """Return the PEM files of a certificate for `host` and of its key.

    Args:
        folder: where they are written.
        authority: who signs; of the same folder.
        name: of the files.
        starts: from now, when it begins to be valid.
        lasts: for how long it is then.
        host: as a subject alternative name.
    """
    begin = datetime.now(UTC) + starts
    (folder / f"{name}.ext").write_text(f"subjectAltName={host}\n")
    _openssl(
        folder,
        *("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
        *("-subj", SUBJECT, "-keyout", f"{name}.key", "-out", f"{name}.csr"),
    )
    _openssl(
        folder,
        *("ca", "-batch", "-notext", "-config", f"{authority.stem}.cnf", "-in", f"{name}.csr"),
        *("-startdate", f"{begin:%Y%m%d%H%M%SZ}", "-enddate", f"{begin + lasts:%Y%m%d%H%M%SZ}"),
        *("-extfile", f"{name}.ext", "-out", f"{name}.pem"),
    )
    return folder / f"{name}.pem", folder / f"{name}.key"


def revoke(authority: Path, certificate: Path) -> str:
    """Let an authority revoke a certificate; return its list of revoked ones, in PEM."""
    book = ("ca", "-config", f"{authority.stem}.cnf")
    _openssl(authority.parent, *book, "-revoke", certificate.name)
    return _openssl(authority.parent, *book, "-gencrl")


def find_fingerprint(certificate: Path) -> str:
    """Return the SHA-256 fingerprint of a certificate, as the documentation says to find it."""
    words = ("x509", "-noout", "-fingerprint", "-sha256", "-in", certificate.name)
    return _openssl(certificate.parent, *words).strip().partition("=")[2]


def _openssl(folder: Path, *arguments: str) -> str:
    return subprocess.run(
        [require_program("openssl", "openssl"), *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    ).stdout
