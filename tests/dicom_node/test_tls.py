import contextlib
import logging
import socket
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from dicom_node.demonstration.processes import find_free_ports
from dicom_node.door_settings import TLS
from dicom_node.errors import ConfigurationError
from dicom_node.network import VERIFICATION, open_association
from dicom_node.tls import (
    CertificateWatch,
    ClientSide,
    InsecurePeerError,
    ServerSide,
    check_own_chain,
    inspect_own,
)
from doubles.certificates import find_fingerprint, make_authority, make_certificate
from doubles.tools import require_program

pytestmark = pytest.mark.integration

DAY = timedelta(days=1)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what an authority signed for the node and for a PACS, and a stranger's."""
    folder = tmp_path_factory.mktemp("keys")
    authority = make_authority(folder)
    for name in ("node", "pacs"):
        make_certificate(folder, authority, name)
    make_certificate(folder, authority, "elsewhere", host="DNS:elsewhere.example")
    make_certificate(folder, authority, "expired", starts=-2 * DAY, lasts=DAY)
    make_certificate(folder, authority, "early", starts=DAY, lasts=DAY)
    make_certificate(folder, make_authority(folder, "other"), "stranger")
    return folder


@pytest.fixture
def files(keys: Path, tmp_path: Path) -> TLS:
    """The node's files, to be spoilt."""
    for name in ("node.pem", "node.key", "authority.pem"):
        (tmp_path / name).write_bytes((keys / name).read_bytes())
    (tmp_path / "node.key").chmod(0o600)
    return TLS(
        certificate=tmp_path / "node.pem",
        key=tmp_path / "node.key",
        ca=tmp_path / "authority.pem",
    )


@contextlib.contextmanager
def storing(keys: Path, name: str) -> Iterator[int]:
    """Run DCMTK's storescp with a certificate and give its port."""
    (port,) = find_free_ports(1)
    options = ["+tls", f"{name}.key", f"{name}.pem", "+cf", "authority.pem", "--ignore"]
    command = [require_program("storescp", "dcmtk"), *options, str(port)]
    with subprocess.Popen(command, cwd=keys, stderr=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + 20
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    break
                except OSError:
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
            yield port
        finally:
            process.terminate()


def echo(port: int, tls: ClientSide) -> int:
    with open_association(
        "127.0.0.1",
        port,
        called_ae_title="PACS",
        calling_ae_title="NODE",
        sop_classes=[VERIFICATION],
        tls=tls,
    ) as association:
        return association.echo()


def test_a_peer_whose_certificate_names_its_host_is_called(keys, files):
    with storing(keys, "pacs") as port:
        assert echo(port, ClientSide(files)) == 0


def test_a_peer_whose_certificate_is_named_is_called_whatever_its_host(keys, files):
    named = {find_fingerprint(keys / "elsewhere.pem")}

    with storing(keys, "elsewhere") as port:
        assert echo(port, ClientSide(files, named)) == 0


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("elsewhere", "IP address mismatch"),
        ("expired", "certificate has expired"),
        ("early", "certificate is not yet valid"),
        ("stranger", "unable to get local issuer certificate"),
    ],
)
def test_a_peer_whose_certificate_is_not_good_is_not_talked_to(keys, files, name, reason):
    with storing(keys, name) as port, pytest.raises(InsecurePeerError, match=reason) as error:
        echo(port, ClientSide(files))

    assert error.value.retry


def test_a_peer_with_another_certificate_than_the_named_one_is_not_talked_to(keys, files):
    named = {find_fingerprint(keys / "node.pem")}

    with storing(keys, "pacs") as port, pytest.raises(InsecurePeerError) as error:
        echo(port, ClientSide(files, named))

    assert find_fingerprint(keys / "pacs.pem") in str(error.value)


@pytest.mark.parametrize("name", ["expired", "stranger"])
def test_a_named_certificate_has_to_be_good_as_well(keys, files, name):
    named = {find_fingerprint(keys / f"{name}.pem")}

    with storing(keys, name) as port, pytest.raises(InsecurePeerError):
        echo(port, ClientSide(files, named))


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o640])
def test_a_key_that_only_its_owner_can_read_is_used(files, mode):
    files.key.chmod(mode)  # 0640 because tests run as root, or not at all with this mode
    if mode == 0o640 and files.key.stat().st_uid:
        pytest.skip("only root's key may be read by a group")

    assert ServerSide(files).context()


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o660, 0o666])
def test_a_key_that_others_can_read_is_refused_with_advice(files, mode):
    files.key.chmod(mode)

    with pytest.raises(ConfigurationError, match=r"receiver\.tls\.key : seen .*wanted mode 0600"):
        ServerSide(files)
    with pytest.raises(ConfigurationError, match=r"receiver\.tls\.key"):
        ClientSide(files)


