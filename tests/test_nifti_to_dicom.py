"""The tool that writes NIfTI images as DICOM."""

from pathlib import Path

import nibabel
import numpy as np
import pytest

from dicom_node.demonstration.validators import find_errors
from dicom_node.volumes import read_volume
from doubles.series import require_validators
from nifti_to_dicom import main

AFFINE = np.diag([2.0, 3.0, 4.0, 1.0])  # RAS: columns to the right, rows to the front
PHYSICS = ["--set", "T2w:EchoTime=100", "--set", r"T2w:SequenceVariant=SK\SP"]


@pytest.fixture
def nifti(tmp_path: Path) -> Path:
    array = np.random.default_rng(0).integers(0, 4000, (6, 7, 5)).astype(np.int16)
    array[0, 0, 0] = 4000
    nibabel.save(nibabel.Nifti1Image(array, AFFINE), tmp_path / "image.nii.gz")
    return tmp_path / "image.nii.gz"


def test_image_hangs_upright_and_keeps_its_places(tmp_path: Path, nifti: Path) -> None:
    main([str(tmp_path / "out"), "--patient", "p1", "--series", f"T2w={nifti}", *PHYSICS])

    volume, headers = read_volume(sorted((tmp_path / "out" / "T2w").iterdir()))

    array = np.asarray(nibabel.load(nifti).dataobj)
    np.testing.assert_array_equal(volume.array, array.transpose(2, 1, 0)[::-1, ::-1, ::-1])
    assert headers[0].ImageOrientationPatient == [1, 0, 0, 0, 1, 0]
    np.testing.assert_allclose(volume.affine @ [4, 6, 5, 1], [0, 0, 0, 1], atol=1e-9)


def test_physics_are_those_that_were_given(tmp_path: Path, nifti: Path) -> None:
    main([str(tmp_path / "out"), "--patient", "p1", "--series", f"T2w={nifti}", *PHYSICS])

    _, headers = read_volume(sorted((tmp_path / "out" / "T2w").iterdir()))

    assert headers[0].EchoTime == 100
    assert headers[0].SequenceVariant == ["SK", "SP"]
    assert headers[0].RepetitionTime is None


@pytest.mark.parametrize("wrong", [["--series", "T1w=absent.nii"], ["--set", "EchoTime=3"]])
def test_wrong_argument_ends_with_2(
    tmp_path: Path, nifti: Path, wrong: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main([str(tmp_path), "--patient", "p1", "--series", f"T1w={nifti}", *wrong])

    assert end.value.code == 2
    assert wrong[1] in capsys.readouterr().err


@pytest.mark.integration
def test_validators_find_nothing(tmp_path: Path, nifti: Path) -> None:
    main([str(tmp_path / "out"), "--patient", "p1", "--series", f"T2w={nifti}", *PHYSICS])

    assert find_errors(require_validators(), sorted((tmp_path / "out" / "T2w").iterdir()), []) == []
