"""Fit of a CT to an MR of the same body, which lay otherwise: deformable and smooth.

    CT by the frame of reference → features of 3 mm → knots 20 mm apart → one displacement

The frame of reference that both share is the rigid part: bones lie on one another by it.

A limb is pressed flat by one table and hangs in the coil of another, and a sarcoma grows between
two scans. What is descended on is the sum of four terms: the difference of self-similarities
(MIND-SSC, Heinrich 2013, MICCAI), which mean the same in both modalities and count more about bone;
the difference of the distances to the skin; how bright the MR is where the CT has cortical bone,
which no MR shows; and the bending of the knots. What lies outside the CT's field of view counts
nowhere. Gradients are torch's, one thread, no chance: the same images give the same fit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813
import torch
from numpy.typing import NDArray
from scipy import ndimage, stats
from torch import Tensor
from torch.nn import functional

from synthesis.preprocessing import resample, solidify
from synthesis.types import FloatArray, MaskArray

HU_OUTSIDE = -1024.0
SKIN_HU, TABLE_VOXELS = -400.0, 2
"""Below it is air; what is thinner than twice so many voxels is cloth and table."""
BLANK_VOXELS = 2
"""Fewer zeros side by side may be air."""
MARGIN_MM = 24.0
"""About the grid, from where tissue may be drawn in."""
SHRINK = (1, 3, 3)
"""Of the grid that is descended on: slices are about three pixels apart."""
MOST_MM = 20.0
"""Distances to the skin are cut off there."""
HUBER_MM = 3.0
KNOTS_MM = 20.0
STEPS, STEP_MM = 70, 0.7
BONE_NEARBY, SKIN_WEIGHT, BONE_WEIGHT, BEND_WEIGHT = 6.0, 0.02, 0.3, 1.5
FOLD_WEIGHT, SQUEEZED = 20.0, 0.4
"""A map that takes a voxel from a smaller volume than `SQUEEZED` is on its way to a fold."""
LEAST_VOLUME = 0.1
"""Where the map takes a voxel from less it folds, or nearly so: nothing is known there."""
FEWEST_BONE = 50.0
"""Voxels; fewer pull at nothing."""
CORTICAL_HU, SOFT_HU = 500.0, (-200.0, 200.0)
FEWEST_CORTICAL = 100
NEIGHBORS = ((-1, 0, 0), (1, 0, 0), (0, -1, 0), (0, 1, 0), (0, 0, -1), (0, 0, 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """Where points of the MR lie in the CT.

    Attributes:
        transform: maps LPS millimeters of the MR to those of the CT.
        shared: where the bodies of both lie and the map does not fold, on the MR's grid: only there
            a CT is known.
        record: JSON-able: what was found, and how well the two agree before and after.
    """

    transform: sitk.Transform
    shared: MaskArray
    record: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pair:
    """What is descended on: tensors (1, channels, slices, rows, columns) on the shrunk grid.

    Attributes:
        spacing: of it, in mm.
        start: of the fixed grid within the moving one, in voxels.
        similarity, skin, dark: of the MR.
        inside: where the MR is looked at; not where it has no data.
        moving: 12 similarities, distance to the skin, field of view, bone, about bone: of the CT.
    """

    spacing: Tensor
    start: Tensor
    similarity: Tensor
    skin: Tensor
    dark: Tensor
    inside: Tensor
    moving: Tensor


def fit_body(mr: sitk.Image, ct: sitk.Image, body: MaskArray) -> Fit:
    """Return how a CT must be bent to lie on an MR.

    Args:
        mr: float32 on the grid of the fit.
        ct: HU, the frame of reference is the MR's but for how the body lies.
        body: of the MR, on its grid.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        pair = _make_pair(mr, ct, body)
        knots = _descend(pair)
        bent = _spread(knots, (body.shape[0], body.shape[1], body.shape[2]))
        stretch = _measure_stretch(bent, mr.GetSpacing()[::-1]).numpy()
    finally:
        torch.set_num_threads(threads)
    displacement = bent.numpy()
    transform = _as_transform(displacement, mr)
    before = _compare(mr, ct, body, sitk.Transform(3, sitk.sitkIdentity))[1]
    shared, after = _compare(mr, ct, body, transform)
    length = np.linalg.norm(displacement, axis=-1)[body]
    figures = {
        **{f"{name}_before": value for name, value in before.items()},
        **{f"{name}_after": value for name, value in after.items()},
        "moved_mm": float(length.mean()),
        "most_moved_mm": float(length.max()),
        "least_volume": float(stretch[body].min()),
        "most_volume": float(stretch[body].max()),
    }
    return Fit(
        transform=transform,
        shared=shared & (stretch > LEAST_VOLUME),
        record={
            "figures": {name: round(value, 4) for name, value in figures.items()},
            "knots_mm": np.round(knots.numpy()[0], 3).tolist(),
        },
    )


