"""Asks a DICOMweb service what it holds: QIDO-RS (PS3.18 section 10.6).

A service may give less than all in one answer; it is asked for the rest until nothing new comes.
What is asked for may name a patient, so that nothing of a request gets into a reason.
"""

import json
import time
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any
from urllib.parse import urlencode

from pydicom.datadict import tag_for_keyword

from dicom_node.conversation import QueryRefusedError, Row
from dicom_node.dicomweb import JSON, Service, find_values
from dicom_node.errors import DeliveryError

LONGEST_ANSWER = 64 * 1024**2
"""Bytes; about 2,000 are said of one instance."""

MOST_ANSWERS = 100_000
"""Of one query, instances of one series for instance; a service that goes on is broken."""

_PAGE = 1_000


def search(
    service: Service,
    resource: str,
    keys: Mapping[str, str],
    wanted: Sequence[str],
    name: str,
    pause: float = 0.0,
) -> list[Row]:
    """Return what matches.

    Args:
        service: that is asked.
        resource: path below its URL.
        keys: keywords to what they must be.
        wanted: further keywords that are told.
        name: the keyword among them that tells one answer from another.
        pause: seconds before each request.

    Raises:
        QueryRefusedError: the service refuses the query, or answers with what cannot be read.
        DeliveryError: it does not answer, or without end.
    """
    tags = {keyword: f"{tag_for_keyword(keyword):08X}" for keyword in (*keys, *wanted)}
    found: dict[str, Row] = {}
    offset = 0
    while True:
        query = [*keys.items(), *(("includefield", each) for each in wanted)]
        page = urlencode([*query, ("limit", _PAGE), ("offset", offset)])
        time.sleep(pause)
        items = _ask(service, f"{resource}?{page}")
        rows = [{keyword: _read(item, tag) for keyword, tag in tags.items()} for item in items]
        new = {row[name]: row for row in rows if row[name] not in found}
        if not new:
            return list(found.values())
        found |= new
        offset += len(items)
        if len(found) > MOST_ANSWERS:
            raise DeliveryError("the service does not stop answering", retry=True)


def find_instances(service: Service, study: str, series: str) -> set[str]:
    """Return the SOP Instance UIDs that the service lists of a series.

    Raises:
        DeliveryError: it does not answer, or with what cannot be read.
    """
    keys = {"StudyInstanceUID": study, "SeriesInstanceUID": series}
    rows = search(service, "/instances", keys, ["SOPInstanceUID"], "SOPInstanceUID")
    return {row["SOPInstanceUID"] for row in rows} - {""}


def _ask(service: Service, path: str) -> list[Any]:
    answer = service.ask("GET", path, accept=JSON, longest=LONGEST_ANSWER)
    if answer.status == HTTPStatus.NO_CONTENT:
        return []
    if answer.status >= HTTPStatus.MULTIPLE_CHOICES:
        reason = f"the service refuses the query: HTTP {answer.status}"
        raise QueryRefusedError(reason, retry=True)
    try:
        listed = json.loads(answer.body)
    except (ValueError, RecursionError):
        listed = None
    if not isinstance(listed, list):
        raise QueryRefusedError("the service's answer cannot be read", retry=True)
    return listed


def _read(item: Any, tag: str) -> str:
    """Return the first value of an attribute as text, empty where there is none."""
    value = next(iter(find_values(item, tag)), "")
    if isinstance(value, dict):  # a person's name
        value = value.get("Alphabetic", "")
    return str(value).strip() if isinstance(value, str | int) else ""
