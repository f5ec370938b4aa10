import contextlib
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from dicom_node.errors import DeliveryError
from dicom_node.ledger import Ledger
from dicom_node.network import VERIFICATION, client_context, open_association
from dicom_node.node_settings import TLS, Limits, NodeSettings, Peer, Receiver, StorageClasses
from dicom_node.receiver import build_structure_limits
from dicom_node.store import Durability, Store
from doubles.certificates import make_authority, make_certificate
from doubles.receiver import build_receiver, open_spool

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an authority, what it signed for node and peer, and a stranger's."""
    folder = tmp_path_factory.mktemp("keys")
    authority = make_authority(folder)
    for name in ("node", "peer"):
        make_certificate(folder, authority, name)
    make_certificate(folder, make_authority(folder, "other"), "stranger")
    return folder


@pytest.fixture
def start(tmp_path: Path, keys: Path) -> Iterator[Callable[..., int]]:
    """Give a function that starts a TLS receiver on an address and returns its port."""
    stack = contextlib.ExitStack()

    def start_server(host: str = "127.0.0.1", **options: object) -> int:
        settings = NodeSettings(
            ae_title="NODE",
            data_folder=tmp_path,
            models_folder=tmp_path,
            receiver=Receiver(
                host=host,
                port=0,
                tls=TLS(
                    certificate=keys / "node.pem",
                    key=keys / "node.key",
                    ca=keys / "authority.pem",
                ),
                limits=Limits(handshake="500 ms", first_pdu="500 ms"),
                storage_classes=StorageClasses(image=("MRImageStorage",)),
                **options,
            ),
            peers={"scanner": Peer(ae_title="SCANNER", address="0.0.0.0/0", roles={"receive"})},
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


def echo(port: int, tls: ssl.SSLContext | None, host: str = "127.0.0.1") -> int:
    with open_association(
        host,
        port,
        called_ae_title="NODE",
        calling_ae_title="SCANNER",
        sop_classes=[VERIFICATION],
        tls=tls,
    ) as association:
        return association.echo()


def certificate(keys: Path, name: str) -> ssl.SSLContext:
    return client_context(keys / f"{name}.pem", keys / f"{name}.key", keys / "authority.pem")


def find_own_address() -> str:
    """Return an address of this machine that is not loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # nothing is sent
        except OSError:
            pytest.skip("this machine has no address but loopback")
        return str(probe.getsockname()[0])


def test_a_peer_with_a_certificate_gets_in(start, keys):
    assert echo(start(), certificate(keys, "peer")) == 0


def test_a_certificate_of_another_authority_does_not_open(start, keys):
    with pytest.raises(DeliveryError):
        echo(start(), certificate(keys, "stranger"))


def test_this_machine_may_talk_without_tls(start):
    assert echo(start(), None) == 0


def test_another_address_may_not_talk_without_tls(start, keys):
    address = find_own_address()
    port = start(host="0.0.0.0")  # noqa: S104 - what is tested is that this is not open

    with pytest.raises(DeliveryError):
        echo(port, None, address)


def test_a_network_that_is_allowed_may_talk_without_tls(start):
    address = find_own_address()
    port = start(host="0.0.0.0", allow_plain=(address,))  # noqa: S104

    assert echo(port, None, address) == 0


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


def test_a_half_handshake_is_closed_in_time(start):
    with socket.create_connection(("127.0.0.1", start()), timeout=5) as sock:
        sock.sendall(b"\x16\x03\x01\x02\x00\x01")
        began = time.monotonic()

        assert sock.recv(1) == b""
        assert time.monotonic() - began < 1.5