def find_ct_body(hounsfield: FloatArray) -> MaskArray:
    """Return the body in a CT, without the table.

    Raises:
        UnusableInput: `mask`, there is only air.
    """
    return solidify(ndimage.binary_opening(hounsfield > SKIN_HU, iterations=TABLE_VOXELS))


def _make_pair(mr: sitk.Image, ct: sitk.Image, body: MaskArray) -> _Pair:
    wide, margin = _pad(mr)
    spacing = mr.GetSpacing()[::-1]
    hounsfield = sitk.GetArrayFromImage(resample(ct, wide, outside=HU_OUTSIDE)).astype(np.float32)
    seen = _find_view(ct, wide, sitk.Transform(3, sitk.sitkIdentity))
    array = sitk.GetArrayFromImage(mr).astype(np.float32)
    blank = _find_blank(array)
    low, high = np.percentile(array[body], [0.5, 95])
    fixed = _shrink(np.clip((array - low) / (high - low), -0.2, 1.5))
    bone = _as_tensor(np.clip((hounsfield - 300) / 400, 0, 1))
    bone = functional.avg_pool3d(bone, SHRINK, SHRINK)
    small = [s * k for s, k in zip(spacing, SHRINK, strict=True)]
    moving = (
        _describe(_shrink(np.clip(hounsfield / 400, -1.5, 2))),
        # outside the field of view there may be body or air: no skin is known there
        _measure_depth(find_ct_body(hounsfield) | ~seen, small),
        _shrink(seen),
        bone,
        functional.max_pool3d(bone, (3, 5, 5), 1, (1, 2, 2)),
    )
    return _Pair(
        spacing=torch.tensor(small),
        start=torch.tensor([m / k for m, k in zip(margin, SHRINK, strict=True)]),
        similarity=_describe(fixed),
        skin=_measure_depth(body | blank, small),
        dark=fixed.clamp(0, 1),
        inside=(_shrink(ndimage.binary_dilation(body, iterations=4) & ~blank) > 0.5).float(),  # noqa: PLR2004
        moving=torch.cat(moving, 1),
    )


def _descend(pair: _Pair) -> Tensor:
    """Return the displacement of each knot in mm."""
    shape = (pair.inside.shape[2], pair.inside.shape[3], pair.inside.shape[4])
    counts = [
        max(4, round(n * float(s) / KNOTS_MM) + 3) for n, s in zip(shape, pair.spacing, strict=True)
    ]
    knots = torch.zeros(1, 3, *counts, requires_grad=True)
    optimizer = torch.optim.Adam([knots], lr=STEP_MM)
    falling = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: 1.05 - k / STEPS)
    for _ in range(STEPS):
        slopes = sum((knots.diff(dim=axis) ** 2).mean() for axis in (2, 3, 4)) / KNOTS_MM**2
        displacement = _spread(knots, shape)
        squeezed = (SQUEEZED - _measure_stretch(displacement, pair.spacing.tolist())).clamp(min=0)
        loss = _measure_misfit(pair, displacement) + BEND_WEIGHT * slopes
        loss = loss + FOLD_WEIGHT * (squeezed**2).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        falling.step()
    return knots.detach()


