"""Phantoms and converted images as studies that look acquired."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from highdicom import Volume

from dicom_node.demonstration.validators import find_errors
from dicom_node.elements import encode
from dicom_node.volumes import read_volume
from doubles.series import make_series, make_volume, require_validators, write_files


@pytest.mark.parametrize("label", ["T1w", "CT", "PET"])
def test_what_is_written_reads_back_in_its_units(tmp_path: Path, label: str) -> None:
    written = make_volume(highest=9 if label == "PET" else 900, lowest=-900 * (label == "CT"))

    volume, _ = read_volume(write_files(make_series(label, written), tmp_path))

    back = volume.match_geometry(written)
    np.testing.assert_allclose(back.array, written.array, atol=9 / 2**15)
    np.testing.assert_allclose(back.affine, written.affine, atol=1e-9)


def test_instance_1_is_the_slice_lowest_along_the_normal() -> None:
    first, *_, last = make_series()

    row, column = np.reshape(np.array(first.ImageOrientationPatient, float), (2, 3))
    along = np.array(last.ImagePositionPatient) - np.array(first.ImagePositionPatient)

    assert (first.InstanceNumber, last.InstanceNumber) == (1, 6)
    assert along @ np.cross(row, column) > 0


def test_fractions_of_an_mr_survive_as_12_bits(tmp_path: Path) -> None:
    fractions = make_volume()
    fractions = fractions.with_array(fractions.array / np.float32(1000))

    volume, _ = read_volume(write_files(make_series("T1w", fractions), tmp_path))

    assert volume.array.max() == 4095
    np.testing.assert_allclose(volume.array[::-1] / 4095, fractions.array, atol=1e-3)


def test_values_that_are_not_finite_are_refused() -> None:
    broken = make_volume()
    broken.array[0, 0, 0] = np.nan

    with pytest.raises(ValueError, match="not finite"):
        make_series("CT", broken)


def test_same_study_is_written_in_the_same_bytes() -> None:
    first, second = make_series(), make_series()

    assert [encode(i) for i in first] == [encode(i) for i in second]


def test_series_of_a_study_share_the_frame_of_reference() -> None:
    t1w, t2w = make_series("T1w", number=1), make_series("T2w", number=2)

    assert t1w[0].FrameOfReferenceUID == t2w[0].FrameOfReferenceUID
    assert t1w[0].SeriesInstanceUID != t2w[0].SeriesInstanceUID


def test_phantom_says_that_nobody_was_imaged() -> None:
    (phantom, *_), (image, *_) = make_series(is_phantom=True), make_series()

    assert phantom.QualityControlSubject == "YES"
    assert "PHANTOM" in phantom.ImageComments
    assert "QualityControlSubject" not in image
    assert "SyntheticData" not in image


@pytest.mark.integration
@pytest.mark.parametrize(
    ("character_set", "name"),
    [("ISO_IR 100", "PHANTÖM^HEAD"), ("ISO_IR 192", "山田^太郎"), ("ISO_IR 100", "PHANTOM^HEAD")],
)
@pytest.mark.parametrize("body_part", ["HEAD", ""])
def test_validators_find_nothing(
    tmp_path: Path, character_set: str, name: str, body_part: str
) -> None:
    facts = {"character_set": character_set, "patient_name": name, "body_part": body_part}
    paths = []
    for number, label in enumerate(("T1w", "T2w", "CT", "PET"), 1):
        instances = make_series(label, make_volume((4, 8, 9)), number=number, **facts)
        paths += write_files(instances, tmp_path / label)

    assert find_errors(require_validators(), paths, []) == []


def test_frame_of_reference_of_the_volume_is_kept() -> None:
    volume = make_volume()
    named = Volume(
        array=volume.array,
        affine=volume.affine,
        coordinate_system="PATIENT",
        frame_of_reference_uid="1.2.3.4",
    )

    assert make_series("T1w", named)[0].FrameOfReferenceUID == "1.2.3.4"


def test_times_are_utc_whatever_the_zone_of_the_moment() -> None:
    started = datetime(2020, 1, 2, 3, 4, 5, tzinfo=UTC).astimezone()

    assert str(make_series(started=started)[0].StudyTime) == "030405"
