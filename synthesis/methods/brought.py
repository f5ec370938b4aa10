"""A network that was trained elsewhere: normalized volumes to the layout of its card, and back.

What the card's `parameters` say is all that differs between one such network and the next: how its
axes run, how values are scaled, how large its tiles are, what its output channels mean. Those who
read the weights, `onnx_network` and `monai_bundle`, supply `open` and `infer`.
"""

import itertools
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from synthesis.errors import SynthesisError, UntrustedModel, UnusableInput
from synthesis.patches import (
    THICK_FROM,
    batches,
    bounding_box,
    tile_starts,
    tile_weights,
)
from synthesis.preprocessing import UNIT_SCALES
from synthesis.synthesizer import Parameters, Synthesizer
from synthesis.types import (
    Case,
    ContrastLabel,
    FloatArray,
    MaskArray,
    Prediction,
)

CANONICAL = "SPL"
OPPOSITE = {"S": "I", "I": "S", "P": "A", "A": "P", "L": "R", "R": "L"}
SMALLEST_DEVIATION = 1e-6


def _check_axes(axes: str) -> str:
    if sorted(map(_axis_of, axes)) != [0, 1, 2]:
        raise ValueError(f"seen {axes!r}, wanted one of S I, one of P A and one of L R: SPL, RAS")
    return axes


def _axis_of(letter: str) -> int:
    """Return the canonical axis along which a letter points, or -1."""
    return CANONICAL.find(letter if letter in CANONICAL else OPPOSITE.get(letter, "?"))


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Values(_Strict):
    """How the values of a source enter the network.

    Every kind is measured inside the mask and linear in the scanner's own units.

    Attributes:
        kind: `anchor` as the card's `anchor` says; `zscore` to mean 0 and standard deviation 1;
            `percentiles` from `percentiles` to `to`.
        percentiles: lower and upper, 0 to 100.
        to: where these go.
        clip: whether values beyond `to` are cut off.
    """

    kind: Literal["anchor", "zscore", "percentiles"] = "anchor"
    percentiles: tuple[float, float] = (0.5, 99.5)
    to: tuple[float, float] = (0.0, 1.0)
    clip: bool = False

    def apply(self, array: FloatArray, mask: MaskArray) -> FloatArray:
        """Return the values that the network is given.

        Raises:
            UnusableInput: `constant`, there is nothing to scale by.
        """
        if self.kind == "anchor":
            return array
        values = array[mask].astype(np.float64)
        if self.kind == "zscore":
            low, width, start, length = float(values.mean()), float(values.std()), 0.0, 1.0
        else:
            low, high = (float(p) for p in np.percentile(values, self.percentiles))
            width, start, length = high - low, self.to[0], self.to[1] - self.to[0]
        if not width > SMALLEST_DEVIATION:
            raise UnusableInput("constant", "the image is constant inside the mask")
        scaled = (array - low) * (length / width) + start
        return np.asarray(np.clip(scaled, *self.to) if self.clip else scaled, dtype=np.float32)


class Output(_Strict):
    """What the network answers for one target.

    Attributes:
        mean: output channel of the target.
        band: channels of its 5th and 95th percentile, where there are some.
        multiply: with `add`, from the channel's values to the target's units (HU, SUVbw, or the
            standard scale, on which the median of the tissue in the mask is 500).
        add: see `multiply`.
        units: of what comes out of that, as the card says of the target.
    """

    mean: int = 0
    band: tuple[int, int] | None = None
    multiply: float
    add: float = 0.0
    units: Literal["HU", "SUVbw", "standard scale"] = "standard scale"


class BroughtParameters(Parameters):
    """What the card says of a network's layout.

    Attributes:
        layout: `2d` (slice by slice; tensors are batch, channels, rows, columns), `2.5d` (the same
            with neighboring slices as channels) or `3d` (batch, channels and three axes). The
            channels are the card's sources in order.
        slices: of each source in `2.5d`, odd: all slices of the first source, then of the next.
        axes: where the tensor's three axes run, as letters: `SPL` is towards the head, the back and
            the left, `RAS` what MONAI calls so. In 2d and 2.5d slices are cut along the first.
        multiple: the size of an axis must be divisible by this.
        patch: size of a tile, without the slice axis in 2d and 2.5d; none: all at once.
        overlap: share of a tile that its neighbor has in common with it.
        batch: slices or tiles that are given at once.
        values: how sources enter; one that is not named enters as `anchor` says.
        outside: value of the network's input outside the mask.
        flags: whether absent sources are allowed: their channels are `outside`, and a second input
            (batch, sources) says 1 for those that are there.
        thick_slices: whether a 3d network, or one that looks along other axes, takes volumes whose
            slices are thick.
        outputs: for each target.
    """

    layout: Literal["2d", "2.5d", "3d"]
    slices: Annotated[int, Field(ge=1)] = 1
    axes: Annotated[str, AfterValidator(_check_axes)] = CANONICAL
    multiple: Annotated[int, Field(ge=1)] = 1
    patch: tuple[int, ...] | None = None
    overlap: Annotated[float, Field(ge=0, lt=1)] = 0.5
    batch: Annotated[int, Field(ge=1)] = 1
    values: Mapping[str, Values] = {}
    outside: float = 0.0
    flags: bool = False
    thick_slices: bool = False
    outputs: Mapping[str, Output]

    @property
    def dimensions(self) -> int:
        """How many axes of space a tensor has."""
        return 3 if self.layout == "3d" else 2


