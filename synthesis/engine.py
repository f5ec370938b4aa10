"""From source volumes and a model to a synthetic volume on the grid of the reference source.

    canonical axes → mask → model grid → registration → bias field → normalize → input gate
    → predict → calibrate the band → back onto the reference grid → output gate

Every step is recorded with the parameters that rebuild it.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813
from scipy import ndimage

from synthesis.errors import MissingSource, UntrustedModel, UnusableInput
from synthesis.preprocessing import (
    correct_bias,
    describe_transform,
    make_grid,
    mask_body,
    measure_scale,
    resample,
    to_canonical,
    to_image,
)
from synthesis.quality import check_input, check_output, join
from synthesis.registration import MINIMUM_DISTINCTNESS, register_rigid
from synthesis.registry import LEARNT, ModelCard, load_card, load_method
from synthesis.types import (
    UNITS_PER_NORMALIZED,
    ContrastLabel,
    FloatArray,
    MaskArray,
    QualityReport,
    Synthesis,
    Verdict,
    Volume,
)


class _Steps:
    """Records what was done, with how many seconds it took."""

    def __init__(self) -> None:
        self.record: list[dict[str, Any]] = []
        self.seconds: dict[str, float] = {}
        self._last = time.monotonic()

    def add(self, step: str, **parameters: Any) -> None:
        now = time.monotonic()
        self.seconds[step] = round(self.seconds.get(step, 0.0) + now - self._last, 3)
        self._last = now
        self.record.append({"step": step, **parameters})


def synthesize(
    volumes: Mapping[ContrastLabel, Volume],
    *,
    target: ContrastLabel,
    reference: ContrastLabel,
    model_id: str,
    model_digest: str,
    models_folder: Path,
    seed: int,
) -> Synthesis:
    """Synthesize `target` on the grid of `reference`.

    A refusal by the gate is an answer (`quality.verdict`), not an error: the caller decides.

    Args:
        volumes: source contrasts in their scanners' units; not changed.
        reference: the key of `volumes` whose grid the answer takes.
        target: one of the model's targets.
        model_id: folder below `models_folder`.
        model_digest: the folder must have this digest.
        models_folder: where the site keeps its models.
        seed: of every random draw; the same seed gives the same answer.

    Raises:
        UnusableInput: no mask, constant image, or contrasts that do not fit together.
        UntrustedModel: the model folder is absent or altered.
        MissingSource: the model needs a contrast that was not given.
    """
    card = load_card(models_folder, model_id)
    if reference not in volumes:
        raise MissingSource(f"the reference {reference} is not among {sorted(volumes)}")
    method = load_method(models_folder, model_id, model_digest)
    steps = _Steps()
    ordered = [reference, *sorted(label for label in volumes if label != reference)]
    original = to_image(_as_float(volumes[reference]))
    images = {label: to_canonical(to_image(_as_float(volumes[label]))) for label in ordered}
    steps.add("orient", axes="LPS")
    mask, masked = _find_mask(images[reference], card, models_folder / model_id)
    steps.add("mask", kind="brain" if card.skull == "stripped" else "body", source_masked=masked)
    grid = make_grid(images[reference], card.spacing_mm)
    on_grid, cover = _bring_together(images, reference, grid, seed, steps)
    grid_mask = resample(mask, grid, nearest=True)
    inside = (sitk.GetArrayFromImage(grid_mask) > 0) & cover
    arrays: dict[ContrastLabel, FloatArray] = {}
    for label, image in on_grid.items():
        flat = sitk.GetArrayFromImage(correct_bias(image, grid_mask)).astype(np.float32)
        scale = measure_scale(flat, inside, card.anchor)
        arrays[label] = np.where(inside, scale.forward(flat), 0).astype(np.float32)
        steps.add("normalize", contrast=label, bias="N4", low=scale.low, high=scale.high)
    spacing = (grid.GetSpacing()[2], grid.GetSpacing()[1], grid.GetSpacing()[0])
    gate = check_input(arrays, inside, spacing, models_folder / model_id / LEARNT)
    steps.add("check_input", verdict=str(gate.verdict))
    facts = card.targets[target]
    if gate.verdict is Verdict.REFUSE:
        return _refused(volumes[reference], gate, facts.pad_value, facts.units, steps)
    prediction = method.predict(arrays, target=target, mask=inside, spacing=spacing, seed=seed)
    steps.add(
        "predict",
        model=model_id,
        digest=model_digest,
        target=target,
        seed=seed,
        **method.backend,
    )
    half_width = None
    if prediction.lower is not None and prediction.upper is not None:
        half_width = np.float32(facts.band_scale / 2) * (prediction.upper - prediction.lower)
    outcome = check_output(prediction.mean, half_width, inside, arrays[reference])
    steps.add("check_output", verdict=str(outcome.verdict))
    covered = _back(inside.astype(np.float32), grid, original) > 0.5  # noqa: PLR2004 - half a voxel
    values = _back(_spread(prediction.mean, inside), grid, original) * UNITS_PER_NORMALIZED
    band = None
    if half_width is not None:
        wide = _back(_spread(half_width, inside), grid, original) * UNITS_PER_NORMALIZED
        band = _like(volumes[reference], np.where(covered, wide, 0))
    steps.add("inverse", interpolation="linear", pad_value=facts.pad_value)
    return Synthesis(
        volume=_like(volumes[reference], np.where(covered, values, facts.pad_value)),
        half_width=band,
        covered=volumes[reference].with_array(covered.astype(np.uint8)),
        pad_value=facts.pad_value,
        units=facts.units,
        description="brain only" if card.skull == "stripped" else "",
        quality=join(gate, outcome),
        record=steps.record,
        seconds=steps.seconds,
    )


def _find_mask(image: sitk.Image, card: ModelCard, folder: Path) -> tuple[sitk.Image, bool]:
    """Return the mask on the image's grid, and whether the source had to be masked."""
    if card.skull == "stripped":
        from synthesis.methods.brain_mask import WEIGHTS, find_brain  # noqa: PLC0415 - torch

        if not (folder / LEARNT / WEIGHTS).exists():
            raise UntrustedModel(
                f"{folder / LEARNT}: the card says skull: stripped, which wants {WEIGHTS} there to "
                "mask whole heads; that of a shipped model will do"
            )
        mask, stripped = find_brain(image, folder / LEARNT)
        return mask, not stripped
    body = mask_body(sitk.GetArrayFromImage(image).astype(np.float32))
    mask = sitk.GetImageFromArray(body.astype(np.uint8))
    mask.CopyInformation(image)
    return mask, False


