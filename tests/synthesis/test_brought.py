"""Networks that others bring: known weights give known answers, and what is wrong is named."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from numpy.typing import NDArray

from doubles.networks import OFFSET, WEIGHTS, write_bundle_model, write_onnx_model
from synthesis import cli
from synthesis.engine import synthesize
from synthesis.errors import (
    MissingExtra,
    MissingSource,
    SynthesisError,
    UntrustedModel,
    UnusableInput,
)
from synthesis.methods import build_method
from synthesis.phantom import render
from synthesis.preprocessing import affine_of, correct_bias, mask_body, resample, to_canonical
from synthesis.registry import load_card, load_method
from synthesis.synthesizer import Synthesizer
from synthesis.types import (
    UNITS_PER_NORMALIZED,
    ContrastLabel,
    FloatArray,
    SynthesisTask,
    Verdict,
    Volume,
)

T1W, T2W, FLAIR = (ContrastLabel(name) for name in ("T1w", "T2w", "FLAIR"))
ONE_CHANNEL = {"num_channels": 1, "spatial_shape": [16, 16, 16]}
EVEN = (1.0, 1.0, 1.0)
GENERATOR = np.random.default_rng(3)
SHAPE = (11, 14, 17)
MASK = np.zeros(SHAPE, bool)
MASK[1:-1, 2:-1, 1:-2] = True
IMAGES = {
    label: np.where(MASK, GENERATOR.uniform(0, 1, SHAPE), 0).astype(np.float32)
    for label in (T1W, FLAIR)
}
WANTED = np.where(MASK, WEIGHTS[0] * IMAGES[T1W] + WEIGHTS[1] * IMAGES[FLAIR] + OFFSET, 0)


def bring(learnt: Path) -> Synthesizer[Any]:
    models = learnt.parents[1]
    card = load_card(models, learnt.parent.name)
    return load_method(models, card.id, card.digest)


def predict(
    method: Synthesizer[Any],
    images: dict[ContrastLabel, FloatArray] | None = None,
    spacing: tuple[float, float, float] = EVEN,
) -> FloatArray:
    given = IMAGES if images is None else images
    return method.predict(given, target=T2W, mask=MASK, spacing=spacing, seed=0).mean


def place(label: ContrastLabel, spacing: tuple[float, float, float] = (3.0, 3.0, 3.0)) -> Volume:
    phantom = render(seed=8, spacing=spacing)
    affine = np.zeros((4, 4))
    affine[[2, 1, 0, 3], [0, 1, 2, 3]] = *phantom.spacing, 1
    affine[:3, 3] = [-90, -110, -70]
    return Volume(array=phantom.images[label], affine=affine, coordinate_system="PATIENT")


@pytest.mark.parametrize(
    "parameters",
    [
        {"layout": "2d"},
        {"layout": "2d", "batch": 4, "axes": "LIA"},
        {"layout": "2d", "patch": [8, 8], "overlap": 0.25, "multiple": 4},
        {"layout": "3d", "axes": "RAS"},
        {"layout": "3d", "patch": [8, 8, 8], "overlap": 0.5},
        {"layout": "3d", "patch": [32, 32, 32]},
    ],
    ids=str,
)
def test_weighted_sum_is_the_same_in_every_layout(
    tmp_path: Path, parameters: dict[str, Any]
) -> None:
    method = bring(write_onnx_model(tmp_path, parameters=parameters))

    np.testing.assert_allclose(predict(method), WANTED, atol=1e-6)


def test_neighboring_slices_come_source_by_source(tmp_path: Path) -> None:
    kernel = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], np.float32).reshape(1, 6, 1, 1)
    parameters = {"layout": "2.5d", "slices": 3}
    method = bring(write_onnx_model(tmp_path, kernel=kernel, parameters=parameters))

    def shift(image: FloatArray, by: int) -> FloatArray:
        return np.roll(image, by, axis=0)  # nothing lies in the slices that come round

    wanted = OFFSET + sum(
        weight * shift(image, by)
        for image, weights in ((IMAGES[T1W], (0.1, 0.2, 0.3)), (IMAGES[FLAIR], (0.4, 0.5, 0.6)))
        for weight, by in zip(weights, (1, 0, -1), strict=True)
    )
    np.testing.assert_allclose(predict(method), np.where(MASK, wanted, 0), atol=1e-6)


@pytest.mark.parametrize(
    ("axes", "axis", "by"),
    [("SPL", 0, -1), ("RAS", 2, 1), ("PSL", 1, -1), ("ARS", 1, 1), ("LIP", 2, -1)],
)
def test_first_axis_of_the_network_runs_where_the_card_says(
    tmp_path: Path, axes: str, axis: int, by: int
) -> None:
    kernel = np.zeros((1, 2, 3, 1, 1), np.float32)
    kernel[0, 0, 2] = 1  # each voxel takes the next one along the first axis
    parameters = {"layout": "3d", "axes": axes}
    method = bring(write_onnx_model(tmp_path, kernel=kernel, parameters=parameters))

    wanted = np.where(MASK, np.roll(IMAGES[T1W], by, axis=axis) + OFFSET, 0)
    np.testing.assert_allclose(predict(method), wanted, atol=1e-6)


def test_values_are_scaled_as_the_card_says_whatever_the_scanner(tmp_path: Path) -> None:
    values = {
        "T1w": {"kind": "zscore"},
        "FLAIR": {"kind": "percentiles", "percentiles": [10, 90], "to": [-1, 1], "clip": True},
    }
    method = bring(write_onnx_model(tmp_path, parameters={"values": values}))
    t1w, flair = (IMAGES[label][MASK].astype(float) for label in (T1W, FLAIR))
    low, high = np.percentile(flair, [10, 90])

    wanted = (
        OFFSET
        + WEIGHTS[0] * (t1w - t1w.mean()) / t1w.std()
        + WEIGHTS[1] * np.clip(2 * (flair - low) / (high - low) - 1, -1, 1)
    )
    np.testing.assert_allclose(predict(method)[MASK], wanted, atol=1e-5)
    brighter = {label: (7 * image + 3).astype(np.float32) for label, image in IMAGES.items()}
    np.testing.assert_allclose(predict(method, brighter)[MASK], wanted, atol=1e-4)


def test_answer_is_taken_in_the_units_of_the_card(tmp_path: Path) -> None:
    outputs = {"T2w": {"multiply": 2048, "add": -1024}}
    method = bring(write_onnx_model(tmp_path, parameters={"outputs": outputs}))

    in_units = predict(method)[MASK] * UNITS_PER_NORMALIZED
    np.testing.assert_allclose(in_units, WANTED[MASK] * 2048 - 1024, atol=1e-2)


def test_network_with_flags_takes_any_subset(tmp_path: Path) -> None:
    method = bring(write_onnx_model(tmp_path, required=[], parameters={"flags": True}))

    both = (IMAGES[T1W] + IMAGES[FLAIR]) / 2
    np.testing.assert_allclose(predict(method), both, atol=1e-6)
    np.testing.assert_allclose(predict(method, {FLAIR: IMAGES[FLAIR]}), IMAGES[FLAIR], atol=1e-6)


def test_network_without_flags_wants_every_source(tmp_path: Path) -> None:
    method = bring(write_onnx_model(tmp_path))

    with pytest.raises(MissingSource, match="FLAIR"):
        predict(method, {T1W: IMAGES[T1W]})


def test_slices_too_thick_for_the_network_are_refused(tmp_path: Path) -> None:
    across = bring(write_onnx_model(tmp_path, "across", parameters={"axes": "LSP"}))
    along = bring(write_onnx_model(tmp_path, "along"))

    with pytest.raises(UnusableInput, match=r"voxels of 5\.00 x 1\.00 x 1\.00 mm are too thick"):
        predict(across, spacing=(5.0, 1.0, 1.0))
    assert predict(along, spacing=(5.0, 1.0, 1.0)).any()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"kernel": np.zeros((1, 3, 1, 1), np.float32)}, "image of 3 channels, wanted 2"),
        ({"kernel": np.zeros((1, 2, 1, 1, 1), np.float32)}, "wanted 4 axes in the layout 2d"),
        ({"required": ["T1w"]}, r"required: seen \['T1w'\], wanted all of"),
        ({"parameters": {"outputs": {}}}, r"outputs: seen \[\], wanted \['T2w'\]"),
        ({"parameters": {"slices": 3}}, "slices: seen 3, wanted 1"),
        ({"parameters": {"patch": [8, 8, 8]}}, "wanted 2 sizes"),
        ({"parameters": {"patch": [8, 9], "multiple": 8}}, "wanted multiples of 8"),
        ({"parameters": {"values": {"CT": {}}}}, "values: seen"),
        ({"parameters": {"axes": "RAL"}}, "seen 'RAL', wanted one of"),
        ({"parameters": {"file": "other.onnx"}}, "ONNX Runtime cannot read it"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_card_and_network_that_do_not_fit_are_told_apart(
    tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    learnt = write_onnx_model(tmp_path, **changes)

    with pytest.raises(UntrustedModel, match=told):
        bring(learnt)


def test_channel_that_the_network_does_not_answer_is_told(tmp_path: Path) -> None:
    outputs = {"T2w": {"mean": 1, "multiply": 1000}}
    method = bring(write_onnx_model(tmp_path, parameters={"outputs": outputs}))

    with pytest.raises(UntrustedModel, match="seen channel 1, but the network answers 1"):
        predict(method)


@pytest.mark.parametrize(("library", "extra"), [("onnxruntime", "onnx"), ("monai", "monai")])
def test_library_that_is_not_installed_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str, extra: str
) -> None:
    if library == "monai":
        learnt = write_bundle_model(tmp_path, weights="model.safetensors")
    else:
        learnt = write_onnx_model(tmp_path)
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(sys.modules, "monai.networks", raising=False)

    with pytest.raises(MissingExtra, match=rf"pip install '\.\[{extra}\]'"):
        bring(learnt)


def test_network_of_elsewhere_is_neither_trained_nor_saved_here(tmp_path: Path) -> None:
    method = bring(write_onnx_model(tmp_path))

    for attempt in (lambda: method.fit([], seed=0), lambda: method.save(tmp_path)):
        with pytest.raises(SynthesisError, match="trained elsewhere"):
            attempt()


def test_scripted_bundle_gives_the_known_answer(tmp_path: Path) -> None:
    method = bring(write_bundle_model(tmp_path, weights="model.ts"))

    np.testing.assert_allclose(predict(method), WANTED, atol=1e-6)


def test_bundle_with_safetensors_gives_what_its_network_gives(tmp_path: Path) -> None:
    from monai.networks.nets import BasicUNet
    from safetensors.torch import load_file

    learnt = write_bundle_model(tmp_path, weights="model.safetensors")
    network = BasicUNet(spatial_dims=3, in_channels=2, out_channels=1, features=[4] * 6).eval()
    network.load_state_dict(load_file(learnt / "models" / "model.safetensors"))

    def turn(array: NDArray[Any]) -> NDArray[Any]:
        """From slices, rows, columns towards S, P, L to axes towards R, A, S, and padded."""
        turned = array.transpose(2, 1, 0)[::-1, ::-1]
        return np.pad(turned, [(0, -size % 16) for size in turned.shape])

    given = np.stack([turn(IMAGES[T1W]), turn(IMAGES[FLAIR])])
    with torch.inference_mode():
        answer = network(torch.from_numpy(given[None]))[0, 0].numpy()
    back = answer[: SHAPE[2], : SHAPE[1], : SHAPE[0]][::-1, ::-1].transpose(2, 1, 0)

    np.testing.assert_allclose(predict(bring(learnt)), np.where(MASK, back, 0), atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"inference": {"network_def": {"_target_": "os.system"}}}, "_target_: seen 'os.system'"),
        ({"inference": {"network_def": {"_target_": "torch.load"}}}, "wanted a network of"),
        ({"inference": {"channels": "$__import__('os').getpid()"}}, "expression, which is not"),
        ({"inference": {"network_def": {"_target_": "UNet"}}}, "UNet cannot be built so"),
        ({"inference": {"channels": 3}}, "not the weights of the network"),
        ({"inference": {"network_def": "$UNet()"}}, "seen no network"),
        ({"metadata": {"network_data_format": {}}}, "bundle specification"),
        (
            {"metadata": {"network_data_format": {"inputs": {"image": ONE_CHANNEL}}}},
            "num_channels: seen 1, but the card promises 2",
        ),
        ({"parameters": {"axes": "LPS"}}, "turns to RAS, but the card's axes are LPS"),
        ({"parameters": {"layout": "2d", "axes": "RAS"}}, "spatial_shape: seen"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bundle_that_is_not_what_it_says_or_would_run_code_is_refused(
    tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    learnt = write_bundle_model(tmp_path, weights="model.safetensors", **changes)

    with pytest.raises(UntrustedModel, match=told):
        bring(learnt)


def test_bundle_without_weights_says_what_is_wanted(tmp_path: Path) -> None:
    learnt = write_bundle_model(tmp_path, weights="model.ts")
    card = load_card(tmp_path, "brought-bundle")
    (learnt / "models" / "model.ts").unlink()
    method = build_method("monai_bundle", card.task, dict(card.parameters))

    with pytest.raises(UntrustedModel, match=r"wanted models/model\.ts or models/model\.safet"):
        method.restore(learnt)


@pytest.mark.parametrize("kind", ["onnx", "bundle"])
def test_volumes_become_the_known_sum_of_what_was_normalized(tmp_path: Path, kind: str) -> None:
    sources = {"sources": ["T1w"], "required": ["T1w"]}
    if kind == "onnx":
        kernel = np.full((1, 1, 1, 1), 0.5, np.float32)
        learnt = write_onnx_model(tmp_path, kernel=kernel, **sources)
    else:
        learnt = write_bundle_model(tmp_path, weights="model.ts", **sources)
    card = load_card(tmp_path, learnt.parent.name)
    source = place(T1W)

    answer = synthesize(
        {T1W: source},
        target=T2W,
        reference=T1W,
        model_id=card.id,
        model_digest=card.digest,
        models_folder=tmp_path,
        seed=0,
    )

    assert answer.quality.verdict is Verdict.WARN
    assert answer.quality.reasons[0].startswith("the model has no table of its training images")
    normalized = _normalize_again(source, answer.record, T1W)
    covered = answer.covered.array > 0
    assert covered.mean() > 0.2
    wanted = (0.5 * normalized + OFFSET) * UNITS_PER_NORMALIZED
    np.testing.assert_allclose(answer.volume.array[covered], wanted[covered], atol=0.05)


def _normalize_again(
    volume: Volume, record: list[dict[str, Any]], label: ContrastLabel
) -> FloatArray:
    """Repeat what the record says, on a volume whose own grid is the model's."""
    image = to_canonical(sitk.GetImageFromArray(volume.array))
    image.SetSpacing([3.0, 3.0, 3.0])
    [step] = [s for s in record if s["step"] == "normalize" and s["contrast"] == label]
    mask = sitk.GetImageFromArray(mask_body(volume.array).astype(np.uint8))
    mask.CopyInformation(image)
    flat = correct_bias(resample(image, image), mask)
    return ((flat - step["low"]) / (step["high"] - step["low"])).astype(np.float32)


