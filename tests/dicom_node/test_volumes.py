"""Series of files to volumes, and the refusals that have names."""

import struct
from collections.abc import Callable
from pathlib import Path

import highdicom
import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag
from pydicom.uid import (
    HTJ2K,
    MPEG4HP41,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from dicom_node import volumes
from dicom_node.elements import keep_raw_text
from dicom_node.errors import UnusableStudy
from dicom_node.pixels import check_codec
from dicom_node.volumes import read_volume
from doubles.series import make_enhanced, make_series, make_volume, write_files
from doubles.tools import require_data

BIG = make_volume((6, 64, 72))
"""Enough pixels for the five resolutions that JPEG 2000 makes by default."""

Fault = Callable[[list[Dataset]], None]


def read_changed(folder: Path, fault: Fault, label: str = "T1w", **shape: object) -> str:
    """Return the code that a series with a planted fault is refused with."""
    instances = make_series(label, make_volume(**shape))
    fault(instances)
    with pytest.raises(UnusableStudy) as refusal:
        read_volume(write_files(instances, folder))
    return refusal.value.code


def set_raw(instance: Dataset, tag: int, vr: str, value: bytes) -> None:
    instance[tag] = RawDataElement(Tag(tag), vr, len(value), value, 0, False, True)
    keep_raw_text(instance)


def test_volume_has_the_affine_and_values_that_were_written(tmp_path: Path) -> None:
    written = make_volume()

    volume, headers = read_volume(write_files(make_series("T1w", written), tmp_path))

    back = volume.match_geometry(written.with_array(written.array))
    np.testing.assert_array_equal(back.array, written.array)
    np.testing.assert_allclose(back.affine, written.affine, atol=1e-9)
    assert len(headers) == len(volume.array)
    assert "PixelData" not in headers[0]


def test_headers_follow_the_slices_whatever_the_order_of_the_files(tmp_path: Path) -> None:
    paths = write_files(make_series(), tmp_path)

    volume, headers = read_volume([paths[k] for k in (3, 0, 5, 1, 4, 2)])

    for k, header in enumerate(headers):
        place = volume.affine @ [k, 0, 0, 1]
        np.testing.assert_allclose(header.ImagePositionPatient, place[:3], atol=1e-9)


def test_volume_equals_what_highdicom_reads(tmp_path: Path) -> None:
    paths = write_files(make_series("CT", make_volume(lowest=-1000)), tmp_path)

    volume, _ = read_volume(paths)

    theirs = highdicom.get_volume_from_series([dcmread(p) for p in paths], dtype=np.float32)
    np.testing.assert_array_equal(volume.array, theirs.array)
    np.testing.assert_allclose(volume.affine, theirs.affine, atol=1e-12)


def test_each_slice_is_rescaled_with_its_own_slope(tmp_path: Path) -> None:
    instances = make_series()
    for k, instance in enumerate(instances):
        instance.RescaleSlope, instance.RescaleIntercept = str(k + 1), "-7"

    volume, headers = read_volume(write_files(instances, tmp_path))

    stored = instances[0].pixel_array
    assert headers[-1].InstanceNumber == 1
    np.testing.assert_array_equal(volume.array[-1], stored - 7.0)
    np.testing.assert_array_equal(volume.array[0], instances[-1].pixel_array * 6.0 - 7.0)


def test_slice_missing_from_a_long_series_is_bridged_and_has_no_header(tmp_path: Path) -> None:
    instances = make_series(volume=make_volume((60, 4, 4)))
    del instances[20]

    volume, headers = read_volume(write_files(instances, tmp_path))

    hole = 60 - 1 - 20
    assert volume.array.shape[0] == 60
    assert len(headers) == 59
    np.testing.assert_array_equal(
        volume.array[hole], (volume.array[hole - 1] + volume.array[hole + 1]) / 2
    )


@pytest.mark.parametrize(
    ("slices", "spacing", "gone"),
    [
        pytest.param(20, 1.0, [7], id="short series"),
        pytest.param(120, 1.0, [7, 8], id="two neighbors"),
        pytest.param(120, 3.0, [7], id="wide hole"),
    ],
)
def test_other_holes_are_refused(
    tmp_path: Path, slices: int, spacing: float, gone: list[int]
) -> None:
    def remove(instances: list[Dataset]) -> None:
        for k in reversed(gone):
            del instances[k]

    code = read_changed(tmp_path, remove, shape=(slices, 4, 4), spacing=(spacing, 1, 1))

    assert code == "slice_gap"


def tilt(instances: list[Dataset]) -> None:
    for k, instance in enumerate(instances):
        x, y, z = instance.ImagePositionPatient
        instance.ImagePositionPatient = [x, y + 0.5 * k, z]


def widen_one_step(instances: list[Dataset]) -> None:
    instances[-1].ImagePositionPatient = [
        float(a) + 0.04 * (float(a) - float(b))
        for a, b in zip(
            instances[-1].ImagePositionPatient, instances[-2].ImagePositionPatient, strict=True
        )
    ]


def set_all(keyword: str, value: object) -> Fault:
    def fault(instances: list[Dataset]) -> None:
        for instance in instances:
            setattr(instance, keyword, value)

    return fault


def set_one(keyword: str, value: object) -> Fault:
    return lambda instances: setattr(instances[2], keyword, value)


def drop(keyword: str) -> Fault:
    return lambda instances: instances[2].__delattr__(keyword)


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        ("geometry_missing", drop("ImagePositionPatient")),
        ("geometry_missing", drop("ImageOrientationPatient")),
        ("geometry_missing", drop("PixelSpacing")),
        ("geometry_missing", set_all("PixelSpacing", ["0", "1"])),
        ("geometry_missing", set_one("ImagePositionPatient", ["1", "2"])),
        ("geometry_missing", lambda s: set_raw(s[1], 0x00200032, "DS", rb"1\nan\3")),
        ("frame_of_reference", set_one("FrameOfReferenceUID", "1.2.3")),
        ("orientation", set_one("ImageOrientationPatient", ["1", "0", "0", "0", "1", "0"])),
        ("orientation", set_all("ImageOrientationPatient", ["1", "0", "0", "0.1", "1", "0"])),
        ("slice_gap", widen_one_step),
        ("gantry_tilt", tilt),
        ("one_slice", lambda s: s.__delitem__(slice(1, None))),
        ("duplicate_position", lambda s: s.append(s[3])),
        ("pixel_geometry", set_one("PixelSpacing", ["2", "2"])),
        ("pixel_geometry", set_one("Rows", 10)),
        ("pixel_geometry", set_all("BitsAllocated", 12)),
        ("pixel_geometry", set_all("BitsStored", 0)),
        ("pixel_geometry", set_all("HighBit", 15)),
        ("pixel_length", set_all("Rows", 10)),
        ("pixel_length", lambda s: setattr(s[2], "PixelData", s[2].PixelData[:-2])),
        ("pixel_decode", drop("PixelData")),
        ("decode_limit", set_all("Rows", 65535)),
        ("photometric", set_all("PhotometricInterpretation", "MONOCHROME1")),
        ("photometric", set_one("SamplesPerPixel", 3)),
    ],
)
def test_fault_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, fault: Fault
) -> None:
    monkeypatch.setattr(volumes, "MOST_VOXELS", 10_000)

    assert read_changed(tmp_path, fault) == code


