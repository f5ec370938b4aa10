"""Tokens that stand where a patient's data would, and in what they turn up again, however written.

A token is unlike anything that a program writes by itself, and says by its number where it was
planted. Texts hold `QX0123J` or, where letters with accents may stand, `QÄ0123ÖJ`.
"""

import re
from base64 import b64decode
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from urllib.parse import unquote_to_bytes

from pydicom import Dataset
from pydicom.datadict import DicomDictionary

from dicom_node.readable import LISTS, NUMBERS, TEXTS

TEXT_VRS = frozenset({"AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT"})
ACCENTED_VRS = frozenset({"LO", "LT", "PN", "SH", "ST", "UC", "UT"})
BIRTH_DATE, STUDY_DATE, TIME = "18570313", "18990704", "235817.718281"
SIZE, WEIGHT = "2.713419", "93.713417"
"""Planted, too: nobody writes them by chance."""
NOBODYS = "a token of nobody's"
_FIXED = {"DA": STUDY_DATE, "DT": f"{STUDY_DATE}{TIME}", "TM": TIME}
"""What stands in every date and time, by VR. An age is what models are chosen by."""

_READ = frozenset((*TEXTS, *LISTS, *NUMBERS))
"""What the node judges by: left as it is, or given a token beside it."""
_DESCRIPTIONS = frozenset(
    (
        *("StudyDescription", "SeriesDescription", "ProtocolName", "Manufacturer"),
        *("ManufacturerModelName", "RequestedProcedureDescription", "SequenceName"),
        *("PerformedProcedureStepDescription", "PulseSequenceName"),
    )
)
_FORMATTED = frozenset({"SpecificCharacterSet", "TimezoneOffsetFromUTC", "QueryRetrieveLevel"})
_OF_PIXELS_AND_PROTOCOL = frozenset({0x0000, 0x0002, 0x0004, 0x0028, 0x7FE0, 0xFFFE, 0xFFFA})


class Canary:
    """Every token that was planted.

    Attributes:
        planted: token to the place where it stands.
    """

    def __init__(self) -> None:
        self.planted: dict[str, str] = {
            BIRTH_DATE: "PatientBirthDate",
            STUDY_DATE: "a study's date",
            TIME: "a study's time",
            SIZE: "a study's PatientSize",
            WEIGHT: "a study's PatientWeight",
        }

    def plant(self, place: str, *, accented: bool = False) -> str:
        """Return a new token for `place`."""
        number = f"{len(self.planted):04d}"
        token = f"QÄ{number}ÖJ" if accented else f"QX{number}J"
        self.planted[token] = place
        return token

    def mark(self, instances: Sequence[Dataset], place: str) -> list[Dataset]:
        """Return copies with a token in every text, date and time that the Standard knows.

        What the node judges by keeps its value, and a description gets a token beside it. Private
        elements and items of sequences have tokens, too.
        """
        added, closed = Dataset(), _READ | _FORMATTED
        for tag, (vr, _, _, _, keyword) in DicomDictionary.items():
            if not keyword or keyword in closed or tag >> 16 in _OF_PIXELS_AND_PROTOCOL:
                continue
            if vr in TEXT_VRS:
                token = self.plant(f"{place} {keyword}", accented=vr in ACCENTED_VRS)
                added.add_new(tag, vr, token)
            elif vr in _FIXED:
                added.add_new(tag, vr, _FIXED[vr])
        added.PatientBirthDate = BIRTH_DATE
        added.PatientSize, added.PatientWeight = SIZE, WEIGHT
        added.SpecificCharacterSet = "ISO_IR 100"
        person = Dataset()
        person.PersonName = self.plant(f"{place} item", accented=True)
        person.InstitutionAddress = self.plant(f"{place} item", accented=True)
        person.PatientID = self.plant(f"{place} item", accented=True)
        added.OtherPatientIDsSequence = [person]
        added.ReferringPhysicianIdentificationSequence = [deepcopy(person)]
        private = added.private_block(0x0011, self.plant(f"{place} private creator"), create=True)
        private.add_new(0x01, "LO", self.plant(f"{place} private", accented=True))
        private.add_new(0x02, "UN", self.plant(f"{place} private").encode() + b"\0")
        private.add_new(0x03, "SQ", [deepcopy(person)])
        beside = {name: self.plant(f"{place} {name}", accented=True) for name in _DESCRIPTIONS}
        copies = deepcopy(list(instances))
        for each in copies:
            each.update(added)
            for name, token in beside.items():
                each.add_new(name, "LO", f"{each.get(name) or ''} {token}".strip())
        return copies

    def find(self, texts: Mapping[str, bytes]) -> dict[str, set[str]]:
        """Return in which of `texts` tokens stand, and where those were planted."""
        numbers = {_digits(token): place for token, place in self.planted.items()}
        found = {
            name: {
                numbers.get(match[1].decode() if match[1] else _digits(match[0].decode()), NOBODYS)
                for view in _decode(text)
                for match in _TOKEN.finditer(view)
            }
            for name, text in texts.items()
        }
        return {name: places for name, places in found.items() if places}


_TOKEN = re.compile(
    # With its accents in Latin-1, in UTF-8, or folded away.
    rb"q(?:x|a|[\xc4\xe4]|\xc3[\x84\xa4])(\d{4})(?:o|[\xd6\xf6]|\xc3[\x96\xb6])?j|"
    # Between the parts of a date and a time there may be signs.
    rb"1857-?03-?13|1899-?07-?04|23:?58:?17\.718281|2\.713419|93\.713417",
    re.IGNORECASE,
)
_ESCAPED = re.compile(rb"\\(?:x|u00)([0-9a-f]{2})", re.IGNORECASE)
_HEXADECIMAL = re.compile(rb"(?:[0-9a-f]{2}[ :]?){7,}", re.IGNORECASE)
_BASE64 = re.compile(rb"[A-Za-z0-9+/]{8,}")


def _digits(token: str) -> str:
    return re.sub(r"\D", "", token)


def _decode(text: bytes) -> Iterator[bytes]:
    """Yield `text` and whatever it may be another way to write."""
    views = [text, unquote_to_bytes(text)]
    views.append(_ESCAPED.sub(lambda match: bytes.fromhex(match[1].decode()), text))
    for run in _HEXADECIMAL.findall(text):
        digits = re.sub(rb"[ :]", b"", run).decode()
        views += [bytes.fromhex(digits[k : k + (len(digits) - k) // 2 * 2]) for k in (0, 1)]
    for run in _BASE64.findall(text):
        views += [_decode_base64(run[k:]) for k in range(4)]
    for view in views:
        yield view
        yield view.replace(b"\0", b"")  # UTF-16


def _decode_base64(run: bytes) -> bytes:
    whole = run[: len(run) - (len(run) % 4 == 1)]
    return b64decode(whole + b"=" * (-len(whole) % 4))
