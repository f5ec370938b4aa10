"""Compare the shipped brain mask with MindGrab's, head by head.

    make masks                                  every whole head among the brain model's test people
    make masks MASKS_ARGS="--subject adi"

MindGrab (neuroneural/brainchop-models, 146,000 weights in DICOM_NODE_DATA) sees a cube of 256 mm
in voxels of 1 mm, minutes for each head. Printed is the Dice of the two masks on the head's own
grid, and each one's millilitres. Where the manifest has labels of the brain, their Dice with both
stands too.
"""

import argparse
import json
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813
import torch
from torch import nn
from torch.nn import functional

from doubles.tools import find_data
from gates.faults import BRAIN_MODEL, MODELS, ROOT
from synthesis.devices import mixed_precision
from synthesis.methods.brain_mask import find_brain
from synthesis.people import Person, read_manifest
from synthesis.preparation import read_image
from synthesis.preprocessing import to_canonical
from synthesis.registry import LEARNT, load_card
from synthesis.segmentation import dice
from synthesis.types import FloatArray, MaskArray

WEIGHTS = "weights_mindgrab"
SIDE, CHANNELS, CLASSES = 256, 15, 2
LOW, HIGH = 0.02, 0.98
"""Quantiles of the whole cube that become 0 and 1."""


class MindGrab(nn.Module):
    """Dilated convolutions, each channel normalized over the whole cube; the file says which."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        layers = json.loads((folder / "model.json").read_text())["layers"]
        sizes = pairwise([1, *[CHANNELS] * (len(layers) - 1), CLASSES])
        self.layers = nn.ModuleList(
            nn.Conv3d(
                before,
                after,
                layer["kernel_size"],
                padding=layer["padding"],
                dilation=layer["dilation"],
                bias=after == CLASSES,
            )
            for layer, (before, after) in zip(layers, sizes, strict=True)
        )
        kept = torch.load(folder / "model.pth", map_location="cpu", weights_only=True)
        names = list(self.state_dict())
        self.load_state_dict(dict(zip(names, kept.values(), strict=True)))

    def forward(self, cube: torch.Tensor) -> torch.Tensor:
        """Return (1, classes, ...) for (1, 1, ...)."""
        x = cube
        for layer in self.layers[:-1]:
            x = functional.gelu(functional.instance_norm(layer(x)), approximate="tanh")
        answer: torch.Tensor = self.layers[-1](x)
        return answer


def ask_mindgrab(network: MindGrab, image: sitk.Image) -> MaskArray:
    """Return the mask on the grid of a canonical image."""
    grid = sitk.Image([SIDE] * 3, sitk.sitkFloat32)
    grid.SetDirection(image.GetDirection())
    middle = [(n - 1) / 2 for n in image.GetSize()]
    center = np.array(image.TransformContinuousIndexToPhysicalPoint(middle))
    direction = np.array(image.GetDirection()).reshape(3, 3)
    grid.SetOrigin([float(v) for v in center - direction @ np.full(3, (SIDE - 1) / 2)])
    cube = sitk.GetArrayFromImage(sitk.Resample(image, grid, sitk.Transform(), sitk.sitkLinear))
    with torch.inference_mode(), mixed_precision(torch.device("cpu")):
        odds = network(torch.from_numpy(_turn(_to_unit(cube)))[None, None])[0]
    inside = _turn_back((odds[1] > odds[0]).numpy())
    mask = sitk.GetImageFromArray(inside.astype(np.uint8))
    mask.CopyInformation(grid)
    back = sitk.Resample(mask, image, sitk.Transform(), sitk.sitkNearestNeighbor)
    return np.asarray(sitk.GetArrayFromImage(back) > 0)


def _turn(cube: FloatArray) -> FloatArray:
    """Return axes towards left, feet and front for those towards head, back and left."""
    return np.ascontiguousarray(cube.transpose(2, 0, 1)[:, ::-1, ::-1])


def _turn_back(cube: MaskArray) -> MaskArray:
    return np.ascontiguousarray(cube[:, ::-1, ::-1].transpose(1, 2, 0))


def _to_unit(cube: FloatArray) -> FloatArray:
    low, high = np.quantile(cube, [LOW, HIGH])
    return np.clip((cube - low) / (high - low), 0, 1).astype(np.float32)


def compare(person: Person, data: Path, network: MindGrab) -> str:
    """Return a line about a person's first image."""
    label, path = next(iter(person.images.items()))
    image = sitk.Cast(to_canonical(read_image(data, path)), sitk.sitkFloat32)
    ours = sitk.GetArrayFromImage(find_brain(image, MODELS / BRAIN_MODEL / LEARNT)[0]) > 0
    began = time.monotonic()
    theirs = ask_mindgrab(network, image)
    taken = time.monotonic() - began
    millilitres = float(np.prod(image.GetSpacing())) / 1000
    line = (
        f"{person.subject}, {label}: Dice {dice(theirs, ours):.3f}, "
        f"ours {ours.sum() * millilitres:.0f} ml, MindGrab {theirs.sum() * millilitres:.0f} ml "
        f"in {taken:.0f} s"
    )
    if not (data / person.mask).is_file():
        return line
    labels = to_canonical(read_image(data, person.mask))
    placed = sitk.Resample(labels, image, sitk.Transform(), sitk.sitkNearestNeighbor)
    known = sitk.GetArrayFromImage(placed) > 0
    return f"{line}; with the labels {dice(known, ours):.3f} and {dice(known, theirs):.3f}"


def main() -> int:
    """Print a line for each head."""
    parser = argparse.ArgumentParser(prog="make masks", description=__doc__)
    parser.add_argument("--subject", action="append", help="only these people")
    settings = parser.parse_args()
    data = find_data()
    if data is None:
        sys.stderr.write("DICOM_NODE_DATA does not lead to images\n")
        return 2
    network = MindGrab(data / WEIGHTS).eval()
    manifest = read_manifest(ROOT / "config/experiments/people.yaml")
    names = settings.subject or load_card(MODELS, BRAIN_MODEL).training.test
    for person in manifest.people:
        is_whole = manifest.datasets[person.dataset].skull == "whole head"
        if person.subject in names and is_whole:
            sys.stdout.write(compare(person, data, network) + "\n")
            sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
