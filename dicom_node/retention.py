"""Step 13 of the walk: a sweep that deletes the bytes of what is over and past its age.

Never a ledger row: rows and events answer "why is this series here?" for good. A file is deleted
before it is forgotten; a crash in between leaves a row without a file, and the next sweep forgets
it. Nothing that still has to be made or sent is touched, however full the disk is.
"""

import logging
from collections.abc import Collection, Sequence
from datetime import datetime

from dicom_node.crashpoints import reach
from dicom_node.jobs import JobState
from dicom_node.ledger import Ledger
from dicom_node.node_settings import Retention
from dicom_node.store import DERIVED, Store

BATCH = 500
"""Files per commit: a crash repeats at most so many deletions."""

logger = logging.getLogger(__name__)


def sweep(
    ledger: Ledger,
    store: Store,
    ages: Retention,
    now: datetime,
    confirming: Collection[str] = (),
) -> int:
    """Delete what is past its age, and what attempts without an outcome have left.

    What went to one of the `confirming` peers waits until that has said that it keeps it.

    Returns:
        How many files were deleted.
    """
    expired = [
        *ledger.find_expired_instances(now - ages.received, confirming),
        *ledger.find_expired_derived(now - ages.derived, confirming),
    ]
    for start in range(0, len(expired), BATCH):
        batch = expired[start : start + BATCH]
        _delete(store, batch)
        reach("retention.deleted")
        ledger.forget_bytes(batch)
    abandoned = find_abandoned(ledger, store)
    _delete(store, abandoned)
    if expired or abandoned:
        logger.info("retention.deleted expired=%d abandoned=%d", len(expired), len(abandoned))
    return len(expired) + len(abandoned)


def find_abandoned(ledger: Ledger, store: Store) -> list[str]:
    """Return the derived files of attempts that ended without recording them.

    What lies beside a recorded instance belongs to it and goes when that has gone.
    The folder of an attempt that runs is left alone, and so are plans that the ledger does not
    know: it may have been restored from a backup older than the store.
    """
    return [
        path
        for folder in sorted(store.path(DERIVED).iterdir())
        for path in _find_abandoned(ledger, store, folder.name)
    ]


def _find_abandoned(ledger: Ledger, store: Store, plan_id: str) -> list[str]:
    try:
        job = ledger.job(plan_id)
    except LookupError:
        return []
    keep = {
        instance.path.rpartition("/")[0]
        for instance in ledger.derived(plan_id)
        if store.path(instance.path).exists()
    }
    if job.state is JobState.RUNNING:
        keep.add(store.derived_folder(plan_id, job.attempt))
    files = (
        f"{store.derived_folder(plan_id, int(attempt.name))}/{file.name}"
        for attempt in sorted(store.path(f"{DERIVED}/{plan_id}").iterdir())
        for file in sorted(attempt.iterdir())
    )
    return [path for path in files if path.rpartition("/")[0] not in keep]


def _delete(store: Store, paths: Sequence[str]) -> None:
    for path in paths:
        store.delete(path)
