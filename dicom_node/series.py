"""Received instances as series, one for each volume that a series holds.

A DICOM series may hold several volumes (echoes, b-values, inversion times, parts of a complex
image, phases, repeats), and so may one multi-frame image. They are told apart here, before
`contrast` labels them, so that a label speaks of one volume; and each is checked for being one
(`geometry`). Of radiographs, ultrasound and photographs each image is by itself. A volume that
cannot be told apart or read is kept, with its problem.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from dicom_node import geometry
from dicom_node.domain import Instance, Origin, Series
from dicom_node.errors import UnusableStudy
from dicom_node.headers import (
    FLAT_MODALITIES,
    FRAME_FACTS,
    FRAME_ORIENTATIONS,
    FRAME_POSITIONS,
    FRAMES,
    ORDER,
    PROBLEM,
    VOLUME_MODALITIES,
)

MOST_REPEATS = 4
"""A position imaged more often than this is a time series (functional, dynamic, diffusion in many
directions), not a volume that was repeated; so is a slice or a few that are no volume once."""

_GAPS = {"EchoTime": 0.4, "InversionTime": 40.0, "FlipAngle": 0.9, "DiffusionBValue": 0.5}
"""Values of these attributes that differ by more than this (ms, degrees, s/mm2) tell volumes
apart; scanners let them vary by less inside one volume."""
_Number = int | float
Problem = tuple[str, str] | None
_Volume = tuple[list[int], Problem]


def split_series(instances: Iterable[Instance]) -> list[Series]:
    """Return one `Series` for each volume, unlabelled; the order of arrival never matters.

    Args:
        instances: of one study, their headers read.
    """
    by_series: dict[str, list[Instance]] = defaultdict(list)
    for instance in sorted(instances, key=_readable_first):
        by_series[instance.series_instance_uid].append(instance)
    volumes: list[Series] = []
    for _, group in sorted(by_series.items()):
        parts = [part for instance in group for part in _split_frames(instance)]
        largest = _find_largest_b_value(parts)
        volumes += [_build(volume, problem, largest) for volume, problem in _split(parts)]
    return volumes


def count_voxels(series: Series) -> int:
    """Return how many voxels a volume has by its headers."""
    total = 0
    for instance in series.instances:
        facts = _facts(instance)
        planes = len(facts.get(FRAME_POSITIONS) or [None])
        sides = [facts.get("Rows"), facts.get("Columns")]
        total += planes * math.prod(int(side) if isinstance(side, _Number) else 0 for side in sides)
    return total


def _find_largest_b_value(instances: Iterable[Instance]) -> float | None:
    values = [_facts(instance).get("DiffusionBValue") for instance in instances]
    numbers = [value for value in values if isinstance(value, _Number)]
    return max(numbers, default=None)


def _split_frames(instance: Instance) -> list[Instance]:
    """Return a multi-frame image once for each volume that it holds, with the facts of that one."""
    facts = _facts(instance)
    differing: Mapping[str, list[Any]] = facts.get(FRAME_FACTS, {})
    if not differing:
        return [instance]
    columns = [
        _classes(values, _GAPS[keyword]) if keyword in _GAPS else list(map(str, values))
        for keyword, values in differing.items()
        if keyword not in ORDER
    ]
    kinds: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for frame in range(len(facts[FRAME_POSITIONS])):
        kinds[tuple(column[frame] for column in columns)].append(frame)
    volumes = [volume for kind in kinds.values() for volume in _split_repeated(kind, facts)]
    if len(volumes) == 1 and volumes[0][1] is None:
        return [instance]
    return [_choose_frames(instance, frames, problem) for frames, problem in volumes]


def _split_repeated(frames: Sequence[int], facts: Mapping[str, Any]) -> list[_Volume]:
    """Tell the volumes apart whose frames share positions."""
    positions, orientations = facts[FRAME_POSITIONS], facts[FRAME_ORIENTATIONS]
    differing = facts[FRAME_FACTS]

    def read(keyword: str, k: int) -> Any:
        return differing[keyword][frames[k]] if keyword in differing else None

    places = [_round(positions[frame], orientations[frame]) for frame in frames]
    volumes = _find_repeats(places, read)
    return [([frames[k] for k in volume], problem) for volume, problem in volumes]


def _choose_frames(instance: Instance, frames: Sequence[int], problem: Problem) -> Instance:
    """Return a multi-frame image as if it held some of its frames only."""
    facts = dict(_facts(instance))
    for keyword, values in facts.pop(FRAME_FACTS).items():
        seen = [values[frame] for frame in frames]
        if keyword not in ORDER or all(value == seen[0] for value in seen):
            facts[keyword] = seen[0]
    for keyword in (FRAME_POSITIONS, FRAME_ORIENTATIONS):
        facts[keyword] = [facts[keyword][frame] for frame in frames]
    facts[FRAMES] = [frame + 1 for frame in frames]
    if problem is not None:
        facts.setdefault(PROBLEM, problem)
    return replace(instance, header=facts)


def _split(instances: Sequence[Instance]) -> list[tuple[list[Instance], Problem]]:
    modality = _facts(instances[0]).get("Modality")
    if modality in FLAT_MODALITIES:
        return [([instance], None) for instance in instances]
    if modality not in VOLUME_MODALITIES:
        return [(list(instances), None)]
    if any("Modality" not in _facts(instance) for instance in instances):
        return [(list(instances), _reading_problem(instances))]
    classes = {
        keyword: _classes([_facts(instance).get(keyword) for instance in instances], gap)
        for keyword, gap in _GAPS.items()
    }
    kinds: dict[tuple[Any, ...], list[Instance]] = defaultdict(list)
    for k, instance in enumerate(instances):
        facts = _facts(instance)
        physics = tuple(classes[keyword][k] for keyword in _GAPS)
        flavor = tuple(facts.get("ImageType", ())[2:])
        kinds[(_value(instance, "EchoNumbers"), flavor, *physics)].append(instance)
    return [volume for kind in kinds.values() for volume in _split_repeats(kind)]


def _classes(values: Sequence[Any], gap: float) -> list[Any]:
    """Return for each value the lowest one that is connected to it by steps up to `gap`."""
    numbers = sorted({value for value in values if isinstance(value, _Number)})
    lowest: dict[float, float] = {}
    for k, number in enumerate(numbers):
        near = k > 0 and number - numbers[k - 1] <= gap
        lowest[number] = lowest[numbers[k - 1]] if near else number
    return [lowest[value] if isinstance(value, _Number) else repr(value) for value in values]


def _split_repeats(instances: list[Instance]) -> list[tuple[list[Instance], Problem]]:
    """Tell the volumes apart whose slices share positions."""
    if any(FRAME_POSITIONS in _facts(instance) for instance in instances):
        return [([instance], None) for instance in instances]
    if any("MOSAIC" in _facts(instance).get("ImageType", ()) for instance in instances):
        return [(instances, ("mosaic", "whole volumes are tiled into single images (mosaic)"))]
    places = [_place(instance) for instance in instances]
    volumes = _find_repeats(places, lambda keyword, k: _value(instances[k], keyword))
    return [([instances[k] for k in volume], problem) for volume, problem in volumes]


def _find_repeats(places: Sequence[Any], read: Callable[[str, int], Any]) -> list[_Volume]:
    """Return the volumes of planes that share positions, as the indices of their planes.

    Args:
        places: of the planes; None where it is not known.
        read: gives what a keyword of `ORDER` says of the plane with this index.
    """
    everything = list(range(len(places)))
    at_place: dict[Any, list[int]] = defaultdict(list)
    for k in everything:
        at_place[places[k]].append(k)
    repeats = max(len(group) for group in at_place.values())
    if repeats == 1 or None in at_place:
        return [(everything, None)]
    if repeats > MOST_REPEATS or len(at_place) < geometry.FEWEST_SLICES:
        problem = ("time_series", f"{repeats} images at one position: a time series, not a volume")
        return [(everything, problem)]
    for keyword in ORDER:
        by_value: dict[Any, list[int]] = defaultdict(list)
        for k in everything:
            by_value[read(keyword, k)].append(k)
        if len(by_value) == repeats and len(everything) == repeats * len(at_place):
            return [(volume, None) for volume in by_value.values()]
    problem = ("duplicate_position", f"{repeats} images share a position and nothing tells why")
    return [(everything, problem)]


def _place(instance: Instance) -> Any:
    facts = _facts(instance)
    return _round(facts.get("ImagePositionPatient"), facts.get("ImageOrientationPatient"))


def _round(position: Sequence[float] | None, orientation: Sequence[float] | None) -> Any:
    """Return where a plane lies, so that two which lie alike are equal; None when it says not."""
    if not position or not orientation:
        return None
    return tuple(round(n, 1) for n in position), tuple(round(n, 2) for n in orientation)


def _build(
    instances: Sequence[Instance], problem: Problem, largest_b_value: float | None
) -> Series:
    first = _facts(instances[0])
    is_image = first.get("Modality") in VOLUME_MODALITIES
    ordered = list(instances)
    if is_image and problem is None:
        ordered, problem = _stack(ordered)
    return Series(
        series_instance_uid=instances[0].series_instance_uid,
        modality=str(first.get("Modality", "")),
        origin=Origin.ACQUIRED,
        instances=tuple(ordered),
        frame_of_reference_uid=first.get("FrameOfReferenceUID"),
        problem=problem or _reading_problem(ordered),
        largest_b_value=largest_b_value,
        frames=tuple(first.get(FRAMES, ())),
    )


def _reading_problem(instances: Iterable[Instance]) -> Problem:
    for instance in instances:
        if problem := _facts(instance).get(PROBLEM):
            return problem[0], problem[1]
    return None


def _stack(instances: list[Instance]) -> tuple[list[Instance], Problem]:
    """Return the instances in the order of their slices, or why they make no volume."""
    if problem := _reading_problem(instances):
        return instances, problem
    try:
        order = _order(instances)
    except UnusableStudy as error:
        return instances, (error.code, str(error))
    is_single_frame = len(order) == len(instances)
    return [instances[k] for k in order] if is_single_frame else instances, None


def _order(instances: Sequence[Instance]) -> tuple[int, ...]:
    positions, orientations, spacings = _planes(instances)
    if None in positions or None in orientations or None in spacings:
        raise UnusableStudy("geometry_missing", "an image lacks position, orientation or spacing")
    if len({_facts(instance).get("FrameOfReferenceUID") for instance in instances}) > 1:
        raise UnusableStudy("frame_of_reference", "the series has several frames of reference")
    order = geometry.stack(positions, orientations, spacings).order
    shapes = {(_value(each, "Rows"), _value(each, "Columns")) for each in instances}
    if len(shapes) > 1:
        raise UnusableStudy("pixel_geometry", f"images of one series have {len(shapes)} sizes")
    return order


def _planes(instances: Sequence[Instance]) -> tuple[list[Any], list[Any], list[Any]]:
    """Return position, orientation and pixel spacing of every plane, None where one is missing."""
    positions: list[Any] = []
    orientations: list[Any] = []
    spacings: list[Any] = []
    for instance in instances:
        facts = _facts(instance)
        frames = facts.get(FRAME_POSITIONS)
        positions += frames or [facts.get("ImagePositionPatient")]
        orientations += facts.get(FRAME_ORIENTATIONS) or [facts.get("ImageOrientationPatient")]
        spacing = facts.get("PixelSpacing")
        is_pair = spacing is not None and np.ndim(spacing) == 1
        spacings += [spacing if is_pair else None] * (len(frames) if frames else 1)
    return positions, orientations, spacings


def _readable_first(instance: Instance) -> tuple[bool, str]:
    return "Modality" not in _facts(instance), instance.sop_instance_uid


def _value(instance: Instance, keyword: str) -> Any:
    """Return what may be compared of an attribute that should have one value, and may have more."""
    value = _facts(instance).get(keyword)
    return value if value is None or isinstance(value, _Number) else repr(value)


def _facts(instance: Instance) -> Mapping[str, Any]:
    return instance.header or {}
