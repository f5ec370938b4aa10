"""Start the node, send the study, watch the ledger until nothing is left to do."""

import os
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from io import BytesIO
from pathlib import Path

from pydicom import Dataset, config, dcmread, dcmwrite
from pydicom.uid import UID

from dicom_node.demonstration.processes import LOOPBACK, Child
from dicom_node.domain import DeliveryState, StudyState
from dicom_node.errors import DeliveryError
from dicom_node.jobs import JobState
from dicom_node.ledger import Ledger
from dicom_node.network import open_association
from dicom_node.part10 import decode_file_meta

START_SECONDS = 60.0
POLL_SECONDS = 0.3
READY = re.compile(r"^ready dicom=[^ ]+:(\d+) web=[^ ]+:(\d+)$", re.MULTILINE)
SUCCESS = 0x0000
WORKING = {JobState.QUEUED, JobState.RUNNING}


class Node:
    """`dicom-node serve` as a process of its own, as `make serve` starts it.

    Attributes:
        port: of DICOM, known once it is ready.
    """

    def __init__(
        self,
        configuration: Path,
        overrides: Sequence[str],
        log: Path,
        environment: dict[str, str] | None = None,
    ) -> None:
        """Describe it.

        Args:
            configuration: folder of the YAML files.
            overrides: `key=value` settings over those of node.yaml.
            log: gets its output.
            environment: variables beside those of this process.
        """
        self.port = 0
        sets = [word for override in overrides for word in ("--set", override)]
        # Beside the interpreter and not by the search path, which may lead to another installation.
        program = str(Path(sys.executable).with_name("dicom-node"))
        self.child = Child(
            [program, "serve", "--config", str(configuration), *sets],
            log,
            {**os.environ, **(environment or {})},
        )

    def start(self) -> None:
        """Start it and wait until it says that it is ready."""
        seen = len(READY.findall(self.child.read_log()))
        self.child.start()
        self.child.wait_for(lambda: len(self._ports()) > seen, START_SECONDS)
        self.port = self._ports()[-1]

    def stop(self) -> int | None:
        """Let it drain and end; return its exit status."""
        return self.child.stop()

    def _ports(self) -> list[int]:
        return [int(dicom) for dicom, _ in READY.findall(self.child.read_log())]


def send(files: Iterable[Path], *, port: int, called: str, calling: str) -> int:
    """Store files by C-STORE on this machine and return how many were taken.

    With the node's own requestor: pynetdicom's may lose a response to its own thread when the peer
    is quick. Compressed instances go out uncompressed, as every peer takes them.

    Raises:
        DeliveryError: no association, or an instance was not answered with success.
    """
    paths = tuple(files)
    classes = sorted({_read_uids(path)[0] for path in paths})
    with open_association(
        LOOPBACK, port, called_ae_title=called, calling_ae_title=calling, sop_classes=classes
    ) as association:
        for path in paths:
            sop_class_uid, sop_instance_uid = _read_uids(path)
            context = association.find_context(sop_class_uid)
            if context is None:
                raise DeliveryError(f"{called} does not take {sop_class_uid}", retry=False)
            data_set = _encode(path, context.transfer_syntax)
            status = association.store(context, sop_class_uid, sop_instance_uid, data_set)
            if status != SUCCESS:
                raise DeliveryError(
                    f"{called} answered 0x{status:04X} to an instance", retry=False, status=status
                )
    return len(paths)


def watch(
    ledger: Ledger, study: str, seconds: float, tell: Callable[[str], None], node: Node
) -> None:
    """Return when the study is judged and nothing of it is left to make or to send.

    Args:
        ledger: of the running node.
        study: Study Instance UID.
        seconds: how long it may take.
        tell: is given a line each time that something has changed.
        node: must go on running.

    Raises:
        RuntimeError: the node ended, or the time is over; the message says where things stood.
    """
    deadline = time.monotonic() + seconds
    told = ""
    while True:
        line, is_over = _read_progress(ledger, study)
        if line != told:
            tell(line)
            told = line
        if is_over:
            return
        if node.child.poll() is not None:
            raise RuntimeError(f"the node has ended:\n{node.child.read_log()[-2000:]}")
        if time.monotonic() > deadline:
            raise RuntimeError(f"not finished after {seconds:.0f} s: {line}")
        time.sleep(POLL_SECONDS)


def _read_progress(ledger: Ledger, study: str) -> tuple[str, bool]:
    """Return where the study stands, in a line, and whether that is the end."""
    try:
        row = ledger.study_row(study)
    except LookupError:
        return "nothing has been received", False
    if row.state is StudyState.HELD:
        return f"the study is held: {row.hold_code}", True
    if row.state is StudyState.RECEIVING:
        return f"{row.seen} instances received; waiting for the study to be quiet", False
    jobs = ledger.jobs(study)
    deliveries = Counter(delivery.state for delivery in ledger.deliveries(study))
    parts = [f"{job.plan.target} {job.state}" for job in jobs]
    parts += [f"{count} instances {state}" for state, count in deliveries.items()]
    is_over = not deliveries[DeliveryState.PENDING] and not any(j.state in WORKING for j in jobs)
    return ", ".join(parts) or "judged: nothing to make", is_over


def _read_uids(path: Path) -> tuple[str, str]:
    header = dcmread(path, specific_tags=["SOPClassUID", "SOPInstanceUID"], stop_before_pixels=True)
    return str(header.SOPClassUID), str(header.SOPInstanceUID)


def _encode(path: Path, transfer_syntax_uid: str) -> bytes:
    """Return the data set of a file in the syntax that the peer has chosen, as stored if it can be.

    Raises:
        DeliveryError: the file is in the retired Explicit VR Big Endian.
    """
    file = path.read_bytes()
    meta = decode_file_meta(file)
    if meta.transfer_syntax_uid == transfer_syntax_uid:
        return file[meta.data_set_offset :]
    own, wanted = UID(meta.transfer_syntax_uid), UID(transfer_syntax_uid)
    if not own.is_little_endian:
        raise DeliveryError("an instance is in the retired Explicit VR Big Endian", retry=False)
    buffer = BytesIO()
    with config.disable_value_validation():  # what a scanner wrote is sent on, right or wrong
        instance = dcmread(path)
        if own.is_compressed:
            instance.decompress(generate_instance_uid=False)
        bare = Dataset()  # without file meta information, which does not go over the wire
        bare.update(instance)
        dcmwrite(buffer, bare, implicit_vr=wanted.is_implicit_VR, little_endian=True)
    return buffer.getvalue()
