import numpy as np
import pytest

from dicom_node.errors import UnusableStudy
from dicom_node.geometry import stack

AXIAL = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]


def make_planes(heights: list[float]) -> tuple[list[list[float]], list[list[float]]]:
    return [[0.0, 0.0, height] for height in heights], [AXIAL] * len(heights)


def find_code(
    positions: object, orientations: object = None, spacings: object = None, count: int = 6
) -> str:
    with pytest.raises(UnusableStudy) as caught:
        stack(positions, orientations or [AXIAL] * count, spacings or [[1.0, 1.0]] * count)
    return caught.value.code


def test_planes_are_ordered_along_their_normal() -> None:
    positions, orientations = make_planes([0, 10, 5, 15])

    found = stack(positions, orientations, [[1.0, 1.0]] * 4)

    assert found.order == (3, 1, 2, 0)
    assert found.slots == (0, 1, 2, 3)
    assert found.spacing == pytest.approx(5)


def test_single_hole_in_a_long_thin_series_keeps_its_place() -> None:
    positions, orientations = make_planes([float(k) for k in range(100) if k != 40])

    found = stack(positions, orientations, [[1.0, 1.0]] * 99)

    assert len(found.slots) == 99
    assert found.slots[-1] == 99


@pytest.mark.parametrize(
    ("heights", "code"),
    [
        ([0, 5, 10, 20, 25, 30], "slice_gap"),
        ([0, 5, 10, 15.4, 20, 25], "slice_gap"),
        ([0, 5, 10, 10, 15, 20], "duplicate_position"),
    ],
)
def test_uneven_planes_are_refused(heights: list[float], code: str) -> None:
    assert find_code(make_planes(heights)[0]) == code


def test_sheared_stack_is_refused_as_gantry_tilt() -> None:
    assert find_code([[0.0, 2.0 * k, 5.0 * k] for k in range(6)]) == "gantry_tilt"


def test_planes_that_are_not_parallel_are_refused() -> None:
    orientations = [AXIAL] * 5 + [[1.0, 0.0, 0.0, 0.0, 0.0, -1.0]]

    assert find_code(make_planes([0, 5, 10, 15, 20, 25])[0], orientations) == "orientation"


def test_orientation_that_is_not_orthonormal_is_refused() -> None:
    orientations = [[1.0, 0.0, 0.0, 0.1, 1.0, 0.0]] * 6

    assert find_code(make_planes([0, 5, 10, 15, 20, 25])[0], orientations) == "orientation"


def test_few_slices_are_no_volume() -> None:
    assert find_code(make_planes([0.0, 5.0])[0], count=2) == "one_slice"


@pytest.mark.parametrize(
    ("spacings", "code"),
    [([[0.0, 1.0]] * 6, "geometry_missing"), ([[1, 1]] * 5 + [[2, 2]], "pixel_geometry")],
)
def test_pixel_spacing_is_positive_and_one(spacings: list[list[float]], code: str) -> None:
    positions = make_planes([0, 5, 10, 15, 20, 25])[0]

    assert find_code(positions, None, np.array(spacings).tolist()) == code
