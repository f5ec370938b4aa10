"""The segmenter that judges: whole lesions from any of a study's contrasts.

It is learnt from the real contrasts and the labels of a table's training people, is in no method's
loss, and judges all methods alike: by what it finds in a completed study, and by how far the
features of an answer are from those that the real contrast gives it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from synthesis.devices import mixed_precision
from synthesis.faithfulness import implant_many
from synthesis.methods.segmentation import cross_entropy, dice_loss
from synthesis.networks import SegmentationUNet
from synthesis.patches import bounding_box
from synthesis.types import Case, ContrastLabel, FloatArray, MaskArray

WEIGHTS, CONTRASTS = "segmenter.safetensors", "contrasts.json"
WIDTH, LEVELS = 16, 4
STEPS, BATCH, CROP = 1000, 8, 128
RATE = 2e-3
IMPLANTED = ("demyelination", "oedema")
"""Kinds of lesions that people are given beside their own, so that small ones teach, too."""
KEPT = 0.7
"""Chance of a contrast to be given; one always is."""
ON_LESION = 0.7
"""Share of the samples whose middle is a lesion's."""
MARGIN = 2
"""Voxels about the mask, so that its surface is one."""
MEDIAN = 0.5
"""Of ordinary tissue: contrast is drawn about it."""