def _bring_together(
    images: Mapping[ContrastLabel, sitk.Image],
    reference: ContrastLabel,
    grid: sitk.Image,
    seed: int,
    steps: _Steps,
) -> tuple[dict[ContrastLabel, sitk.Image], MaskArray]:
    """Return every image on the grid, registered, and where all of them have data."""
    on_grid = {}
    cover: MaskArray = np.ones(tuple(reversed(grid.GetSize())), np.bool_)
    for label, image in images.items():
        transform = None
        if label != reference:
            found = register_rigid(images[reference], image, seed=seed)
            steps.add(
                "register",
                contrast=label,
                to=reference,
                similarity_before=round(found.similarity_before, 4),
                similarity_after=round(found.similarity_after, 4),
                distinctness=round(found.distinctness, 3),
                shift_mm=round(found.shift_mm, 2),
                angle_degrees=round(found.angle_degrees, 2),
                transform=describe_transform(found.transform),
            )
            if not found.is_trusted:
                raise UnusableInput(
                    "registration",
                    f"{label} cannot be aligned to {reference}: the best place is "
                    f"{found.distinctness:.2f} times as good as 15 mm away (wanted "
                    f"{MINIMUM_DISTINCTNESS}), {found.shift_mm:.1f} mm and "
                    f"{found.angle_degrees:.1f} degrees from the start",
                )
            transform = found.transform
        on_grid[label] = resample(image, grid, transform)
        here = sitk.Image(image.GetSize(), sitk.sitkUInt8) + 1
        here.CopyInformation(image)
        there = sitk.GetArrayFromImage(resample(here, grid, transform, nearest=True)) > 0
        cover = np.logical_and(cover, there)
        steps.add("resample", contrast=label, spacing=[round(s, 4) for s in grid.GetSpacing()])
    return on_grid, cover


def _back(array: FloatArray, grid: sitk.Image, original: sitk.Image) -> FloatArray:
    image = sitk.GetImageFromArray(array.astype(np.float32))
    image.CopyInformation(grid)
    back = sitk.Resample(image, original, sitk.Transform(), sitk.sitkLinear, 0.0)
    return np.asarray(sitk.GetArrayFromImage(back), dtype=np.float32)


def _spread(array: FloatArray, inside: MaskArray) -> FloatArray:
    """Continue values past the mask's surface, so that interpolation there meets no padding."""
    near = ndimage.binary_dilation(inside, iterations=2) & ~inside
    nearest = ndimage.distance_transform_edt(~inside, return_distances=False, return_indices=True)
    out = array.copy()
    out[near] = array[tuple(index[near] for index in nearest)]
    return out


def _as_float(volume: Volume) -> Volume:
    return volume.with_array(volume.array.astype(np.float32))


def _like(volume: Volume, array: FloatArray) -> Volume:
    return volume.with_array(array.astype(np.float32))


def _refused(
    reference: Volume, gate: QualityReport, pad_value: float, units: str, steps: _Steps
) -> Synthesis:
    empty = np.full(reference.array.shape, pad_value, np.float32)
    return Synthesis(
        volume=_like(reference, empty),
        half_width=None,
        covered=reference.with_array(np.zeros(reference.array.shape, np.uint8)),
        pad_value=pad_value,
        units=units,
        description="",
        quality=gate,
        record=steps.record,
        seconds=steps.seconds,
    )
