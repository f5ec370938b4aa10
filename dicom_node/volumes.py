"""From the files of one series to one volume in real units, or a refusal that says why.

The first step of a job (`work.run`): the volume goes to `synthesis.engine`, the headers to
`derive`. A volume is a stack of equal, parallel, evenly spaced planes (PS3.3 C.7.6.2); whatever is
not one is refused by name. One hole is bridged, and told: a slice missing from a long series.
"""

import warnings
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from highdicom import Volume, imread
from numpy.typing import NDArray
from pydicom import Dataset, config, dcmread
from pydicom.uid import UID

from dicom_node import geometry
from dicom_node.elements import read_numbers
from dicom_node.errors import UnusableStudy
from dicom_node.exposures import check_exposure, read_detector_spacing, read_samples
from dicom_node.pixels import READ_ERRORS, check_codec, check_format, decode, read_rescale
from dicom_node.uptake import find_factor
from synthesis.flat import make_volume

MOST_VOXELS = 512 * 2**20
"""Largest volume that is decoded: 2 GiB as float32. A real one is a tenth of that; a forged header
of a few bytes could ask for any size."""
_FUNCTIONAL_GROUPS = frozenset({0x5200_9229, 0x5200_9230})
_FRAME_MACROS = (
    *("PixelMeasuresSequence", "PlaneOrientationSequence", "PlanePositionSequence"),
    *("PixelValueTransformationSequence", "FrameContentSequence"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plane:
    """One plane of pixels: where it is stored, and its header as a single-frame image has it."""

    path: Path
    frame: int
    syntax: UID
    header: Dataset


def read_volume(
    paths: Sequence[Path], frames: Collection[int] = ()
) -> tuple[Volume, tuple[Dataset, ...]]:
    """Read the one volume that the files of a series hold.

    Values are stored values times Rescale Slope plus Rescale Intercept: HU for CT, brought to SUVbw
    for PT (see `uptake`), arbitrary for MR. A slice that is missing, where `geometry`
    bears it, is the mean of its neighbors and has no header, which is how the caller knows of it.

    Args:
        paths: of the files.
        frames: numbers, from 1, of the frames of a multi-frame image that are it; empty: all.

    Returns:
        The volume, float32 (slices, rows, columns), with a right-handed affine: slice 0 lies
        farthest along the normal. And the header of each slice that is there, in the order of the
        slices. The header of a frame of a multi-frame image is flattened to what a single-frame
        image would say, and holds Referenced Frame Number (0008,1160).

    Raises:
        UnusableStudy: `unreadable`, `photometric`, `pixel_geometry`, `decode_limit`,
            `codec_missing`, `geometry_missing`, `frame_of_reference`, `orientation`, `one_slice`,
            `duplicate_position`, `slice_gap`, `gantry_tilt`, `rescale`, `suv`,
            `pixel_length`, `pixel_decode`.
    """
    with config.disable_value_validation(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's texts repeat values, and values are of patients
        planes = [plane for path in paths for plane in _read_planes(path, frames)]
        shape = _check_planes(planes)
        stack = _stack(planes)
        planes = [planes[k] for k in stack.order]
        header = planes[0].header
        volume = Volume.from_attributes(
            array=_read_array(planes, stack.slots, shape),
            image_position=_numbers(header, "ImagePositionPatient", 3),
            image_orientation=_numbers(header, "ImageOrientationPatient", 6),
            pixel_spacing=_numbers(header, "PixelSpacing", 2),
            spacing_between_slices=stack.spacing,
            coordinate_system="PATIENT",
            frame_of_reference_uid=header.get("FrameOfReferenceUID") or None,
        )
    return volume, tuple(plane.header for plane in planes)


def read_picture(path: Path) -> tuple[Volume, tuple[Dataset, ...]]:
    """Read one radiograph, ultrasound image or photograph.

    Returns:
        The picture as `synthesis.flat` has it, samples as `exposures.read_samples` gives them, and
        its header.

    Raises:
        UnusableStudy: `unreadable`, or why it is no picture: `exposures`.
    """
    with config.disable_value_validation(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's texts repeat values, and values are of patients
        try:
            header = dcmread(path, stop_before_pixels=True)
            syntax = UID(header.file_meta.TransferSyntaxUID)
        except READ_ERRORS as error:
            raise UnusableStudy(
                "unreadable", f"an instance cannot be read as DICOM ({type(error).__name__})"
            ) from None
        check_exposure(header, syntax)
        volume = make_volume(read_samples(path, header), read_detector_spacing(header))
    return volume, (header,)


def read_map(path: Path, like: Volume) -> NDArray[np.float32]:
    """Return the frames of a Parametric Map of ours, each where its position lies on a grid.

    A slice that the source lacks has no frame; it is filled as `read_volume` fills it.

    Args:
        path: of the one file that holds it.
        like: a volume on its grid.

    Returns:
        Array (slices, rows, columns) in the map's units.
    """
    image = imread(path)
    to_index = np.linalg.inv(like.affine)
    array = np.zeros(like.array.shape, np.float32)
    missing = set(range(len(array)))
    for frame, group in zip(
        image.get_frames(), image.PerFrameFunctionalGroupsSequence, strict=True
    ):
        position = group.PlanePositionSequence[0].ImagePositionPatient
        slot = round(float((to_index @ [*position, 1])[0]))
        array[slot] = frame
        missing.discard(slot)
    for slot in missing:
        array[slot] = (array[slot - 1] + array[slot + 1]) / 2
    return array


def _read_planes(path: Path, wanted: Collection[int]) -> list[_Plane]:
    try:
        image = dcmread(path, stop_before_pixels=True)
        syntax = UID(image.file_meta.TransferSyntaxUID)
        frames = image.get("PerFrameFunctionalGroupsSequence")
        if frames:
            chosen = [k for k in range(len(frames)) if not wanted or k + 1 in wanted]
            headers = {k: _flatten(image, k) for k in chosen}
        else:
            headers = {0: image}
    except READ_ERRORS as error:
        raise UnusableStudy(
            "unreadable", f"an instance cannot be read as DICOM ({type(error).__name__})"
        ) from None
    return [_Plane(path=path, frame=k, syntax=syntax, header=h) for k, h in headers.items()]


def _flatten(image: Dataset, frame: int) -> Dataset:
    """Return the header that a single-frame image of this frame would have."""
    flat = Dataset()
    for tag in list(image.keys()):
        if tag not in _FUNCTIONAL_GROUPS:
            flat[tag] = image.get_item(tag)
    shared = image.get("SharedFunctionalGroupsSequence") or [Dataset()]
    for group in (shared[0], image.PerFrameFunctionalGroupsSequence[frame]):
        for macro in _FRAME_MACROS:
            for item in group.get(macro) or ():
                for tag in list(item.keys()):
                    flat[tag] = item.get_item(tag)
    flat.ReferencedFrameNumber = frame + 1
    implicit_vr, little_endian = image.original_encoding
    flat.set_original_encoding(implicit_vr, little_endian, image.original_character_set)
    return flat


def _check_planes(planes: Sequence[_Plane]) -> tuple[int, int]:
    """Return the (rows, columns) of every plane."""
    shapes = {check_format(plane.header) for plane in planes}
    if len(shapes) != 1:
        raise UnusableStudy("pixel_geometry", f"images of one series measure {sorted(shapes)}")
    rows, columns = shapes.pop()
    if len(planes) * rows * columns > MOST_VOXELS:
        raise UnusableStudy(
            "decode_limit", f"{len(planes)} x {rows} x {columns} voxels exceed {MOST_VOXELS}"
        )
    for syntax in {plane.syntax for plane in planes}:
        check_codec(syntax)
    return rows, columns


def _stack(planes: Sequence[_Plane]) -> geometry.Stack:
    if len({plane.header.get("FrameOfReferenceUID") for plane in planes}) > 1:
        raise UnusableStudy("frame_of_reference", "the series has several frames of reference")
    return geometry.stack(
        [_numbers(p.header, "ImagePositionPatient", 3) for p in planes],
        [_numbers(p.header, "ImageOrientationPatient", 6) for p in planes],
        [_numbers(p.header, "PixelSpacing", 2) for p in planes],
    )


def _read_array(
    planes: Sequence[_Plane], slots: Sequence[int], shape: tuple[int, int]
) -> NDArray[np.float32]:
    scales = [read_rescale(plane.header) for plane in planes]
    if planes[0].header.get("Modality") == "PT":
        factor = find_factor([plane.header for plane in planes])
        scales = [(slope * factor, intercept * factor) for slope, intercept in scales]
    array = np.empty((slots[-1] + 1, *shape), np.float32)  # (slices, rows, columns)
    places: dict[Path, dict[int, int]] = defaultdict(dict)
    for k, plane in enumerate(planes):
        places[plane.path][plane.frame] = k
    for path, frames in places.items():
        for k, stored in zip(frames.values(), decode(path, shape, list(frames)), strict=True):
            slope, intercept = scales[k]
            array[slots[k]] = stored.astype(np.float64) * slope + intercept
    for slot in sorted(set(range(len(array))) - set(slots)):
        array[slot] = (array[slot - 1] + array[slot + 1]) / 2
    return array


def _numbers(header: Dataset, keyword: str, count: int) -> tuple[float, ...]:
    try:
        numbers = read_numbers(header, keyword)
    except ValueError as error:
        raise UnusableStudy("geometry_missing", str(error)) from None
    if numbers is None or len(numbers) != count:
        raise UnusableStudy("geometry_missing", f"{keyword} does not hold {count} numbers")
    return numbers
