import contextlib
import logging
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from dicom_node.complaints import AUDIT
from dicom_node.door_settings import TLS, Limits, Peer, Receiver, StorageClasses
from dicom_node.errors import DeliveryError
from dicom_node.ledger import Ledger
from dicom_node.network import VERIFICATION, AssociationRejectedError, open_association
from dicom_node.node_settings import NodeSettings
from dicom_node.spool import build_structure_limits
from dicom_node.store import Durability, Store
from dicom_node.tls import ClientSide
from doubles.certificates import find_fingerprint, make_authority, make_certificate, revoke
from doubles.dcmtk import echoscu
from doubles.raw_peer import associate_request
from doubles.receiver import build_receiver, open_spool
from doubles.tools import require_program

pytestmark = pytest.mark.integration

DAY = timedelta(days=1)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an authority, what it signed for node and peers, and a stranger's."""
    folder = tmp_path_factory.mktemp("keys")
    authority = make_authority(folder)
    for name in ("node", "peer", "colleague"):
        make_certificate(folder, authority, name)
    make_certificate(folder, authority, "expired", starts=-2 * DAY, lasts=DAY)
    make_certificate(folder, authority, "early", starts=DAY, lasts=DAY)
    make_certificate(folder, make_authority(folder, "other"), "stranger")
    return folder


@pytest.fixture
def start(tmp_path: Path, keys: Path) -> Iterator[Callable[..., int]]:
    """Give a function that starts a TLS receiver on an address and returns its port.

    The scanner may come from `caller`, with any certificate or those that are named.
    """
    stack = contextlib.ExitStack()

    def start_server(
        host: str = "127.0.0.1",
        caller: str = "127.0.0.1",
        certificates: tuple[str, ...] = (),
        files: TLS | None = None,
        **options: object,
    ) -> int:
        settings = NodeSettings(
            ae_title="NODE",
            data_folder=tmp_path,
            models_folder=tmp_path,
            receiver=Receiver(
                host=host,
                port=0,
                tls=files or find_files(keys, "node"),
                limits=Limits(handshake="500 ms", first_pdu="500 ms"),
                storage_classes=StorageClasses(image=("MRImageStorage",)),
                **options,
            ),
            peers={
                "scanner": Peer(
                    ae_title="SCANNER",
                    address=caller,
                    certificates=certificates,
                    roles={"receive"},
                )
            },
        )
        store = Store(settings.store_folder).open()
        ledger = stack.enter_context(Ledger(settings.ledger_url, lambda: datetime.now(UTC)).open())
        limits = build_structure_limits(settings)
        spool = stack.enter_context(open_spool(store, ledger, limits, Durability.SYNCED))
        server = build_receiver(settings, spool)
        stack.callback(server.stop, 5)
        return server.start()[1]

    with stack:
        yield start_server


def find_files(keys: Path, name: str) -> TLS:
    return TLS(
        certificate=keys / f"{name}.pem", key=keys / f"{name}.key", ca=keys / "authority.pem"
    )


def echo(port: int, tls: ClientSide | None, host: str = "127.0.0.1") -> int:
    with open_association(
        host,
        port,
        called_ae_title="NODE",
        calling_ae_title="SCANNER",
        sop_classes=[VERIFICATION],
        tls=tls,
    ) as association:
        return association.echo()


def certificate(keys: Path, name: str) -> ClientSide:
    return ClientSide(find_files(keys, name))


def shake_hands(port: int, keys: Path, *options: str) -> str:
    """Return what `openssl s_client` says of a handshake with these options."""
    command = [require_program("openssl", "openssl"), "s_client", "-connect", f"127.0.0.1:{port}"]
    words = [*command, "-CAfile", str(keys / "authority.pem"), *options]
    done = subprocess.run(words, input=b"", capture_output=True, timeout=30, check=False)
    return (done.stdout + done.stderr).decode("utf-8", "replace")


def with_certificate(keys: Path) -> tuple[str, ...]:
    return ("-cert", str(keys / "peer.pem"), "-key", str(keys / "peer.key"))


