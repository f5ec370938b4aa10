"""Holds results whose patient has another name by now than when they were made.

The last look before anything of a job goes out: a result carries the identity of its sources, and
the PACS may have merged or renamed the patient since (`reliability.md`, D34). Conflicting
Patient IDs, birth dates and sexes hold the whole study when it is judged; here the result itself is
held against the newest copy that was received of its study, name included.
"""

import logging
from collections.abc import Iterable
from pathlib import Path

from pydicom import Dataset, config, dcmread

from dicom_node.domain import Role
from dicom_node.elements import read_bytes
from dicom_node.errors import IllegalTransition
from dicom_node.ledger import Ledger
from dicom_node.pixels import READ_ERRORS
from dicom_node.store import Store

IDENTITY_CHANGED = "identity_changed"
"""Why a job is held: what it made would be filed under an identity that is out of date."""

PERSON = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex")
"""What says who somebody is. Their bytes are compared: what a name decodes to decides nothing."""

_EMPTY_COMPONENTS = b" \0^="
"""The end of a name of which the last components are empty (PS3.5 section 6.2.1)."""

logger = logging.getLogger(__name__)


def hold_misfiled(plan_ids: Iterable[str], ledger: Ledger, store: Store) -> set[str]:
    """Hold the jobs that say another patient than the newest received copy; return them.

    A person may have released one: then only what was received later counts. What cannot be read is
    no evidence here; the courier judges the result's own file.

    Raises:
        StorageError: the ledger does not answer.
    """
    held = set()
    for plan_id in plan_ids:
        newest = ledger.find_newest_copy(plan_id)
        made = [each for each in ledger.derived(plan_id) if each.role is not Role.WITHDRAWAL]
        if newest is None or not made:
            continue
        ours, theirs = (_read(store.path(path)) for path in (made[0].path, newest.path))
        changed = [] if ours is None or theirs is None else find_changes(ours, theirs)
        if not changed:
            continue
        reason = (
            f"{IDENTITY_CHANGED}: {', '.join(changed)} of the result and of the newest received "
            f"copy ({newest.sop_instance_uid}) differ; send the study anew, or release the job"
        )
        try:
            ledger.doubt_job(plan_id, reason)
        except IllegalTransition:
            pass  # the study has changed meanwhile: nothing of it is sent either
        else:
            logger.error("job.held plan=%s code=%s", plan_id, IDENTITY_CHANGED)
        held.add(plan_id)
    return held


def find_changes(ours: Dataset, theirs: Dataset) -> list[str]:
    """Return which of `PERSON` differ; case and empty components of a name do not count."""
    return [
        keyword for keyword in PERSON if _normalize(ours, keyword) != _normalize(theirs, keyword)
    ]


def _normalize(image: Dataset, keyword: str) -> bytes:
    return read_bytes(image, keyword).rstrip(_EMPTY_COMPONENTS).upper()


def _read(path: Path) -> Dataset | None:
    try:
        with config.disable_value_validation():
            return dcmread(path, specific_tags=list(PERSON), stop_before_pixels=True)
    except READ_ERRORS:
        return None
