"""The pixels of one DICOM file as numbers in real units, or a refusal that says why.

Called by `volumes`, plane by plane. A header is only a claim: what it says is compared with what is
there before any memory is asked for, and no value is guessed.
"""

import struct
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.encaps import generate_frames
from pydicom.errors import InvalidDicomError
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.utils import iter_pixels
from pydicom.uid import UID, JPEG2000TransferSyntaxes, JPEGLSTransferSyntaxes, JPEGTransferSyntaxes

from dicom_node.elements import read_numbers
from dicom_node.errors import UnusableStudy

SLOPES = (1e-9, 1e9)
"""Magnitudes of Rescale Slope that are believed; PET in SUV has slopes near 1e-5."""

READ_ERRORS = (
    *(InvalidDicomError, OSError, EOFError, ValueError, TypeError, KeyError, AttributeError),
    *(NotImplementedError, OverflowError, RecursionError, struct.error),
)
"""What pydicom raises on bytes that are not what they claim to be."""

_FRAME_HEADERS = frozenset({*range(0xFFC0, 0xFFD0), 0xFFF7} - {0xFFC4, 0xFFC8, 0xFFCC})
"""The SOF markers of JPEG, and of JPEG-LS."""

_PACKAGES = (
    (("1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70"), "python-gdcm"),
    (JPEGTransferSyntaxes, "pillow"),
    (JPEGLSTransferSyntaxes, "pyjpegls"),
    (JPEG2000TransferSyntaxes, "pylibjpeg-openjpeg"),
    (("1.2.840.10008.1.2.4.201", "1.2.840.10008.1.2.4.202"), "pylibjpeg-openjpeg"),
    (("1.2.840.10008.1.2.4.203",), "pylibjpeg-openjpeg"),
)


def check_format(
    header: Dataset, photometrics: Collection[str] = ("MONOCHROME2",)
) -> tuple[int, int]:
    """Return the (rows, columns) that a header claims, having looked at how its pixels are stored.

    Args:
        header: of an image.
        photometrics: what its Photometric Interpretation may be, with one sample for a pixel.

    Raises:
        UnusableStudy: `photometric` or `pixel_geometry`.
    """
    photometric = header.get("PhotometricInterpretation")
    if photometric not in photometrics or _integer(header, "SamplesPerPixel") != 1:
        raise UnusableStudy(
            "photometric", f"pixels are not one {' or '.join(sorted(photometrics))} sample each"
        )
    allocated, stored = _integer(header, "BitsAllocated"), _integer(header, "BitsStored")
    if (
        allocated not in {8, 16, 32}
        or not 1 <= stored <= allocated
        or _integer(header, "HighBit") != stored - 1
        or _integer(header, "PixelRepresentation") not in {0, 1}
    ):
        raise UnusableStudy(
            "pixel_geometry", f"{stored} bits stored in {allocated} are no pixel format"
        )
    rows, columns = _integer(header, "Rows"), _integer(header, "Columns")
    if rows < 1 or columns < 1:
        raise UnusableStudy("pixel_geometry", f"an image measures {rows} by {columns}")
    return rows, columns


def check_codec(syntax: UID) -> None:
    """Do nothing when this installation can decode a transfer syntax.

    Raises:
        UnusableStudy: `codec_missing`, naming the package to install.
    """
    if not syntax.is_encapsulated:
        return
    try:
        if get_decoder(syntax).is_available:
            return
    except NotImplementedError:
        pass
    package = next((name for uids, name in _PACKAGES if syntax in uids), None)
    remedy = f"install {package}" if package else "no decoder is known: send another syntax"
    raise UnusableStudy("codec_missing", f"pixels are stored as {syntax.name}; {remedy}")


def read_rescale(header: Dataset) -> tuple[float, float]:
    """Return slope and intercept from stored to real values (PS3.3 C.11.1); MR may have none.

    Raises:
        UnusableStudy: `rescale`.
    """
    if "ModalityLUTSequence" in header:
        raise UnusableStudy("rescale", "a Modality LUT instead of a slope is not supported")
    try:
        slope = read_numbers(header, "RescaleSlope")
        intercept = read_numbers(header, "RescaleIntercept")
    except ValueError as error:
        raise UnusableStudy("rescale", str(error)) from None
    if slope is None and intercept is None and header.get("Modality") == "MR":
        return 1.0, 0.0
    if slope is None or intercept is None or len(slope) != 1 or len(intercept) != 1:
        raise UnusableStudy("rescale", "Rescale Slope and Intercept are not one number each")
    if not SLOPES[0] <= abs(slope[0]) <= SLOPES[1] or abs(intercept[0]) > SLOPES[1]:
        raise UnusableStudy("rescale", f"a Rescale Slope of {slope[0]:g} is not believed")
    return slope[0], intercept[0]


def decode(
    path: Path, shape: tuple[int, int], frames: Sequence[int]
) -> Iterator[NDArray[np.generic]]:
    """Yield the stored values of frames of a file, each of `shape` (rows, columns).

    Args:
        path: of the file.
        shape: of every frame.
        frames: their indices, from 0.

    Raises:
        UnusableStudy: `pixel_length` when the pixels do not fill the frames that the header
            claims, `pixel_decode` when the decoder gives up.
    """
    try:
        image = dcmread(path)
        stored = image.PixelData
        count = _integer(image, "NumberOfFrames", absent=1)
        if image.file_meta.TransferSyntaxUID.is_encapsulated:
            sizes = {_measure(f) for f in generate_frames(stored, number_of_frames=count)}
            complete = sizes <= {shape, None}
        else:
            length = count * shape[0] * shape[1] * image.BitsAllocated // 8
            complete = len(stored) == length + length % 2
        if complete:
            yield from iter_pixels(image, raw=True, indices=frames)
            return
    except (*READ_ERRORS, RuntimeError) as error:
        raise UnusableStudy(
            "pixel_decode", f"pixels cannot be decoded ({type(error).__name__})"
        ) from None
    raise UnusableStudy("pixel_length", f"pixels do not fill {count} frames of {shape}")


def _measure(codestream: bytes) -> tuple[int, int] | None:
    """Return the (rows, columns) that a JPEG or JPEG 2000 codestream claims, None when it has none.

    A decoder would take the codestream's word, and memory, for it.

    Source: ISO 10918-1 B.2.2, ISO 14495-1 C.2.2, ISO 15444-1 A.5.1.
    """
    if (start := codestream.find(b"\xff\x4f\xff\x51")) >= 0:
        right, bottom, left, top = struct.unpack_from(">4I", codestream, start + 8)
        return bottom - top, right - left
    position = 2 if codestream.startswith(b"\xff\xd8") else len(codestream)
    while position + 9 <= len(codestream):
        marker, length = struct.unpack_from(">HH", codestream, position)
        if marker in _FRAME_HEADERS:
            rows, columns = struct.unpack_from(">HH", codestream, position + 5)
            return rows, columns
        position += 2 + length
    return None


def _integer(header: Dataset, keyword: str, absent: int = -1) -> int:
    try:
        numbers = read_numbers(header, keyword)
    except ValueError as error:
        raise UnusableStudy("pixel_geometry", str(error)) from None
    return absent if numbers is None else int(numbers[0])
