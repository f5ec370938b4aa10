"""Which of several series of one contrast is the best, and whether a series is good enough.

Pure: from headers to a choice and the reasons for it, which `routing` puts into plans and `explain`
prints. What a protocol needs of a slot and a model of its sources is a `rules.Quality`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dicom_node.conditions import Condition, matches
from dicom_node.domain import Series
from dicom_node.headers import FRAME_POSITIONS
from dicom_node.rules import Quality

COVERAGE = 0.7
"""A series whose extent is below this share of the longest candidate's shows a part of the anatomy
only, and comes after all that show it whole."""
ROUNDING_MM = 0.05
"""Scanners write 3 mm as 2.9999 or 3.0001; nobody means that by a limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """How large a stack of slices is.

    Attributes:
        extent: from the first slice to the last, in mm.
        spacing: between the centers of slices, in mm; 0 where there is one slice.
        slices: how many.
        field_of_view: the shorter side of a slice, in mm; 0 where the header does not say it.
    """

    extent: float
    spacing: float
    slices: int
    field_of_view: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One of several series.

    Attributes:
        why: in a sentence; empty when there was only one.
    """

    series: Series
    why: str


def measure(series: Series) -> Shape:
    """Return how large the stack of a series is, by its headers."""
    positions = [
        position
        for instance in series.instances
        for position in (instance.header or {}).get(
            FRAME_POSITIONS, [(instance.header or {}).get("ImagePositionPatient")]
        )
        if position
    ]
    header = read_facts(series)
    pixel = header.get("PixelSpacing") or header.get("ImagerPixelSpacing") or [0.0, 0.0]
    sides = (_number(header, "Rows") * pixel[0], _number(header, "Columns") * pixel[1])
    slices = len(positions)
    extent = float(np.linalg.norm(np.ptp(positions, axis=0))) if slices > 1 else 0.0
    spacing = extent / (slices - 1) if slices > 1 else 0.0
    return Shape(extent=extent, spacing=spacing, slices=slices, field_of_view=float(min(sides)))


def find_shortfall(series: Series, quality: Quality | None) -> str:
    """Return how a series falls short of `quality`, with the value seen; empty when it does not."""
    if quality is None:
        return ""
    shape = measure(series)
    told = [
        f"{name} is {seen:.1f} mm, wanted at {word} {wanted:g} mm"
        for name, seen, word, wanted in (
            ("the distance of its slices", shape.spacing, "most", quality.spacing_at_most_mm),
            ("its extent", shape.extent, "least", quality.coverage_at_least_mm),
            (
                "its field of view",
                shape.field_of_view,
                "least",
                quality.field_of_view_at_least_mm,
            ),
        )
        if wanted is not None
        and (seen > wanted + ROUNDING_MM if word == "most" else seen < wanted - ROUNDING_MM)
    ]
    attributes = series.label.attributes if series.label is not None else {}
    plane, dimension = attributes.get("plane"), attributes.get("dimension")
    if quality.planes is not None and plane not in quality.planes:
        told.append(f"its plane is {plane or 'unknown'}, wanted {' or '.join(quality.planes)}")
    if quality.dimension is not None and dimension != quality.dimension:
        told.append(f"it is {dimension or 'neither 2D nor 3D'}, wanted {quality.dimension}")
    return "; ".join(told)


def choose_series(
    candidates: Sequence[Series],
    *,
    degraded: Condition | None = None,
    quality: Quality | None = None,
) -> Choice:
    """Return the best of several series of one contrast, and why it and not another.

    What meets the needs of its slot comes first; then what shows the whole anatomy before what
    shows a part, what is not degraded, 3D before 2D, thinner slices, more slices, the last repeat.

    Args:
        candidates: at least one, all of which could be read as a volume.
        degraded: how a series shows that it is of less use.
        quality: what its slot needs.
    """
    shapes = {id(each): measure(each) for each in candidates}
    longest = max(shape.extent for shape in shapes.values())

    def rank(series: Series) -> dict[str, Any]:
        """Return reasons to pass the series over, gravest first, each with how much it weighs."""
        shape, header = shapes[id(series)], read_facts(series)
        return {
            "it does not meet what its slot needs": bool(find_shortfall(series, quality)),
            f"it covers {shape.extent:.0f} mm only": shape.extent < COVERAGE * longest,
            "its description says that it is degraded": (
                degraded is not None and matches(degraded, header)
            ),
            "it is 2D": header.get("MRAcquisitionType") != "3D",
            f"its slices are {shape.spacing:.1f} mm apart": round(shape.spacing, 1),
            f"it has {shape.slices} slices": -shape.slices,
            "it is an earlier repeat": (
                -_number(header, "SeriesNumber"),
                -_number(header, "AcquisitionNumber"),
            ),
            "it is as good, and its UID sorts after": (
                series.series_instance_uid,
                series.instances[0].sop_instance_uid,
            ),
        }

    ranks = sorted(
        ((rank(each), each) for each in candidates), key=lambda pair: tuple(pair[0].values())
    )
    best_rank, best = ranks[0]
    if len(ranks) == 1:
        return Choice(series=best, why="")
    passed_over = [
        f"{other.series_instance_uid} is not taken because {_differ(their, best_rank)}"
        for their, other in ranks[1:]
    ]
    shape = shapes[id(best)]
    why = (
        f"series {best.series_instance_uid} is the best of {len(candidates)} "
        f"({shape.slices} slices, {shape.spacing:.1f} mm apart, over {shape.extent:.0f} mm)"
    )
    return Choice(series=best, why="; ".join((why, *passed_over)))


def read_facts(series: Series) -> Mapping[str, Any]:
    """Return the header by which a series is judged: that of its first instance."""
    return series.instances[0].header or {}


def _differ(rank: Mapping[str, Any], best: Mapping[str, Any]) -> str:
    """Return the first reason that weighs more than with the best."""
    pairs = zip(rank.items(), best.values(), strict=True)
    return next(reason for (reason, weight), least in pairs if weight != least)


def _number(header: Mapping[str, Any], keyword: str) -> float:
    value = header.get(keyword)
    return float(value) if isinstance(value, int | float) else 0.0
