"""A store and a ledger with one small real study in them, judged by shipped rules or others."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path

from pydicom import Dataset

from dicom_node import assembly
from dicom_node.elements import encode
from dicom_node.ledger import Job, Ledger
from dicom_node.settings import load
from dicom_node.spool import build_structure_limits, rebuild
from dicom_node.store import Store
from synthesis.registry import load_cards

CONFIGURATION = Path(__file__).resolve().parents[2] / "config"


class Bench:
    """What a node has when it has received a study; nothing runs and nothing listens.

    Attributes:
        settings: folder of the rules that judge.
        overrides: what commands and workers need to find it.
    """

    def __init__(self, folder: Path, models_folder: Path, settings: Path = CONFIGURATION) -> None:
        self.settings = settings
        self.overrides = (
            f"data_folder={folder}",
            f"models_folder={models_folder}",
            "assembly.quiet_period=0 s",
            "query.enabled=false",
        )
        self.configuration = load(settings, self.overrides)
        self.store = Store(self.configuration.node.store_folder).open()
        self.ledger = Ledger(self.configuration.node.ledger_url, lambda: datetime.now(UTC)).open()
        self.store.namespace()

    def receive(self, instances: Iterable[Dataset]) -> None:
        """Keep instances as the receiver would have."""
        for instance in instances:
            content = encode(instance)
            digest = sha256(content).hexdigest()
            self.store.write(self.store.incoming_name(instance.SOPInstanceUID, digest), content)
        rebuild(self.store, self.ledger, build_structure_limits(self.configuration.node))

    def judge(self) -> None:
        """Judge what has been received."""
        cards = load_cards(self.configuration.node.models_folder)
        assembly.sweep(
            self.ledger, self.store, self.configuration, cards, lambda: datetime.now(UTC)
        )

    def claim(self, target: str) -> Job:
        """Claim every job and return the one that makes `target`."""
        jobs = {job.plan.target: job for job in self.ledger.claim(9, timedelta(minutes=5))}
        return jobs[target]
