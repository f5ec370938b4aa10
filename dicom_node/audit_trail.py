"""The audit trail: a sweep that tells an audit record repository what the ledger says happened.

The ledger is the queue: what has not been told is there still, after a crash, and after days in
which nobody listened; nothing else waits for it. How far it was told is kept when the repository
has read it, so that a message may come twice and none is missing.
"""

import logging
import random
import socket
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from uuid import UUID

from pydicom import Dataset, dcmread
from pydicom import config as pydicom_config

from dicom_node.audit_messages import (
    Background,
    Source,
    find_pseudonym,
    find_study,
    write_messages,
)
from dicom_node.elements import read_bytes
from dicom_node.errors import ConfigurationError, DeliveryError
from dicom_node.headers import IDENTITY, digest_identity
from dicom_node.ledger import Event, Ledger
from dicom_node.node_settings import Audit, NodeSettings
from dicom_node.outcomes import Rest
from dicom_node.store import Store
from dicom_node.syslog import deliver, format_message
from dicom_node.tls import ClientSide

APPLICATION = "dicom-node"

BATCH = 1_000
"""Events that are told at once."""

LATE = timedelta(minutes=15)
"""What has not been told for so long is told to a person."""

_SECONDS = 10.0
_LAST_SECONDS = 2.0
"""The end of the node waits for its last message so long, and no longer."""

logger = logging.getLogger(__name__)


class AuditTrail:
    """Tells what has happened, and keeps in the ledger how far it has come.

    Attributes:
        failure: why nothing can be told now; None when all is well.
    """

    def __init__(
        self,
        settings: NodeSettings,
        audit: Audit,
        ledger: Ledger,
        store: Store,
        clock: Callable[[], datetime],
    ) -> None:
        self._audit = audit
        self._ledger = ledger
        self._store = store
        self._clock = clock
        self._key = settings.installation
        self._host = socket.gethostname()
        self._source = Source(ae_title=settings.ae_title, host=self._host, peers=settings.peers)
        self._rest = Rest(
            (audit.first_retry, audit.longest_retry),
            (1.0, 1.0),
            clock,
            random.Random(),  # noqa: S311 - nothing secret
        )
        self._has_begun = False
        self.failure: str | None = None

    def sweep(self) -> None:
        """Tell what has not been told, unless the repository is left alone for a while."""
        if not self._has_begun:
            self._ledger.begin_trail()
            self._has_begun = True
        if not self._rest.is_over():
            return
        self._tell(_SECONDS)

    def finish(self) -> None:
        """Tell the end of the node, if the repository answers at once; else its next start will."""
        if self._has_begun and self.failure is None:
            self._tell(_LAST_SECONDS)

    def find_alerts(self) -> Iterator[str]:
        """Yield a sentence for a person, if what happened has not been told for long."""
        behind = self.find_delay()
        if behind > LATE:
            yield (
                f"audit: {self._audit.host} port {self._audit.port} has taken nothing for "
                f"{behind.total_seconds() / 3600:.1f} h ({self.failure or 'not tried yet'})"
            )

    def find_delay(self) -> timedelta:
        """Return how long the oldest event has waited that has not been told."""
        since = self._ledger.find_untold_since() if self._has_begun else None
        return max(self._clock() - since, timedelta(0)) if since else timedelta(0)

    def _tell(self, seconds: float) -> None:
        while events := self._ledger.read_untold(BATCH):
            messages = list(write_messages(events, self._source, self._look_up(events)))
            if messages:
                frames = [format_message(each, self._host, APPLICATION) for each in messages]
                try:
                    self._deliver(frames, seconds)
                except (DeliveryError, ConfigurationError) as error:
                    self._note_failure(error)
                    return
            self._ledger.tell_through(events[-1].sequence)
            self._note_success()
            if len(events) < BATCH:
                return

    def _deliver(self, frames: list[bytes], seconds: float) -> None:
        audit = self._audit
        tls = ClientSide(audit.tls, audit.certificates, "audit.tls")
        deliver((audit.host, audit.port), tls, frames, seconds)

    def _note_failure(self, error: Exception) -> None:
        self._rest.begin()
        if self.failure is None:
            logger.warning("audit.not_told: %s", error)
        self.failure = str(error)

    def _note_success(self) -> None:
        if self.failure is not None:
            logger.info("audit.told_again")
        self._rest.end()
        self.failure = None

    def _look_up(self, events: list[Event]) -> Background:
        plans = {each.plan_id for each in events if each.plan_id and not each.study_instance_uid}
        uids = {
            str(each.detail["sop_instance_uid"])
            for each in events
            if "sop_instance_uid" in each.detail
        }
        studies = self._ledger.find_studies(plans)
        named = {study for each in events if (study := find_study(each, studies))}
        if self._audit.patient == "none":
            named = set()
        told = {each: self._identify(each) for each in named}
        return Background(
            studies=studies,
            classes=self._ledger.find_classes(uids),
            patients={study: patient for study, patient in told.items() if patient},
        )

    def _identify(self, study: str) -> str | None:
        """Return what is told of the patient of a study, or None when nothing is known."""
        found = self._ledger.find_sample(study)
        if found is None:
            return None
        header, path = found
        image = self._read(path)
        if self._audit.patient == "identifier":
            return None if image is None else str(image.get("PatientID") or "") or None
        identity = header.get(IDENTITY)
        if identity is None and image is not None:  # the study has not been judged yet
            identity = digest_identity(read_bytes(image, "PatientID"))
        return find_pseudonym(self._find_key(), str(identity)) if identity else None

    def _read(self, path: str | None) -> Dataset | None:
        if path is None or not (file := self._store.path(path)).is_file():
            return None
        with pydicom_config.disable_value_validation():
            return dcmread(file, stop_before_pixels=True, specific_tags=["PatientID"])

    def _find_key(self) -> UUID:
        if self._key is None:
            self._key = self._store.namespace()
        return self._key
