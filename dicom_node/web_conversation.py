"""Asks a DICOMweb archive what it holds by QIDO-RS, and fetches it by WADO-RS (PS3.18)."""

import time
from collections.abc import Mapping, Sequence

from dicom_node.conversation import Conversation, Level, QueryRefusedError, Row
from dicom_node.dicomweb import Service
from dicom_node.domain import RemoteSeries
from dicom_node.errors import RefusedInstance
from dicom_node.node_settings import Query
from dicom_node.qido import search
from dicom_node.structure import check_uid
from dicom_node.wado import Retrieval

_RESOURCES: Mapping[Level, tuple[str, str]] = {
    "STUDY": ("/studies", "StudyInstanceUID"),
    "SERIES": ("/series", "SeriesInstanceUID"),
    "IMAGE": ("/instances", "SOPInstanceUID"),
}
"""What is searched, and what tells its answers apart. No study stands in the path: an archive that
does not hold it would say that there is no such resource, as if there were no service."""


class WebConversation(Conversation):
    """Queries over one HTTP connection."""

    def __init__(self, service: Service, limits: Query, retrieval: Retrieval | None) -> None:
        """Describe it; without `retrieval` nothing is fetched."""
        self._service = service
        self._pause = limits.pause.total_seconds()
        self._retrieval = retrieval

    def fetch(self, series: RemoteSeries) -> None:
        """Fetch a series into the store; see `Conversation`."""
        if self._retrieval is None:
            raise QueryRefusedError("there is no store to fetch into", retry=False)
        time.sleep(self._pause)
        self._retrieval.fetch(series)

    def _find(
        self,
        level: Level,
        keys: Mapping[str, str],
        wanted: Sequence[str],
        character_set: str | Sequence[str] = "",
    ) -> list[Row]:
        resource, name = _RESOURCES[level]
        found = search(self._service, resource, keys, wanted, name, self._pause)
        return [row for row in found if all(map(_is_uid_or_nothing, _list_uids(row)))]


def _list_uids(row: Row) -> list[str]:
    return [value for keyword, value in row.items() if keyword.endswith("InstanceUID")]


def _is_uid_or_nothing(text: str) -> bool:
    """Say whether a text may stand in the path of a request, where a UID is wanted."""
    try:
        return not text or bool(check_uid(text.encode()))
    except RefusedInstance:
        return False