def test_files_become_a_file_through_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_onnx_model(tmp_path / "models")
    for label in (T1W, FLAIR):
        volume = place(label)
        image = sitk.GetImageFromArray(volume.array)
        image.SetSpacing([3.0, 3.0, 3.0])
        sitk.WriteImage(image, tmp_path / f"{label}.nii.gz")
    named = [f"--source={label}={tmp_path / f'{label}.nii.gz'}" for label in (T1W, FLAIR)]
    out = tmp_path / "out.nii.gz"
    words = ["--models", str(tmp_path / "models"), "--model", "brought-onnx", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["synthesis", "predict", *words, *named])

    with pytest.raises(SystemExit) as ended:
        cli.main()

    assert not ended.value.code
    made = sitk.ReadImage(out)
    assert made.GetSize() == sitk.ReadImage(tmp_path / "T1w.nii.gz").GetSize()
    assert np.ptp(sitk.GetArrayFromImage(made)) > 100
    np.testing.assert_allclose(affine_of(made)[:3, :3], np.diag([3.0] * 3)[:, ::-1], atol=1e-6)


def test_family_of_an_entry_point_is_a_method(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "plug.py").write_text(
        "from synthesis.methods.baselines import MeanImage\nclass Plug(MeanImage): pass\n"
    )
    facts = tmp_path / "plug-1.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: plug\nVersion: 1\n")
    (facts / "entry_points.txt").write_text(
        "[synthesis.methods]\nplugged = plug:Plug\nbroken = plug:Nothing\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    task = SynthesisTask(sources=(T1W,), targets=(T2W,))

    assert type(build_method("plugged", task, {})).__name__ == "Plug"
    with pytest.raises(SynthesisError, match="method 'broken' is not at plug:Nothing"):
        build_method("broken", task, {})
