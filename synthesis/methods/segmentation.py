"""What the task-driven methods share: regions as classes, and a segmenter's losses and features."""

from typing import Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from synthesis.augmentation import Batch
from synthesis.methods.unet import EncoderDecoder, UNetParameters
from synthesis.networks import SegmentationUNet

SEGMENTER = "segmenter"
"""Its name among the helpers."""
UNKNOWN = -1
STABILITY = 1.0
"""Pixels that a Dice of nothing and nothing counts as agreed."""


class TaskParameters(UNetParameters):
    """Hyper-parameters of the methods that know of a segmentation.

    Attributes:
        regions: labels that make up each class; what is in none of them is class 0.
        segmenter_width: channels of the segmenter's first level.
        task_weight: of the segmenter's say, beside a weight of one of the absolute error.
    """

    regions: tuple[tuple[int, ...], ...] = ((1, 2, 4),)
    segmenter_width: int = 16
    task_weight: float = 0.1


T = TypeVar("T", bound=TaskParameters)


class TaskDriven(EncoderDecoder[T], Generic[T]):
    """The encoder-decoder whose samples come with labels."""

    with_labels = True

    def name_target(self, batch: Batch) -> Tensor:
        """Return (batch, targets), one-hot: the segmenter's condition."""
        return batch.condition[:, len(self.task.sources) :]


class Segmented(TaskDriven[T], Generic[T]):
    """The encoder-decoder beside which a segmenter learns."""

    def build_helpers(self) -> dict[str, nn.Module]:
        """Return the segmenter."""
        return {SEGMENTER: self.build_segmenter()}

    def build_segmenter(self) -> SegmentationUNet:
        """Return the untrained segmenter of every target."""
        p = self.parameters
        return SegmentationUNet(
            len(self.task.targets), len(p.regions) + 1, p.segmenter_width, p.levels
        )


def classify(batch: Batch, regions: tuple[tuple[int, ...], ...]) -> Tensor:
    """Return (batch, rows, columns) the class of each pixel, -1 where nobody knows.

    Outside the mask nobody asks.
    """
    assert batch.labels is not None  # noqa: S101 - the method's own `draw` asked for them
    classes = torch.zeros_like(batch.labels)
    for number, region in enumerate(regions, start=1):
        classes[torch.isin(batch.labels, batch.labels.new_tensor(region))] = number
    known = (batch.labels != UNKNOWN) & (batch.weight[:, 0] > 0)
    return torch.where(known, classes, UNKNOWN)


def cross_entropy(odds: Tensor, classes: Tensor) -> Tensor:
    """Return the mean cross-entropy where the class is known; zero where it is nowhere."""
    total = functional.cross_entropy(odds, classes, ignore_index=UNKNOWN, reduction="sum")
    return total / (classes != UNKNOWN).sum().clamp_min(1)


def dice_loss(odds: Tensor, classes: Tensor) -> Tensor:
    """Return one minus the soft Dice (Milletari 2016), mean over all classes but 0."""
    known = (classes != UNKNOWN)[:, None]
    truth = functional.one_hot(classes.clamp_min(0), odds.shape[1]).movedim(-1, 1) * known
    share = odds.softmax(dim=1) * known
    both = (share * truth).sum(dim=(0, 2, 3))
    total = share.sum(dim=(0, 2, 3)) + truth.sum(dim=(0, 2, 3))
    dice = (2 * both + STABILITY) / (total + STABILITY)
    return 1 - dice[1:].mean()


def feature_distance(
    segmenter: SegmentationUNet, made: Tensor, real: Tensor, target: Tensor
) -> Tensor:
    """Return the mean over the decoder's maps of |f(made) - f(real)| / |f(real)| (AFP loss)."""
    with torch.no_grad():
        wanted = segmenter.decode(real, target)
    found = segmenter.decode(made, target)
    ratios = [
        (f - w).abs().sum() / w.abs().sum().clamp_min(1) for f, w in zip(found, wanted, strict=True)
    ]
    return torch.stack(ratios).mean()
