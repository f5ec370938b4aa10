"""Asks a DICOMweb service which instances of a series it holds: QIDO-RS (PS3.18 section 10.6).

A service may give less than all in one answer; it is asked for the rest until nothing new comes.
"""

import json
from http import HTTPStatus
from urllib.parse import urlencode

from dicom_node.dicomweb import JSON, Service, find_values
from dicom_node.errors import DeliveryError

LONGEST_ANSWER = 64 * 1024**2
"""Bytes; about 2,000 are said of one instance."""

MOST_ANSWERS = 100_000
"""Instances of one series; a service that goes on is broken."""

_PAGE = 1_000
_SOP_INSTANCE_UID = "00080018"


def find_instances(service: Service, study: str, series: str) -> set[str]:
    """Return the SOP Instance UIDs that the service lists of a series.

    Raises:
        DeliveryError: it does not answer, or with what cannot be read.
    """
    found: set[str] = set()
    while new := _find_page(service, study, series, len(found)) - found:
        found |= new
        if len(found) > MOST_ANSWERS:
            raise DeliveryError("the service does not stop answering", retry=True)
    return found


def _find_page(service: Service, study: str, series: str, offset: int) -> set[str]:
    keys = {"StudyInstanceUID": study, "SeriesInstanceUID": series}
    query = urlencode({**keys, "limit": _PAGE, "offset": offset})
    answer = service.ask("GET", f"/instances?{query}", accept=JSON, longest=LONGEST_ANSWER)
    if answer.status == HTTPStatus.NO_CONTENT:
        return set()
    if answer.status >= HTTPStatus.MULTIPLE_CHOICES:
        raise DeliveryError(f"the service refuses the query: HTTP {answer.status}", retry=True)
    try:
        listed = json.loads(answer.body)
    except (ValueError, RecursionError):
        listed = None
    if not isinstance(listed, list):
        raise DeliveryError("the service's answer cannot be read", retry=True)
    uids = {uid for each in listed for uid in find_values(each, _SOP_INSTANCE_UID)}
    return {uid for uid in uids if isinstance(uid, str)}
