"""What other readers make of a derived series: SimpleITK, highdicom and dcm2niix."""

import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from highdicom import get_volume_from_series
from pydicom import dcmread

from dicom_node.derive import SourceSeries
from dicom_node.domain import ContrastLabel, Role
from doubles.job import derive, make_sources, make_synthesis
from doubles.nifti import RAS_TO_LPS
from doubles.series import write_files
from doubles.tools import require_program

pytestmark = pytest.mark.integration

Sources = dict[ContrastLabel, SourceSeries]

TARGETS = {"FLAIR": "MR", "CT": "CT", "PET": "PT"}
OFF_BY_ROUNDING = {"MR": 0.505, "CT": 0.505, "PT": 1e-3}
"""In standard scale, HU and SUV: half of what a stored unit is worth, and what float32 leaves."""
WORDS = {
    "SimpleITK": {
        "MR": {"0008|0060": "MR"},
        "CT": {"0008|0060": "CT", "0028|1054": "HU"},
        "PT": {"0008|0060": "PT", "0054|1001": "GML"},
    },
    "highdicom": {
        "MR": {"Modality": "MR"},
        "CT": {"Modality": "CT", "RescaleType": "HU"},
        "PT": {"Modality": "PT", "Units": "GML"},
    },
    # It keeps no Rescale Type: a CT is in HU.
    "dcm2niix": {
        "MR": {"Modality": "MR"},
        "CT": {"Modality": "CT"},
        "PT": {"Modality": "PT", "Units": "GML"},
    },
}
"""Of each reader, what says in which units a series of each modality is."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A series as a reader sees it.

    Attributes:
        array: along the axes of `affine`.
        affine: index to LPS mm.
        words: what else the reader tells.
    """

    array: np.ndarray
    affine: np.ndarray
    words: dict[str, Any]


def read_with_simpleitk(folder: Path, _: Path) -> Seen:
    reader = sitk.ImageSeriesReader()
    reader.MetaDataDictionaryArrayUpdateOn()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return Seen(
        array=sitk.GetArrayFromImage(image).transpose(2, 1, 0),
        affine=affine,
        words={key: reader.GetMetaData(0, key).strip() for key in reader.GetMetaDataKeys(0)},
    )


def read_with_highdicom(folder: Path, _: Path) -> Seen:
    images = [dcmread(path) for path in folder.iterdir()]
    volume = get_volume_from_series(images)
    words = {each.keyword: each.value for each in images[0]}
    return Seen(array=volume.array, affine=volume.affine, words=words)


def read_with_dcm2niix(folder: Path, out: Path) -> Seen:
    program = require_program("dcm2niix", "dcm2niix")
    command = [program, "-b", "y", "-z", "n", "-f", "made", "-o", str(out), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout
    [path] = out.glob("*.nii")
    image = nibabel.load(path)
    return Seen(
        array=np.asarray(image.dataobj),
        affine=RAS_TO_LPS @ image.affine,
        words=json.loads(path.with_suffix(".json").read_text()),
    )


READERS: dict[str, Callable[[Path, Path], Seen]] = {
    "SimpleITK": read_with_simpleitk,
    "highdicom": read_with_highdicom,
    "dcm2niix": read_with_dcm2niix,
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    return make_sources(tmp_path_factory.mktemp("study"))


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(("target", "modality"), TARGETS.items())
@pytest.mark.parametrize("reference", ["T1w", "T2w"])
def test_other_readers_find_every_voxel_where_and_as_it_was_made(
    tmp_path: Path,
    sources: Sources,
    reference: str,
    target: str,
    modality: str,
    reader: str,
) -> None:
    # The T1w lies nearly across the body, the T2w nearly along it; the result is on the first.
    ordered = dict(sorted(sources.items(), key=lambda each: each[0] != reference))
    written = derive(ordered, target, modality)
    folder, out = tmp_path / "series", tmp_path / "out"
    out.mkdir()
    write_files((image for facts, image in written if facts.role is Role.IMAGE), folder)

    seen = READERS[reader](folder, out)

    made = make_synthesis(sources[ContrastLabel(reference)].volume, modality).volume
    assert sorted(seen.array.shape) == sorted(made.array.shape)
    indices = np.indices(seen.array.shape).reshape(3, -1)
    places = seen.affine[:3, :3] @ indices + seen.affine[:3, 3:]
    back = np.linalg.inv(made.affine)
    there = back[:3, :3] @ places + back[:3, 3:]
    steps = np.linalg.norm(made.affine[:3, :3], axis=0)[:, None]
    voxels = np.rint(there).astype(int)
    assert (np.abs(there - voxels) * steps).max() < 1e-3  # mm
    wanted = np.asarray(made.array)[tuple(voxels)]
    assert np.abs(seen.array.reshape(-1) - wanted).max() < OFF_BY_ROUNDING[modality]
    assert seen.words.items() >= WORDS[reader][modality].items()
