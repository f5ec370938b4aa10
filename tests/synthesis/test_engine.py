"""The engine from volume to volume: geometry, units, padding, refusals, replay."""

import json
from pathlib import Path

import numpy as np
import pytest

from doubles.models import write_copying_model
from synthesis import preprocessing
from synthesis.engine import replay, synthesize
from synthesis.errors import MissingSource, SynthesisError, UntrustedModel, UnusableInput
from synthesis.phantom import render
from synthesis.registry import ModelCard, load_card
from synthesis.types import ContrastLabel, Synthesis, Verdict, Volume

T1W, T2W, FLAIR = (ContrastLabel(name) for name in ("T1w", "T2w", "FLAIR"))
PHANTOM = render(seed=8, spacing=(5.0, 3.0, 3.0))


def turned(angle_degrees: float) -> np.ndarray:
    a = np.deg2rad(angle_degrees)
    return np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])


def volume(label: ContrastLabel, angle: float = 0.0, order: tuple[int, ...] = (0, 1, 2)) -> Volume:
    """Place a phantom image: (slices, rows, columns) run towards head, back and left, turned."""
    towards = np.array([[0, 0, 1.0], [0, 1.0, 0], [1.0, 0, 0]]).T @ np.diag(PHANTOM.spacing)
    affine = np.eye(4)
    affine[:3, :3] = (turned(angle) @ towards)[:, list(order)]
    affine[:3, 3] = [-90, -110, -70]
    array = np.transpose(PHANTOM.images[label], order)
    return Volume(array=array, affine=affine, coordinate_system="PATIENT")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_copying_model(folder, "copying")
    return folder


@pytest.fixture(scope="module")
def card(models: Path) -> ModelCard:
    return load_card(models, "copying")


def run(models: Path, card: ModelCard, volumes: dict[ContrastLabel, Volume]) -> Synthesis:
    return synthesize(
        volumes,
        target=T2W,
        reference=next(iter(volumes)),
        model_id=card.id,
        model_digest=card.digest,
        models_folder=models,
        seed=0,
    )


@pytest.mark.parametrize(
    ("angle", "order"), [(0.0, (0, 1, 2)), (11.0, (0, 1, 2)), (-7.0, (2, 0, 1)), (4.0, (1, 0, 2))]
)
def test_answer_lies_exactly_on_the_reference_grid(
    models: Path, card: ModelCard, angle: float, order: tuple[int, ...]
) -> None:
    source = volume(T1W, angle, order)

    answer = run(models, card, {T1W: source})

    np.testing.assert_allclose(answer.volume.affine, source.affine, atol=1e-6)
    assert answer.volume.array.shape == source.array.shape
    covered = answer.covered.array > 0
    assert covered.mean() > 0.2
    # a matched copy is monotone in its source: place for place, ranks agree
    ranks = [
        np.argsort(np.argsort(a)) for a in (source.array[covered], answer.volume.array[covered])
    ]
    assert np.corrcoef(*ranks)[0, 1] > 0.95


def test_voxels_that_the_sources_do_not_cover_are_the_declared_pad(
    models: Path, card: ModelCard
) -> None:
    answer = run(models, card, {T1W: volume(T1W)})

    assert (answer.volume.array[answer.covered.array == 0] == answer.pad_value).all()


def test_the_same_seed_gives_the_same_voxels_and_the_same_record(
    models: Path, card: ModelCard
) -> None:
    sources = {T1W: volume(T1W), FLAIR: volume(FLAIR)}

    first, second = run(models, card, sources), run(models, card, sources)

    np.testing.assert_array_equal(first.volume.array, second.volume.array)
    assert first.record == second.record


def test_noise_is_refused_and_nothing_of_it_is_shown(models: Path, card: ModelCard) -> None:
    source = volume(T1W)
    generator = np.random.default_rng(0)
    noise = generator.normal(300, 60, source.array.shape) * (source.array > 100)

    answer = run(models, card, {T1W: source.with_array(noise.astype(np.float32))})

    assert answer.quality.verdict is Verdict.REFUSE
    assert "noise" in " ".join(answer.quality.reasons)
    assert (answer.volume.array == answer.pad_value).all()


def test_contrasts_of_two_heads_that_cannot_be_aligned_are_refused(
    models: Path, card: ModelCard
) -> None:
    generator = np.random.default_rng(1)
    other = volume(FLAIR)
    blob = generator.normal(0, 1, other.array.shape).cumsum(axis=1)
    blob = (blob - blob.min()).astype(np.float32)

    with pytest.raises(UnusableInput) as refusal:
        run(models, card, {T1W: volume(T1W), FLAIR: other.with_array(blob)})

    assert refusal.value.code == "registration"


