"""The networks, once, read top to bottom; most are one 2.5-D U-Net in space-to-depth form.

Space-to-depth (Shi 2016, "sub-pixel convolution") puts two by two pixels into channels, so that the
U-Net (Ronneberger 2015) works at half resolution: a quarter of the cost for the same receptive
field. Which sources are there and which target is wanted enter as FiLM scale and shift (Perez
2018), so that one set of weights serves every subset of sources and every target.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

LEAK = 0.01
DETAIL = 8
"""Channels at full resolution that a trunk ends in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UNetShape:
    """The sizes of a `ConditionedUNet`.

    Attributes:
        sources: number of source channels.
        targets: number of targets that the condition can name.
        slices: neighboring slices given for each source; odd.
        width: channels of the first level; doubled at each level, at most 8 times.
        levels: number of resolutions.
    """

    sources: int
    targets: int
    slices: int = 5
    width: int = 32
    levels: int = 4

    @property
    def condition(self) -> int:
        """Length of the condition vector: availability, then the one-hot target."""
        return self.sources + self.targets

    @property
    def multiple(self) -> int:
        """Rows and columns must be divisible by this."""
        return 1 << self.levels


class ConditionedBlock(nn.Module):
    """Two 3x3 convolutions, each with batch norm, FiLM and leaky ReLU.

    Batch norm, whose statistics are frozen at inference, keeps neighboring slices and tiles at the
    same level; instance norm would re-scale each slice by its own content.
    """

    def __init__(self, inputs: int, outputs: int, condition: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            nn.Conv2d(channels, outputs, 3, padding=1, bias=False) for channels in (inputs, outputs)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(outputs) for _ in range(2))
        films = [nn.Linear(condition, 2 * outputs) for _ in range(2)]
        for film in films:
            nn.init.zeros_(film.weight)
            nn.init.zeros_(film.bias)
        self.films = nn.ModuleList(films)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Return (batch, outputs, rows, columns)."""
        for convolution, norm, film in zip(self.convolutions, self.norms, self.films, strict=True):
            scale, shift = film(condition)[:, :, None, None].chunk(2, dim=1)
            x = norm(convolution(x)) * (1 + scale) + shift
            x = functional.leaky_relu(x, LEAK)  # (batch, outputs, rows, columns)
        return x


class Trunk(nn.Module):
    """The U-Net in space-to-depth form that the networks of slices share.

    Args:
        inputs: channels at full resolution.
        condition: length of the condition.
        width: channels of the first level; doubled at each level, at most 8 times.
        levels: number of resolutions; rows and columns are multiples of 2**levels.
    """

    def __init__(self, inputs: int, condition: int, width: int, levels: int) -> None:
        super().__init__()
        widths = [width * min(2**level, 8) for level in range(levels)]
        self.down = nn.ModuleList(
            ConditionedBlock(i, o, condition)
            for i, o in zip([4 * inputs, *widths[:-1]], widths, strict=True)
        )
        self.up = nn.ModuleList(
            ConditionedBlock(widths[level] + widths[level + 1], widths[level], condition)
            for level in reversed(range(levels - 1))
        )
        self.head = nn.Conv2d(widths[0], 4 * DETAIL, 1)

    def decode(self, x: Tensor, condition: Tensor) -> list[Tensor]:
        """Return the maps of the decoder, coarse to fine.

        The last one is (batch, DETAIL, rows, columns).
        """
        h = functional.pixel_unshuffle(x, 2)  # (batch, 4 * inputs, rows/2, columns/2)
        skips: list[Tensor] = []
        for level, block in enumerate(self.down):
            if level:
                h = functional.max_pool2d(h, 2)
            h = block(h, condition)
            skips.append(h)
        maps = [h]
        for block, skip in zip(self.up, reversed(skips[:-1]), strict=True):
            h = functional.interpolate(h, scale_factor=2.0, mode="nearest")
            h = block(torch.cat([h, skip], dim=1), condition)
            maps.append(h)
        return [*maps, functional.pixel_shuffle(self.head(h), 2)]


class LinearBase(nn.Linear):
    """A linear map of the center slices, chosen by the condition.

    It is the part of an answer that needs no network.
    """

    def __init__(self, condition: int, sources: int) -> None:
        super().__init__(condition, sources + 1)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, center: Tensor, condition: Tensor) -> Tensor:  # type: ignore[override]
        """Map (batch, sources, ...) to (batch, 1, ...)."""
        weights = super().forward(condition).float()
        weights = weights.view(*weights.shape, *[1] * (center.ndim - 2))
        return (weights[:, :-1] * center.float()).sum(1, keepdim=True) + weights[:, -1:]


def choose_target(every: Tensor, condition: Tensor, answers: int) -> Tensor:
    """Return what a last layer says of the wanted target.

    Each target has a last layer of its own: what is bright in one is dark in another, and the maps
    before it are few.

    Args:
        every: (batch, targets * answers, ...).
        condition: (batch, ... + targets), which ends with the one-hot target.
        answers: channels of one target.

    Returns:
        (batch, answers, ...).
    """
    parted = every.view(every.shape[0], -1, answers, *every.shape[2:])
    chosen = condition[:, -parted.shape[1] :]
    return (parted * chosen.view(*chosen.shape, *[1] * (every.ndim - 1))).sum(dim=1)


def add_band(every: Tensor, condition: Tensor, base: Tensor) -> Tensor:
    """Return the wanted target's mean, 5th and 95th percentile.

    Args:
        every: (batch, targets * 3, ...), raw channels of every target.
        condition: see `choose_target`.
        base: (batch, 1, ...), the part that needs no network.
    """
    mean, below, above = choose_target(every, condition, 3).float().chunk(3, dim=1)
    mean = mean + base
    lower = mean - functional.softplus(below - 3)
    upper = mean + functional.softplus(above - 3)
    return torch.cat([mean, lower, upper], dim=1)


class ConditionedUNet(Trunk):
    """Neighboring slices of any subset of sources to the center slice of a target, with a band.

    Args:
        shape: of the network.
        extras: channels at full resolution that are given beside the sources.
    """

    def __init__(self, shape: UNetShape, extras: int = 0) -> None:
        super().__init__(
            shape.sources * shape.slices + extras, shape.condition, shape.width, shape.levels
        )
        self.refine = nn.Sequential(
            nn.Conv2d(DETAIL + shape.sources, 16, 3, padding=1),
            nn.LeakyReLU(LEAK),
            nn.Conv2d(16, 3 * shape.targets, 3, padding=1),
        )
        self.linear = LinearBase(shape.condition, shape.sources)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Predict the center slice.

        Args:
            x: (batch, sources, slices, rows, columns), normalized; absent sources are zero.
            condition: (batch, sources + targets), availability 0 or 1 and the one-hot target.

        Returns:
            (batch, 3, rows, columns): mean, 5th and 95th percentile, normalized.
        """
        center = x[:, :, x.shape[2] // 2]  # (batch, sources, rows, columns)
        h = self.decode(x.flatten(1, 2), condition)[-1]
        return self.answer(h, center, condition)

    def answer(self, h: Tensor, center: Tensor, condition: Tensor) -> Tensor:
        """Return the answer from the decoder's finest map and the center slices."""
        every = self.refine(torch.cat([h, center], dim=1))
        return add_band(every, condition, self.linear(center, condition))


class DilatedCNN(nn.Module):
    """A few convolutions at full resolution, some of them dilated, on a linear base.

    The patch networks of Sevetlidis 2016 and Nie 2016 without pooling; dilation (Yu 2016) gives
    them a view of 21 x 21 pixels.
    """

    DILATIONS = (1, 1, 2, 4, 1)

    def __init__(self, shape: UNetShape) -> None:
        super().__init__()
        inputs = shape.sources * shape.slices + shape.condition
        layers: list[nn.Module] = []
        for dilation in self.DILATIONS:
            layers += [
                nn.Conv2d(inputs, shape.width, 3, padding=dilation, dilation=dilation),
                nn.LeakyReLU(LEAK),
            ]
            inputs = shape.width
        self.layers = nn.Sequential(*layers, nn.Conv2d(inputs, 3 * shape.targets, 3, padding=1))
        self.linear = LinearBase(shape.condition, shape.sources)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Predict the center slice, as `ConditionedUNet` does."""
        center = x[:, :, x.shape[2] // 2]
        known = condition[:, :, None, None].expand(-1, -1, *x.shape[3:])
        every = self.layers(torch.cat([x.flatten(1, 2), known], dim=1))
        return add_band(every, condition, self.linear(center, condition))


class VolumeUNet(nn.Module):
    """A 3-D U-Net.

    Args:
        inputs: channels.
        outputs: channels.
        width: channels of the first level, doubled at each level.
        levels: number of resolutions; slices, rows and columns are multiples of 2**(levels - 1).
        grouped: group norm, which needs no large batch, and not batch norm, which keeps tiles at
            one level.
    """

    def __init__(
        self, inputs: int, outputs: int, width: int, levels: int, *, grouped: bool
    ) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(levels)]
        self.down = nn.ModuleList(
            _volume_block(i, o, grouped=grouped)
            for i, o in zip([inputs, *widths[:-1]], widths, strict=True)
        )
        self.up = nn.ModuleList(
            _volume_block(widths[level] + widths[level + 1], widths[level], grouped=grouped)
            for level in reversed(range(levels - 1))
        )
        self.head = nn.Conv3d(width, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, inputs, slices, rows, columns) to (batch, outputs, ...) of the same size."""
        skips: list[Tensor] = []
        for level, block in enumerate(self.down):
            if level:
                x = functional.max_pool3d(x, 2)
            x = block(x)  # (batch, width * 2**level, slices, rows, columns) / 2**level
            skips.append(x)
        for block, skip in zip(self.up, reversed(skips[:-1]), strict=True):
            x = functional.interpolate(x, scale_factor=2.0, mode="nearest")
            x = block(torch.cat([x, skip], dim=1))
        return self.head(x)  # type: ignore[no-any-return]  # (batch, outputs, slices, rows, columns)


class MaskUNet(VolumeUNet):
    """A small 3-D U-Net from one volume of any contrast, in 0 to 1, to the log-odds of brain."""

    def __init__(self, width: int = 8) -> None:
        super().__init__(1, 1, width, 4, grouped=True)


class ConditionedVolumeUNet(VolumeUNet):
    """Volumes of any subset of sources to the volume of a target, with a band."""

    def __init__(self, *, sources: int, targets: int, width: int, levels: int) -> None:
        condition = sources + targets
        super().__init__(sources + condition, 3 * targets, width, levels, grouped=False)
        self.linear = LinearBase(condition, sources)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:  # type: ignore[override]
        """Predict the volume.

        Args:
            x: (batch, sources, slices, rows, columns), normalized; absent sources are zero.
            condition: (batch, sources + targets), availability 0 or 1 and the one-hot target.

        Returns:
            (batch, 3, slices, rows, columns): mean, 5th and 95th percentile, normalized.
        """
        known = condition[:, :, None, None, None].expand(-1, -1, *x.shape[2:])
        every = super().forward(torch.cat([x, known], dim=1))
        return add_band(every, condition, self.linear(x, condition))


def _volume_block(inputs: int, outputs: int, *, grouped: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        layers += [
            nn.Conv3d(channels, outputs, 3, padding=1, bias=False),
            nn.GroupNorm(4, outputs) if grouped else nn.BatchNorm3d(outputs),
            nn.LeakyReLU(LEAK),
        ]
    return nn.Sequential(*layers)


class DiffusionUNet(Trunk):
    """From the sources, a state of the target and its time to an estimate for the center slice.

    Networks work on standardized values; `levels` holds mean and standard deviation of each source,
    then of each target.

    Args:
        shape: of the network.
    """

    TIMES = 8
    """Frequencies of the time, each as sine and cosine (Vaswani 2017)."""

    def __init__(self, shape: UNetShape) -> None:
        self.shape = shape
        condition = shape.condition + 2 * self.TIMES
        super().__init__(shape.sources * shape.slices + 1, condition, shape.width, shape.levels)
        self.refine = nn.Sequential(
            nn.Conv2d(DETAIL + shape.sources + 1, 16, 3, padding=1),
            nn.LeakyReLU(LEAK),
            nn.Conv2d(16, shape.targets, 3, padding=1),
        )
        self.levels: Tensor
        self.register_buffer("levels", torch.tensor([[0.0, 1.0]]).repeat(shape.condition, 1))

    def forward(self, x: Tensor, condition: Tensor, state: Tensor, time: Tensor) -> Tensor:
        """Estimate what the method has learnt to.

        Args:
            x: (batch, sources, slices, rows, columns), standardized; absent sources are zero.
            condition: (batch, sources + targets), availability 0 or 1 and the one-hot target.
            state: (batch, 1, rows, columns), standardized.
            time: (batch,), from 0 to 1.

        Returns:
            (batch, 1, rows, columns).
        """
        rates = math.pi * 2 ** torch.arange(self.TIMES, device=x.device)
        phase = time[:, None] * rates / 2
        known = torch.cat([condition, phase.sin(), phase.cos()], dim=1)
        center = x[:, :, x.shape[2] // 2]
        h = self.decode(torch.cat([x.flatten(1, 2), state], dim=1), known)[-1]
        every = self.refine(torch.cat([h, center, state], dim=1))
        return choose_target(every, condition, 1).float()

    def standardize(self, x: Tensor, condition: Tensor) -> Tensor:
        """Return the sources (batch, sources, slices, rows, columns) with mean 0 and deviation 1.

        Absent sources, and what is outside the mask, are zero before and after.
        """
        mean, deviation = self.levels[: self.shape.sources].T[:, None, :, None, None, None]
        given = condition[:, : self.shape.sources, None, None, None]
        return torch.where(x != 0, (x - mean) / deviation, 0) * given

    def start(self, x: Tensor, condition: Tensor) -> Tensor:
        """Return (batch, 1, rows, columns) the mean of the standardized sources that are there."""
        center = x[:, :, x.shape[2] // 2]
        given = condition[:, : self.shape.sources].sum(dim=1)[:, None, None, None]
        return center.sum(dim=1, keepdim=True) / given

    def target_level(self, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of each sample's target, (batch, 1, 1, 1)."""
        chosen = condition[:, self.shape.sources :] @ self.levels[self.shape.sources :]
        mean, deviation = chosen.T[:, :, None, None, None]
        return mean, deviation


class PatchDiscriminator(nn.Module):
    """Whether each patch of an image is real, given what it belongs to (Isola 2017, PatchGAN).

    Three convolutions of stride 2 and two of stride 1 see 70 x 70 pixels; spectral norm (Miyato
    2018) bounds their slope.

    Args:
        inputs: channels: the image and what it must fit to.
        condition: length of the condition.
        width: channels of the first layer.
    """

    def __init__(self, inputs: int, condition: int, width: int) -> None:
        super().__init__()
        channels = inputs + condition
        layers: list[nn.Module] = []
        for outputs, stride in ((width, 2), (2 * width, 2), (4 * width, 2), (8 * width, 1)):
            layers += [
                spectral_norm(nn.Conv2d(channels, outputs, 4, stride, 1)),
                nn.LeakyReLU(0.2),
            ]
            channels = outputs
        self.layers = nn.Sequential(*layers, spectral_norm(nn.Conv2d(channels, 1, 4, 1, 1)))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Map (batch, inputs, rows, columns), at least 32 x 32, to a score for each patch."""
        known = condition[:, :, None, None].expand(-1, -1, *x.shape[2:])
        return self.layers(torch.cat([x, known], dim=1)).float()  # type: ignore[no-any-return]


class RegistrationUNet(Trunk):
    """From two images to the shift of each pixel that lays the first onto the second.

    The demons' force (Thirion 1998), a first guess of the shift from each pixel alone, is given to
    the network, which has no product of its own to make it from.
    """

    FAINT = 0.02
    """Slopes below this are noise."""

    def __init__(self, condition: int, width: int, levels: int) -> None:
        super().__init__(4, condition, width, levels)
        self.shift = nn.Conv2d(DETAIL, 2, 3, padding=1)
        for parameter in self.shift.parameters():
            nn.init.zeros_(parameter)  # nothing moves at first

    def forward(self, moving: Tensor, fixed: Tensor, condition: Tensor) -> Tensor:
        """Return (batch, 2, rows, columns): shift along columns and rows, in pixels."""
        slope = slopes(fixed)[:, 0]  # (batch, 2, rows, columns)
        difference = fixed - moving
        length = slope.square().sum(dim=1, keepdim=True) + difference.square() + self.FAINT**2
        h = self.decode(torch.cat([moving, fixed, difference * slope / length], dim=1), condition)
        return self.shift(h[-1]).float()  # type: ignore[no-any-return]


def warp(image: Tensor, shift: Tensor) -> Tensor:
    """Return the image (batch, channels, rows, columns) taken at each pixel's place plus shift."""
    rows, columns = image.shape[2:]
    y, x = torch.meshgrid(
        torch.arange(rows, device=image.device),
        torch.arange(columns, device=image.device),
        indexing="ij",
    )
    across = 2 * (x + shift[:, 0]) / (columns - 1) - 1
    down = 2 * (y + shift[:, 1]) / (rows - 1) - 1
    grid = torch.stack([across, down], dim=-1)
    return functional.grid_sample(image, grid, padding_mode="border", align_corners=True)


class SegmentationUNet(Trunk):
    """From images of contrasts that the condition names to the log-odds of classes.

    Args:
        condition: length of the condition.
        classes: that are told apart.
        width: see `Trunk`.
        levels: see `Trunk`.
        images: at once: one of a contrast, or a channel of each contrast.
    """

    def __init__(
        self, condition: int, classes: int, width: int, levels: int, *, images: int = 1
    ) -> None:
        super().__init__(images, condition, width, levels)
        self.classify = nn.Conv2d(DETAIL + images, classes, 3, padding=1)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Map (batch, images, rows, columns) to (batch, classes, rows, columns)."""
        h = self.decode(x, condition)[-1]
        return self.classify(torch.cat([h, x], dim=1)).float()  # type: ignore[no-any-return]


class AttentiveUNet(ConditionedUNet):
    """A `ConditionedUNet` that is given edges and attends to what it takes for a lesion.

    Sobel's magnitude of each source is a further input (Yu 2019, Ea-GAN), and a branch says for
    each pixel how much its features count.
    """

    def __init__(self, shape: UNetShape) -> None:
        super().__init__(shape, extras=shape.sources)
        self.attention = nn.Sequential(
            nn.Conv2d(DETAIL + 2 * shape.sources, 16, 3, padding=1),
            nn.LeakyReLU(LEAK),
            nn.Conv2d(16, 1, 3, padding=1),
        )

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Predict the center slice, as `ConditionedUNet` does."""
        return self.attend(x, condition)[0]

    def attend(self, x: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Return the answer, and the log-odds (batch, 1, rows, columns) of being attended to."""
        center = x[:, :, x.shape[2] // 2]
        edges = sobel(center)
        h = self.decode(torch.cat([x.flatten(1, 2), edges], dim=1), condition)[-1]
        odds = self.attention(torch.cat([h, center, edges], dim=1))
        h = h * (1 + torch.sigmoid(odds))
        return self.answer(h, center, condition), odds.float()


def sobel(image: Tensor) -> Tensor:
    """Return the magnitude of Sobel's gradient of each channel of (batch, channels, rows, columns).

    A constant slope of one per pixel has the magnitude one.
    """
    # the root's slope is without bound at zero
    return (slopes(image).square().sum(dim=2) + 1e-8).sqrt()


def slopes(image: Tensor) -> Tensor:
    """Return Sobel's slopes along columns and rows, (batch, channels, 2, rows, columns)."""
    smooth = image.new_tensor([1.0, 2.0, 1.0]) / 4
    slope = image.new_tensor([-1.0, 0.0, 1.0]) / 2
    kernels = torch.stack([smooth[:, None] * slope, slope[:, None] * smooth])[:, None]
    flat = functional.pad(image.flatten(0, 1)[:, None], (1, 1, 1, 1), mode="replicate")
    return functional.conv2d(flat, kernels).view(*image.shape[:2], 2, *image.shape[2:])
