"""The words of synthesis: labels, volumes, tasks, cases, predictions, results.

A `Volume` is `highdicom.Volume`: array (slices, rows, columns), affine from index to
LPS millimetres.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Literal, NewType, Self

import highdicom
import numpy as np
from numpy.typing import NDArray

ContrastLabel = NewType("ContrastLabel", str)
FloatArray = NDArray[np.float32]
MaskArray = NDArray[np.bool_]
Volume = highdicom.Volume

Precision = Literal["float32", "bfloat16"]
"""Of a network's arithmetic. bfloat16 is used where it is near enough to float32."""

UNITS_PER_NORMALIZED = 1000.0
"""Of MR and CT targets: MR median tissue 0.5 is 500 on the standard scale, CT 0.04 is 40 HU."""


class Verdict(StrEnum):
    """What the quality gate says of a result."""

    PASS = "pass"  # noqa: S105 - a verdict, not a secret
    WARN = "warn"
    REFUSE = "refuse"


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchor:
    """The tissue that ties an image's scale: `percentile` inside the mask goes to `value`.

    In a brain the median is ordinary tissue in every contrast, whereas a high percentile is lesion,
    vessel or fluid in one person and tissue in the next. In a limb the median is fat or muscle as
    the field of view has it, but a high percentile is fat on every T1w image.
    """

    percentile: float = 50.0
    value: float = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class SynthesisTask:
    """What a method learns: any of `sources` to one of `targets`.

    Attributes:
        sources: contrasts that the method may be given, in channel order.
        targets: contrasts that it can make.
        required: sources that it cannot do without (empty: any one is enough).
    """

    sources: tuple[ContrastLabel, ...]
    targets: tuple[ContrastLabel, ...]
    required: tuple[ContrastLabel, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One person's aligned images on one grid, normalized.

    Attributes:
        subject: id of the person; splits go by it.
        images: label to array (slices, rows, columns), normalized units.
        mask: where the images mean something.
        labels: segmentation on the same grid, or None.
        spacing: (slices, rows, columns) in mm.
        judged: the part of the mask where the images are known to show the same tissue; all of it
            when None.
    """

    subject: str
    images: Mapping[ContrastLabel, FloatArray]
    mask: MaskArray
    spacing: tuple[float, float, float]
    labels: NDArray[np.uint8] | None = None
    judged: MaskArray | None = None

    @property
    def known(self) -> Self:
        """The same person, masked to where the images are known to show the same tissue."""
        return self if self.judged is None else replace(self, mask=self.judged)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """A method's answer in normalized units, arrays (slices, rows, columns) on the sources' grid.

    Attributes:
        lower: 5th percentile, or None when the method cannot say.
        upper: 95th percentile, or None.
    """

    mean: FloatArray
    lower: FloatArray | None = None
    upper: FloatArray | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityReport:
    """The gate's answer.

    Attributes:
        verdict: pass, warn or refuse.
        reasons: sentences, the gravest first; empty when it passes.
        figures: name to number, as measured.
    """

    verdict: Verdict
    reasons: tuple[str, ...] = ()
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Synthesis:
    """The engine's answer, on the grid of the reference source.

    Attributes:
        volume: float32 in the target's units (HU, SUV, or the card's standard scale for MR);
            voxels that the sources do not cover hold `pad_value`.
        half_width: float32, half the width of the 90 % band in the same units, or None.
        covered: bool, where `volume` is synthesis and not padding; same grid.
        pad_value: declared value outside.
        units: "HU", "SUVbw" or "standard scale".
        description: short words for the reader, e.g. "brain only" or "" .
        quality: the gate's answer.
        record: JSON-able list of the steps taken, in order, with their parameters.
        seconds: step name to wall-clock seconds.
    """

    volume: Volume
    half_width: Volume | None
    covered: Volume
    pad_value: float
    units: str
    description: str
    quality: QualityReport
    record: list[dict[str, Any]]
    seconds: Mapping[str, float]
