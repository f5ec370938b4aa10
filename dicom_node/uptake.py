"""The factor from the values of a PET series to standardized uptake by body weight, SUVbw in g/ml.

    SUVbw = activity per volume (Bq/ml) x weight (g) / dose (Bq) left at the time decayed to

A header is believed where it is complete and does not contradict itself; else the series is
refused, and the refusal names the attribute, never its value. Source: PS3.3 C.8.9.1 and C.8.9.2,
and the vendor-neutral pseudo-code of the QIBA profile FDG-PET/CT (appendix G).
"""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta, timezone
from typing import Never, TypeVar

from pydicom import Dataset
from pydicom.datadict import dictionary_description
from pydicom.valuerep import DA, DT, TM

from dicom_node.elements import read_bytes, read_numbers
from dicom_node.errors import UnusableStudy

MOST_HALF_LIVES = 8.0
"""From injection to scan. Then 1/256 of the dose is left, of which no scanner makes an image."""
CLOCK_SECONDS = 60.0
"""By which Start Time may differ from the clock in Start DateTime: it may be cut to minutes."""
BACK_SECONDS = 2.0
"""By which the images of a series may differ on when the scan began: times are whole seconds."""

_BELIEVED = {
    "PatientWeight": (0.2, 700.0),
    "RadionuclideTotalDose": (1e4, 1e11),
    "RadionuclideHalfLife": (10.0, 1e8),
}
"""In kg, Bq and s; grams and megabecquerels lie beyond. A half-life in minutes is found out by
`MOST_HALF_LIVES`."""
_START = "RadiopharmaceuticalStartDateTime"
_ZONE = "TimezoneOffsetFromUTC"
_PHILIPS = (0x7053, "Philips PET Private Group")
_TO_SUV, _TO_ACTIVITY = 0x00, 0x09
_GE = (0x0009, "GEMS_PETD_01")
_GE_SCAN = 0x0D
_DAY = timedelta(days=1)
_T = TypeVar("_T")


def find_factor(images: Sequence[Dataset]) -> float:
    """Return what the rescaled values of a PET series are to be multiplied by for SUVbw.

    Args:
        images: the headers of all images of one volume, single-frame.

    Raises:
        UnusableStudy: `suv`; the message names the attribute that is missing or contradicts.
    """
    units = _read_text(images, "Units") or _refuse_missing("Units")
    if units == "GML":
        # Absent it means body weight, says PS3.3 C.8.9.1 of SUV Type.
        if (_read_text(images, "SUVType") or "BW") != "BW":
            _refuse("SUV Type is not by body weight")
        return 1.0
    activity = 1.0
    if units == "CNTS":
        to_suv, to_activity = (_read_private(images, _PHILIPS, k) for k in (_TO_SUV, _TO_ACTIVITY))
        if not (to_suv or to_activity):
            _refuse("Units are counts, and the SUV Scale Factor that Philips keeps is missing")
        activity = to_activity or 1.0
    elif units != "BQML":
        _refuse("Units are none that SUV can be computed from: wanted BQML, GML, or Philips' CNTS")
    decays_from = _check_corrections(images)
    if units == "CNTS" and to_suv:
        return to_suv
    weight = _read_number(images, "PatientWeight") * 1000
    tracers = _find_tracers(images)
    dose = _read_number(tracers, "RadionuclideTotalDose")
    if decays_from == "START":
        half_life = _read_number(tracers, "RadionuclideHalfLife")
        scanned = _find_scan_start(images, half_life)
        dose *= 2.0 ** -(_measure_wait(images, tracers, scanned, half_life) / half_life)
    return activity * weight / dose