P = TypeVar("P", bound=BroughtParameters)


class Brought(Synthesizer[P]):
    """A network that was trained elsewhere."""

    @abstractmethod
    def open(self, folder: Path) -> None:
        """Read the network from the folder of its learnt files.

        Raises:
            UntrustedModel: the network is not what the card says.
            MissingExtra: the library that reads it is not installed.
        """

    @abstractmethod
    def infer(self, tensor: FloatArray, flags: FloatArray) -> NDArray[np.floating]:
        """Return the network's answer to one batch, channels second.

        Args:
            tensor: (batch, channels, ...) as the layout says.
            flags: (batch, sources), only for networks that take flags.

        Raises:
            UntrustedModel: the network does not take such a tensor.
        """

    @property
    def channels(self) -> int:
        """Number of input channels that the card promises the network."""
        return len(self.task.sources) * self.parameters.slices

    def fit(
        self,
        cases: Sequence[Case],
        *,
        validation: Sequence[Case] = (),
        seed: int,
        budget: timedelta | None = None,
        checkpoint: Path | None = None,
    ) -> Self:
        """Refuse: it is trained where it came from."""
        raise SynthesisError("a network that was trained elsewhere cannot be trained here")

    def save(self, folder: Path) -> None:
        """Refuse: its files are what they were."""
        raise SynthesisError("the files of a network that was trained elsewhere stay as they are")

    def restore(self, folder: Path) -> Self:
        """Check the card against itself, then read the network."""
        p, task = self.parameters, self.task
        problems = []
        if set(p.outputs) != set(task.targets):
            problems.append(f"outputs: seen {sorted(p.outputs)}, wanted {sorted(task.targets)}")
        if not p.flags and set(task.required) != set(task.sources):
            problems.append(
                f"required: seen {list(task.required)}, wanted all of {list(task.sources)}: "
                "the network has no flags for absent ones"
            )
        if unknown := set(p.values) - set(task.sources):
            problems.append(f"values: seen {sorted(unknown)}, wanted sources")
        if p.slices % 2 == 0 or (p.slices > 1) != (p.layout == "2.5d"):
            problems.append(f"slices: seen {p.slices}, wanted 1, or in 2.5d an odd number above")
        if p.patch is not None and len(p.patch) != p.dimensions:
            problems.append(f"patch: seen {list(p.patch)}, wanted {p.dimensions} sizes")
        if p.patch is not None and any(size % p.multiple for size in p.patch):
            problems.append(f"patch: seen {list(p.patch)}, wanted multiples of {p.multiple}")
        if problems:
            raise UntrustedModel(f"the card's parameters: {'; '.join(problems)}")
        self.open(folder)
        return self

    def predict(
        self,
        sources: Mapping[ContrastLabel, FloatArray],
        *,
        target: ContrastLabel,
        mask: MaskArray,
        spacing: tuple[float, float, float],
        seed: int,
    ) -> Prediction:
        """Scale, turn, tile, infer, and turn back.

        Raises:
            UnusableInput: `spacing`, the slices are too thick for the network.
        """
        self.check_request(sources, target, mask)
        self._check_spacing(spacing)
        p = self.parameters
        box = bounding_box(mask)
        inside = mask[box]
        volume = np.full((len(self.task.sources), *inside.shape), p.outside, np.float32)
        flags = np.zeros(len(self.task.sources), np.float32)
        for label, array in sources.items():
            channel = self.task.sources.index(label)
            scaled = p.values.get(label, Values()).apply(array, mask)
            volume[channel] = np.where(inside, scaled[box], p.outside)
            flags[channel] = 1
        answer = self._turn_back(self._sweep(self._cut(self._turn(volume)), flags))
        output = p.outputs[target]

        def pick(channel: int) -> FloatArray:
            if channel >= len(answer):
                raise UntrustedModel(
                    f"outputs: seen channel {channel}, but the network answers {len(answer)}"
                )
            full = np.zeros(mask.shape, np.float32)
            in_units = answer[channel] * output.multiply + output.add
            full[box] = np.where(inside, UNIT_SCALES[output.units].forward(in_units), 0)
            return full

        lower, upper = map(pick, output.band) if output.band else (None, None)
        return Prediction(mean=pick(output.mean), lower=lower, upper=upper)

    def _check_spacing(self, spacing: tuple[float, float, float]) -> None:
        """Check that what is thick is the distance between slices that are cut anyway."""
        p = self.parameters
        slice_axis = _axis_of(p.axes[0]) if p.dimensions == 2 else None  # noqa: PLR2004
        fine = min(spacing)
        thick = [a for a, s in enumerate(spacing) if s > THICK_FROM * fine and a != slice_axis]
        if thick and not p.thick_slices:
            raise UnusableInput(
                "spacing",
                f"voxels of {' x '.join(f'{s:.2f}' for s in spacing)} mm are too thick for this "
                f"network, which wants at most {THICK_FROM} times the finest spacing",
            )

    def _turn(self, volume: FloatArray) -> FloatArray:
        """Return (channels, ...) with the axes of the network."""
        turned = volume.transpose(0, *(1 + _axis_of(c) for c in self.parameters.axes))
        return turned[(slice(None), *self._flips())]

    def _turn_back(self, answer: FloatArray) -> FloatArray:
        axes = [1 + _axis_of(c) for c in self.parameters.axes]
        return answer[(slice(None), *self._flips())].transpose(
            0, *(1 + int(a) for a in np.argsort(axes))
        )

    def _flips(self) -> list[slice]:
        return [slice(None, None, 1 if c in CANONICAL else -1) for c in self.parameters.axes]

    def _cut(self, volume: FloatArray) -> FloatArray:
        """Return the items that the network is given: (items, channels, space...)."""
        p = self.parameters
        if p.layout == "3d":
            return volume[None]
        half = p.slices // 2
        wide = np.pad(volume, ((0, 0), (half, half), (0, 0), (0, 0)), mode="edge")
        stacks = np.lib.stride_tricks.sliding_window_view(wide, p.slices, axis=1)
        # (sources, items, rows, columns, slices), a view
        items = stacks.transpose(1, 0, 4, 2, 3)
        return items.reshape(items.shape[0], self.channels, *items.shape[3:])

    def _sweep(self, items: FloatArray, flags: FloatArray) -> FloatArray:
        """Return (outputs, three axes): every item in tiles that overlap, put together again."""
        p = self.parameters
        space = items.shape[2:]
        tile = p.patch or tuple(size + -size % p.multiple for size in space)
        short = [(0, max(0, t - s)) for t, s in zip(tile, space, strict=True)]
        padded = np.pad(items, ((0, 0), (0, 0), *short), constant_values=p.outside)
        starts = [
            tile_starts(size, t, p.overlap) for size, t in zip(padded.shape[2:], tile, strict=True)
        ]
        weights = tile_weights(tile) if p.patch else np.ones(tile, np.float32)
        total, weight = np.zeros(0, np.float32), np.zeros(padded.shape[2:], np.float32)
        for corner in itertools.product(*starts):
            place = tuple(slice(c, c + t) for c, t in zip(corner, tile, strict=True))
            weight[place] += weights
            for batch in batches(len(items), p.batch):
                tensor = np.ascontiguousarray(padded[(batch, slice(None), *place)])
                answer = np.asarray(self.infer(tensor, np.tile(flags, (len(tensor), 1))))
                self._check_answer(answer, tensor)
                if not total.size:
                    total = np.zeros((len(items), answer.shape[1], *weight.shape), np.float32)
                total[(batch, slice(None), *place)] += answer * weights
        total /= weight
        whole = total[(slice(None), slice(None), *(slice(size) for size in space))]
        return np.asarray(whole[0] if p.layout == "3d" else np.moveaxis(whole, 0, 1))

    def _check_answer(self, answer: NDArray[np.floating], tensor: FloatArray) -> None:
        seen, wanted = answer.shape, (len(tensor), "outputs", *tensor.shape[2:])
        if answer.ndim != tensor.ndim or seen[0] != wanted[0] or seen[2:] != wanted[2:]:
            raise UntrustedModel(f"the network answers {seen} to {tensor.shape}, wanted {wanted}")
