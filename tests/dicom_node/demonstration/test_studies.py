from pathlib import Path

import pytest
from pydicom import dcmread

from dicom_node.demonstration.studies import prepare_folder, prepare_phantom

COARSE = (12.0, 9.0, 9.0)


def test_phantom_parcel_says_that_nobody_was_imaged(tmp_path):
    parcel = prepare_phantom(tmp_path, spacing=COARSE)

    headers = [dcmread(path) for path in parcel.files]
    assert parcel.is_phantom
    assert "PHANTOM" in parcel.note
    assert {header.QualityControlSubject for header in headers} == {"YES"}


def test_held_back_contrast_is_not_sent(tmp_path):
    parcel = prepare_phantom(tmp_path, spacing=COARSE)

    held = {path for files in parcel.held_back.values() for path in files}
    assert held
    assert held.isdisjoint(parcel.files)
    assert {dcmread(path).StudyInstanceUID for path in held} == {parcel.study_instance_uid}


def test_folder_of_a_person_is_sent_whole_with_what_is_not_dicom_left_out(tmp_path):
    phantom = prepare_phantom(tmp_path / "study", spacing=COARSE)
    (tmp_path / "study" / "note.txt").write_text("not DICOM")

    parcel = prepare_folder(tmp_path / "study")

    assert len(parcel.files) == len(phantom.files) + sum(map(len, phantom.held_back.values()))
    assert parcel.held_back == {}


def test_folder_with_two_studies_is_refused(tmp_path):
    prepare_phantom(tmp_path / "a", spacing=COARSE)
    prepare_phantom(tmp_path / "b", seed=1, spacing=COARSE)

    with pytest.raises(ValueError, match="one study is wanted, DICOM files of 2"):
        prepare_folder(tmp_path)


def test_empty_folder_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="of 0 are there"):
        prepare_folder(tmp_path)
