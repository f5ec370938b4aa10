import pytest

from dicom_node.domain import Instance
from dicom_node.headers import FRAME_FACTS, FRAME_ORIENTATIONS, FRAME_POSITIONS, PROBLEM
from dicom_node.series import split_series
from doubles.studies import make_header, make_instance, make_series

AXIAL = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]


def find_problem(instances: list[Instance]) -> str | None:
    (series,) = split_series(instances)
    return series.problem[0] if series.problem else None


def rename(instances: list[Instance], prefix: str) -> list[Instance]:
    """Return the same series sent with other SOP Instance UIDs."""
    return [
        make_instance(f"{prefix}.{k}", each.header, series=each.series_instance_uid)
        for k, each in enumerate(instances)
    ]


def test_parallel_slices_are_one_volume_in_their_order() -> None:
    instances = make_series(slices=12)

    (series,) = split_series([*instances[5:], *instances[:5]])

    heights = [each.header["ImagePositionPatient"][2] for each in series.instances]  # type: ignore[index]
    assert heights == sorted(heights, reverse=True)
    assert series.problem is None


@pytest.mark.parametrize(
    ("keyword", "first", "second"),
    [
        ("EchoTime", 12.0, 90.0),
        ("InversionTime", 900.0, 2500.0),
        ("DiffusionBValue", 0.0, 1000.0),
        ("FlipAngle", 5.0, 15.0),
        ("EchoNumbers", 1.0, 2.0),
        ("ImageType", ["ORIGINAL", "PRIMARY", "M"], ["ORIGINAL", "PRIMARY", "P"]),
        ("AcquisitionNumber", 1.0, 2.0),
        ("TemporalPositionIdentifier", 1.0, 2.0),
        ("TriggerTime", 100.0, 400.0),
    ],
)
def test_volumes_that_share_a_series_are_told_apart(
    keyword: str, first: object, second: object
) -> None:
    one = make_series(**{keyword: first})
    other = rename(make_series(**{keyword: second}), "2.2")

    volumes = split_series(one + other)

    assert len(volumes) == 2
    assert all(len(each.instances) == 24 and each.problem is None for each in volumes)


def test_echo_time_that_jitters_is_one_volume() -> None:
    instances = [
        make_instance(f"1.{k}", {**(each.header or {}), "EchoTime": 2.4 + 0.03 * k})
        for k, each in enumerate(make_series(slices=20))
    ]

    assert len(split_series(instances)) == 1


def test_repeat_that_nothing_tells_apart_is_a_problem() -> None:
    assert find_problem(make_series() + rename(make_series(), "2.2")) == "duplicate_position"


def test_many_images_at_one_position_are_a_time_series() -> None:
    instances = [
        image
        for k in range(6)
        for image in rename(make_series(AcquisitionNumber=float(k)), f"2.{k}")
    ]

    assert find_problem(instances) == "time_series"


def test_slice_that_is_imaged_twice_is_a_time_series() -> None:
    first, second = (make_series(slices=1, AcquisitionNumber=float(k)) for k in (1, 2))

    assert find_problem([*first, *rename(second, "2.2")]) == "time_series"


@pytest.mark.parametrize(
    ("facts", "code"),
    [
        ({"ImagePositionPatient": None}, "geometry_missing"),
        ({"PixelSpacing": None}, "geometry_missing"),
        ({"ImageOrientationPatient": [2.0, 0.0, 0.0, 0.0, 1.0, 0.0]}, "orientation"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]}, "mosaic"),
        ({PROBLEM: ["codec_missing", "pixels are stored as HTJ2K"]}, "codec_missing"),
    ],
)
def test_series_that_is_no_volume_has_a_problem(facts: dict[str, object], code: str) -> None:
    assert find_problem(make_series(**facts)) == code


def test_missing_slice_is_a_gap() -> None:
    assert find_problem([each for k, each in enumerate(make_series()) if k != 7]) == "slice_gap"


def test_one_slice_is_no_volume() -> None:
    assert find_problem(make_series(slices=1)) == "one_slice"


def test_mixed_orientations_are_a_problem() -> None:
    turned = make_header(ImageOrientationPatient=[0.0, 1.0, 0.0, 0.0, 0.0, -1.0])

    assert find_problem([*make_series(), make_instance("9", turned)]) == "orientation"


def test_images_of_different_sizes_are_a_problem() -> None:
    odd = make_header(Rows=128.0, ImagePositionPatient=[0.0, 0.0, 120.0])

    assert find_problem([*make_series(), make_instance("9", odd)]) == "pixel_geometry"


def test_unreadable_instance_spoils_its_series_only() -> None:
    broken = make_instance("0", {PROBLEM: ["unreadable", "cannot be read"]}, series="1.1")

    first, second = split_series([broken, *make_series("1.1"), *make_series("1.2")])

    assert first.problem == ("unreadable", "cannot be read")
    assert first.modality == "MR"
    assert second.problem is None


