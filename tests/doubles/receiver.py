"""A receiver without processes of its own: everything in the process of the test."""

import contextlib
from collections.abc import Callable, Iterator

from dicom_node.complaints import Complaints
from dicom_node.hall import Hall
from dicom_node.ledger import Ledger, Report
from dicom_node.node_settings import NodeSettings
from dicom_node.receiver import Receiver, build_admission, build_door
from dicom_node.recorder import Recorder
from dicom_node.spool import Spool
from dicom_node.store import Durability, Store
from dicom_node.structure import StructureLimits


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


def build_receiver(settings: NodeSettings, spool: Spool) -> Receiver:
    """Return a receiver that serves connections in threads."""
    admission, complaints = build_admission(settings), Complaints()
    hall = Hall(build_door(settings), spool, admission, complaints, beat_seconds=10.0)
    hall.start()
    return Receiver(settings, admission, complaints, hall)
