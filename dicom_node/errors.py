"""The errors of dicom_node: one tree, where each class says what the caller does with it.

    DicomNodeError
    ├── ConfigurationError     the admin's YAML is wrong: refuse to start, exit code 2
    ├── StorageError           the disk or the ledger cannot keep it: answer 0xA700 or 0xA701
    │   └── UnsyncedLedger     what the ledger wrote may be lost: end this process and start anew
    ├── RefusedInstance        the instance cannot be kept faithfully: answer its `status`
    ├── UnusableStudy          a study or series cannot be worked with: hold it, `code` says why
    ├── JobError
    │   ├── QualityRefused     the gate said no: hold the job
    │   ├── JobFailed          the same input will fail again: fail the job
    │   └── WorkerLost         the worker died or its lease ran out: queue the job again
    ├── DeliveryError          a peer did not take an instance: `retry` says whether to try again
    └── IllegalTransition      a program error: a job was asked to go where no arrow leads

No message holds a patient attribute; it names UIDs, what was seen, what was wanted and what to do.
"""


class DicomNodeError(Exception):
    """Base of every error that this package raises on purpose."""


class ConfigurationError(DicomNodeError):
    """A configuration file is wrong; the message names file, key, value seen and value wanted."""


class StorageError(DicomNodeError):
    """An instance could not be made durable.

    Attributes:
        status: DIMSE status to answer (0xA700 for the disk, 0xA701 for the ledger).
    """

    def __init__(self, message: str, status: int = 0xA700) -> None:
        super().__init__(message)
        self.status = status


class UnsyncedLedger(StorageError):  # noqa: N818
    """A sync of the ledger failed: the kernel has dropped what was written, and says so only once.

    Nobody may sync again and believe it. A process that receives ends and is started anew.
    """


class RefusedInstance(DicomNodeError):  # noqa: N818 - named after what happened, not after its base
    """An instance cannot be kept faithfully, so it is refused at the door.

    Attributes:
        status: DIMSE status to answer (PS3.4 table B.2-1, PS3.7 annex C).
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class UnusableStudy(DicomNodeError):  # noqa: N818
    """A study or a series cannot be worked with; it is held and `code` names the reason.

    Attributes:
        code: short stable word such as `slice_gap`, `orientation`, `identity_conflict`.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class JobError(DicomNodeError):
    """A synthesis job ended without a result."""


class QualityRefused(JobError):  # noqa: N818
    """The quality gate refused the input or the output; the job is held with its reasons."""


class JobFailed(JobError):  # noqa: N818
    """The job cannot succeed with this input, model or configuration; it is not retried."""


class WorkerLost(JobError):  # noqa: N818
    """The worker died, hung or lost its lease; the job goes back to the queue."""


class DeliveryError(DicomNodeError):
    """A peer did not take an instance.

    Attributes:
        retry: True when the same bytes may be taken later.
        status: DIMSE status of the C-STORE response, or None when there was none.
    """

    def __init__(self, message: str, *, retry: bool, status: int | None = None) -> None:
        super().__init__(message)
        self.retry = retry
        self.status = status


class IllegalTransition(DicomNodeError):  # noqa: N818
    """A job was asked to take an arrow that `jobs.TRANSITIONS` does not draw."""