def _measure_misfit(pair: _Pair, displacement: Tensor) -> Tensor:
    """Return similarity, skin and bone; displacement is (slices, rows, columns, 3) in mm."""
    shape = displacement.shape[:3]
    base = torch.stack(
        torch.meshgrid(*[torch.arange(n, dtype=torch.float32) for n in shape], indexing="ij"), -1
    )
    place = base + pair.start + displacement / pair.spacing
    size = torch.tensor(pair.moving.shape[2:], dtype=torch.float32)
    where = (2 * place / (size - 1) - 1).flip(-1)[None]
    moved = functional.grid_sample(
        pair.moving, where, mode="bilinear", padding_mode="border", align_corners=True
    )
    similarity, skin, view, bone, about = torch.split(moved, [12, 1, 1, 1, 1], dim=1)
    seen = pair.inside * (view > 0.9).float()  # noqa: PLR2004
    weight = seen * (1 + BONE_NEARBY * about)
    loss = (((similarity - pair.similarity) ** 2).mean(1, keepdim=True) * weight).sum()
    loss = loss / weight.sum().clamp(min=1)
    near = seen * (pair.skin.abs() < MOST_MM - 1).float()
    apart = functional.huber_loss(skin, pair.skin, reduction="none", delta=HUBER_MM)
    loss = loss + SKIN_WEIGHT * (apart * near).sum() / near.sum().clamp(min=1)
    cortical = bone * seen
    bright = (cortical * pair.dark).sum() / (cortical.sum() + FEWEST_BONE)
    whole: Tensor = loss + BONE_WEIGHT * bright
    return whole


def _describe(image: Tensor) -> Tensor:
    """Return MIND-SSC: twelve self-similarities of each voxel's six neighbors."""
    distances = []
    for first, one in enumerate(NEIGHBORS):
        for other in NEIGHBORS[:first]:
            if not any(np.add(one, other)):  # opposite to one another
                continue
            difference = (_shift(image, one) - _shift(image, other)) ** 2
            wide = functional.pad(difference, (1,) * 6, mode="replicate")
            distances.append(functional.avg_pool3d(wide, 3, 1))
    stacked = torch.cat(distances, 1)
    stacked = stacked - stacked.min(1, keepdim=True)[0]
    variance = stacked.mean(1, keepdim=True)
    middle = float(variance.mean())
    return torch.exp(-stacked / variance.clamp(middle * 1e-3, middle * 1e3))


def _shift(image: Tensor, offset: Sequence[int]) -> Tensor:
    wide = functional.pad(image, (1,) * 6, mode="replicate")
    window = (slice(1 + o, 1 + o + n) for o, n in zip(offset, image.shape[2:], strict=True))
    return wide[(slice(None), slice(None), *window)]


def _measure_depth(body: MaskArray, spacing: Sequence[float]) -> Tensor:
    """Return the distance to the skin in mm on the shrunk grid, positive inside."""
    body = (_shrink(body)[0, 0] > 0.5).numpy()  # noqa: PLR2004
    if body.all():
        return _as_tensor(np.full(body.shape, MOST_MM))
    inner = ndimage.distance_transform_edt(body, sampling=spacing)
    outer = ndimage.distance_transform_edt(~body, sampling=spacing)
    return _as_tensor(np.clip(inner - outer, -MOST_MM, MOST_MM))


def _as_tensor(array: NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))[None, None]


def _shrink(array: NDArray[Any]) -> Tensor:
    return functional.avg_pool3d(_as_tensor(array), SHRINK, SHRINK)


