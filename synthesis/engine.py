"""From source volumes and a model to a synthetic volume on the grid of the reference source.

    canonical axes → mask → model grid → registration → bias field → normalize → input gate
    → predict → calibrate the band → back onto the reference grid → output gate

A picture (`flat`) goes the same way without what needs a patient's space: its mask is all of it,
and nothing is registered. Every step is recorded with the parameters that rebuild it; `replay` does
so, and checks.
"""

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813
from numpy.typing import NDArray
from scipy import ndimage

from synthesis.errors import MissingSource, SynthesisError, UntrustedModel, UnusableInput
from synthesis.flat import check_picture, check_same_grid, make_flat_grid
from synthesis.memory import OutOfMemory, ask_within_memory
from synthesis.patches import WINDOW_MARGIN, bounding_box
from synthesis.preprocessing import (
    MOST_VOXELS,
    UNIT_LIMITS,
    UNIT_SCALES,
    Box,
    Scale,
    correct_bias,
    describe_transform,
    make_grid,
    mask_body,
    measure_scale,
    rebuild_transform,
    resample,
    to_canonical,
    to_image,
)
from synthesis.quality import check_input, check_output, join
from synthesis.registration import MINIMUM_DISTINCTNESS, register_rigid
from synthesis.registry import LEARNT, ModelCard, load_card, load_method
from synthesis.synthesizer import Synthesizer
from synthesis.types import (
    ContrastLabel,
    FloatArray,
    MaskArray,
    Prediction,
    QualityReport,
    Synthesis,
    Verdict,
    Volume,
)

FEWEST_SLICES = 4
"""Fewer planes along any axis are no volume that a model could look into."""
ALIGNED = 16
"""What the networks of slices pool."""


class _Steps:
    """Records what was done, with how many seconds it took.

    Args:
        recorded: of an earlier run, whose measured parameters are taken instead of measuring anew.
    """

    def __init__(self, recorded: Sequence[Mapping[str, Any]] = ()) -> None:
        self._recorded = recorded
        self.record: list[dict[str, Any]] = []
        self.seconds: dict[str, float] = {}
        self._last = time.monotonic()

    def add(self, step: str, **parameters: Any) -> None:
        now = time.monotonic()
        self.seconds[step] = round(self.seconds.get(step, 0.0) + now - self._last, 3)
        self._last = now
        self.record.append({"step": step, **parameters})

    def recall(self, step: str, contrast: str | None = None) -> dict[str, Any] | None:
        """Return the parameters of a step of the earlier run, or None."""
        for each in self._recorded:
            if each["step"] == step and each.get("contrast") == contrast:
                return {key: value for key, value in each.items() if key != "step"}
        return None


