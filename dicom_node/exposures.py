"""Pictures of one exposure (radiograph, ultrasound, photograph): what is one, or why it is not.

`headers` asks before any job, `volumes` once more before it decodes. A picture has no place in the
patient: its rows and columns are those of a detector or a camera. What is written back must be
valid in its own IOD, so what that requires and the source lacks is a refusal too.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.pixels.utils import iter_pixels
from pydicom.uid import (
    UID,
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    UltrasoundImageStorage,
    VLPhotographicImageStorage,
)

from dicom_node.elements import read_bytes, read_numbers
from dicom_node.errors import UnusableStudy
from dicom_node.pixels import READ_ERRORS, check_codec, check_format, decode, read_rescale

EXPOSURE_CLASSES: dict[str, UID] = {
    "CR": ComputedRadiographyImageStorage,
    "DX": DigitalXRayImageStorageForPresentation,
    "US": UltrasoundImageStorage,
    "XC": VLPhotographicImageStorage,
}
"""By modality: what a picture is received as, and written back as."""
RADIOGRAPHS = frozenset({"CR", "DX"})
MOST_PIXELS = 64 * 2**20
"""Of a picture; the largest detectors have a quarter of that."""
WHITE = 255.0
"""Of ultrasound and photographs, whatever their bits."""
COLORS = frozenset({"RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"})
GRAYS = frozenset({"MONOCHROME1", "MONOCHROME2"})
SAMPLES_OF_COLOR, BITS_OF_COLOR = 3, 8
DETECTOR_SPACING = ("ImagerPixelSpacing", "PixelSpacing")
"""The detector's plane comes first: Pixel Spacing may be corrected for magnification, or not."""


def check_exposure(header: Dataset, syntax: UID) -> None:
    """Do nothing when a picture can be worked with.

    Raises:
        UnusableStudy: `multi_frame`, `presentation_intent`, `picture_class`, `burned_in`,
            `photometric`, `pixel_geometry`, `decode_limit`, `codec_missing`, `rescale`,
            `spacing_missing`, `orientation_missing`.
    """
    modality = str(header.get("Modality"))
    frames = read_numbers(header, "NumberOfFrames") or (1.0,)
    if frames[0] > 1 or "PerFrameFunctionalGroupsSequence" in header:
        raise UnusableStudy("multi_frame", f"{frames[0]:.0f} frames; a picture has one")
    if header.get("PresentationIntentType") == "FOR PROCESSING":
        raise UnusableStudy(
            "presentation_intent",
            "the image is for processing, raw from the detector; send it for presentation",
        )
    wanted = EXPOSURE_CLASSES.get(modality)
    if header.get("SOPClassUID") != wanted:
        name = UID(str(header.get("SOPClassUID"))).name
        raise UnusableStudy(
            "picture_class", f"{modality} as {name}; wanted {wanted.name if wanted else 'CR to XC'}"
        )
    if header.get("BurnedInAnnotation") == "YES":
        raise UnusableStudy("burned_in", "text is burned into the pixels and would be remade")
    rows, columns = check_colors(header)
    if rows * columns > MOST_PIXELS:
        raise UnusableStudy("decode_limit", f"{rows} x {columns} pixels exceed {MOST_PIXELS}")
    check_codec(syntax)
    _read_scale(header)
    read_detector_spacing(header)
    if modality == "DX" and not read_bytes(header, "PatientOrientation"):
        raise UnusableStudy(
            "orientation_missing", "Patient Orientation, which a digital radiograph must have, is "
            "missing: nothing tells left from right"
        )  # fmt: skip


def check_colors(header: Dataset) -> tuple[int, int]:
    """Return the (rows, columns) of a picture in gray or, of light or sound, in color.

    Raises:
        UnusableStudy: `photometric`, `pixel_geometry`.
    """
    photometric = str(header.get("PhotometricInterpretation"))
    is_radiograph = header.get("Modality") in RADIOGRAPHS
    if photometric in GRAYS:
        return check_format(header, GRAYS)
    if photometric not in COLORS or is_radiograph:
        raise UnusableStudy(
            "photometric", f"pixels are {photometric}; wanted gray, or RGB of light or sound"
        )
    bits = [header.get(k) for k in ("SamplesPerPixel", "BitsAllocated", "BitsStored", "HighBit")]
    rows, columns = header.get("Rows"), header.get("Columns")
    if bits != [SAMPLES_OF_COLOR, BITS_OF_COLOR, BITS_OF_COLOR, BITS_OF_COLOR - 1]:
        raise UnusableStudy("pixel_geometry", f"{bits} are no pixels of 3 samples of 8 bits")
    if not isinstance(rows, int) or not isinstance(columns, int) or min(rows, columns) < 1:
        raise UnusableStudy("pixel_geometry", "a picture has no size")
    return rows, columns


def read_detector_spacing(header: Dataset) -> tuple[float, float]:
    """Return the distance of rows and of columns on the detector in mm; 1 where there is none.

    Raises:
        UnusableStudy: `spacing_missing`, of a radiograph.
    """
    for keyword in DETECTOR_SPACING:
        try:
            numbers = read_numbers(header, keyword)
        except ValueError as error:
            raise UnusableStudy("spacing_missing", str(error)) from None
        if numbers and len(numbers) == 2 and min(numbers) > 0:  # noqa: PLR2004 - rows and columns
            return numbers[0], numbers[1]
    if header.get("Modality") in RADIOGRAPHS:
        raise UnusableStudy("spacing_missing", "nothing tells the size of a detector's pixel")
    return 1.0, 1.0


def read_samples(path: Path, header: Dataset) -> NDArray[np.float32]:
    """Return the samples (1 or 3, rows, columns), brighter as they are shown brighter.

    Radiographs keep their values, inverted if they are stored so (MONOCHROME1); ultrasound and
    photographs run from 0, black, to 255. A VOI window or table is not applied: it only shows.

    Raises:
        UnusableStudy: `pixel_length`, `pixel_decode`, `rescale`.
    """
    shape = check_colors(header)
    if header.get("PhotometricInterpretation") in GRAYS:
        stored = next(iter(decode(path, shape, [0]))).astype(np.float64)
        slope, intercept = _read_scale(header)
        values = stored * slope + intercept
        signed = int(header.get("PixelRepresentation", 0))
        lowest, highest = _limits(int(header.BitsStored), signed)
        low, high = sorted((lowest * slope + intercept, highest * slope + intercept))
        if header.get("PhotometricInterpretation") == "MONOCHROME1":
            values = high + low - values
        if header.get("Modality") not in RADIOGRAPHS:
            values = (values - low) * (WHITE / (high - low))
        return values[None].astype(np.float32)
    try:
        image = dcmread(path)
        color = np.asarray(next(iter(iter_pixels(image, indices=[0]))))  # pydicom turns it to RGB
    except (*READ_ERRORS, RuntimeError) as error:
        raise UnusableStudy(
            "pixel_decode", f"pixels cannot be decoded ({type(error).__name__})"
        ) from None
    if color.shape != (*shape, SAMPLES_OF_COLOR):
        raise UnusableStudy("pixel_length", f"pixels do not fill a picture of {shape}")
    return np.moveaxis(color, -1, 0).astype(np.float32)


def _limits(bits: int, signed: int) -> tuple[int, int]:
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def _read_scale(header: Dataset) -> tuple[float, float]:
    """Return slope and intercept; pictures may have none."""
    if "RescaleSlope" not in header and "ModalityLUTSequence" not in header:
        return 1.0, 0.0
    return read_rescale(header)
