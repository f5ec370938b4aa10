"""Whether an instance has what its IOD requires, and nothing that its IOD does not know.

By the tables of PS3.3 that highdicom carries, so that every installation can look before it sends;
dciodvfy looks deeper, and is not everywhere. Conditions (1C, 2C) are not evaluated.
"""

import json
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from pydicom import Dataset
from pydicom.datadict import keyword_for_tag, tag_for_keyword

from dicom_node.identity import IDENTITY

_COPIED = frozenset({*IDENTITY, "RequestAttributesSequence", "ContributingEquipmentSequence"})
"""Comes from a source, with whatever is wrong inside it; looked for, not looked into."""

_Tree = dict[str, tuple[str, dict[str, Any]]]
"""Keyword to its type (1, 1C, 2, 2C, 3) and, for a sequence, the tree of its items."""


def check_iod(instance: Dataset) -> list[str]:
    """Return what is missing from, or foreign to, an image of a class that the tables know.

    No element is decoded: raw text stays raw.
    """
    iod = _table("sop_class_iod_map")[instance.SOPClassUID]
    modules = _table("iod_module_map")[iod]
    problems: list[str] = []
    known: set[str] = set(_COPIED)  # a source may be older than the tables
    for module in modules:
        tree = _module(module["key"])
        known |= set(tree)
        if module["usage"] == "M":
            problems += _find_missing(instance, tree, iod)
    present = {keyword_for_tag(tag) for tag in list(instance.keys()) if not tag.is_private}
    return problems + [f"{keyword} is not in the IOD {iod}" for keyword in sorted(present - known)]


def _find_missing(dataset: Dataset, tree: _Tree, place: str) -> Iterator[str]:
    for keyword, (kind, items) in tree.items():
        if keyword not in dataset:
            if kind in {"1", "2"}:
                yield f"{keyword} (type {kind}) is missing from {place}"
            continue
        element = dataset.get_item(keyword)
        if kind == "1" and (element is None or element.value in (None, "", b"")):
            yield f"{keyword} (type 1) is empty in {place}"
        if element is not None and element.VR == "SQ" and keyword not in _COPIED:
            for item in dataset[keyword].value:
                yield from _find_missing(item, items, keyword)


@cache
def _module(key: str) -> _Tree:
    """Return the tree of a module's attributes."""
    root: _Tree = {}
    for attribute in _table("module_attribute_map")[key]:
        if tag_for_keyword(attribute["keyword"]) is None:  # of a repeating group: overlays, curves
            continue
        level = root
        for step in attribute["path"]:
            level = level[step][1]
        level[attribute["keyword"]] = (attribute["type"], {})
    return root


@cache
def _table(name: str) -> Mapping[str, Any]:
    text = files("highdicom").joinpath("_standard", f"{name}.json").read_text("utf-8")
    table: Mapping[str, Any] = json.loads(text)
    return table