def synthesize(
    volumes: Mapping[ContrastLabel, Volume],
    *,
    target: ContrastLabel,
    reference: ContrastLabel,
    model_id: str,
    model_digest: str,
    models_folder: Path,
    seed: int,
    out_of_memory: OutOfMemory = "cpu",
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
        out_of_memory: what is done when a GPU has too little, in smaller portions too.

    Raises:
        UnusableInput: no mask, constant image, values that are not finite, fewer than four planes
            (a picture of other than one or three), more voxels than a volume has, contrasts that do
            not fit together, or too little memory.
        UntrustedModel: the model folder is absent or altered.
        MissingSource: the model needs a contrast that was not given.
        SynthesisError: the model knows no such source or target.
    """
    request = _Request(
        target=target,
        reference=reference,
        model_id=model_id,
        model_digest=model_digest,
        models_folder=models_folder,
        seed=seed,
        out_of_memory=out_of_memory,
    )
    return _run(volumes, request, _Steps())


def replay(
    record: Sequence[Mapping[str, Any]],
    volumes: Mapping[ContrastLabel, Volume],
    *,
    models_folder: Path,
) -> Synthesis:
    """Make again what a record tells of, and check every step against it.

    What was measured (transforms, scales) is taken from the record; mask and bias field are made
    anew. Where a step comes out otherwise than recorded, nothing is returned.

    Args:
        record: of `Synthesis.record`, also after it has been JSON.
        volumes: the same sources.
        models_folder: with the same model.

    Raises:
        SynthesisError: the record is none of a result, or a step comes out otherwise.
    """
    steps = _Steps(record)
    start, end = steps.recall("orient"), steps.recall("predict")
    if start is None or end is None:
        raise SynthesisError("the record is none of a result: nothing was predicted")
    request = _Request(
        target=ContrastLabel(end["target"]),
        reference=ContrastLabel(start["reference"]),
        model_id=end["model"],
        model_digest=end["digest"],
        models_folder=models_folder,
        seed=end["seed"],
    )
    synthesis = _run(volumes, request, steps)
    for k, (now, then) in enumerate(zip_longest(synthesis.record, record)):
        if now != then:
            name = (now or then or {}).get("step")
            raise SynthesisError(f"step {k + 1} of the record, {name}, comes out otherwise")
    return synthesis


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    """What is wanted, see `synthesize`."""

    target: ContrastLabel
    reference: ContrastLabel
    model_id: str
    model_digest: str
    models_folder: Path
    seed: int
    out_of_memory: OutOfMemory = "cpu"


def _run(volumes: Mapping[ContrastLabel, Volume], request: _Request, steps: _Steps) -> Synthesis:
    target, reference, seed = request.target, request.reference, request.seed
    model_id, models_folder = request.model_id, request.models_folder
    card = load_card(models_folder, model_id)
    if reference not in volumes:
        raise MissingSource(f"the reference {reference} is not among {sorted(volumes)}")
    for label, volume in volumes.items():
        _check_volume(label, np.asarray(volume.array), is_flat=card.is_flat)
    method = load_method(models_folder, model_id, request.model_digest)
    method.check_task(volumes, target)
    ordered = [reference, *sorted(label for label in volumes if label != reference)]
    original = to_image(_as_float(volumes[reference]))
    images = {label: to_canonical(to_image(_as_float(volumes[label]))) for label in ordered}
    steps.add("orient", axes="LPS", reference=reference, contrasts=ordered)
    mask, masked = _find_mask(images[reference], card, models_folder / model_id)
    steps.add(
        "mask",
        kind="picture" if card.is_flat else "brain" if card.skull == "stripped" else "body",
        source_masked=masked,
        sha256=_digest(sitk.GetArrayViewFromImage(mask)),
    )
    grid = _make_grid(images, reference, card)
    on_grid, cover, moved_mm = _bring_together(
        images, reference, grid, seed, steps, registers=not card.is_flat
    )
    grid_mask = resample(mask, grid, nearest=True)
    whole = sitk.GetArrayFromImage(grid_mask) > 0
    inside = whole & cover
    if not inside.any():
        raise UnusableInput("overlap", "no place of the mask is covered by every source")
    covered_share = float(inside.sum() / whole.sum())
    box = _find_box(inside)
    arrays = {
        label: _normalize(label, image, grid_mask, inside, box, card, steps)
        for label, image in on_grid.items()
    }
    grid, inside = _cut(grid, box), np.ascontiguousarray(inside[box])
    spacing = (grid.GetSpacing()[2], grid.GetSpacing()[1], grid.GetSpacing()[0])
    learnt = models_folder / model_id / LEARNT
    gate = check_input(arrays, inside, spacing, learnt, covered=covered_share, moved_mm=moved_mm)
    steps.add("check_input", verdict=str(gate.verdict))
    facts = card.targets[target]
    if gate.verdict is Verdict.REFUSE:
        return _refused(volumes[reference], gate, facts.pad_value, facts.units, steps)

    def ask(asked: Synthesizer[Any]) -> Prediction:
        return asked.predict(arrays, target=target, mask=inside, spacing=spacing, seed=seed)

    def on_cpu() -> Synthesizer[Any]:
        return load_method(models_folder, model_id, request.model_digest, "cpu")

    prediction, method = ask_within_memory(
        method, ask, on_cpu if request.out_of_memory == "cpu" else None
    )
    steps.add(
        "predict",
        model=model_id,
        digest=request.model_digest,
        target=target,
        seed=seed,
        **method.backend,
        sha256=_digest(prediction.mean),
    )
    half_width = None
    if prediction.lower is not None and prediction.upper is not None:
        half_width = np.float32(facts.band_scale / 2) * (prediction.upper - prediction.lower)
    outcome = check_output(prediction, half_width, arrays, inside, spacing, learnt, target=target)
    steps.add("check_output", verdict=str(outcome.verdict))
    covered = _back(inside.astype(np.float32), grid, original) > 0.5  # noqa: PLR2004 - half a voxel
    covered |= card.is_flat  # a picture has no outside
    scale = UNIT_SCALES[facts.units]
    spread = _Spread(inside)
    values = scale.inverse(_back(spread.over(prediction.mean), grid, original))
    band = None
    if half_width is not None:
        wide = scale.inverse(_back(spread.over(half_width), grid, original))
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


def _check_volume(label: ContrastLabel, array: NDArray[Any], *, is_flat: bool) -> None:
    """Check that a source is a volume, or a picture, of numbers."""
    if is_flat:
        check_picture(label, array)
    elif array.ndim != 3 or min(array.shape) < FEWEST_SLICES:  # noqa: PLR2004 - a volume
        raise UnusableInput(
            "one_slice", f"{label} measures {array.shape}, wanted {FEWEST_SLICES} planes or more"
        )
    if array.size > MOST_VOXELS:
        raise UnusableInput("too_large", f"{label} measures {array.shape}, over {MOST_VOXELS}")
    if not np.isfinite(array).all():
        raise UnusableInput("not_finite", f"{label} holds NaN or infinity")
    if array.min() == array.max():
        raise UnusableInput("constant", f"{label} is one value everywhere")


def _digest(array: NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def _find_mask(image: sitk.Image, card: ModelCard, folder: Path) -> tuple[sitk.Image, bool]:
    """Return the mask on the image's grid, and whether the source had to be masked."""
    if card.is_flat:
        whole = sitk.Image(image.GetSize(), sitk.sitkUInt8) + 1
        whole.CopyInformation(image)
        return whole, False
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


def _make_grid(
    images: Mapping[ContrastLabel, sitk.Image], reference: ContrastLabel, card: ModelCard
) -> sitk.Image:
    if not card.is_flat:
        return make_grid(images[reference], card.spacing_mm)
    check_same_grid(images)
    return make_flat_grid(images[reference], card.spacing_mm)


def _bring_together(
    images: Mapping[ContrastLabel, sitk.Image],
    reference: ContrastLabel,
    grid: sitk.Image,
    seed: int,
    steps: _Steps,
    *,
    registers: bool,
) -> tuple[dict[ContrastLabel, sitk.Image], MaskArray, dict[ContrastLabel, float]]:
    """Return every image on the grid, where all have data, how far each was moved if it was."""
    on_grid, moved_mm = {}, {}
    cover: MaskArray = np.ones(tuple(reversed(grid.GetSize())), np.bool_)
    for label, image in images.items():
        transform = None
        if label != reference and (known := steps.recall("register", label)) is not None:
            transform = rebuild_transform(known["transform"])
            moved_mm[label] = float(known["shift_mm"])
            steps.add("register", **known)
        elif label != reference and registers:
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
            moved_mm[label] = round(found.shift_mm, 2)
        on_grid[label] = resample(image, grid, transform)
        here = sitk.Image(image.GetSize(), sitk.sitkUInt8) + 1
        here.CopyInformation(image)
        there = sitk.GetArrayFromImage(resample(here, grid, transform, nearest=True)) > 0
        cover = np.logical_and(cover, there)
        steps.add("resample", contrast=label, spacing=[round(s, 4) for s in grid.GetSpacing()])
    return on_grid, cover, moved_mm


def _find_box(inside: MaskArray) -> Box:
    """Return where all is done from here on: about the mask, with room for what looks about.

    It begins where a network that pools would begin in the whole array.
    """
    near = bounding_box(inside, WINDOW_MARGIN)
    first, second, third = (slice(side.start - side.start % ALIGNED, side.stop) for side in near)
    return (first, second, third)


def _cut(grid: sitk.Image, box: Box) -> sitk.Image:
    """Return the grid of a box of an array."""
    cut: sitk.Image = grid[tuple(reversed(box))]
    return cut


def _normalize(
    label: ContrastLabel,
    image: sitk.Image,
    mask: sitk.Image,
    inside: MaskArray,
    box: Box,
    card: ModelCard,
    steps: _Steps,
) -> FloatArray:
    """Return a source in a box in normalized units, zero outside the mask."""
    units = card.source_units.get(label)
    bias = "N4" if units is None and card.bias_field else "none"
    if bias == "N4":
        array = correct_bias(image, mask, box)
    else:
        array = sitk.GetArrayViewFromImage(image)[box].astype(np.float32)
    inside = inside[box]
    if units is None:
        known = steps.recall("normalize", label)
        scale = (
            measure_scale(array, inside, card.anchor)
            if known is None
            else Scale(low=known["low"], high=known["high"])
        )
    else:
        scale = UNIT_SCALES[units]
        array = np.clip(array, *UNIT_LIMITS[units])
    steps.add(
        "normalize",
        contrast=label,
        bias=bias,
        units=units or "standard scale",
        low=scale.low,
        high=scale.high,
        sha256=_digest(array),
    )
    return np.where(inside, scale.forward(array), 0).astype(np.float32)


def _back(array: FloatArray, grid: sitk.Image, original: sitk.Image) -> FloatArray:
    image = sitk.GetImageFromArray(array.astype(np.float32))
    image.CopyInformation(grid)
    back = sitk.Resample(image, original, sitk.Transform(), sitk.sitkLinear, 0.0)
    return np.asarray(sitk.GetArrayFromImage(back), dtype=np.float32)


class _Spread:
    """Continues values past a mask's surface, so that interpolation there meets no padding."""

    def __init__(self, inside: MaskArray) -> None:
        self._near = ndimage.binary_dilation(inside, iterations=2) & ~inside
        nearest = ndimage.distance_transform_edt(
            ~inside, return_distances=False, return_indices=True
        )
        self._from = tuple(index[self._near] for index in nearest)

    def over(self, array: FloatArray) -> FloatArray:
        """Return the array with the values of the mask's surface about it."""
        out = array.copy()
        out[self._near] = array[self._from]
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