@pytest.mark.parametrize(
    "slope", [b"0 ", b"nan ", b"1e-300", b"1,5 ", b"SECRET", b"1e99", b"1\\2 "]
)
def test_slope_that_is_not_believed_is_refused_and_not_repeated(
    tmp_path: Path, slope: bytes
) -> None:
    instances = make_series("CT")
    set_raw(instances[3], 0x00281053, "DS", slope)

    with pytest.raises(UnusableStudy) as refusal:
        read_volume(write_files(instances, tmp_path))

    assert refusal.value.code == "rescale"
    assert "SECRET" not in str(refusal.value)


def test_ct_without_a_slope_is_refused(tmp_path: Path) -> None:
    assert read_changed(tmp_path, drop("RescaleSlope"), "CT") == "rescale"


@pytest.mark.parametrize("content", [b"", b"not DICOM", b"\0" * 128 + b"DICM" + b"\xff" * 200])
def test_bytes_that_are_no_dicom_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bytes.dcm"
    path.write_bytes(content)

    with pytest.raises(UnusableStudy) as refusal:
        read_volume([path])

    assert refusal.value.code == "unreadable"


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless, JPEGLSLossless])
def test_compressed_series_reads_like_the_plain_one(tmp_path: Path, syntax: str) -> None:
    plain, _ = read_volume(write_files(make_series(volume=BIG), tmp_path / "plain"))
    instances = make_series(volume=BIG)
    for instance in instances:
        instance.compress(syntax, generate_instance_uid=False)

    volume, _ = read_volume(write_files(instances, tmp_path / "compressed"))

    np.testing.assert_array_equal(volume.array, plain.array)


@pytest.mark.parametrize(
    ("syntax", "place"),
    [(JPEG2000Lossless, (b"\xff\x4f\xff\x51", 12, ">I")), (JPEGLSLossless, (b"\xff\xf7", 5, ">H"))],
)
def test_codestream_of_another_size_is_refused_before_it_is_decoded(
    tmp_path: Path, syntax: str, place: tuple[bytes, int, str]
) -> None:
    marker, offset, form = place
    instances = make_series(volume=BIG)
    for instance in instances:
        instance.compress(syntax, generate_instance_uid=False)
    forged = bytearray(instances[2].PixelData)
    struct.pack_into(form, forged, forged.find(marker) + offset, 60_000)
    instances[2].PixelData = bytes(forged)

    with pytest.raises(UnusableStudy) as refusal:
        read_volume(write_files(instances, tmp_path))

    assert refusal.value.code == "pixel_length"


