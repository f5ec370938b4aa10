"""Which source images a slice points to."""

from pathlib import Path

from pydicom import Dataset

from dicom_node.domain import ContrastLabel
from dicom_node.references import References
from doubles.job import read_source
from doubles.series import make_enhanced, make_series, make_volume, write_files


def refer(index: int, **folders: tuple[Path, list[Dataset]]) -> Dataset:
    """Return a data set with the references of one slice on the grid of the first source."""
    sources = {
        ContrastLabel(label): read_source(write_files(instances, folder / label))
        for label, (folder, instances) in folders.items()
    }
    image = Dataset()
    References(sources, next(iter(sources.values())).volume).put(image, index)
    return image


def test_first_slice_has_one_neighbor(tmp_path: Path) -> None:
    image = refer(0, T1w=(tmp_path, make_series()))

    assert len(image.SourceImageSequence) == 2


def test_thin_slices_within_a_thick_one_are_all_named(tmp_path: Path) -> None:
    thin = make_volume((24, 20, 24), spacing=(0.5, 1.2, 1.1))

    image = refer(
        3, T2w=(tmp_path, make_series()), T1w=(tmp_path, make_series("T1w", thin, number=2))
    )

    thick, thin_ones = image.ReferencedSeriesSequence
    assert len(thick.ReferencedInstanceSequence) == 3
    assert len(thin_ones.ReferencedInstanceSequence) == 11  # 2.5 mm to both sides, 0.5 mm apart


def test_series_that_does_not_reach_the_slice_is_not_named(tmp_path: Path) -> None:
    far = make_volume(origin=(-20, -30, 507))

    image = refer(
        3, T1w=(tmp_path, make_series()), T2w=(tmp_path, make_series("T2w", far, number=2))
    )

    assert len(image.ReferencedSeriesSequence) == 1


def test_frames_of_an_enhanced_image_are_named_in_one_item(tmp_path: Path) -> None:
    image = refer(2, T1w=(tmp_path, [make_enhanced()]))

    (source,) = image.SourceImageSequence
    (instance,) = image.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    assert list(source.ReferencedFrameNumber) == [5, 4, 3]
    assert list(instance.ReferencedFrameNumber) == [5, 4, 3]
    assert source.SpatialLocationsPreserved == "YES"
