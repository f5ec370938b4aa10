"""The ledger: the one place that says what has happened and what is to be done.

Every step of the walk reads what the step before it committed here, and commits its own before the
next one starts, so that a crash anywhere resumes. A method is one transaction: one change of state
with its event row. Read the files in the order of the walk:

    reception    instances, associations, studies that open and reopen
    conflicts    several contents under one UID, and what a person decides
    inquiries    what peers are asked before anything is called missing
    notices      what peers tell of its procedure steps
    steps        Unified Procedure Steps that are performed here
    judgements   headers, labels, slots, gaps, plans
    queue        jobs: claim, lease, fence, outcome, and what an operator does
    outbox       deliveries, peers that do not answer
    withdrawals  results that went out and are taken back
    promises     what peers say that they keep
    chronicle    events, counts, retention
    overview     what the admin page shows of all of it
    tenure       which node has the ledger
    trail        how far the audit trail has come
    database     connection and transactions (below all of them)
    engines      SQLite and PostgreSQL: durability, one writer at a time
    migrations   ledgers of earlier versions
    documents    domain values as rows and JSON

What it is given and gives back are values of `records` and `domain`, which know no database.
"""

from dicom_node.ledger.chronicle import Chronicle
from dicom_node.ledger.conflicts import PEER_SILENT, REJECTED, Conflicts
from dicom_node.ledger.inquiries import Inquiries
from dicom_node.ledger.judgements import SUPERSEDED, Judgements
from dicom_node.ledger.notices import Notices
from dicom_node.ledger.outbox import TAKEN, Outbox
from dicom_node.ledger.overview import Overview, Show, StudyGlance
from dicom_node.ledger.promises import Promises
from dicom_node.ledger.queue import HOLD_REASON, Queue
from dicom_node.ledger.reception import Reception
from dicom_node.ledger.steps import Steps
from dicom_node.ledger.tenure import Tenure
from dicom_node.ledger.trail import Trail
from dicom_node.ledger.withdrawals import Withdrawals
from dicom_node.records import (
    Attempt,
    Backlog,
    Conflict,
    Event,
    Inquiry,
    Job,
    JudgedSeries,
    Judgement,
    Noted,
    Notice,
    Outage,
    Outdated,
    Receipt,
    Report,
    Sources,
    Step,
    StudyNotice,
    StudyRow,
    Unconfirmed,
)

__all__ = [
    "HOLD_REASON",
    "PEER_SILENT",
    "REJECTED",
    "SUPERSEDED",
    "TAKEN",
    "Attempt",
    "Backlog",
    "Conflict",
    "Event",
    "Inquiry",
    "Job",
    "JudgedSeries",
    "Judgement",
    "Ledger",
    "Noted",
    "Notice",
    "Outage",
    "Outdated",
    "Receipt",
    "Report",
    "Show",
    "Sources",
    "Step",
    "StudyGlance",
    "StudyNotice",
    "StudyRow",
    "Unconfirmed",
]


class Ledger(
    Reception,
    Conflicts,
    Inquiries,
    Notices,
    Judgements,
    Queue,
    Outbox,
    Withdrawals,
    Promises,
    Chronicle,
    Overview,
    Steps,
    Tenure,
    Trail,
):
    """The ledger, open between `open` and `close`; safe to share between threads.

    Args of the constructor: a URL (`sqlite:////var/lib/…/ledger.sqlite`, or `postgresql://…` as
    libpq reads it) and a clock that gives aware times. Processes open one each.
    """
