"""Data elements as the bytes that they are: strict numbers out of text, faithful copies of text.

pydicom decodes an element when it is touched and encodes it again when it is written; an identity
that went that way may come back in other bytes, and archives compare bytes. So identity is copied
raw, under the Specific Character Set of its source (PS3.5 section 6.1.2), and numbers are parsed
here, because a decimal string that is none comes out of pydicom as text without an error.
"""

import math
import re
from collections.abc import Iterable
from io import BytesIO
from typing import Any

from pydicom import Dataset, dcmwrite
from pydicom.charset import convert_encodings, default_encoding
from pydicom.datadict import (
    dictionary_description,
    dictionary_VR,
    keyword_for_tag,
    tag_for_keyword,
)
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_data_element
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag, Tag

TEXT_VRS = frozenset(
    {
        *("AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "LT", "PN"),
        *("SH", "ST", "TM", "UC", "UI", "UR", "UT"),
    }
)
LONGEST_COPY = 65_534
"""Bytes: the longest even value that a 16-bit length can say (PS3.5 section 7.1.2)."""

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_PADDING = b" \0"


def read_numbers(dataset: Dataset, keyword: str) -> tuple[float, ...] | None:
    """Return the numbers of an attribute, or None when it is absent or empty.

    Raises:
        ValueError: a value is not a finite decimal number; the message does not repeat it.
    """
    element = dataset.get_item(_tag(keyword))
    if element is None or element.value is None:
        return None
    vr = element.VR or dictionary_VR(element.tag)
    if isinstance(element, RawDataElement) and vr in {"DS", "IS"}:
        texts = bytes(element.value or b"").decode("ascii", "replace").split("\\")
    else:
        value = dataset[_tag(keyword)].value
        texts = [str(v) for v in (value if isinstance(value, MultiValue | list) else [value])]
    texts = [text.strip(" \0") for text in texts]
    if not any(texts):
        return None
    return tuple(_parse(text, keyword) for text in texts)


def read_bytes(dataset: Dataset, keyword: str) -> bytes:
    """Return a text attribute in the bytes of its file, without padding; none when it is absent."""
    element = dataset.get_item(_tag(keyword))
    if element is None:
        return b""
    if isinstance(element, RawDataElement):
        return bytes(element.value or b"").strip(_PADDING)
    buffer = DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = True, True
    write_data_element(buffer, element, _encodings_of(dataset))
    return buffer.getvalue()[8:].strip(_PADDING)


def copy_elements(source: Dataset, target: Dataset, keywords: Iterable[str]) -> None:
    """Copy attributes, text in the source's bytes; what is absent or oversized is left out.

    Private elements inside sequences are left out as well. When Specific Character Set is among
    `keywords`, the target takes it over; else both must have the same one.
    """
    encodings = _encodings_of(source)
    for keyword in keywords:
        _copy_element(source, target, _tag(keyword), encodings)
    keep_raw_text(target)


def copy_as_item(source: Dataset, keywords: Iterable[str]) -> Dataset:
    """Return a sequence item with copies, for a data set of the same character set."""
    encodings = _encodings_of(source)
    item = Dataset(parent_encoding=encodings)
    for keyword in keywords:
        _copy_element(source, item, _tag(keyword), encodings)
    item.set_original_encoding(False, True, encodings)
    return item


def keep_raw_text(dataset: Dataset) -> None:
    """Let pydicom write the raw elements of `dataset` as they are.

    To be called again when its Specific Character Set was changed.
    """
    dataset.set_original_encoding(False, True, _encodings_of(dataset))


def encode(dataset: Dataset) -> bytes:
    """Return the DICOM file (PS3.10) of `dataset`."""
    buffer = BytesIO()
    dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


def _copy_element(source: Dataset, target: Dataset, tag: BaseTag, encodings: Any) -> None:
    element = source.get_item(tag)
    if element is None:
        return
    vr = dictionary_VR(tag)
    if vr == "SQ":
        items = [_copy_item(item, encodings) for item in source[tag].value]
        target.add(DataElement(tag, vr, items))
    elif isinstance(element, RawDataElement) and vr in TEXT_VRS:
        value = bytes(element.value or b"")
        if len(value) <= LONGEST_COPY:
            target[tag] = RawDataElement(tag, vr, len(value), value, 0, False, True)
    else:
        target.add(DataElement(tag, source[tag].VR, source[tag].value))


def _copy_item(source: Dataset, encodings: Any) -> Dataset:
    item = Dataset(parent_encoding=encodings)
    for tag in list(source.keys()):
        if not tag.is_private and keyword_for_tag(tag):
            _copy_element(source, item, tag, encodings)
    item.set_original_encoding(False, True, encodings)
    return item


def _encodings_of(dataset: Dataset) -> str | list[str]:
    declared = dataset.get("SpecificCharacterSet")
    return convert_encodings(declared) if declared else default_encoding


def _parse(text: str, keyword: str) -> float:
    if not _NUMBER.fullmatch(text) or not math.isfinite(number := float(text)):
        name = dictionary_description(_tag(keyword))
        raise ValueError(f"{name} holds a value that is not a finite decimal number")
    return number


def _tag(keyword: str) -> BaseTag:
    tag = tag_for_keyword(keyword)
    if tag is None:
        raise KeyError(keyword)
    return Tag(tag)
