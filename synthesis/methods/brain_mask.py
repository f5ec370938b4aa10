"""Which voxels are brain: a small 3-D network for any MR contrast, and the check of its answer.

A model that learnt on skull-stripped images needs a whole head masked first. The network works on
a 3 mm grid centered on the head, takes well under a second, and is trained with random contrasts
(domain randomization, Billot 2023) on real heads and rendered anatomies.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from scipy import ndimage
from torch.nn import functional

from synthesis.chance import happens
from synthesis.devices import mixed_precision
from synthesis.errors import UnusableInput
from synthesis.networks import MaskUNet
from synthesis.patches import bounding_box
from synthesis.preprocessing import mask_body, resample, to_canonical
from synthesis.types import FloatArray, MaskArray

WEIGHTS = "brain_mask.safetensors"
SPACING_MM = 3.0
SHAPE = (72, 80, 64)
"""Slices, rows and columns of the working grid: 216 x 240 x 192 mm, room for any head."""

UPPER_PART_MM = 200.0

BRAIN_ML = (750.0, 2200.0)
"""Adult brains with their fluid measure 1000 to 1900 ml; the rest is room for partial coverage."""
LARGEST_PART_SHARE = 0.97
LONGEST_EXTENT_MM = 230.0
LARGEST_EXTENT_RATIO = 2.2
NONZERO_SHARE = 0.01
HALF = 0.5
AIR = 0.04
STRIPPED_SHARE = 0.10
"""In a whole head at least this share of what is not air lies outside the brain."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """A head on the working grid: intensities (any scale) and where the brain is."""

    image: FloatArray
    brain: MaskArray


def make_working_grid(image: sitk.Image) -> sitk.Image:
    """Return the empty 3 mm grid, along the axes of a canonical image, centered on its upper part.

    The center across is the centroid of what is not air in the upper 20 cm, so that a long neck
    does not pull the brain out of the grid.
    """
    shrink = [max(1, round(SPACING_MM / spacing)) for spacing in image.GetSpacing()]
    coarse = sitk.Shrink(image, shrink)
    body = mask_body(sitk.GetArrayFromImage(coarse).astype(np.float32))
    slices = np.flatnonzero(body.any(axis=(1, 2)))
    top = int(slices[-1])
    bottom = max(int(slices[0]), top - round(UPPER_PART_MM / coarse.GetSpacing()[2]))
    places = np.nonzero(body[bottom : top + 1])
    middle = [float(places[2].mean()), float(places[1].mean()), (top + bottom) / 2]
    center = np.array(coarse.TransformContinuousIndexToPhysicalPoint(middle))
    direction = np.array(image.GetDirection()).reshape(3, 3)
    size = np.array(SHAPE[::-1])
    grid = sitk.Image([int(s) for s in size], sitk.sitkFloat32)
    grid.SetSpacing([SPACING_MM] * 3)
    grid.SetDirection(image.GetDirection())
    grid.SetOrigin([float(v) for v in center - direction @ ((size - 1) / 2 * SPACING_MM)])
    return grid


def find_brain(image: sitk.Image, weights: Path) -> tuple[sitk.Image, bool]:
    """Return the brain mask (uint8, same grid), and whether the image was stripped already.

    Args:
        image: MR of any contrast, canonical orientation.
        weights: folder with the trained network.

    Raises:
        UnusableInput: `mask`, the answer is no adult brain: volume, shape or parts are wrong.
    """
    network = MaskUNet()
    network.load_state_dict(load_file(weights / WEIGHTS))
    grid = make_working_grid(image)
    small = sitk.GetArrayFromImage(resample(image, grid)).astype(np.float32)
    with torch.inference_mode():
        x = torch.from_numpy(_to_unit(small))[None, None]
        odds = network.eval()(x)[0, 0].numpy()
    if _is_stripped(small, odds > 0):
        stripped = True
        array = sitk.GetArrayFromImage(image)
        inside = _largest_part(array > NONZERO_SHARE * array.max())
    else:
        stripped = False
        odds_image = sitk.GetImageFromArray(odds)
        odds_image.CopyInformation(grid)
        fine = sitk.Resample(odds_image, image, sitk.Transform(), sitk.sitkLinear, -10.0)
        inside = _largest_part(sitk.GetArrayFromImage(fine) > 0)
    check_brain(inside, image.GetSpacing())
    answer = sitk.GetImageFromArray(inside.astype(np.uint8))
    answer.CopyInformation(image)
    return answer, stripped


def check_brain(mask: MaskArray, spacing_xyz: Sequence[float]) -> None:
    """Check that a mask could be an adult brain.

    Raises:
        UnusableInput: `mask`, with the volume or extent seen and wanted.
    """
    volume = float(mask.sum()) * float(np.prod(spacing_xyz)) / 1000
    if not BRAIN_ML[0] <= volume <= BRAIN_ML[1]:
        raise UnusableInput(
            "mask",
            f"the brain mask holds {volume:.0f} ml, wanted {BRAIN_ML[0]:.0f} to {BRAIN_ML[1]:.0f}; "
            "the image is no whole adult brain, or the mask failed",
        )
    extents = []
    for axis in range(3):
        filled = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        extents.append((filled[-1] - filled[0] + 1) * spacing_xyz[2 - axis])
    if max(extents) > LARGEST_EXTENT_RATIO * min(extents) or max(extents) > LONGEST_EXTENT_MM:
        sizes = " x ".join(f"{e:.0f}" for e in extents)
        raise UnusableInput("mask", f"the brain mask measures {sizes} mm, which is no brain")


def train_brain_mask(
    heads: Sequence[Head], folder: Path, *, seed: int, steps: int, batch: int = 2
) -> None:
    """Train the network on heads with random contrast and geometry, and write its weights."""
    torch.manual_seed(seed)
    generator = np.random.default_rng(seed)
    network = MaskUNet().train()
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    started = time.monotonic()
    for step in range(steps):
        drawn = [
            _augment(heads[int(generator.integers(len(heads)))], generator) for _ in range(batch)
        ]
        x = torch.from_numpy(np.stack([_to_unit(h.image) for h in drawn]))[:, None]
        y = torch.from_numpy(np.stack([h.brain for h in drawn]).astype(np.float32))[:, None]
        with mixed_precision(x.device):
            odds = network(x)
        odds = odds.float()
        p = torch.sigmoid(odds)
        dice = 1 - (2 * (p * y).sum() + 1) / (p.sum() + y.sum() + 1)
        loss = functional.binary_cross_entropy_with_logits(odds, y) + dice
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        if (step + 1) % 100 == 0:
            logger.info(
                "mask step %d loss %.4f %.0f s",
                step + 1,
                float(loss.detach()),
                time.monotonic() - started,
            )
    folder.mkdir(parents=True, exist_ok=True)
    save_file(network.state_dict(), folder / WEIGHTS)


def _to_unit(array: FloatArray) -> FloatArray:
    low, high = np.percentile(array, [1, 99.5])
    unit: FloatArray = np.clip((array - low) / max(float(high - low), 1e-6), 0, 1.5)
    return unit.astype(np.float32)


def _largest_part(mask: NDArray[np.bool_]) -> MaskArray:
    labels, count = ndimage.label(mask)
    if count == 0:
        raise UnusableInput("mask", "no brain was found in the image")
    sizes = ndimage.sum_labels(mask, labels, range(1, count + 1))
    if sizes.max() < LARGEST_PART_SHARE * sizes.sum():
        raise UnusableInput("mask", "the brain mask falls apart into several parts")
    part = labels == 1 + int(np.argmax(sizes))
    box = bounding_box(part, 0)
    part[box] = ndimage.binary_fill_holes(part[box])
    return np.asarray(part)


def _is_stripped(small: FloatArray, brain: MaskArray) -> bool:
    """Whether hardly anything but air lies outside the brain, on the working grid."""
    body = mask_body(small)
    near = ndimage.binary_dilation(brain, iterations=2)
    return bool((body & ~near).sum() < STRIPPED_SHARE * body.sum())


def _augment(head: Head, generator: np.random.Generator) -> Head:
    angles = np.deg2rad(generator.uniform(-20, 20, 3))
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        a, b = (i for i in range(3) if i != axis)
        turn = np.eye(3)
        turn[a, a] = turn[b, b] = np.cos(angle)
        turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
        matrix = matrix @ turn
    matrix = matrix @ np.diag(generator.uniform(0.85, 1.15, 3))
    if happens(generator, 0.5):
        matrix = matrix @ np.diag([1.0, 1.0, -1.0])
    middle = (np.array(SHAPE) - 1) / 2
    offset = middle - matrix @ (middle + generator.uniform(-6, 6, 3))
    image = ndimage.affine_transform(head.image, matrix, offset, order=1)
    brain = ndimage.affine_transform(head.brain.astype(np.float32), matrix, offset, order=1) > HALF
    if happens(generator, 0.35):  # the neck or the crown lies outside the field of view
        cut = int(generator.integers(0, 14))
        if happens(generator, 0.7):
            image[:cut] = 0
            brain[:cut] = False
        else:
            image[SHAPE[0] - cut // 3 :] = 0
            brain[SHAPE[0] - cut // 3 :] = False
    image = _to_unit(image)
    air = image < AIR
    if happens(generator, 0.7):  # another contrast: a random piecewise linear curve
        knots = np.linspace(0, 1.5, 7)
        curve = np.concatenate([[0.0], generator.uniform(0.05, 1.0, 6)])
        image = np.where(air, image, np.interp(image, knots, curve))
    coarse = generator.normal(0, 0.2, (4, 4, 4))
    image = image * np.exp(ndimage.zoom(coarse, np.array(SHAPE) / 4, order=1))
    if happens(generator, 0.4):  # thick slices along a random axis
        sigma = [0.0, 0.0, 0.0]
        sigma[int(generator.integers(3))] = float(generator.uniform(0.3, 1.0))
        image = ndimage.gaussian_filter(image, sigma)
    image = image + np.abs(generator.normal(0, generator.uniform(0, 0.06), SHAPE))
    if happens(generator, 0.15):  # a stripped brain is a brain
        image = np.where(brain, image, 0)
    return Head(image=image.astype(np.float32), brain=np.asarray(brain))


def render_heads(
    anatomy: Path, brain_labels: Sequence[int], *, count: int, seed: int
) -> list[Head]:
    """Return one anatomy as heads whose tissues have random means and spreads (Billot 2023).

    Args:
        anatomy: MINC 1 file of tissue labels, axes (z, y, x) towards head, front and right.
        brain_labels: labels that are brain.
        count: how many contrasts.
        seed: of the contrasts.
    """
    import nibabel  # noqa: PLC0415 - of the extra `train` only

    generator = np.random.default_rng(seed)
    stored = nibabel.minc1.load(anatomy)
    labels = np.rint(np.asarray(stored.dataobj)).astype(np.uint8)
    image = sitk.GetImageFromArray(np.ascontiguousarray(labels[:, ::-1, ::-1]))
    image.SetSpacing([float(s) for s in reversed(stored.header.get_zooms())])
    image = to_canonical(image)
    grid = make_working_grid(sitk.Cast(image > 0, sitk.sitkFloat32) * 100)
    tissues = sitk.GetArrayFromImage(
        sitk.Resample(image, grid, sitk.Transform(), sitk.sitkNearestNeighbor)
    )
    solid = ndimage.binary_closing(np.isin(tissues, brain_labels), iterations=2)
    brain = np.asarray(ndimage.binary_fill_holes(solid))
    return [_paint(tissues, brain, generator) for _ in range(count)]


def _paint(labels: NDArray[np.uint8], brain: MaskArray, generator: np.random.Generator) -> Head:
    image = np.zeros(SHAPE, np.float32)
    for tissue in range(1, int(labels.max()) + 1):
        where = labels == tissue
        mean, spread = generator.uniform(0.05, 1.0), generator.uniform(0.01, 0.1)
        image[where] = generator.normal(mean, spread, int(where.sum()))
    image = ndimage.gaussian_filter(image, 0.5)
    return Head(image=np.clip(image, 0, None).astype(np.float32), brain=brain)


def read_head(image_path: Path, brain_path: Path) -> Head:
    """Read a whole head and its brain labels onto the working grid."""
    image = to_canonical(sitk.ReadImage(image_path, sitk.sitkFloat32))
    brain = to_canonical(sitk.ReadImage(brain_path, sitk.sitkFloat32))
    grid = make_working_grid(image)
    solid = sitk.BinaryFillhole(
        sitk.BinaryMorphologicalClosing(sitk.Cast(brain > HALF, sitk.sitkUInt8), (2, 2, 2))
    )
    small = sitk.GetArrayFromImage(resample(image, grid)).astype(np.float32)
    inside = sitk.GetArrayFromImage(
        sitk.Resample(sitk.Cast(solid, sitk.sitkFloat32), grid, sitk.Transform(), sitk.sitkLinear)
    )
    return Head(image=small, brain=inside > HALF)