def test_missing_codec_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    class Unavailable:
        is_available = False

    monkeypatch.setattr("dicom_node.pixels.get_decoder", lambda _: Unavailable())

    with pytest.raises(UnusableStudy, match="install pylibjpeg-openjpeg") as refusal:
        check_codec(HTJ2K)

    assert refusal.value.code == "codec_missing"


def test_syntax_that_nothing_decodes_says_so() -> None:
    with pytest.raises(UnusableStudy) as refusal:
        check_codec(MPEG4HP41)

    assert refusal.value.code == "codec_missing"


def test_enhanced_image_reads_like_the_classic_series(tmp_path: Path) -> None:
    classic = make_series()
    for k, instance in enumerate(classic):
        instance.RescaleSlope, instance.RescaleIntercept = str(k + 1), "0"
    expected, _ = read_volume(write_files(classic, tmp_path / "classic"))

    volume, headers = read_volume(write_files([make_enhanced()], tmp_path / "enhanced"))

    np.testing.assert_array_equal(volume.array, expected.array)
    np.testing.assert_array_equal(volume.affine, expected.affine)
    assert [h.ReferencedFrameNumber for h in headers] == [6, 5, 4, 3, 2, 1]
    assert headers[0].PatientID == "PHANTOM-1"


def test_frames_of_one_volume_are_read_alone(tmp_path: Path) -> None:
    first, second = make_series(), make_series(volume=make_volume(seed=1))
    for image in second:
        image.EchoTime = 100
    expected, _ = read_volume(write_files([make_enhanced(second)], tmp_path / "alone"))
    both = write_files([make_enhanced(first, second)], tmp_path / "both")

    volume, headers = read_volume(both, (2, 4, 6, 8, 10, 12))

    np.testing.assert_array_equal(volume.array, expected.array)
    np.testing.assert_array_equal(volume.affine, expected.affine)
    assert [h.ReferencedFrameNumber for h in headers] == [12, 10, 8, 6, 4, 2]


def test_frames_without_functional_groups_are_refused(tmp_path: Path) -> None:
    enhanced = make_enhanced()
    del enhanced.PerFrameFunctionalGroupsSequence
    del enhanced.SharedFunctionalGroupsSequence

    with pytest.raises(UnusableStudy) as refusal:
        read_volume(write_files([enhanced], tmp_path))

    assert refusal.value.code == "geometry_missing"


FAILING = {
    "gantrytilting/001": "gantry_tilt",
    "notavolume/001": "duplicate_position",
    "slicecount/001": "one_slice",
    "sliceincrement/001": "slice_gap",
    "sliceincrement/002": "slice_gap",
    "sliceorientation/001": "orientation",
}


@pytest.mark.integration
@pytest.mark.parametrize(("folder", "code"), FAILING.items())
def test_real_series_that_is_no_volume_is_refused(folder: str, code: str) -> None:
    series = require_data("dicom_syntax", "dicom2nifti", "failing", *folder.split("/"))

    with pytest.raises(UnusableStudy) as refusal:
        read_volume(sorted(series.glob("*.dcm")))

    assert refusal.value.code == code


SOUND = {
    "ge/anatomical/001": (4, 256, 256),
    "ge/anatomical/001_implicit": (4, 256, 256),
    "siemens/anatomical/001": (4, 256, 256),
    "siemens/anatomical/001_implicit": (4, 256, 256),
    "hitachi/anatomical/001": (4, 64, 64),
    "hitachi/anatomical/001_implicit": (4, 64, 64),
    "hyperfine/anatomical/001": (8, 138, 112),
    "generic/compressed_j2k/001": (4, 256, 256),
    "generic/compressed_jpeg/001": (4, 256, 256),
    "generic/compressed_jpegls/001": (4, 256, 256),
    "generic/compressed_rle/001": (4, 256, 256),
}


@pytest.mark.integration
@pytest.mark.parametrize(("folder", "shape"), SOUND.items())
def test_real_series_of_many_makers_and_syntaxes_is_read(
    folder: str, shape: tuple[int, int, int]
) -> None:
    series = require_data("dicom_syntax", "dicom2nifti", *folder.split("/"))

    volume, headers = read_volume(sorted(p for p in series.iterdir() if p.is_file()))

    assert volume.spatial_shape == shape
    assert len(headers) == shape[0]