@dataclass(frozen=True, slots=True)
class Segmenter:
    """What was learnt.

    Attributes:
        contrasts: in the order of its channels.
        network: in evaluation.
    """

    contrasts: tuple[ContrastLabel, ...]
    network: SegmentationUNet

    def find(self, images: Mapping[ContrastLabel, FloatArray], mask: MaskArray) -> FloatArray:
        """Return (slices, rows, columns), the probability of lesion; zero outside the mask.

        Args:
            images: normalized; those of other contrasts than it knows are left out.
            mask: where the images mean something.
        """
        x, given, box = self._stack(images, mask)
        found = np.zeros(mask.shape, np.float32)
        with torch.inference_mode():
            odds = torch.cat([self.network(x[n : n + 1], given) for n in range(len(x))])
        share = odds.softmax(dim=1)[:, 1].numpy()
        inside = mask[box]
        found[box] = np.where(inside, share[:, : inside.shape[1], : inside.shape[2]], 0)
        return found

    def distance(
        self, label: ContrastLabel, made: FloatArray, real: FloatArray, mask: MaskArray
    ) -> float:
        """Return the mean over the decoder's maps of |f(made) - f(real)| / |f(real)|."""
        differences, sizes = [], []
        for plane in range(len(mask)):
            if not mask[plane].any():
                continue
            here = slice(plane, plane + 1)
            maps = []
            for image in (made, real):
                x, given, _ = self._stack({label: image[here]}, mask[here])
                with torch.inference_mode():
                    maps.append(self.network.decode(x, given))
            pairs = list(zip(*maps, strict=True))
            differences.append([float((f - w).abs().sum()) for f, w in pairs])
            sizes.append([float(w.abs().sum()) for _, w in pairs])
        return float(np.mean(np.sum(differences, axis=0) / np.sum(sizes, axis=0)))

    def _stack(
        self, images: Mapping[ContrastLabel, FloatArray], mask: MaskArray
    ) -> tuple[Tensor, Tensor, tuple[slice, ...]]:
        box = bounding_box(mask, margin=0)
        inside = mask[box]
        sides = [-(-size // 2**LEVELS) * 2**LEVELS for size in inside.shape[1:]]
        x = torch.zeros(len(inside), len(self.contrasts), *sides)
        for channel, label in enumerate(self.contrasts):
            if label in images:
                values = np.where(inside, images[label][box], 0).astype(np.float32)
                x[:, channel, : inside.shape[1], : inside.shape[2]] = torch.from_numpy(values)
        given = torch.tensor([[float(label in images) for label in self.contrasts]])
        return x, given, box


def learn_segmenter(
    cases: Sequence[Case], contrasts: Sequence[ContrastLabel], seed: int
) -> Segmenter | None:
    """Return a segmenter that has learnt from those who have labels; None if nobody has.

    Contrasts are left out at random and change in level and spread, as between scanners, so that it
    is at home with studies that lack some.

    Args:
        cases: training people.
        contrasts: that it shall know.
        seed: of weights and samples.
    """
    taught = [case for case in cases if case.labels is not None and (case.labels > 0).any()]
    if not taught:
        return None
    people = [
        each
        for number, (case, kind) in enumerate(product(taught, (None, *IMPLANTED)))
        for each in [_gather(case, kind, contrasts, seed + number)]
    ]
    torch.manual_seed(seed)
    network = _build(len(contrasts)).train()
    optimizer = torch.optim.AdamW(network.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=STEPS)
    for step in range(STEPS):
        x, given, classes = _draw(people, np.random.default_rng([seed, step]))
        with mixed_precision(x.device):
            odds = network(x, given)
        loss = cross_entropy(odds, classes) + dice_loss(odds, classes)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return Segmenter(tuple(contrasts), network.eval().requires_grad_(False))


def save_segmenter(segmenter: Segmenter, folder: Path) -> None:
    """Write the weights as safetensors, and the names of the channels."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(segmenter.network.state_dict(), folder / WEIGHTS)
    (folder / CONTRASTS).write_text(json.dumps(segmenter.contrasts))


def load_segmenter(folder: Path) -> Segmenter:
    """Read what `save_segmenter` has written."""
    contrasts = tuple(ContrastLabel(name) for name in json.loads((folder / CONTRASTS).read_text()))
    network = _build(len(contrasts))
    network.load_state_dict(load_file(folder / WEIGHTS))
    return Segmenter(contrasts, network.eval().requires_grad_(False))


def _build(contrasts: int) -> SegmentationUNet:
    """Return the untrained network, conditioned on which of the contrasts are there."""
    return SegmentationUNet(contrasts, 2, WIDTH, LEVELS, images=contrasts)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Person:
    """One who teaches.

    Attributes:
        images: (contrasts, slices, rows, columns); zero where there is none.
        present: which contrasts the person has.
        classes: (slices, rows, columns), one in lesions, -1 outside the mask.
        lesions: (n, 3) voxels of lesions.
        inside: (n, 3) voxels of the mask.
    """

    images: FloatArray
    present: NDArray[np.bool_]
    classes: NDArray[np.int64]
    lesions: NDArray[np.intp]
    inside: NDArray[np.intp]


def _gather(case: Case, kind: str | None, contrasts: Sequence[ContrastLabel], seed: int) -> _Person:
    assert case.labels is not None  # noqa: S101 - only those are asked to teach
    box = bounding_box(case.mask, margin=MARGIN)
    mask, labels = case.mask[box], case.labels[box]
    lesion = (labels > 0) & mask
    images = {label: image[box] for label, image in case.images.items()}
    case = replace(case, images=images, mask=mask, labels=labels)
    if kind is not None:
        case, implants = implant_many(case, kind, seed)
        lesion = lesion | np.any([each for _, each in implants], axis=0)
    blank = np.zeros(case.mask.shape, np.float32)
    channels = [np.where(case.mask, case.images.get(c, blank), 0) for c in contrasts]
    return _Person(
        images=np.stack(channels).astype(np.float32),
        present=np.array([c in case.images for c in contrasts]),
        classes=np.where(case.mask, lesion, -1).astype(np.int64),
        lesions=np.argwhere(lesion),
        inside=np.argwhere(case.mask),
    )


def _draw(
    people: Sequence[_Person], generator: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Return images (batch, contrasts, rows, columns), which are given, and classes."""
    count = len(people[0].present)
    x = np.zeros((BATCH, count, CROP, CROP), np.float32)
    given = np.zeros((BATCH, count), np.float32)
    classes = np.full((BATCH, CROP, CROP), -1, np.int64)
    for row in range(BATCH):
        person = people[int(generator.integers(len(people)))]
        places = person.lesions if generator.random() < ON_LESION else person.inside
        z, y, c = places[int(generator.integers(len(places)))]
        wide = CROP // 2 + np.abs(shift := generator.integers(-32, 33, 2)).max()
        pad = [(wide, wide), (wide, wide)]
        top, left = y + wide + shift[0] - CROP // 2, c + wide + shift[1] - CROP // 2
        cut = (slice(top, top + CROP), slice(left, left + CROP))
        kept = person.present & (generator.random(count) < KEPT)
        if not kept.any():
            kept[generator.choice(np.flatnonzero(person.present))] = True
        flip = int(generator.choice([-1, 1]))
        for channel in np.flatnonzero(kept):
            piece = np.pad(person.images[channel, z], pad)[cut][:, ::flip]
            level, spread = generator.uniform(0.9, 1.1), generator.uniform(0.7, 1.4)
            changed = level * (MEDIAN + spread * (piece - MEDIAN))
            x[row, channel] = np.where(piece != 0, changed, 0)
        given[row] = kept
        classes[row] = np.pad(person.classes[z], pad, constant_values=-1)[cut][:, ::flip]
    return torch.from_numpy(x), torch.from_numpy(given), torch.from_numpy(classes)
