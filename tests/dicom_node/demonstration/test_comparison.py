import numpy as np
import pytest
from matplotlib.image import imread

from dicom_node.demonstration.comparison import compare
from dicom_node.demonstration.pictures import draw
from dicom_node.demonstration.studies import prepare_phantom
from synthesis.types import Anchor


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    """The held-back series of a phantom as its own synthesis: a perfect model."""
    parcel = prepare_phantom(tmp_path_factory.mktemp("phantom"), spacing=(8.0, 4.0, 4.0))
    real = parcel.held_back["T2w"]
    return compare(
        target="T2w",
        modality="MR",
        sources={
            label: [path for path in parcel.files if path.parent.name == label]
            for label in ("FLAIR", "T1w")
        },
        frames={},
        image=real,
        uncertainty=[],
        real=real,
        pad_value=0.0,
        anchor=Anchor(),
    )


def test_everything_lies_on_the_synthetic_grid(comparison):
    shape = comparison.grid.array.shape

    assert {array.shape for array in comparison.sources.values()} == {shape}
    assert comparison.real.shape == comparison.covered.shape == shape


def test_same_image_compares_well(comparison):
    values = np.asarray(comparison.grid.array)[comparison.covered]
    real = comparison.real[comparison.covered]

    assert np.corrcoef(values, real)[0, 1] > 0.95
    assert set(comparison.figures) == {
        "voxels",
        "mean_absolute_error",
        "mean_absolute_error_of_a_constant",
        "psnr_db",
        "ssim",
    }


def test_picture_shows_every_column(comparison, tmp_path):
    draw(comparison, tmp_path / "T2w.png", "T2w synthesized")

    picture = imread(tmp_path / "T2w.png")
    height, width = picture.shape[:2]
    assert width > 4 * height / 3.5
    assert picture[..., :3].std() > 0.05