def find_own_address() -> str:
    """Return an address of this machine that is not loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # nothing is sent
        except OSError:
            pytest.skip("this machine has no address but loopback")
        return str(probe.getsockname()[0])


def wait_for_lines(caplog: pytest.LogCaptureFixture) -> None:
    """A failed handshake closes its socket before anybody can tell of it."""
    deadline = time.monotonic() + 10
    while len(caplog.records) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)


def test_a_peer_with_a_certificate_gets_in(start, keys):
    assert echo(start(), certificate(keys, "peer")) == 0


def test_a_certificate_of_another_authority_does_not_open(start, keys):
    with pytest.raises(DeliveryError):
        echo(start(), certificate(keys, "stranger"))


def test_this_machine_may_talk_without_tls(start):
    assert echo(start(), None) == 0


def test_another_address_may_not_talk_without_tls(start, keys):
    address = find_own_address()
    port = start(host="0.0.0.0", caller=address)  # noqa: S104 - what is tested is that this is not open

    with pytest.raises(DeliveryError):
        echo(port, None, address)


def test_a_network_that_is_allowed_may_talk_without_tls(start):
    address = find_own_address()
    port = start(host="0.0.0.0", caller=address, allow_plain=(address,))  # noqa: S104

    assert echo(port, None, address) == 0


@pytest.mark.catalogue("U6")
def test_a_silent_connection_holds_up_no_handshake(start, keys):
    port = start()
    silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(5)]
    try:
        began = time.monotonic()
        assert echo(port, certificate(keys, "peer")) == 0
        assert time.monotonic() - began < 1
        silent[0].settimeout(5)
        assert silent[0].recv(1) == b""
        assert time.monotonic() - began < 3
    finally:
        for each in silent:
            each.close()


@pytest.mark.catalogue("U6")
def test_a_handshake_in_small_pieces_is_closed_in_time(start, caplog):
    with socket.create_connection(("127.0.0.1", start()), timeout=5) as sock:
        began = time.monotonic()
        with contextlib.suppress(ConnectionError):
            for byte in b"\x16\x03\x01\x02\x00" + bytes(100):
                sock.sendall(bytes([byte]))
                time.sleep(0.1)

        assert time.monotonic() - began < 5
    wait_for_lines(caplog)
    assert [each.getMessage() for each in caplog.records] == [
        *("receive.tls_failed", "security.alert")
    ]


@pytest.mark.catalogue("U7")
def test_plain_bytes_where_tls_is_due_are_closed_with_one_line(start, caplog):
    address = find_own_address()
    port = start(host="0.0.0.0")  # noqa: S104
    with socket.create_connection((address, port), timeout=5) as sock:
        sock.sendall(associate_request(calling="CANARY"))
        with contextlib.suppress(ConnectionError):
            assert sock.recv(1_000)[:1] in (b"", b"\x15")  # at most an alert of TLS
            assert sock.recv(1_000) == b""

    wait_for_lines(caplog)
    assert [each.getMessage() for each in caplog.records] == [
        *("receive.tls_failed", "security.alert")
    ]


@pytest.mark.catalogue("U6")
def test_a_half_handshake_is_closed_in_time(start):
    with socket.create_connection(("127.0.0.1", start()), timeout=5) as sock:
        sock.sendall(b"\x16\x03\x01\x02\x00\x01")
        began = time.monotonic()

        assert sock.recv(1) == b""
        assert time.monotonic() - began < 1.5


def test_an_implementation_of_others_gets_in(start, keys):
    fingerprint = find_fingerprint(keys / "peer.pem")
    options = ["+tls", keys / "peer.key", keys / "peer.pem", "+cf", keys / "authority.pem"]

    answer = echoscu(
        start(certificates=(fingerprint,)),
        called="NODE",
        calling="SCANNER",
        options=[str(each) for each in options],
    )

    assert answer.returncode == 0, answer.stderr


def test_a_peer_with_the_certificate_that_is_named_gets_in(start, keys):
    named = (find_fingerprint(keys / "colleague.pem"), find_fingerprint(keys / "peer.pem").lower())

    assert echo(start(certificates=named), certificate(keys, "peer")) == 0


@pytest.mark.parametrize("shown", ["colleague", None])
def test_a_peer_without_the_certificate_that_is_named_is_rejected(start, keys, caplog, shown):
    caplog.set_level(logging.INFO)
    port = start(certificates=(find_fingerprint(keys / "peer.pem"),))

    with pytest.raises(AssociationRejectedError, match=r"RJ\(1,1,3\)"):
        echo(port, certificate(keys, shown) if shown else None)

    warning, alert = wait_for(caplog, 2)
    assert (warning.levelno, warning.getMessage()) == (logging.WARNING, "receive.calling_ae_title")
    assert (warning.peer, warning.lacks, warning.claims) == ("127.0.0.1", "certificate", "scanner")
    assert (alert.levelno, alert.getMessage()) == (AUDIT, "security.alert")
    assert (alert.code, alert.event, alert.peer) == (110113, "calling_ae_title", "127.0.0.1")


@pytest.mark.parametrize(
    ("shown", "reason"),
    [
        ("stranger", "unable to get local issuer certificate"),
        ("expired", "certificate has expired"),
        ("early", "certificate is not yet valid"),
    ],
)
def test_a_certificate_that_is_not_good_does_not_open(start, keys, caplog, shown, reason):
    caplog.set_level(logging.INFO)
    port = start()

    with pytest.raises(DeliveryError):
        echo(port, certificate(keys, shown))

    warning, alert = wait_for(caplog, 2)
    assert (warning.getMessage(), warning.reason) == ("receive.tls_failed", reason)
    assert (alert.levelno, alert.event) == (AUDIT, "tls_failed")


def test_no_certificate_does_not_open(start, keys, caplog):
    caplog.set_level(logging.INFO)

    said = shake_hands(start(), keys, "-tls1_2")

    assert "handshake failure" in said
    warning, _ = wait_for(caplog, 2)
    assert warning.reason == "peer did not return a certificate"


def test_a_revoked_certificate_does_not_open(start, keys, tmp_path, caplog):
    folder = tmp_path / "revoking"
    folder.mkdir()
    authority = make_authority(folder)
    for name in ("node", "peer", "lost"):
        make_certificate(folder, authority, name)
    files = find_files(folder, "node").model_copy(update={"ca": folder / "ca.pem"})
    files.ca.write_text(authority.read_text() + revoke(authority, folder / "lost.pem"))
    caplog.set_level(logging.INFO)
    port = start(files=files)

    assert echo(port, certificate(folder, "peer")) == 0
    with pytest.raises(DeliveryError):
        echo(port, certificate(folder, "lost"))

    assert wait_for(caplog, 2)[0].reason == "certificate revoked"


@pytest.mark.parametrize(
    ("options", "answer"),
    [
        (["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"], "alert protocol version"),
        (["-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-SHA256"], "alert handshake failure"),
        (["-tls1_2", "-cipher", "AES128-GCM-SHA256"], "alert handshake failure"),
    ],
    ids=["TLS 1.1", "CBC", "no forward secrecy"],
)
def test_what_bcp_195_forbids_is_not_spoken(start, keys, options, answer):
    assert answer in shake_hands(start(), keys, *with_certificate(keys), *options)


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_what_bcp_195_wants_is_spoken_and_no_session_is_kept(start, keys, version):
    said = shake_hands(start(), keys, *with_certificate(keys), version)

    assert "Verify return code: 0 (ok)" in said
    assert "Compression: NONE" in said
    assert "TLS session ticket" not in said


def test_changed_files_are_shown_to_the_next_peer(start, keys, tmp_path, caplog):
    files = TLS(**{name: tmp_path / path.name for name, path in find_files(keys, "node")})
    for path in (files.certificate, files.key, files.ca):
        path.write_bytes((keys / path.name).read_bytes())
        path.chmod(0o600)
    port = start(files=files)
    peer = certificate(keys, "peer")

    def shown() -> str:
        return peer.look_at("127.0.0.1", port, 5).fingerprint

    assert shown() == find_fingerprint(keys / "node.pem")
    files.certificate.write_bytes((keys / "colleague.pem").read_bytes())
    assert shown() == find_fingerprint(keys / "node.pem"), "its key is not there yet"
    assert "tls.files_not_taken" in caplog.text
    files.key.write_bytes((keys / "colleague.key").read_bytes())
    assert shown() == find_fingerprint(keys / "colleague.pem")
    assert echo(port, peer) == 0


def wait_for(caplog: pytest.LogCaptureFixture, count: int) -> list[logging.LogRecord]:
    """Return the complaints, once there are so many."""
    deadline = time.monotonic() + 10
    while len(found := find_complaints(caplog)) < count:
        assert time.monotonic() < deadline, found
        time.sleep(0.02)
    assert len(found) == count
    return found


def find_complaints(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [each for each in caplog.records if each.name == "dicom_node.complaints"]
