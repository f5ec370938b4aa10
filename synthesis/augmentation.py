"""Random training samples for 2.5-D methods, drawn on the device that learns from them.

What differs between sites and must not matter is drawn at random (domain randomization in the
sense of Billot 2023): view, slice thickness, rotation, scale and side of the head; and, on the
sources only, a misalignment between contrasts; on a share of the samples the sources' response
curve, a little of another contrast's weighting, gain, bias field, resolution and noise. All
contrasts and the target share the geometry that is drawn. Choices are drawn by NumPy, so that they
are the same on every device; the grain of the noise is the device's own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from synthesis.chance import happens
from synthesis.patches import VIEWS
from synthesis.types import Case, ContrastLabel, SynthesisTask

THICKNESSES = (1, 1, 1, 2, 3, 4, 5)
PARTS = 3
"""A thick slice is the mean of at most this many thin ones."""
LEFT_RIGHT = 2
"""The axis of a canonical volume along which a head may be mirrored."""
KNOTS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5)
"""Where a response curve may bend; 0.5 is median tissue and stays where it is."""
BLUR_RADIUS = 4
BLURRED_SHARE = 0.3
HALF = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Training samples, normalized.

    Attributes:
        stack: (batch, sources, slices, rows, columns); absent sources are zero.
        condition: (batch, sources + targets), availability of each source, one-hot target.
        truth: (batch, 1, rows, columns), or with all slices if they were asked for.
        weight: same shape as `truth`, one inside the mask.
        labels: (batch, rows, columns) int64 of the center slice, -1 where the person has none; None
            if they were not asked for.
    """

    stack: Tensor
    condition: Tensor
    truth: Tensor
    weight: Tensor
    labels: Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Person:
    """One case on the device.

    Attributes:
        volume: (contrasts + 1, slices, rows, columns); the last channel is the mask.
        present: the contrasts that the person has.
        filled: per slice axis, the slices that hold some of the mask.
        middles: per slice axis, (slices, 2) center of the mask in each slice.
        labels: (1, slices, rows, columns) float; -1 where the person has none.
    """

    volume: Tensor
    present: tuple[ContrastLabel, ...]
    filled: tuple[NDArray[np.int64], ...]
    middles: tuple[NDArray[np.float64], ...]
    labels: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class _Choice:
    """What is drawn for one sample.

    Attributes:
        chosen: the sources that are given, the first of them the reference.
        points: (3, 4) from (slice, row, column, 1) of the sample to the sampling coordinates of
            `grid_sample`.
        moved: the same for each channel that lies elsewhere.
    """

    person: _Person
    target: ContrastLabel
    chosen: tuple[ContrastLabel, ...]
    thickness: int
    points: Tensor
    moved: Mapping[int, Tensor]


