"""What a person decides about a job or a study: the same acts for the command line and the page.

Each names who and why, and the ledger keeps both for good. A study is named by its Study Instance
UID, a job by its plan id; what does not take the decision says so.
"""

import re
from uuid import UUID

from dicom_node import withdrawal
from dicom_node.errors import IllegalTransition
from dicom_node.ledger import Ledger
from dicom_node.store import Store

_UID = re.compile(r"[0-9]+(\.[0-9]+)+")


def is_study(named: str) -> bool:
    """Say whether something is named by a UID, as a study is, and not by a plan id."""
    return _UID.fullmatch(named) is not None


def requeue(ledger: Ledger, named: str, by: str, why: str) -> None:
    """Let a held or failed job run again, a done one send again, or a study be judged again.

    Raises:
        LookupError: the ledger does not know it.
        IllegalTransition: it cannot be done as things stand, or nobody and nothing is named.
    """
    _check(by, why)
    if is_study(named):
        ledger.reopen_study(named, by, why)
    else:
        ledger.requeue(named, by, why)


def release(ledger: Ledger, named: str, by: str, why: str) -> None:
    """Let the result of a held job go out, or go on with a held study.

    Raises:
        LookupError: the ledger does not know it.
        IllegalTransition: it is not held, or cannot be released, or nobody and nothing is named.
    """
    _check(by, why)
    if is_study(named):
        ledger.release_study(named, by, why)
    else:
        ledger.release(named, by, why)


def reject(ledger: Ledger, named: str, by: str, why: str) -> None:
    """Close a held job, whose result never goes out, or a held study, of which nothing is made.

    Raises:
        LookupError: the ledger does not know it.
        IllegalTransition: it is not held, or nobody and nothing is named.
    """
    _check(by, why)
    if is_study(named):
        ledger.reject_study(named, by, why)
    else:
        ledger.reject(named, by, why)


def withdraw(
    ledger: Ledger, store: Store, installation: UUID | None, job: str, by: str, why: str
) -> None:
    """Take back a result that peers took and that is not wanted any more.

    Args:
        ledger: where the job is.
        store: where the result is, and where its withdrawal goes.
        installation: as node.yaml names it, if it does.
        job: plan id.
        by: who.
        why: the reason.

    Raises:
        LookupError: no peer took such a result.
        IllegalTransition: nobody and nothing is named.
        StorageError: store or ledger cannot be used.
    """
    _check(by, why)
    found = ledger.find_outdated(job)
    if not found:
        raise LookupError(f"no peer took a result of job {job} that is not wanted any more")
    namespace = installation or store.namespace()
    withdrawal.withdraw(found[0], ledger, store, namespace, by=by, why=why)


def _check(by: str, why: str) -> None:
    if not by.strip() or not why.strip():
        raise IllegalTransition("a decision needs the name of a person and a reason")