def _check_corrections(images: Sequence[Dataset]) -> str:
    """Return START or ADMIN, to which of them the images were corrected for decay."""
    corrected = (_read_text(images, "CorrectedImage") or "").split("\\")
    for wanted in ("ATTN", "DECY"):
        if wanted not in (each.strip() for each in corrected):
            _refuse(f"Corrected Image does not name {wanted}: values are no activity")
    corrected_to = _read_text(images, "DecayCorrection") or _refuse_missing("DecayCorrection")
    if corrected_to not in {"START", "ADMIN"}:
        _refuse("Decay Correction names neither START nor ADMIN: the time of the values is unknown")
    return corrected_to


def _find_tracers(images: Sequence[Dataset]) -> list[Dataset]:
    """Return what each image says of the one tracer that was given."""
    tracers: list[Dataset] = []
    for image in images:
        items = image.get("RadiopharmaceuticalInformationSequence") or ()
        if len(items) > 1:
            _refuse("Radiopharmaceutical Information Sequence tells of several tracers")
        tracers.extend(items)
    if len(tracers) != len(images):
        _refuse_missing("RadiopharmaceuticalInformationSequence")
    return tracers


def _find_scan_start(images: Sequence[Dataset], half_life: float) -> datetime:
    """Return the local time that DecayCorrection START means: the first bed position's start.

    Series Time is it, unless it lies after an acquisition: then the series was made later, and GE's
    private element, the reference times of the frames, or the first acquisition tell.
    """
    acquired = [_read_moment([each], "AcquisitionDate", "AcquisitionTime") for each in images]
    first = min(acquired)
    series = _read_moment(images, "SeriesDate", "SeriesTime")
    if series <= first:
        return series
    scan = _read_ge_scan(images)
    if scan is not None and scan <= first:
        return scan
    offsets = [_measure_offset(each, half_life) for each in images]
    starts = [at - offset for at, offset in zip(acquired, offsets, strict=True) if offset]
    if len(starts) == len(images):
        if max(starts) - min(starts) > timedelta(seconds=BACK_SECONDS):
            _refuse("Frame Reference Time and Acquisition Time contradict each other")
        return min(starts)
    if starts or (_read_text(images, "SeriesType") or "").split("\\")[0] not in {
        "STATIC",
        "WHOLE BODY",
    }:
        # Of a later frame the first acquisition is not the start of the scan.
        _refuse_missing("FrameReferenceTime")
    return first


def _measure_offset(image: Dataset, half_life: float) -> timedelta | None:
    """Return how long after the start of the scan an acquisition began, or None.

    Frame Reference Time is when the activity was what it was on average; in a frame of length T and
    with decay constant k that is ln(kT / (1 - exp(-kT))) / k after its beginning.
    """
    reference, duration = (
        (_read_numbers(image, keyword) or (0.0,))[0] / 1000
        for keyword in ("FrameReferenceTime", "ActualFrameDuration")
    )
    if reference <= 0 or duration <= 0:
        return None
    constant = math.log(2) / half_life
    decay = constant * duration
    average = math.log(decay / -math.expm1(-decay)) / constant
    return timedelta(seconds=reference - average)


def _measure_wait(
    images: Sequence[Dataset], tracers: Sequence[Dataset], scanned: datetime, half_life: float
) -> float:
    """Return the seconds from injection to scan."""
    clock = _parse(TM, _read_text(tracers, "RadiopharmaceuticalStartTime"), 4)
    given = _parse(DT, _read_text(tracers, _START), 12)
    most = timedelta(seconds=MOST_HALF_LIVES * half_life)
    if given is not None:
        start = _localize(given, images)
        if clock is not None:
            apart = abs((datetime.combine(start, clock) - start).total_seconds())
            if min(apart, _DAY.total_seconds() - apart) > CLOCK_SECONDS:
                _refuse(f"Radiopharmaceutical Start Time and {_name(_START)} contradict each other")
    elif clock is not None:
        start = datetime.combine(scanned, clock)
        if start > scanned:  # given before midnight
            start -= _DAY
        if scanned - start + _DAY <= most:
            _refuse(f"{_name(_START)} is missing, and the tracer lives too long to tell the day")
    else:
        _refuse_missing(_START)
    if not timedelta() <= scanned - start <= most:
        _refuse(
            "by Radiopharmaceutical Start the tracer was given after the scan had begun, or more "
            f"than {MOST_HALF_LIVES:g} half-lives before"
        )
    return (scanned - start).total_seconds()