def _spread(knots: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Return the displacement of each voxel, (slices, rows, columns, 3)."""
    dense = functional.interpolate(knots, size=shape, mode="trilinear", align_corners=True)
    return dense[0].permute(1, 2, 3, 0)


def _pad(grid: sitk.Image) -> tuple[sitk.Image, list[int]]:
    """Return a grid with a margin, and the margin in voxels, slices first."""
    margin = [round(MARGIN_MM / s) for s in grid.GetSpacing()]
    wide = sitk.Image(
        [n + 2 * m for n, m in zip(grid.GetSize(), margin, strict=True)], sitk.sitkFloat32
    )
    wide.SetSpacing(grid.GetSpacing())
    wide.SetDirection(grid.GetDirection())
    wide.SetOrigin(grid.TransformContinuousIndexToPhysicalPoint([-float(m) for m in margin]))
    return wide, margin[::-1]


def _find_view(ct: sitk.Image, grid: sitk.Image, transform: sitk.Transform) -> MaskArray:
    """Return where the CT has data."""
    ones = sitk.Image(ct.GetSize(), sitk.sitkUInt8) + 1
    ones.CopyInformation(ct)
    placed = sitk.GetArrayFromImage(resample(ones, grid, transform, nearest=True))
    return np.asarray(placed > 0, np.bool_)


def _find_blank(array: FloatArray) -> MaskArray:
    """Return where an MR is 0 and nothing else: resampled from no data, be it body or air."""
    return np.asarray(ndimage.binary_opening(array == 0, iterations=BLANK_VOXELS), np.bool_)


def _as_transform(displacement: FloatArray, grid: sitk.Image) -> sitk.Transform:
    """Return a displacement along the grid's axes, slices first, in mm, as a transform."""
    direction = np.array(grid.GetDirection()).reshape(3, 3)
    vectors = displacement[..., ::-1].astype(np.float64) @ direction.T
    field = sitk.GetImageFromArray(np.ascontiguousarray(vectors), isVector=True)
    field.CopyInformation(grid)
    return sitk.DisplacementFieldTransform(field)


def _compare(
    mr: sitk.Image, ct: sitk.Image, body: MaskArray, transform: sitk.Transform
) -> tuple[MaskArray, dict[str, float]]:
    """Return where both have body, and how well the bodies and the bones lie on one another."""
    placed = resample(ct, mr, transform, outside=HU_OUTSIDE)
    hounsfield = sitk.GetArrayFromImage(placed).astype(np.float32)
    seen = _find_view(ct, mr, transform) & ~_find_blank(sitk.GetArrayFromImage(mr))
    other = find_ct_body(hounsfield)
    shared = body & other & seen
    figures = {
        "dice": 2 * float(shared.sum()) / float((body & seen).sum() + (other & seen).sum()),
        "shared": float(shared.sum() / body.sum()),
    }
    cortical = shared & (hounsfield > CORTICAL_HU)
    if int(cortical.sum()) >= FEWEST_CORTICAL:
        soft = shared & (hounsfield > SOFT_HU[0]) & (hounsfield < SOFT_HU[1])
        soft &= ndimage.binary_dilation(cortical, iterations=6)
        array = sitk.GetArrayFromImage(mr)
        ranks = stats.rankdata(np.concatenate([array[cortical], array[soft]]))
        count, others = int(cortical.sum()), int(soft.sum())
        brighter = (ranks[:count].sum() - count * (count + 1) / 2) / (count * max(others, 1))
        figures["bone_darker"] = float(1 - brighter)
    return shared, figures


def _measure_stretch(displacement: Tensor, spacing: Sequence[float]) -> Tensor:
    """Return the determinant of the map's derivative: the volume that a voxel came from."""
    slopes = [
        torch.stack(torch.gradient(displacement[..., k], spacing=list(spacing)), -1)
        for k in range(3)
    ]
    determinant: Tensor = torch.linalg.det(torch.stack(slopes, -2) + torch.eye(3))
    return determinant
