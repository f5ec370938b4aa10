"""A result that was sent and is not wanted any more is withdrawn: the real series came after it.

    superseded job, taken by peers → rule: keep, withdraw, ask → Key Object Selection → their outbox

The Key Object Selection is titled "Rejected for Quality Reasons" (113001, DCM), names every
instance of the result, and goes to every peer that took any of it. A PACS that follows the IHE
profile Imaging Object Change Management hides what it names; another one keeps it as a note. What
was withdrawn is not sent again.

Source: PS3.3 A.35.4, PS3.16 TID 2010 and CID 7011, IHE RAD TF-3 4.66.
"""

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from uuid import UUID

from highdicom.ko import KeyObjectSelection, KeyObjectSelectionDocument
from highdicom.sr import (
    CodeContentItem,
    DeviceObserverIdentifyingAttributes,
    ObserverContext,
    RelationshipTypeValues,
)
from pydicom import Dataset, dcmread
from pydicom.sr.codedict import codes

from dicom_node.domain import DerivedInstance, Role
from dicom_node.elements import encode
from dicom_node.identifiers import derive_uid, installation_uid
from dicom_node.identity import copy_identity, copy_nameless
from dicom_node.images import date_of, fix_creation, time_of
from dicom_node.ledger import Ledger, Outdated
from dicom_node.provenance import MANUFACTURER, MODEL_NAME
from dicom_node.rules import Routing
from dicom_node.store import Store

SERIES_NUMBER = 9301
"""After those of images, error bands and reports."""

_NAMED = (
    *("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"),
    *("Modality", "Rows", "Columns"),
)
"""What a reference to an instance is made of."""

logger = logging.getLogger(__name__)


def sweep(
    ledger: Ledger,
    store: Store,
    routing: Routing,
    namespace: UUID,
) -> int:
    """Withdraw what rules want withdrawn, and return how many results that were."""
    policies = {rule.name: rule.when_late for rule in routing.rules}
    done = 0
    for outdated in ledger.find_outdated():
        if policies.get(outdated.plan.rule) == "withdraw":
            withdraw(outdated, ledger, store, namespace, by="rule", why=outdated.because)
            done += 1
    return done


def find_alerts(ledger: Ledger, routing: Routing) -> Iterator[str]:
    """Yield one sentence for each result about which a rule wants a person to decide."""
    asking = {rule.name for rule in routing.rules if rule.when_late == "ask"}
    for outdated in ledger.find_outdated() if asking else ():
        if outdated.plan.rule in asking:
            yield (
                f"{', '.join(outdated.peers)} took the result of job {outdated.plan.plan_id}, and "
                f"{outdated.because}: decide whether to run `dicom-node withdraw`"
            )


def withdraw(
    outdated: Outdated,
    ledger: Ledger,
    store: Store,
    namespace: UUID,
    *,
    by: str,
    why: str,
) -> None:
    """Queue the withdrawal of one result for every peer that took any of it.

    Raises:
        StorageError: store or ledger cannot be used, or the files of the result are gone.
    """
    headers = [
        dcmread(store.path(each.path), stop_before_pixels=True) for each in outdated.instances
    ]
    document = write_withdrawal(headers, outdated.plan.plan_id, namespace, outdated.since)
    content = encode(document)
    path = f"derived/{outdated.plan.plan_id}/withdrawal/{Role.WITHDRAWAL}-0001.dcm"
    store.write(path, content)
    instance = DerivedInstance(
        sop_instance_uid=document.SOPInstanceUID,
        sop_class_uid=document.SOPClassUID,
        series_instance_uid=document.SeriesInstanceUID,
        role=Role.WITHDRAWAL,
        number=1,
        sha256=hashlib.sha256(content).hexdigest(),
        path=path,
    )
    ledger.record_withdrawal(outdated.plan.plan_id, instance, outdated.peers, by=by, why=why)
    logger.warning(
        "result.withdrawn plan=%s peers=%s", outdated.plan.plan_id, ",".join(outdated.peers)
    )


def write_withdrawal(
    headers: Sequence[Dataset], plan_id: str, namespace: UUID, moment: datetime
) -> Dataset:
    """Return the Key Object Selection that withdraws a result.

    Args:
        headers: of every instance of the result.
        plan_id: of its job; the UIDs come from it.
        namespace: of this installation.
        moment: when its job was superseded, aware UTC: a retry writes the same bytes.
    """
    parts: Mapping[str, str] = {
        name: derive_uid(namespace, plan_id, Role.WITHDRAWAL, name)
        for name in ("series", "instance")
    }
    observer = ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=DeviceObserverIdentifyingAttributes(
            uid=installation_uid(namespace), manufacturer_name=MANUFACTURER, model_name=MODEL_NAME
        ),
    )
    nameless = [copy_nameless(header, _NAMED) for header in headers]
    content = KeyObjectSelection(
        document_title=codes.DCM.RejectedForQualityReasons,
        referenced_objects=nameless,
        observer_device_context=observer,
        description=(
            "Synthetic result withdrawn by its maker: what it stands for was acquired, or what it "
            "was made of has changed."
        ),
    )
    content[0].ContentSequence.insert(
        0,
        CodeContentItem(  # TID 2010 wants a reason of CID 7011 with this title
            name=codes.DCM.DocumentTitleModifier,
            value=codes.DCM.OtherFailure,
            relationship_type=RelationshipTypeValues.HAS_CONCEPT_MOD,
        ),
    )
    document = KeyObjectSelectionDocument(
        evidence=nameless,
        content=content,
        series_instance_uid=parts["series"],
        series_number=SERIES_NUMBER,
        sop_instance_uid=parts["instance"],
        instance_number=1,
        manufacturer=MANUFACTURER,
        series_date=date_of(moment),
        series_time=time_of(moment),
        series_description="Synthetic result withdrawn",
    )
    copy_identity(headers[0], document)
    del document.ContributingEquipmentSequence  # highdicom's own, with the time of now
    document.ContentDate, document.ContentTime = date_of(moment), time_of(moment)
    document.InstanceCreatorUID = installation_uid(namespace)
    fix_creation(document, moment)
    return document