def _localize(given: datetime, images: Sequence[Dataset]) -> datetime:
    """Return a DateTime in the zone of the header's other times, naive as they are."""
    if given.tzinfo is None:
        return given
    zone = re.fullmatch(r"([+-])(\d\d)(\d\d)", _read_text(images, _ZONE) or "")
    if zone is None:
        _refuse(f"{_name(_START)} tells a time zone, and {_name(_ZONE)} is missing")
    sign, hours, minutes = zone.groups()
    offset = timedelta(hours=int(hours), minutes=int(minutes))
    return given.astimezone(timezone(-offset if sign == "-" else offset)).replace(tzinfo=None)


def _read_moment(images: Sequence[Dataset], date: str, time: str) -> datetime:
    day = _parse(DA, _read_text(images, date), 8) or _refuse_missing(date)
    clock = _parse(TM, _read_text(images, time), 4)
    if clock is None:
        _refuse_missing(time)
    return datetime.combine(day, clock)


def _read_ge_scan(images: Sequence[Dataset]) -> datetime | None:
    found = _agree((_read_private_text(each, _GE, _GE_SCAN) for each in images), "scan date")
    scan = _parse(DT, found, 12)
    return None if scan is None else _localize(scan, images)


def _parse(kind: Callable[[str], _T], text: str | None, fewest: int) -> _T | None:
    """Return a date or time told with at least so many digits, or None."""
    try:
        parsed = kind(text) if text else None
    except (ValueError, OverflowError):
        return None
    return parsed if text and len(re.split(r"[.&+-]", text)[0]) >= fewest else None


def _read_number(items: Sequence[Dataset], keyword: str) -> float:
    """Return a number that every item has alike."""
    numbers = _agree((_read_numbers(each, keyword) for each in items), _name(keyword))
    if numbers is None:
        _refuse_missing(keyword)
    low, high = _BELIEVED[keyword]
    if len(numbers) != 1 or not low <= numbers[0] <= high:
        _refuse(f"{_name(keyword)} is not believed")
    return numbers[0]


def _read_numbers(item: Dataset, keyword: str) -> tuple[float, ...] | None:
    try:
        return read_numbers(item, keyword)
    except ValueError as error:
        raise UnusableStudy("suv", str(error)) from None


def _read_text(items: Iterable[Dataset], keyword: str) -> str | None:
    """Return a text that every item has alike, or None when none has it."""
    texts = (read_bytes(each, keyword).decode("ascii", "replace").strip() for each in items)
    return _agree(texts, _name(keyword)) or None


def _read_private(images: Sequence[Dataset], block: tuple[int, str], element: int) -> float | None:
    """Return a private number that every image has alike; 0 is how it is said to be unknown."""
    text = _agree((_read_private_text(each, block, element) for each in images), "a scale factor")
    try:
        number = float(text or 0)
    except ValueError:
        return None
    return number if math.isfinite(number) and number > 0 else None


def _read_private_text(image: Dataset, block: tuple[int, str], element: int) -> str | None:
    try:
        value = image.private_block(*block)[element].value
    except KeyError:
        return None
    text = value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)
    return text.strip(" \0")


def _agree(values: Iterable[_T], name: str) -> _T:
    distinct = set(values)
    if len(distinct) != 1:
        _refuse(f"{name} differs among the images of the series")
    return distinct.pop()


def _name(keyword: str) -> str:
    return dictionary_description(keyword)


def _refuse_missing(keyword: str) -> Never:
    _refuse(f"{_name(keyword)} is missing")


def _refuse(why: str) -> Never:
    raise UnusableStudy("suv", f"no SUV of this PET: {why}")