def test_multi_frame_image_is_one_volume() -> None:
    header = make_header(
        **{
            FRAME_POSITIONS: [[0.0, 0.0, 5.0 * k] for k in range(10)],
            FRAME_ORIENTATIONS: [AXIAL] * 10,
        }
    )

    assert find_problem([make_instance("1", header)]) is None


def test_frames_at_one_position_are_a_problem() -> None:
    header = make_header(
        **{
            FRAME_POSITIONS: [[0.0, 0.0, 5.0 * (k // 2)] for k in range(10)],
            FRAME_ORIENTATIONS: [AXIAL] * 10,
        }
    )

    assert find_problem([make_instance("1", header)]) == "duplicate_position"


def make_multi_frame(**differing: list[object]) -> Instance:
    count = len(next(iter(differing.values())))
    half = count // 2
    return make_instance(
        "1",
        make_header(
            **{
                FRAME_POSITIONS: [[0.0, 0.0, 5.0 * (k % half)] for k in range(count)],
                FRAME_ORIENTATIONS: [AXIAL] * count,
                FRAME_FACTS: differing,
            }
        ),
    )


@pytest.mark.parametrize(
    ("keyword", "first", "second"),
    [
        ("EchoTime", 12.0, 90.0),
        ("DiffusionBValue", 0.0, 1000.0),
        ("ComplexImageComponent", "MAGNITUDE", "PHASE"),
        ("ImageType", ["ORIGINAL", "PRIMARY", "WATER"], ["ORIGINAL", "PRIMARY", "FAT"]),
    ],
)
def test_volumes_that_share_a_multi_frame_image_are_told_apart(
    keyword: str, first: object, second: object
) -> None:
    volumes = split_series([make_multi_frame(**{keyword: [first] * 8 + [second] * 8})])

    headers = [each.instances[0].header or {} for each in volumes]
    assert [header[keyword] for header in headers] == [first, second]
    assert [len(header[FRAME_POSITIONS]) for header in headers] == [8, 8]
    assert [each.frames for each in volumes] == [tuple(range(1, 9)), tuple(range(9, 17))]
    assert [each.problem for each in volumes] == [None, None]


@pytest.mark.parametrize(
    "keyword", ["TemporalPositionIdentifier", "AcquisitionNumber", "TriggerTime"]
)
def test_phases_that_share_a_multi_frame_image_are_told_apart(keyword: str) -> None:
    first, second = split_series([make_multi_frame(**{keyword: [1.0] * 8 + [2.0] * 8})])

    assert (first.frames, second.frames) == (tuple(range(1, 9)), tuple(range(9, 17)))
    assert [(each.instances[0].header or {})[keyword] for each in (first, second)] == [1.0, 2.0]
    assert (first.problem, second.problem) == (None, None)


def test_many_frames_at_one_position_are_a_time_series_beside_the_other_volumes() -> None:
    places = [[0.0, 0.0, 5.0 * k] for k in range(8)]
    image = make_header(
        **{
            FRAME_POSITIONS: places * 7,
            FRAME_ORIENTATIONS: [AXIAL] * 56,
            FRAME_FACTS: {"DiffusionBValue": [0.0] * 8 + [1000.0] * 48},
        }
    )

    plain, weighted = split_series([make_instance("1", image)])

    assert plain.problem is None
    assert weighted.problem is not None
    assert weighted.problem[0] == "time_series"


def test_order_of_acquisition_inside_a_volume_parts_nothing() -> None:
    packages = [float(k % 2) for k in range(16)]
    places = [[0.0, 0.0, 5.0 * k] for k in range(16)]
    header = make_header(
        **{
            FRAME_POSITIONS: places,
            FRAME_ORIENTATIONS: [AXIAL] * 16,
            FRAME_FACTS: {"AcquisitionNumber": packages},
        }
    )

    (volume,) = split_series([make_instance("1", header)])

    assert (volume.frames, volume.problem) == ((), None)


def test_echo_time_that_jitters_among_frames_is_one_volume() -> None:
    volumes = split_series([make_multi_frame(EchoTime=[2.4 + 0.03 * k for k in range(16)])])

    assert len(volumes) == 1


def test_volume_knows_the_largest_b_value_of_its_series() -> None:
    plain = make_series(DiffusionBValue=0.0)
    weighted = rename(make_series(DiffusionBValue=1000.0), "2.2")

    assert [each.largest_b_value for each in split_series(plain + weighted)] == [1000.0, 1000.0]
    assert [each.largest_b_value for each in split_series(make_series())] == [None]


def test_report_is_kept_whole() -> None:
    (series,) = split_series([make_instance("1", {"Modality": "SR"})])

    assert series.modality == "SR"
    assert series.problem is None


def test_instance_without_a_header_is_kept() -> None:
    (series,) = split_series([make_instance("1", None)])

    assert series.modality == ""