class Stock:
    """The training people on a device, from which batches are drawn.

    Args:
        cases: training people.
        task: what is learnt.
        device: where the images lie and batches are made.
    """

    def __init__(self, cases: Sequence[Case], task: SynthesisTask, device: torch.device) -> None:
        self.task = task
        self.device = device
        self.labels = tuple(dict.fromkeys([*task.sources, *task.targets]))
        self._people = [self._load(case) for case in cases]
        # a person with more contrasts teaches more tasks
        weights = np.array([len(p.present) * (len(p.present) - 1) for p in self._people], float)
        self._weights = weights / weights.sum()

    def draw(
        self,
        count: int,
        *,
        size: int,
        slices: int,
        views: tuple[int, ...],
        generator: np.random.Generator,
        randomized: float = 1.0,
        whole: bool = False,
        labels: bool = False,
    ) -> Batch:
        """Draw a batch of `count` samples of `slices` x `size` x `size` pixels.

        Args:
            count: samples.
            size: rows and columns.
            slices: odd, or even if all of them are asked for.
            views: slice axes to draw from.
            generator: of all choices.
            randomized: share of the samples whose sources come as of another scanner.
            whole: truth and weight of all slices and not of the center slice alone.
            labels: the center slice's labels, too.
        """
        picks = generator.choice(len(self._people), count, p=self._weights)
        choices = [self._choose(self._people[int(i)], views, generator) for i in picks]
        # (batch, contrasts + 1, slices, rows, columns)
        cuts = torch.stack([_cut_all(choice, slices, size) for choice in choices])
        mask = cuts[:, -1:]
        inside = mask > HALF
        # a voxel at the surface is brain, not a mixture with the padding outside
        images = torch.where(inside, cuts[:, :-1] / mask.clamp_min(HALF), 0)
        condition, others = self._describe(choices, generator)
        channels = [self.labels.index(s) for s in self.task.sources]
        stack = images[:, channels]
        chosen = np.flatnonzero(generator.random(count) < randomized)
        if chosen.size:
            rows = torch.from_numpy(chosen).to(self.device)
            disturbed = _disturb(stack[rows], images[rows], others.to(self.device)[rows], generator)
            stack = stack.index_copy(0, rows, disturbed)
        given = condition[:, : len(channels), None, None, None].to(self.device)
        middle = slices // 2
        kept = slice(None) if whole else middle
        targets = torch.tensor([self.labels.index(c.target) for c in choices], device=self.device)
        return Batch(
            stack=torch.where(inside, stack * given, 0),
            condition=condition.to(self.device),
            truth=images[torch.arange(count, device=self.device), targets, kept][:, None],
            weight=inside[:, 0, kept][:, None].float(),
            labels=_cut_labels(choices, size) if labels else None,
        )

    def _load(self, case: Case) -> _Person:
        volume = torch.zeros(len(self.labels) + 1, *case.mask.shape)
        for channel, label in enumerate(self.labels):
            if label in case.images:
                volume[channel] = torch.from_numpy(case.images[label] * case.mask)
        volume[-1] = torch.from_numpy(case.mask.astype(np.float32))
        filled, middles = [], []
        for axis in VIEWS:
            mask = np.moveaxis(case.mask, axis, 0)
            areas = np.maximum(mask.sum(axis=(1, 2)), 1)
            rows = (mask.sum(axis=2) * np.arange(mask.shape[1])).sum(axis=1) / areas
            columns = (mask.sum(axis=1) * np.arange(mask.shape[2])).sum(axis=1) / areas
            filled.append(np.flatnonzero(mask.any(axis=(1, 2))))
            middles.append(np.stack([rows, columns], axis=1))
        labels = np.full(case.mask.shape, -1) if case.labels is None else case.labels
        return _Person(
            volume=volume.to(self.device),
            labels=torch.from_numpy(labels.astype(np.float32))[None].to(self.device),
            present=tuple(label for label in self.labels if label in case.images),
            filled=tuple(filled),
            middles=tuple(middles),
        )

    def _choose(
        self, person: _Person, views: tuple[int, ...], generator: np.random.Generator
    ) -> _Choice:
        targets = [t for t in self.task.targets if t in person.present]
        target = targets[int(generator.integers(len(targets)))]
        sources = [s for s in self.task.sources if s in person.present and s != target]
        count = int(generator.integers(1, len(sources) + 1))
        drawn = [sources[int(i)] for i in generator.permutation(len(sources))[:count]]
        chosen = tuple(dict.fromkeys([*self.task.required, *drawn]))
        axis = int(generator.choice(views))
        thickness = int(generator.choice(THICKNESSES)) if views == VIEWS else 1
        matrix, center = _draw_geometry(person, axis, thickness, generator)
        to_unit = _sampling_coordinates(tuple(person.volume.shape[1:]))
        moved = {}
        for label in chosen[1:]:
            if happens(generator, 0.3):
                move = _draw_turn(np.full(3, 1.5), generator)
                move[:3, 3] = generator.uniform(-1, 1, 3)
                moved[self.labels.index(label)] = to_unit @ center @ move @ matrix
        return _Choice(
            person=person,
            target=target,
            chosen=chosen,
            thickness=thickness,
            points=self._place(to_unit @ center @ matrix),
            moved={channel: self._place(each) for channel, each in moved.items()},
        )

    def _place(self, matrix: NDArray[np.float64]) -> Tensor:
        return torch.from_numpy(matrix[:3].astype(np.float32)).to(self.device)

    def _describe(
        self, choices: Sequence[_Choice], generator: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return the conditions, and for each source the channel of another contrast."""
        sources, targets = self.task.sources, self.task.targets
        condition = torch.zeros(len(choices), len(sources) + len(targets))
        others = torch.zeros(len(choices), len(sources), dtype=torch.long)
        for row, choice in enumerate(choices):
            condition[row, len(sources) + targets.index(choice.target)] = 1
            for channel, source in enumerate(sources):
                condition[row, channel] = float(source in choice.chosen)
                # never the target: its own signal in a source would be a hint that no scanner gives
                usable = [c for c in choice.person.present if c != choice.target]
                other = usable[int(generator.integers(len(usable)))]
                others[row, channel] = self.labels.index(other)
        return condition, others


def _draw_geometry(
    person: _Person, axis: int, thickness: int, generator: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return 4x4 matrices: sample coordinates about its middle to voxels, and its middle's place.

    Both work on (slice, row, column) of the canonical volume.
    """
    plain = happens(generator, 0.3)
    place = int(generator.choice(person.filled[axis]))
    middle = person.middles[axis][place] + generator.uniform(-16, 16, 2)
    order = [axis, *(a for a in VIEWS if a != axis)]
    permute = np.zeros((4, 4))
    permute[order, range(3)] = 1
    permute[3, 3] = 1
    center = np.eye(4)
    center[order, 3] = [place, *(np.rint(middle) if plain else middle)]
    change = np.eye(4) if plain else _draw_turn(np.array([12.0, 8.0, 8.0]), generator)
    if not plain:
        change[:3, :3] *= generator.uniform(0.88, 1.12, 3)
    if happens(generator, 0.5):
        change[LEFT_RIGHT] *= -1
    pitch = np.diag([float(thickness), 1.0, 1.0, 1.0])
    return change @ permute @ pitch, center


def _draw_turn(degrees: NDArray[np.float64], generator: np.random.Generator) -> NDArray[np.float64]:
    """Return a 4x4 rotation by up to `degrees` about each axis."""
    turn = np.eye(4)
    for axis, limit in enumerate(degrees):
        angle = np.deg2rad(generator.uniform(-limit, limit))
        a, b = (i for i in range(3) if i != axis)
        step = np.eye(4)
        step[a, a] = step[b, b] = np.cos(angle)
        step[a, b], step[b, a] = -np.sin(angle), np.sin(angle)
        turn = turn @ step
    return turn


def _sampling_coordinates(shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Return the 4x4 matrix from voxels to -1 … 1, turned to x, y, z as `grid_sample` wants."""
    matrix = np.zeros((4, 4))
    for axis, size in enumerate(shape):
        matrix[2 - axis, axis] = 2 / max(size - 1, 1)
        matrix[2 - axis, 3] = -1
    matrix[3, 3] = 1
    return matrix


def _cut_all(choice: _Choice, slices: int, size: int) -> Tensor:
    """Return (contrasts + 1, slices, size, size) of a person."""
    volume, thickness = choice.person.volume, choice.thickness
    cut = _cut(volume, choice.points, slices, size, thickness)
    for channel, points in choice.moved.items():
        cut[channel] = _cut(volume[channel : channel + 1], points, slices, size, thickness)[0]
    return cut


def _cut_labels(choices: Sequence[_Choice], size: int) -> Tensor:
    """Return (batch, size, size), the center slice's labels where the reference lies."""
    cuts = [_cut(c.person.labels, c.points, 1, size, 1, mode="nearest")[0, 0] for c in choices]
    return torch.stack(cuts).long()


def _cut(
    volume: Tensor,
    points: Tensor,
    slices: int,
    size: int,
    thickness: int,
    *,
    mode: str = "bilinear",
) -> Tensor:
    """Return (channels, slices, size, size), all channels sampled at the same places."""
    parts = min(thickness, PARTS)
    device = volume.device
    within = (torch.arange(parts, device=device) - (parts - 1) / 2) / parts
    along = ((torch.arange(slices, device=device) - slices // 2)[:, None] + within).flatten()
    across = torch.arange(size, device=device, dtype=torch.float32) - size // 2
    # the places are sums of what slice, row and column add; a matrix product is many times slower
    slice_, row, column, origin = points.unbind(dim=1)
    places = (along[:, None] * slice_ + origin)[:, None] + across[:, None] * row
    grid = places[:, :, None] + across[:, None] * column  # (slices * parts, size, size, 3)
    # slices go where a batch goes, since a CPU shares nothing else out among its cores
    found = functional.grid_sample(
        volume.expand(len(grid), *volume.shape), grid[:, None], mode=mode, align_corners=True
    )
    parted = found.view(slices, parts, len(volume), size, size)
    return parted.mean(dim=1).transpose(0, 1)


def _disturb(
    stack: Tensor, images: Tensor, others: Tensor, generator: np.random.Generator
) -> Tensor:
    """Return the sources (batch, sources, slices, rows, columns) as another scanner's.

    Args:
        stack: the sources.
        images: (batch, contrasts, slices, rows, columns).
        others: (batch, sources) channel of `images` that may mix into each source.
        generator: of the choices.
    """
    batch, sources, _, rows, columns = stack.shape
    device = stack.device
    shape = (batch, sources, 1, 1, 1)

    def drawn(values: NDArray[np.float64], probability: float, neutral: float = 0.0) -> Tensor:
        kept = np.where(generator.random(shape) < probability, values, neutral)
        return torch.from_numpy(kept.astype(np.float32)).to(device)

    mixed = images[torch.arange(batch, device=device)[:, None], others]
    out = stack + drawn(generator.normal(0, 0.1, shape), 0.25) * (mixed - HALF)
    out = _bend(out, [drawn(np.exp(generator.normal(0, 0.25, shape)), 0.6, 1) for _ in KNOTS])
    gamma = drawn(np.exp(generator.uniform(-0.35, 0.35, shape)), 0.5, 1)
    out = HALF * (2 * out).clamp_min(1e-4) ** gamma
    gain = drawn(generator.uniform(0.88, 1.12, shape), 0.6, 1)
    out = out * gain + drawn(generator.uniform(-0.05, 0.05, shape), 0.6)
    coarse = torch.from_numpy(generator.normal(0, 1, (batch, sources, 4, 4)).astype(np.float32))
    field = functional.interpolate(
        coarse.to(device), (rows, columns), mode="bicubic", align_corners=True
    )
    out = out * torch.exp(drawn(generator.uniform(0, 0.15, shape), 0.5) * field[:, :, None])
    out = _blur(out, generator)
    seed = int(generator.integers(2**31))
    grain = torch.randn(
        stack.shape, generator=torch.Generator(device).manual_seed(seed), device=device
    )
    coarse_grain = 2 * functional.avg_pool3d(grain, (1, 3, 3), stride=1, padding=(0, 1, 1))
    is_coarse = drawn(np.ones(shape), 0.5)
    grain = torch.lerp(grain, coarse_grain, is_coarse)
    return out + drawn(generator.uniform(0, 0.06, shape), 0.5) * grain


def _bend(values: Tensor, slopes: Sequence[Tensor]) -> Tensor:
    """Return the values through a rising curve of straight pieces that leaves 0.5 in place."""
    ends = (*KNOTS[1:], float("inf"))
    middle = sum(
        slope * (min(end, HALF) - start)
        for slope, start, end in zip(slopes, KNOTS, ends, strict=True)
        if start < HALF
    )
    out = slopes[0] * values.clamp_max(0)
    for slope, start, end in zip(slopes, KNOTS, ends, strict=True):
        out.addcmul_(slope, (values - start).clamp_(0, end - start))
    return out.mul_(HALF / middle)


def _blur(stack: Tensor, generator: np.random.Generator) -> Tensor:
    """Return the sources, some of them smoothed by a Gaussian that differs by direction."""
    count = stack.shape[0] * stack.shape[1]
    chosen = np.flatnonzero(generator.random(count) < BLURRED_SHARE)
    if chosen.size == 0:
        return stack
    sigmas = generator.uniform(0.2, 1.6, (chosen.size, 2))
    sigmas[np.arange(chosen.size), generator.integers(0, 2, chosen.size)] *= 0.4
    distance = np.arange(-BLUR_RADIUS, BLUR_RADIUS + 1)
    kernels = np.exp(-0.5 * (distance / sigmas[..., None]) ** 2)
    kernels /= kernels.sum(axis=-1, keepdims=True)
    weights = torch.from_numpy(kernels.astype(np.float32)).to(stack.device)
    flat = stack.flatten(0, 1)  # (batch * sources, slices, rows, columns)
    index = torch.from_numpy(chosen).to(stack.device)
    x = flat[index].transpose(0, 1)  # (slices, chosen, rows, columns)
    for direction, window in ((0, (2 * BLUR_RADIUS + 1, 1)), (1, (1, 2 * BLUR_RADIUS + 1))):
        x = functional.conv2d(
            x,
            weights[:, direction].reshape(-1, 1, *window),
            padding="same",
            groups=chosen.size,
        )
    return flat.index_copy(0, index, x.transpose(0, 1)).view(stack.shape)
