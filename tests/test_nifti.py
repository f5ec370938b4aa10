import nibabel
import numpy as np

from dicom_node.volumes import read_volume
from nifti_to_dicom import main

# Voxels of 2 x 3 x 4 mm, tilted by 0.1 rad about the first axis, as RAS.
TILT = np.array([[1, 0, 0], [0, np.cos(0.1), -np.sin(0.1)], [0, np.sin(0.1), np.cos(0.1)]])
AFFINE = np.eye(4)
AFFINE[:3, :3] = TILT @ np.diag([-2.0, 3.0, 4.0])
AFFINE[:3, 3] = (11.0, -7.0, 5.0)


def test_every_voxel_keeps_its_value_and_its_place(tmp_path):
    generator = np.random.default_rng(0)
    array = generator.integers(0, 4000, (6, 7, 5)).astype(np.int16)  # (columns, rows, slices)
    array[0, 0, 0] = 4000  # 12 bits, kept as they are
    nibabel.save(nibabel.Nifti1Image(array, AFFINE), tmp_path / "image.nii.gz")

    out = tmp_path / "study"
    main([str(out), "--patient", "person", "--series", f"T1w={tmp_path / 'image.nii.gz'}"])

    volume, _ = read_volume(sorted((out / "T1w").iterdir()))
    for column, row, slice_ in [(0, 0, 0), (5, 6, 4), (2, 3, 1)]:
        lps = np.diag([-1, -1, 1, 1]) @ AFFINE @ [column, row, slice_, 1]
        index = np.rint(np.linalg.inv(volume.affine) @ lps)[:3].astype(int)
        np.testing.assert_allclose(volume.affine @ [*index, 1], lps, atol=1e-3)
        assert volume.array[tuple(index)] == array[column, row, slice_]