def test_a_key_with_a_passphrase_is_refused_and_not_asked_for(files):
    subprocess.run(
        [
            *(require_program("openssl", "openssl"), "ec", "-aes128", "-passout", "pass:secret"),
            *("-in", files.key, "-out", files.key),
        ],
        check=True,
        capture_output=True,
    )

    with pytest.raises(ConfigurationError, match="a key with a passphrase"):
        ServerSide(files)


@pytest.mark.parametrize(
    ("field", "text", "message"),
    [
        ("certificate", None, r"tls\.certificate : seen .*node\.pem"),
        ("certificate", "nothing", r"tls\.certificate : seen .*node\.pem"),
        ("key", None, r"tls\.key : seen .*No such file"),
        ("key", "nothing", r"tls\.certificate : seen .*wanted a PEM file that fits the key"),
        ("ca", None, r"tls\.ca : seen .*authority\.pem"),
        ("ca", "nothing", r"tls\.ca : seen .*authority\.pem"),
    ],
)
def test_a_file_that_is_none_is_told_by_its_key(files, field, text, message):
    path = getattr(files, field)
    path.unlink() if text is None else path.write_text(text)

    with pytest.raises(ConfigurationError, match=message):
        ServerSide(files)


def test_a_key_of_another_certificate_is_told(keys, files):
    files.key.write_bytes((keys / "pacs.key").read_bytes())

    with pytest.raises(ConfigurationError, match="key values mismatch"):
        ServerSide(files)


@pytest.mark.parametrize(
    ("name", "seen"), [("expired", "has expired"), ("early", "is not valid yet")]
)
def test_a_certificate_that_is_not_valid_now_is_not_started_with(keys, files, name, seen):
    files.certificate.write_bytes((keys / f"{name}.pem").read_bytes())
    files.key.write_bytes((keys / f"{name}.key").read_bytes())

    with pytest.raises(ConfigurationError, match=seen):
        ServerSide(files)


def test_own_certificate_is_told_with_its_fingerprint_and_end(keys, files):
    own = inspect_own(files)

    assert own.fingerprint == find_fingerprint(keys / "node.pem")
    assert timedelta(days=1) < own.expires - datetime.now(UTC) < timedelta(days=2)


def test_own_certificate_need_not_be_of_the_authority_of_the_peers(keys, files):
    files.ca.write_bytes((keys / "other.pem").read_bytes())

    assert inspect_own(files)
    with pytest.raises(ConfigurationError, match=r"wanted one of authority\.pem"):
        check_own_chain(files)


def test_the_end_of_the_certificate_is_told_three_times(files, caplog):
    caplog.set_level(logging.INFO)
    end = inspect_own(files).expires
    left = timedelta(days=31)
    watch = CertificateWatch(files, lambda: end - left)
    told = []
    for days in (31, 30, 29, 7, 6.5, 1, 0.5):
        left = timedelta(days=days)
        watch.sweep()
        told.append([(each.levelname, each.days) for each in caplog.records])
        caplog.clear()

    warning, error = [("WARNING", 30)], [("ERROR", 1)]
    assert told == [[], warning, [], [("WARNING", 7)], [], error, []]
    assert list(watch.find_alerts())


def test_a_new_certificate_ends_the_alert(files):
    end = inspect_own(files).expires
    left = timedelta(days=3)
    watch = CertificateWatch(files, lambda: end - left)

    watch.sweep()
    (alert,) = watch.find_alerts()
    assert "expires in 3 days" in alert
    left = timedelta(days=300)
    watch.sweep()

    assert not list(watch.find_alerts())


def test_a_certificate_that_has_ended_is_a_problem(keys, files):
    watch = CertificateWatch(files, lambda: datetime.now(UTC))
    watch.sweep()
    files.certificate.write_bytes((keys / "expired.pem").read_bytes())
    files.key.write_bytes((keys / "expired.key").read_bytes())

    with pytest.raises(ConfigurationError, match="has expired"):
        watch.sweep()
