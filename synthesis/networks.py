"""The networks, once, read top to bottom: a conditioned 2.5-D U-Net in space-to-depth form.

Space-to-depth (Shi 2016, "sub-pixel convolution") puts two by two pixels into channels, so that the
U-Net (Ronneberger 2015) works at half resolution: a quarter of the cost for the same receptive
field. Which sources are there and which target is wanted enter as FiLM scale and shift (Perez
2018), so that one set of weights serves every subset of sources and every target.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

LEAK = 0.01


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


class ConditionedUNet(nn.Module):
    """Neighboring slices of any subset of sources to the center slice of a target, with a band."""

    def __init__(self, shape: UNetShape) -> None:
        super().__init__()
        self.shape = shape
        condition = shape.condition
        widths = [shape.width * min(2**level, 8) for level in range(shape.levels)]
        inputs = [4 * shape.sources * shape.slices, *widths[:-1]]
        self.down = nn.ModuleList(
            ConditionedBlock(i, o, condition) for i, o in zip(inputs, widths, strict=True)
        )
        self.up = nn.ModuleList(
            ConditionedBlock(widths[level] + widths[level + 1], widths[level], condition)
            for level in reversed(range(shape.levels - 1))
        )
        self.head = nn.Conv2d(widths[0], 4 * 8, 1)
        self.refine = nn.Sequential(
            nn.Conv2d(8 + shape.sources, 16, 3, padding=1),
            nn.LeakyReLU(LEAK),
            nn.Conv2d(16, 3, 3, padding=1),
        )
        # A linear map of the center slices, chosen by the condition: the part of the answer that
        # needs no network.
        self.linear = nn.Linear(condition, shape.sources + 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Predict the center slice.

        Args:
            x: (batch, sources, slices, rows, columns), normalized; absent sources are zero.
            condition: (batch, sources + targets), availability 0 or 1 and the one-hot target.

        Returns:
            (batch, 3, rows, columns): mean, 5th and 95th percentile, normalized.
        """
        center = x[:, :, x.shape[2] // 2]  # (batch, sources, rows, columns)
        h = functional.pixel_unshuffle(x.flatten(1, 2), 2)  # (batch, 4*C*S, rows/2, columns/2)
        skips: list[Tensor] = []
        for level, block in enumerate(self.down):
            if level:
                h = functional.max_pool2d(h, 2)
            h = block(h, condition)
            skips.append(h)
        for block, skip in zip(self.up, reversed(skips[:-1]), strict=True):
            h = functional.interpolate(h, scale_factor=2.0, mode="nearest")
            h = block(torch.cat([h, skip], dim=1), condition)
        h = functional.pixel_shuffle(self.head(h), 2)  # (batch, 8, rows, columns)
        mean, below, above = self.refine(torch.cat([h, center], dim=1)).float().chunk(3, dim=1)
        weights = self.linear(condition)[:, :, None, None].float()
        base = (weights[:, :-1] * center.float()).sum(1, keepdim=True) + weights[:, -1:]
        mean = mean + base  # (batch, 1, rows, columns)
        lower = mean - functional.softplus(below - 3)
        upper = mean + functional.softplus(above - 3)
        return torch.cat([mean, lower, upper], dim=1)


class MaskUNet(nn.Module):
    """A small 3-D U-Net from one volume of any contrast to the log-odds of brain."""

    LEVELS = 4

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(self.LEVELS)]
        self.down = nn.ModuleList(
            _volume_block(i, o) for i, o in zip([1, *widths[:-1]], widths, strict=True)
        )
        self.up = nn.ModuleList(
            _volume_block(widths[level] + widths[level + 1], widths[level])
            for level in reversed(range(self.LEVELS - 1))
        )
        self.head = nn.Conv3d(width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, 1, slices, rows, columns) in 0 to 1 to log-odds of the same shape.

        Slices, rows and columns must be multiples of 8.
        """
        skips: list[Tensor] = []
        for level, block in enumerate(self.down):
            if level:
                x = functional.max_pool3d(x, 2)
            x = block(x)  # (batch, width * 2**level, slices, rows, columns) / 2**level
            skips.append(x)
        for block, skip in zip(self.up, reversed(skips[:-1]), strict=True):
            x = functional.interpolate(x, scale_factor=2.0, mode="nearest")
            x = block(torch.cat([x, skip], dim=1))
        return self.head(x)  # type: ignore[no-any-return]  # (batch, 1, slices, rows, columns)


def _volume_block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(inputs, outputs, 3, padding=1, bias=False),
        nn.GroupNorm(4, outputs),
        nn.LeakyReLU(LEAK),
        nn.Conv3d(outputs, outputs, 3, padding=1, bias=False),
        nn.GroupNorm(4, outputs),
        nn.LeakyReLU(LEAK),
    )
