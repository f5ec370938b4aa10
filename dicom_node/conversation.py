"""What is asked of a peer about its studies, whatever it is asked over: DIMSE or DICOMweb.

The questions, and what of the answers is believed, stand here; how they travel, in
`dimse_conversation` and `web_conversation`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from dicom_node.domain import RemoteSeries
from dicom_node.errors import DeliveryError

MOST_SIBLINGS = 20
"""Other studies of a patient that are looked into; more in a few days are no patient's."""

DATE = "%Y%m%d"

_TEXTS = ("Modality", "SeriesDescription", "ProtocolName", "BodyPartExamined", "StudyDescription")
_LONGEST_TEXT = 256

Level = Literal["STUDY", "SERIES", "IMAGE"]
Row = Mapping[str, str]
"""Of an answer: keywords to values as text, empty where there is none."""


class QueryRefusedError(DeliveryError):
    """A peer said no to one query; others may succeed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patient:
    """Whose study it is, as one of its files says.

    Attributes:
        date: of the study; None when the file does not say it.
    """

    patient_id: str
    character_set: str | Sequence[str]
    date: datetime | None


class Conversation(ABC):
    """Queries to one peer, no faster than the settings let them be."""

    @abstractmethod
    def fetch(self, series: RemoteSeries) -> None:
        """Have a series come to this node.

        Raises:
            QueryRefusedError: it does not come, or not all of it.
            DeliveryError: the peer breaks off.
            TimeoutError: it says nothing.
        """

    @abstractmethod
    def _find(
        self,
        level: Level,
        keys: Mapping[str, str],
        wanted: Sequence[str],
        character_set: str | Sequence[str] = "",
    ) -> list[Row]:
        """Return what matches.

        Args:
            level: of what is looked for.
            keys: keywords to what they must be.
            wanted: further keywords that are told.
            character_set: of the keys, where the way of asking has more than one.

        Raises:
            QueryRefusedError: the peer refuses, answers without end, or with what cannot be read.
            DeliveryError: the peer breaks off.
            TimeoutError: it says nothing.
        """

    def find_siblings(self, study: str, patient: Patient, days: int) -> list[str]:
        """Return other studies of the patient within some days.

        A peer may compare without case, or answer with more than it was asked for; what is not of
        this patient, or not of these days, is dropped.
        """
        if patient.date is None:
            return []
        first, last = patient.date - timedelta(days), patient.date + timedelta(days)
        keys = {"PatientID": patient.patient_id, "StudyDate": f"{first:{DATE}}-{last:{DATE}}"}
        uids = []
        for answer in self._find("STUDY", keys, ["StudyInstanceUID"], patient.character_set):
            uid = answer["StudyInstanceUID"]
            date = read_date(answer["StudyDate"])
            is_of_patient = answer["PatientID"] == patient.patient_id
            if is_of_patient and uid not in ("", study) and date and first <= date <= last:
                uids.append(uid)
        return sorted(set(uids))[:MOST_SIBLINGS]

    def find_studies(self, keys: Mapping[str, str]) -> list[str]:
        """Return the studies that match a query; an answer that says otherwise is dropped.

        Args:
            keys: DICOM keywords of study and patient to what is looked for.
        """
        single = {key: value for key, value in keys.items() if not set(value) & set("*?-\\")}
        found = {
            answer["StudyInstanceUID"]
            for answer in self._find("STUDY", keys, ["StudyInstanceUID"])
            if all((answer[key] or value) == value for key, value in single.items())
        }
        return sorted(found - {""})

    def find_series(self, alias: str, study: str) -> Iterator[RemoteSeries]:
        """Yield the series that the peer lists of a study."""
        wanted = ["SeriesInstanceUID", "NumberOfSeriesRelatedInstances", *_TEXTS]
        for answer in self._find("SERIES", {"StudyInstanceUID": study}, wanted):
            uid = answer["SeriesInstanceUID"]
            if not uid or (answer["StudyInstanceUID"] or study) != study:
                continue
            texts = {keyword: answer[keyword] for keyword in _TEXTS}
            count = answer["NumberOfSeriesRelatedInstances"]
            yield RemoteSeries(
                peer=alias,
                study_instance_uid=study,
                series_instance_uid=uid,
                instances=int(count) if count.isdecimal() else self._count(study, uid),
                header={key: text[:_LONGEST_TEXT] for key, text in texts.items() if text},
            )

    def _count(self, study: str, series: str) -> int | None:
        """Return how many instances of a series the peer lists, where it keeps no count."""
        keys = {"StudyInstanceUID": study, "SeriesInstanceUID": series}
        with suppress(QueryRefusedError):
            found = self._find("IMAGE", keys, ["SOPInstanceUID"])
            return len({each["SOPInstanceUID"] for each in found})
        return None


def read_date(text: str) -> datetime | None:
    """Return a day as DICOM writes it, or None."""
    try:
        return datetime.strptime(text, DATE)  # noqa: DTZ007 - a day
    except ValueError:
        return None
