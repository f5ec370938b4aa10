"""A receiver without processes of its own: everything in the process of the test."""

import contextlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from dicom_node.admission import Admission
from dicom_node.complaints import Complaints
from dicom_node.door_settings import TLS, Limits, Peer, StorageClasses
from dicom_node.door_settings import Receiver as ReceiverSettings
from dicom_node.entrance import build_entrance
from dicom_node.hall import Hall
from dicom_node.ledger import Ledger, Report
from dicom_node.node_settings import NodeSettings
from dicom_node.receiver import Receiver
from dicom_node.recorder import Recorder
from dicom_node.spool import Spool, build_structure_limits
from dicom_node.store import Durability, Store
from dicom_node.structure import StructureLimits
from doubles.door_watch import wait_until
from doubles.raw_peer import RawPeer


@contextlib.contextmanager
def open_spool(
    store: Store,
    ledger: Ledger,
    limits: StructureLimits,
    durability: Durability,
    record_report: Callable[[str, Report], int | None] | None = None,
) -> Iterator[Spool]:
    """Give a spool for the length of a `with` block; at its end every row is written."""
    with Recorder(
        ledger, store, waited_for=durability is Durability.STRICT, record_report=record_report
    ) as recorder:
        yield Spool(store, recorder, limits, durability)


def build_receiver(
    settings: NodeSettings, spool: Spool, complaints: Complaints | None = None
) -> Receiver:
    """Return a receiver that serves connections in threads."""
    entrance, complaints = build_entrance(settings), complaints or Complaints()
    admission = Admission(entrance.budget, entrance.is_known)
    hall = Hall(entrance.open_door(), spool, admission, complaints, beat_seconds=10.0)
    hall.start()
    return Receiver((entrance.host, entrance.port), admission, complaints, hall)


class Door:
    """A receiver in this process, with what is behind it."""

    def __init__(
        self, receiver: Receiver, spool: Spool, ledger: Ledger, complaints: Complaints, port: int
    ) -> None:
        self.receiver = receiver
        self.spool = spool
        self.store = spool.store
        self.ledger = ledger
        self.complaints = complaints
        self.port = port

    def connect(self, **options: str) -> RawPeer:
        return RawPeer(self.port, **options)

    def connections(self) -> int:
        """Return how many are in, with and without an association."""
        return self.receiver._admission.total()

    def stored(self, study_instance_uid: str = "1.2.3") -> list[bytes]:
        instances = self.ledger.read_instances(study_instance_uid)
        return [self.store.read(instance.path) for instance in instances]


@contextlib.contextmanager
def open_door(
    folder: Path,
    durability: Durability = Durability.STRICT,
    minimum_free: str = "256 MiB",
    tls: TLS | None = None,
    **limits: object,
) -> Iterator[Door]:
    """Give a receiver with these limits for the length of a `with` block.

    It is strict, so that a row is there when its answer is, unless it is told otherwise. It knows
    SCANNER, which may store, TESTER, which may only verify, and FAR, which calls from elsewhere.
    """
    settings = NodeSettings(
        ae_title="NODE",
        data_folder=folder,
        models_folder=folder,
        receiver=ReceiverSettings(
            port=0,
            tls=tls,
            minimum_free=minimum_free,
            limits=Limits(**limits),
            storage_classes=StorageClasses(
                image=("MRImageStorage", "CTImageStorage"), passed_over=("BasicTextSRStorage",)
            ),
        ),
        peers={
            "scanner": Peer(ae_title="SCANNER", address="127.0.0.1", roles={"receive"}),
            "tester": Peer(ae_title="TESTER", address="127.0.0.0/8", roles={"echo"}),
            "far": Peer(ae_title="FAR", address="10.9.8.7", roles={"receive"}),
        },
    )
    store = Store(settings.store_folder).open()
    with (
        contextlib.closing(Ledger(settings.ledger_url, lambda: datetime.now(UTC)).open()) as ledger,
        open_spool(store, ledger, build_structure_limits(settings), durability) as spool,
    ):
        complaints = Complaints()
        receiver = build_receiver(settings, spool, complaints)
        _, port = receiver.start()
        try:
            yield Door(receiver, spool, ledger, complaints, port)
        finally:
            receiver.stop(5)


@contextlib.contextmanager
def lend(door: Door) -> Iterator[Door]:
    """Give a door that others have before and after, as if it had told nothing of anybody yet.

    It ends when everybody has left and is told of: a door tells of a peer that has gone a moment
    later, which would be in the log of the next test, whatever door that one has.
    """
    door.complaints._said.clear()
    yield door
    wait_until(lambda: door.connections() == 0)
