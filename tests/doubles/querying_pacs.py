"""A PACS that is asked what it holds, and answers, moves, or says nothing, as a script says."""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any

from pydicom import Dataset
from pynetdicom import evt

from doubles.scripted_pacs import ScriptedPacs

STUDY_ROOT_FIND = "1.2.840.10008.5.1.4.1.2.2.1"
STUDY_ROOT_MOVE = "1.2.840.10008.5.1.4.1.2.2.2"
PENDING, SUCCESS = 0xFF00, 0x0000
LONGEST_SILENCE = 30


class QueryingPacs(ScriptedPacs):
    """Holds rows, one for each series: any keywords of patient, study and series.

    Attributes:
        rows: what it answers from; keywords that it does not have are answered empty.
        asked: the identifiers of the C-FINDs.
        moved: Series Instance UIDs that it was told to send.
        on_move: called with each of them; False answers that the destination is not known.
        status: of every C-FIND, after its answers.
        honors_keys: False answers every query with all that it has.
        silent: it reads requests and says nothing.
    """

    def __init__(self, rows: Iterable[Mapping[str, Any]] = (), **options: Any) -> None:
        super().__init__(**options)
        self.rows = list(rows)
        self.asked: list[Dataset] = []
        self.moved: list[str] = []
        self.on_move: Callable[[str], bool] = lambda _: True
        self.status = SUCCESS
        self.honors_keys = True
        self.silent = False
        self._over = threading.Event()
        for service in (STUDY_ROOT_FIND, STUDY_ROOT_MOVE):
            self._ae.add_supported_context(service)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._over.set()
        super().__exit__(kind, error, traceback)

    def _handlers(self) -> list[tuple[evt.EventType, Callable[[evt.Event], object]]]:
        return [
            *super()._handlers(),
            (evt.EVT_C_FIND, self._on_find),
            (evt.EVT_C_MOVE, self._on_move),
        ]

    def _on_find(self, event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        wanted = event.identifier
        self.asked.append(wanted)
        if self.silent:
            self._over.wait(LONGEST_SILENCE)
        told = set()
        for row in self.rows:
            if self.honors_keys and not all(
                str(wanted.get(keyword) or row.get(keyword)) == str(row.get(keyword))
                for keyword in ("PatientID", "StudyInstanceUID", "SeriesInstanceUID")
            ):
                continue
            answer = Dataset()
            answer.QueryRetrieveLevel = wanted.QueryRetrieveLevel
            for element in wanted:
                if element.keyword not in ("QueryRetrieveLevel", "SpecificCharacterSet"):
                    setattr(answer, element.keyword, row.get(element.keyword))
            key = str(answer)
            if key not in told:
                told.add(key)
                yield PENDING, answer
        if self.status != SUCCESS:
            yield self.status, None

    def _on_move(self, event: evt.Event) -> Iterator[Any]:
        series = str(event.identifier.SeriesInstanceUID)
        self.moved.append(series)
        # What is moved comes by `on_move` and not over the network: no sub-operations.
        if self.on_move(series):
            yield "127.0.0.1", self.port, {}
            yield 0
        else:
            yield None, None
