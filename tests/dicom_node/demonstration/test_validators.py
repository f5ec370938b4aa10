from pathlib import Path

import pytest
from pydicom import dcmread

from dicom_node.demonstration.studies import prepare_phantom
from dicom_node.demonstration.validators import find_errors
from doubles.tools import require_program

pytestmark = pytest.mark.integration


@pytest.fixture
def validators() -> tuple[str, str]:
    return require_program("dciodvfy", "dicom3tools"), require_program("dcentvfy", "dicom3tools")


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    return list(prepare_phantom(tmp_path, spacing=(30.0, 9.0, 9.0)).files)


def spoil(path: Path, keyword: str, value: str | None) -> Path:
    instance = dcmread(path)
    if value is None:
        del instance[keyword]
    else:
        setattr(instance, keyword, value)
    instance.save_as(path)
    return path


def test_good_files_have_no_errors(validators, files):
    assert find_errors(validators, files[:2], files[2:]) == []


def test_missing_attribute_is_an_error(validators, files):
    spoil(files[0], "ScanningSequence", None)

    (error,) = find_errors(validators, files[:1], files[2:])

    assert "ScanningSequence" in error


def test_error_that_the_source_has_itself_does_not_count(validators, files):
    for path in (files[0], files[-1]):
        spoil(path, "ScanningSequence", None)

    assert find_errors(validators, files[:1], files[2:]) == []


def test_another_patient_in_the_study_is_an_error(validators, files):
    spoil(files[0], "PatientName", "SOMEBODY^ELSE")

    errors = find_errors(validators, files[:1], files[2:])

    assert any("PatientName" in error for error in errors)
