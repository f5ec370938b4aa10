"""Which source images a derived image points to: those that its slice lies on, or beside.

A model looks at the slice and its neighbors; to name all images of every series would only make
each header longer (62 KB for 160 references). Of a series that crosses the slice, the images that
do are named.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from highdicom import Volume
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.sr.codedict import codes

from dicom_node.domain import ContrastLabel
from dicom_node.images import code_item
from dicom_node.provenance import SourceSeries

REACH = 1.01
"""Slice spacings, the larger of source and derived: nearer images lie on or beside a slice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Images:
    """The images of one series, as they are referenced."""

    series_instance_uid: str
    slots: NDArray[np.int_]
    volume: Volume
    sources: tuple[Dataset, ...]
    instances: tuple[Dataset, ...]


class References:
    """Writes the references of every image of one job."""

    def __init__(self, sources: Mapping[ContrastLabel, SourceSeries], grid: Volume) -> None:
        """Prepare the items once.

        Args:
            sources: the reference, whose pixels keep their places, first.
            grid: of the derived series.
        """
        self._grid = grid
        self._series = [
            _prepare(source, keeps_places=k == 0) for k, source in enumerate(sources.values())
        ]

    def put(self, image: Dataset, index: int) -> None:
        """Reference the source images of one slice, by purpose and (C.12.2) by series."""
        rows, columns = self._grid.spatial_shape[1:]
        corners = np.array([[index, r, c] for r in (0, rows - 1) for c in (0, columns - 1)])
        places = self._grid.map_indices_to_reference(corners)
        sources: list[Dataset] = []
        by_series: list[Dataset] = []
        for series in self._series:
            reach = REACH * max(
                1.0, self._grid.spacing_between_slices / series.volume.spacing_between_slices
            )
            heights = series.volume.map_reference_to_indices(places)[:, 0]
            near = (series.slots >= heights.min() - reach) & (series.slots <= heights.max() + reach)
            chosen = np.flatnonzero(near)
            if not chosen.size:
                continue
            sources += _merge_frames([series.sources[k] for k in chosen])
            item = Dataset()
            item.SeriesInstanceUID = series.series_instance_uid
            item.ReferencedInstanceSequence = _merge_frames([series.instances[k] for k in chosen])
            by_series.append(item)
        image.SourceImageSequence = sources
        image.ReferencedSeriesSequence = by_series


def put_exposures(image: Dataset, sources: Mapping[ContrastLabel, SourceSeries]) -> None:
    """Reference every picture that a picture was made of; the first keeps the places of pixels."""
    image.SourceImageSequence = [
        _source_item(source.datasets[0], k == 0) for k, source in enumerate(sources.values())
    ]
    image.ReferencedSeriesSequence = []
    for source in sources.values():
        item = Dataset()
        item.SeriesInstanceUID = source.series_instance_uid
        item.ReferencedInstanceSequence = [_instance_item(source.datasets[0])]
        image.ReferencedSeriesSequence.append(item)


def _prepare(source: SourceSeries, *, keeps_places: bool) -> _Images:
    return _Images(
        series_instance_uid=source.series_instance_uid,
        slots=source.find_slots(),
        volume=source.volume,
        sources=tuple(_source_item(header, keeps_places) for header in source.datasets),
        instances=tuple(_instance_item(header) for header in source.datasets),
    )


def _instance_item(header: Dataset) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = header.SOPClassUID
    item.ReferencedSOPInstanceUID = header.SOPInstanceUID
    if "ReferencedFrameNumber" in header:
        item.ReferencedFrameNumber = header.ReferencedFrameNumber
    return item


def _source_item(header: Dataset, keeps_places: bool) -> Dataset:
    item = _instance_item(header)
    purpose = codes.DCM.SourceImageForImageProcessingOperation
    item.PurposeOfReferenceCodeSequence = [code_item(purpose)]
    if keeps_places:
        item.SpatialLocationsPreserved = "YES"
    return item


def _merge_frames(items: list[Dataset]) -> list[Dataset]:
    """Return the items with the frames of one multi-frame image in one of them."""
    if "ReferencedFrameNumber" not in items[0]:
        return items
    frames: dict[str, list[int]] = {}
    for item in items:
        frames.setdefault(item.ReferencedSOPInstanceUID, []).append(item.ReferencedFrameNumber)
    merged = {item.ReferencedSOPInstanceUID: Dataset() for item in items}
    for item in items:
        merged[item.ReferencedSOPInstanceUID].update(item)
    for uid, item in merged.items():
        item.add_new("ReferencedFrameNumber", "IS", frames[uid])  # its element is still the item's
    return list(merged.values())
