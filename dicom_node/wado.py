"""Fetches a series from a DICOMweb archive into the store: WADO-RS (PS3.18 section 10.4).

    one GET of a series → multipart, part by part as it comes → spool, as if the archive had sent it

An instance is asked for as the archive keeps it, and kept as it comes: its data set byte by byte
behind a header of our own. It passes what the door looks at: SOP class, transfer syntax, structure,
size, room on the disk; and it must be of the series that was asked for.
"""

import logging
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import Message
from http import HTTPStatus
from itertools import chain

from dicom_node.conversation import QueryRefusedError
from dicom_node.dicomweb import Service
from dicom_node.domain import RemoteSeries
from dicom_node.errors import DeliveryError, RefusedInstance, StorageError
from dicom_node.ledger import Ledger
from dicom_node.network import LOSSLESS, UNCOMPRESSED
from dicom_node.node_settings import NodeSettings
from dicom_node.part10 import decode_file_meta
from dicom_node.qido import MOST_ANSWERS
from dicom_node.recorder import Recorder
from dicom_node.services import SOP_CLASS_NOT_SUPPORTED
from dicom_node.spool import Announced, Origin, Spool, build_structure_limits
from dicom_node.store import Durability, Store
from dicom_node.structure import OVER_A_LIMIT, UNDECODABLE, check_uid

AS_IT_IS_STORED = 'multipart/related; type="application/dicom"; transfer-syntax=*'
"""Without the `*` the archive would give what it has decoded (PS3.18 section 8.7.3.5.2)."""

_MOST_HEAD = 16_384  # bytes of what stands before a part
_META_BYTES = 65_536  # in which the file meta information of an instance must lie
_LONGEST_BOUNDARY = 70  # RFC 2046 section 5.1.1

logger = logging.getLogger(__name__)


class Retrieval:
    """One archive, from which series come into the store."""

    def __init__(self, service: Service, alias: str, settings: NodeSettings, spool: Spool) -> None:
        self._service = service
        self._alias = alias
        self._receiver = settings.receiver
        self._folder = settings.store_folder
        self._seconds = settings.query.move.total_seconds()
        self._spool = spool

    def fetch(self, series: RemoteSeries) -> None:
        """Fetch a series; when this returns, all of it has its rows.

        Raises:
            QueryRefusedError: it does not come, or not all of it can be kept.
            DeliveryError: the archive breaks off.
            StorageError: the ledger does not answer.
        """
        study, uid = series.study_instance_uid, series.series_instance_uid
        path = f"/studies/{study}/series/{uid}"
        origin = Origin(self._alias, uuid.uuid4().hex)
        refused: list[str] = []
        came = 0
        try:
            with self._service.retrieve(path, accept=AS_IT_IS_STORED, seconds=self._seconds) as it:
                if it.status >= HTTPStatus.MULTIPLE_CHOICES:
                    raise QueryRefusedError(
                        f"the service does not give out a series: HTTP {it.status}", retry=True
                    )
                for part in read_parts(it.kind, it.pieces):
                    if came == MOST_ANSWERS:
                        raise DeliveryError("the service does not stop answering", retry=True)
                    came += 1
                    try:
                        self._keep(part, series, origin)
                    except RefusedInstance as error:
                        refused.append(str(error))
        finally:
            self._spool.recorder.close_association(origin.association_id)
        if refused:
            logger.warning(
                "retrieve.refused peer=%s series=%s instances=%d", self._alias, uid, len(refused)
            )
            raise QueryRefusedError(
                f"{len(refused)} of {came} instances cannot be kept: {refused[0]}", retry=True
            )

    def _keep(self, part: Iterator[bytes], series: RemoteSeries, origin: Origin) -> None:
        """Keep one instance.

        Raises:
            RefusedInstance: it cannot be kept faithfully, or is not what was asked for.
            QueryRefusedError: there is no room for it, or for nothing that long.
        """
        if shutil.disk_usage(self._folder).free < self._receiver.minimum_free:
            raise QueryRefusedError("the disk of the data folder is almost full", retry=True)
        head = b""
        while len(head) < _META_BYTES and (piece := next(part, b"")):
            head += piece
        announced, start = self._read_announced(head, series)
        size = 0
        try:
            with self._spool.begin(announced, origin) as incoming:
                for piece in chain([head[start:]], part):
                    size += len(piece)
                    if size > self._receiver.limits.instance:
                        raise QueryRefusedError(
                            "an instance is longer than receiver.limits.instance", retry=True
                        )
                    incoming.write([memoryview(piece)])
                incoming.keep([])
        except StorageError as error:
            raise QueryRefusedError(f"the node cannot keep it now: {error}", retry=True) from None

    def _read_announced(self, head: bytes, series: RemoteSeries) -> tuple[Announced, int]:
        """Return what the file meta information says, and where the data set begins.

        Raises:
            RefusedInstance: nothing of that kind is taken.
        """
        try:
            meta = decode_file_meta(head)
        except ValueError:
            raise RefusedInstance("a part is not a DICOM file", UNDECODABLE) from None
        if meta.sop_class_uid not in self._receiver.storage_classes.all:
            reason = "its SOP class is not one of receiver.storage_classes"
            raise RefusedInstance(reason, SOP_CLASS_NOT_SUPPORTED)
        if meta.transfer_syntax_uid not in (*UNCOMPRESSED, *LOSSLESS):
            raise RefusedInstance("its transfer syntax is not taken", SOP_CLASS_NOT_SUPPORTED)
        if meta.data_set_offset > len(head):
            raise RefusedInstance("its file meta information is too long", OVER_A_LIMIT)
        announced = Announced(
            meta.sop_class_uid,
            check_uid(meta.sop_instance_uid.encode("latin-1")),
            meta.transfer_syntax_uid,
            series.series_instance_uid,
            series.study_instance_uid,
        )
        return announced, meta.data_set_offset


