"""A ledger and a store with derived instances that are due to peers, and the workers for them."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from copy import deepcopy
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

from pydicom import Dataset, dcmwrite

from dicom_node.confirmation import Confirmation
from dicom_node.delivery import Destination, find_alerts
from dicom_node.demonstration.pacs import Orthanc
from dicom_node.domain import Delivery, DeliveryState, DerivedInstance
from dicom_node.door_settings import TLS, DICOMweb, Peer, Receiver, StorageClasses
from dicom_node.ledger import Ledger
from dicom_node.node_settings import NodeSettings
from dicom_node.part10 import encode_file_meta
from dicom_node.store import Store
from doubles.ledger import Clock, finish, make_derived, make_plan, receive_and_judge
from doubles.scripted_pacs import EXPLICIT, IMPLICIT, MR, ScriptedPacs
from doubles.window_pacs import WindowPacs

DERIVED_STUDY = "1.2.3.777"


class Outbox:
    """A ledger with derived instances that are due to peers.

    Attributes:
        uids: their SOP Instance UIDs, once there are any.
    """

    def __init__(
        self, folder: Path, study: str = DERIVED_STUDY, *, one_series: bool = False
    ) -> None:
        """Describe them: in `study`, each in a series of its own or all in one."""
        self.study = study
        self.one_series = one_series
        self.clock = Clock()
        self.folder = folder
        self.store = Store(folder / "store").open()
        self.ledger = Ledger(f"sqlite:///{folder / 'ledger.sqlite'}", self.clock).open()
        self.uids: list[str] = []

    def fill(
        self,
        peers: tuple[str, ...] = ("pacs",),
        sop_class: str = MR,
        instances: int = 3,
        **written: Any,
    ) -> None:
        """Queue instances; `written` is handed to `write`."""
        receive_and_judge(self.ledger, [make_plan(deliver_to=peers)])
        derived = [self.write(number, sop_class, **written) for number in range(1, instances + 1)]
        self.uids = [each.sop_instance_uid for each in derived]
        finish(self.ledger, *derived)

    def write(
        self,
        number: int,
        sop_class: str,
        *,
        syntaxes: Sequence[str] = (EXPLICIT,),
        content: Dataset | None = None,
    ) -> DerivedInstance:
        """Write an instance in one of `syntaxes`, by turns; `content` is what else is in it."""
        # A PACS that holds one UID in two studies commits to neither.
        uid = f"{self.study}.0.{number}"
        instance = make_derived(number, sop_instance_uid=uid, sop_class_uid=sop_class)
        dataset = deepcopy(content or Dataset())
        syntax = syntaxes[number % len(syntaxes)]
        dataset.SOPClassUID = sop_class
        dataset.SOPInstanceUID = instance.sop_instance_uid
        dataset.Rows = 512
        dataset.PatientID = "P1"
        dataset.StudyInstanceUID = self.study
        dataset.SeriesInstanceUID = f"{self.study}.{0 if self.one_series else number}"
        out = BytesIO()
        dcmwrite(out, dataset, implicit_vr=syntax == IMPLICIT, little_endian=True)
        meta = encode_file_meta(sop_class, instance.sop_instance_uid, syntax)
        content = meta + out.getvalue()
        self.store.write(instance.path, content)
        return make_derived(
            number,
            sop_instance_uid=uid,
            sop_class_uid=sop_class,
            series_instance_uid=dataset.SeriesInstanceUID,
            sha256=sha256(content).hexdigest(),
        )

    def settings(
        self,
        commitment: str = "none",
        peer: Mapping[str, Any] | None = None,
        tls: TLS | None = None,
        **pacs: Any,
    ) -> NodeSettings:
        """Return settings whose peers are called as these are, each with AE title and port.

        `peer` has settings of all of them, `tls` the certificate of the node.
        """
        peers = {
            alias: Peer(
                ae_title=each.ae_title,
                address="127.0.0.1" if commitment == "storage_commitment" else None,
                host="127.0.0.1",
                port=each.port,
                roles={"send", "query"},
                commitment=commitment,
                **(peer or {}),
            )
            for alias, each in pacs.items()
        }
        return self._node(peers, tls)

    def _node(self, peers: Mapping[str, Peer], tls: TLS | None = None) -> NodeSettings:
        return NodeSettings(
            ae_title="DICOM_NODE",
            data_folder=self.folder,
            models_folder=self.folder,
            receiver=Receiver(
                port=0, tls=tls, storage_classes=StorageClasses(image=("MRImageStorage",))
            ),
            peers=peers,
        )

    def destination(self, alias: str, **options: Any) -> Destination:
        """Return the worker of one of the peers; `options`: see `settings`."""
        return Destination(alias, self.ledger, self.store, self.settings(**options), self.clock)

    def archive(self, url: str, peer: Mapping[str, Any] | None = None, **web: Any) -> Destination:
        """Return the worker of the peer `pacs` as a DICOMweb archive; `web` has settings of it."""
        settings = self._call_archive(url, peer or {}, web)
        return Destination("pacs", self.ledger, self.store, settings, self.clock)

    def archive_confirmation(self, url: str, **web: Any) -> Confirmation:
        settings = self._call_archive(url, {"commitment": "query"}, web)
        return Confirmation("pacs", self.ledger, settings, self.clock)

    def _call_archive(
        self, url: str, peer: Mapping[str, Any], web: Mapping[str, Any]
    ) -> NodeSettings:
        called = Peer(dicomweb=DICOMweb(url=url, **web), roles={"send"}, **peer)
        return self._node({"pacs": called})

    def sweep(self, pacs: ScriptedPacs | WindowPacs | Orthanc, **peer: Any) -> int:
        """Sweep once; `peer` has settings of the peer."""
        with closing(self.destination("pacs", peer=peer, pacs=pacs)) as destination:
            return destination.sweep()

    def confirmation(self, pacs: Any, how: str = "storage_commitment") -> Confirmation:
        return Confirmation("pacs", self.ledger, self.settings(how, pacs=pacs), self.clock)

    def alerts(self, pacs: ScriptedPacs, how: str = "none") -> list[str]:
        return self.alerts_of(self.settings(how, pacs=pacs))

    def alerts_of(self, settings: NodeSettings) -> list[str]:
        backlogs, outages = self.ledger.backlogs(), self.ledger.outages()
        return list(find_alerts(backlogs, outages, settings, self.clock()))

    def deliveries(self) -> list[Delivery]:
        return self.ledger.deliveries()

    def states(self) -> list[DeliveryState]:
        return [each.state for each in self.deliveries()]
