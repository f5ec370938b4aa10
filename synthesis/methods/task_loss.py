"""Task-driven by its loss: a frozen segmenter says what of the answer matters.

First a segmenter of the real targets is learnt; then it is frozen, and the answer must give the
features that the real target gives it (AFP, Longuefosse 2025) or the segmentation itself (Dice).
The segmenter that judges a finished model must be another one.
"""

from collections.abc import Mapping
from typing import Literal

import numpy as np
from torch import Tensor

from synthesis.augmentation import Batch
from synthesis.devices import mixed_precision
from synthesis.methods.learner import NETWORK, Player, descend
from synthesis.methods.segmentation import (
    SEGMENTER,
    Segmented,
    TaskParameters,
    classify,
    cross_entropy,
    dice_loss,
    feature_distance,
)
from synthesis.networks import SegmentationUNet


class TaskLossParameters(TaskParameters):
    """Hyper-parameters of `TaskLoss`.

    Attributes:
        segmenter_share: share of the training in which the segmenter is learnt, at the beginning.
        task: what the frozen segmenter compares.
    """

    segmenter_share: float = 0.25
    task: Literal["features", "dice"] = "features"


class TaskLoss(Segmented[TaskLossParameters]):
    """The encoder-decoder with a frozen segmenter in its loss."""

    parameters_type = TaskLossParameters

    def update(
        self,
        players: Mapping[str, Player],
        batch: Batch,
        progress: float,
        generator: np.random.Generator,
    ) -> Tensor:
        """Move the segmenter as long as it learns, and then the network."""
        p = self.parameters
        segmenter = players[SEGMENTER].network
        target, classes = self.name_target(batch), classify(batch, p.regions)
        if progress < p.segmenter_share:
            with mixed_precision(batch.truth.device):
                odds = segmenter(batch.truth, target)
            loss = cross_entropy(odds, classes) + dice_loss(odds, classes)
            descend(loss, players[SEGMENTER])
            return loss.detach()
        assert isinstance(segmenter, SegmentationUNet)  # noqa: S101 - as built above
        segmenter.eval().requires_grad_(False)
        output = self.forward(players[NETWORK].network, batch)
        made = output[:, :1] * batch.weight
        with mixed_precision(made.device):
            if p.task == "features":
                task = feature_distance(segmenter, made, batch.truth, target)
            else:
                task = dice_loss(segmenter(made, target), classes)
        loss = self.regression(output, batch)
        descend(loss + p.task_weight * task, players[NETWORK])
        return loss.detach()