@contextmanager
def open_retrieval(
    service: Service, alias: str, settings: NodeSettings, ledger: Ledger, store: Store
) -> Iterator[Retrieval]:
    """Give what fetches from an archive; at the end all that came has its row."""
    durability = Durability(settings.receiver.durability)
    with Recorder(ledger, store, waited_for=durability is Durability.STRICT) as recorder:
        spool = Spool(store, recorder, build_structure_limits(settings), durability)
        yield Retrieval(service, alias, settings, spool)


def read_parts(kind: str, pieces: Iterator[bytes]) -> Iterator[Iterator[bytes]]:
    """Yield the content of each part of a multipart body, piece by piece (RFC 2046 section 5.1).

    Little more than one piece is in memory at a time. What is left of a part when the next one is
    asked for is passed over.

    Args:
        kind: Content-Type of the whole.
        pieces: of its body.

    Raises:
        QueryRefusedError: it is no multipart body.
        DeliveryError: it ends too early, or a head is too long.
    """
    head = Message()
    head["Content-Type"] = kind
    boundary = str(head.get_param("boundary") or "")
    is_multipart = head.get_content_maintype() == "multipart"
    if not is_multipart or not boundary.isascii() or not 0 < len(boundary) <= _LONGEST_BOUNDARY:
        raise QueryRefusedError("the service does not answer with a multipart body", retry=True)
    body = _Body(pieces, b"\r\n--" + boundary.encode("ascii"))
    body.skip_preamble()
    while body.begin_part():
        part = body.read_part()
        yield part
        for _ in part:
            pass


class _Body:
    """A multipart body as far as it has come."""

    def __init__(self, pieces: Iterator[bytes], delimiter: bytes) -> None:
        self._pieces = pieces
        self._delimiter = delimiter
        self._buffer = bytearray(b"\r\n")  # the first delimiter has no line before it

    def skip_preamble(self) -> None:
        """Go on behind the first delimiter."""
        self._cut(self._delimiter)

    def begin_part(self) -> bool:
        """Go on behind the head of a part; False where the last delimiter was that of the end."""
        while len(self._buffer) < len(b"--"):
            self._fill()
        if self._buffer.startswith(b"--"):
            return False
        self._cut(b"\r\n\r\n")
        return True

    def read_part(self) -> Iterator[bytes]:
        """Yield the content of a part, up to the next delimiter."""
        kept = len(self._delimiter) - 1  # the delimiter may have begun
        while (end := self._buffer.find(self._delimiter)) < 0:
            if len(self._buffer) > kept:
                yield bytes(self._buffer[:-kept])
                del self._buffer[:-kept]
            self._fill()
        yield bytes(self._buffer[:end])
        del self._buffer[: end + len(self._delimiter)]

    def _cut(self, mark: bytes) -> None:
        """Drop everything up to `mark`, which must come soon."""
        while (end := self._buffer.find(mark)) < 0:
            if len(self._buffer) > _MOST_HEAD:
                raise DeliveryError("a head in the HTTP answer is too long", retry=True)
            self._fill()
        del self._buffer[: end + len(mark)]

    def _fill(self) -> None:
        piece = next(self._pieces, b"")
        if not piece:
            raise DeliveryError("the HTTP answer ends too early", retry=True)
        self._buffer += piece
