import numpy as np
import pytest

from dicom_node.appearance import Fluid, find_fluid
from doubles.series import HEAD_MM, make_head
from doubles.tools import require_data

LPS_AXIAL = np.diag([HEAD_MM, HEAD_MM, HEAD_MM, 1.0])


@pytest.mark.parametrize(
    ("fluid", "seen"), [(0.25, Fluid.DARK), (2.4, Fluid.BRIGHT), (1.05, None), (0.8, None)]
)
def test_fluid_is_told_where_it_is_clear(fluid: float, seen: Fluid | None) -> None:
    assert find_fluid(make_head(fluid), LPS_AXIAL) is seen


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("sign", [1, -1])
def test_fluid_is_the_same_however_the_head_is_stored(axis: int, sign: int) -> None:
    affine = np.eye(4)
    affine[:3, :3] = HEAD_MM * np.roll(np.eye(3), axis + 1, axis=1)
    affine[:3, axis] *= sign
    upright = make_head(0.25)
    stored = np.moveaxis(upright[:, :, ::sign], 2, axis)

    assert find_fluid(stored, affine) is Fluid.DARK


@pytest.mark.parametrize(
    "array",
    [
        pytest.param(np.zeros((40, 40, 40)), id="nothing"),
        pytest.param(np.full((40, 40, 40), -5.0), id="below zero"),
        pytest.param(make_head(0.2)[::3, ::3, ::3], id="a doll's head"),
        pytest.param(np.ones((1, 1, 1)), id="one voxel"),
    ],
)
def test_what_is_no_head_shows_no_fluid(array: np.ndarray) -> None:
    assert find_fluid(array, LPS_AXIAL) is None


@pytest.mark.integration
@pytest.mark.parametrize(
    ("parts", "seen"),
    [
        (("brain_mr_openms_long_p04", "study1_T1W.nii.gz"), Fluid.DARK),
        (("brain_mr_openms_long_p04", "study1_FLAIR.nii.gz"), Fluid.DARK),
        (("brain_mr_openms_long_p04", "study1_T2W.nii.gz"), Fluid.BRIGHT),
        (("brain_mr_nichart", "fl", "Subj1_FL.nii.gz"), Fluid.DARK),
        (("brain_mr_nichart", "t1", "Subj1_T1.nii.gz"), Fluid.DARK),
        (("brain_mr_stroke", "FLAIR.nii.gz"), Fluid.DARK),
    ],
)
def test_fluid_of_real_heads_is_told(parts: tuple[str, ...], seen: Fluid) -> None:
    import nibabel

    image = nibabel.load(require_data(*parts))

    assert find_fluid(np.asarray(image.dataobj, np.float32), image.affine) is seen