def test_an_altered_model_is_not_used(models: Path, card: ModelCard) -> None:
    altered = card.model_copy(update={"digest": "0" * 64})

    with pytest.raises(UntrustedModel, match="digest"):
        run(models, altered, {T1W: volume(T1W)})


def test_record_replays_to_identical_voxels(models: Path, card: ModelCard) -> None:
    sources = {T1W: volume(T1W, 4.0), FLAIR: volume(FLAIR)}
    made = run(models, card, sources)

    again = replay(json.loads(json.dumps(made.record)), sources, models_folder=models)

    assert again.volume.array.tobytes() == made.volume.array.tobytes()
    assert again.record == made.record


def test_replay_takes_the_recorded_move_and_measures_none(
    models: Path, card: ModelCard, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = {T1W: volume(T1W), FLAIR: volume(FLAIR)}
    made = run(models, card, sources)
    monkeypatch.delattr("synthesis.engine.register_rigid")

    replay(made.record, sources, models_folder=models)


def test_replay_of_other_sources_is_no_replay(models: Path, card: ModelCard) -> None:
    source = volume(T1W)
    made = run(models, card, {T1W: source})
    other = source.array.copy()
    other[12, 30, 30] += 40

    with pytest.raises(SynthesisError, match="comes out otherwise"):
        replay(made.record, {T1W: source.with_array(other)}, models_folder=models)


def test_record_of_a_refusal_is_not_replayed(models: Path) -> None:
    with pytest.raises(SynthesisError, match="nothing was predicted"):
        replay([{"step": "orient", "reference": "T1w"}], {T1W: volume(T1W)}, models_folder=models)


def spoil(**changes: float) -> Volume:
    array = volume(T1W).array.copy()
    array[10, 20, 20] = changes.get("voxel", 0)
    return volume(T1W).with_array(array)


@pytest.mark.parametrize(
    ("code", "source"),
    [
        ("not_finite", spoil(voxel=np.nan)),
        ("not_finite", spoil(voxel=-np.inf)),
        ("constant", volume(T1W).with_array(np.full(PHANTOM.images["T1w"].shape, 7, np.float32))),
        ("constant", volume(T1W).with_array(np.zeros(PHANTOM.images["T1w"].shape, np.float32))),
        ("one_slice", volume(T1W)[:1]),
        ("one_slice", volume(T1W)[:, :2]),
    ],
)
def test_what_is_no_volume_is_refused_by_name(
    models: Path, card: ModelCard, code: str, source: Volume
) -> None:
    for sources in ({T1W: source}, {T1W: volume(T1W), FLAIR: source}):
        with pytest.raises(UnusableInput) as refusal:
            run(models, card, sources)

        assert refusal.value.code == code


def test_enormous_source_is_refused(
    models: Path, card: ModelCard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("synthesis.engine.MOST_VOXELS", 1000)

    with pytest.raises(UnusableInput) as refusal:
        run(models, card, {T1W: volume(T1W)})

    assert refusal.value.code == "too_large"


def test_source_of_enormous_extent_asks_for_no_enormous_grid(
    models: Path, card: ModelCard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preprocessing, "MOST_VOXELS", 1000)

    with pytest.raises(UnusableInput) as refusal:
        run(models, card, {T1W: volume(T1W)})

    assert refusal.value.code == "too_large"


def test_sources_of_fields_that_do_not_meet_are_refused(models: Path, card: ModelCard) -> None:
    here = volume(FLAIR)
    affine = here.affine.copy()
    affine[:3, 3] += 400
    elsewhere = Volume(array=here.array, affine=affine, coordinate_system="PATIENT")

    with pytest.raises(UnusableInput) as refusal:
        run(models, card, {T1W: volume(T1W), FLAIR: elsewhere})

    assert refusal.value.code in {"registration", "overlap"}


def test_source_that_the_model_does_not_know_is_refused(models: Path, card: ModelCard) -> None:
    with pytest.raises(SynthesisError, match="CT"):
        run(models, card, {T1W: volume(T1W), ContrastLabel("CT"): volume(T1W)})
    with pytest.raises(MissingSource):
        synthesize(
            {},
            target=T2W,
            reference=T1W,
            model_id=card.id,
            model_digest=card.digest,
            models_folder=models,
            seed=0,
        )
