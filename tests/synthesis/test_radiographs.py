"""Pictures of one exposure: projected from CTs, answered by the engine, without a place."""

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from doubles.models import write_copying_picture_model
from synthesis import radiographs
from synthesis.engine import replay, synthesize
from synthesis.errors import UnusableInput
from synthesis.flat import make_volume
from synthesis.people import read_manifest
from synthesis.projection import BONE, SOFT, Beam, expose, split_materials
from synthesis.quality import TABLE
from synthesis.radiographs import train_projected
from synthesis.registry import load_card
from synthesis.training import read_experiment
from synthesis.types import ContrastLabel, Synthesis, Volume

EXPERIMENTS = Path(__file__).parents[2] / "config/experiments"
SIDE, BONE_SIDE = 100, 20
NOISELESS = 1e12
"""Photons on a pixel."""


def make_block() -> sitk.Image:
    """Return 100 mm of water with a bar of bone, 20 mm square, along the long axis."""
    hounsfield = np.full((60, SIDE + 60, SIDE + 60), -1000, np.float32)
    hounsfield[:, 30:-30, 30:-30] = 0
    middle = slice(30 + (SIDE - BONE_SIDE) // 2, 30 + (SIDE + BONE_SIDE) // 2)
    hounsfield[:, middle, middle] = 1700
    return sitk.GetImageFromArray(hounsfield)


def make_beam(angle: float, energy: int) -> Beam:
    spectrum = tuple(float(k == energy) for k in range(len(SOFT)))
    return Beam(angle=angle, tilt=0, spectrum=spectrum, photons=NOISELESS, scatter=0)


@pytest.mark.parametrize("angle", [0, 90, 180])
def test_ray_of_one_energy_is_weakened_as_the_law_says(angle):
    radiograph = expose(make_block(), make_beam(angle, 3), np.random.default_rng(0))

    middle = tuple(n // 2 for n in radiograph.signal.shape)
    expected = SOFT[3] * (SIDE - BONE_SIDE) / 10 + BONE[3] * 1.92 * BONE_SIDE / 10
    assert radiograph.signal[middle] == pytest.approx(expected, rel=0.03)
    assert radiograph.bone[middle] == pytest.approx(BONE[3] * 1.92 * BONE_SIDE / 10, rel=0.03)


def test_bone_hardens_a_beam_of_several_energies():
    beam = Beam(angle=0, tilt=0, spectrum=(0.5, 0, 0, 0, 0.5), photons=NOISELESS, scatter=0)

    radiograph = expose(make_block(), beam, np.random.default_rng(0))

    middle = tuple(n // 2 for n in radiograph.bone.shape)
    mean = float((BONE[0] + BONE[4]) / 2 * 1.92 * BONE_SIDE / 10)
    assert 0 < radiograph.bone[middle] < mean


@pytest.mark.parametrize("angle", [0, 90])
def test_detector_ends_where_the_limb_leaves_the_ct(angle):
    hounsfield = sitk.GetArrayFromImage(make_block())[:, 30:130, 30:]  # cut on three sides
    block = sitk.GetImageFromArray(np.ascontiguousarray(hounsfield))

    radiograph = expose(block, make_beam(angle, 3), np.random.default_rng(0))

    middle = radiograph.signal.shape[0] // 2
    water = SOFT[3] * SIDE / 10
    beside = radiograph.signal[middle, [2, -3]]
    cut_ends = 2 if angle == 90 else 1
    assert np.sum(np.abs(beside - water) < 0.1 * water) == cut_ends
    assert radiograph.bone.shape == radiograph.signal.shape


def test_soft_tissue_is_no_bone():
    _, bone = split_materials(np.array([-1000, -100, 0, 60, 149], np.float32))

    assert not bone.any()


def test_nobody_is_in_two_splits_and_the_real_case_is_for_testing_only():
    people = {p.subject: p.split for p in read_manifest(EXPERIMENTS / "projected.yaml").people}
    others = {p.subject: p.split for p in read_manifest(EXPERIMENTS / "people.yaml").people}

    assert people["sts-015"] == "test"
    assert all((split == "test") == (others[name] == "test") for name, split in people.items())


def test_method_that_learns_from_projections_is_kept_and_lets_pictures_pass(tmp_path, monkeypatch):
    experiment = read_experiment(EXPERIMENTS / "limb-bone-unet2d.yaml")
    small = experiment.parameters | {"steps": 2, "width": 8, "crop": 32}
    experiment = experiment.model_copy(update={"parameters": small})
    generator = np.random.default_rng(0)
    beams = (make_beam(angle, 2) for angle in range(0, 180, 10))
    people = [p for p in read_manifest(experiment.people).people[:2] for _ in range(9)]
    cases = [
        radiographs._make_case(person, expose(make_block(), beam, generator), experiment.anchor)
        for person, beam in zip(people, beams, strict=True)
    ]
    monkeypatch.setattr(radiographs, "_read_cases", lambda *_: iter(cases))

    learnt = train_projected(experiment, data_folder=tmp_path, work=tmp_path / "work")

    assert (learnt / "weights.safetensors").exists()
    assert "shape" not in json.loads((learnt / TABLE).read_text())


@pytest.fixture
def models(tmp_path):
    write_copying_picture_model(tmp_path, "gray", "DX", "DX bone", "DX")
    write_copying_picture_model(tmp_path, "color", "XC", "XC infrared", "XC")
    return tmp_path


def answer(models: Path, model: str, source: str, target: str, volume: Volume) -> Synthesis:
    return synthesize(
        {ContrastLabel(source): volume},
        target=ContrastLabel(target),
        reference=ContrastLabel(source),
        model_id=model,
        model_digest=load_card(models, model).digest,
        models_folder=models,
        seed=0,
    )


def draw(samples: int, rows: int, columns: int) -> np.ndarray:
    down, right = np.mgrid[0:rows, 0:columns]
    planes = [120 + 100 * np.sin(down / (17 + k)) * np.cos(right / 13) for k in range(samples)]
    return np.stack(planes).astype(np.float32)


def test_picture_is_answered_on_its_own_pixels_up_to_its_edge(models):
    volume = make_volume(draw(1, 260, 300), (0.5, 0.5))

    synthesis = answer(models, "gray", "DX", "DX bone", volume)

    made = np.asarray(synthesis.volume.array)
    assert made.shape == volume.array.shape
    assert synthesis.covered.array.all()
    assert np.corrcoef(made.ravel(), volume.array.ravel())[0, 1] > 0.97
    assert (made[0, 0] > 0).all()


def test_colors_are_answered_one_by_one_and_keep_their_pixels(models):
    volume = make_volume(draw(3, 90, 80), (1, 1))

    made = np.asarray(answer(models, "color", "XC", "XC infrared", volume).volume.array)

    assert made.shape == volume.array.shape
    for plane, own in zip(made, volume.array, strict=True):
        assert np.corrcoef(plane.ravel(), own.ravel())[0, 1] > 0.97


def test_picture_is_made_again_from_its_record(models):
    volume = make_volume(draw(1, 200, 220), (0.5, 0.5))
    synthesis = answer(models, "gray", "DX", "DX bone", volume)

    again = replay(
        json.loads(json.dumps(synthesis.record)),
        {ContrastLabel("DX"): volume},
        models_folder=models,
    )

    np.testing.assert_array_equal(again.volume.array, synthesis.volume.array)


def test_volume_is_no_picture(models):
    with pytest.raises(UnusableInput, match="picture") as error:
        answer(models, "gray", "DX", "DX bone", make_volume(draw(5, 60, 60), (1, 1)))

    assert error.value.code == "picture"
