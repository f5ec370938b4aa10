"""Task-driven by joint training: synthesis and segmentation learn together (SynSeg-Net, Huo 2019).

In turn, the network makes an image that its partner segments well, and the segmenter learns on the
real target and on what was made. The segmenter is kept beside the weights, for the images that
this network makes.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Self

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

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
)

SEGMENTER_WEIGHTS = "segmenter.safetensors"


class Joint(Segmented[TaskParameters]):
    """The encoder-decoder and a segmenter, trained end to end."""

    parameters_type = TaskParameters
    segmenter_: nn.Module

    def update(
        self,
        players: Mapping[str, Player],
        batch: Batch,
        progress: float,
        generator: np.random.Generator,
    ) -> Tensor:
        """Move the network, then the segmenter."""
        segmenter = players[SEGMENTER].network
        target, classes = self.name_target(batch), classify(batch, self.parameters.regions)
        output = self.forward(players[NETWORK].network, batch)
        made = output[:, :1] * batch.weight
        with mixed_precision(made.device):
            odds = segmenter(made, target)
        loss = self.regression(output, batch)
        descend(loss + self.parameters.task_weight * cross_entropy(odds, classes), players[NETWORK])
        with mixed_precision(made.device):
            both = [segmenter(image, target) for image in (batch.truth, made.detach())]
        task = sum(cross_entropy(odds, classes) + dice_loss(odds, classes) for odds in both)
        descend(torch.as_tensor(task), players[SEGMENTER])
        return loss.detach()

    def finish(self, players: Mapping[str, Player]) -> None:
        """Keep the segmenter."""
        self.segmenter_ = players[SEGMENTER].network.eval().requires_grad_(False)

    def save(self, folder: Path) -> None:
        """Write the weights of both."""
        super().save(folder)
        weights = self.segmenter_.state_dict()
        save_file({k: v.contiguous() for k, v in weights.items()}, folder / SEGMENTER_WEIGHTS)

    def restore(self, folder: Path) -> Self:
        """Read the weights of both."""
        super().restore(folder)
        segmenter = self.build_segmenter()
        segmenter.load_state_dict(load_file(folder / SEGMENTER_WEIGHTS))
        device = next(self.network_.parameters()).device
        self.segmenter_ = segmenter.eval().requires_grad_(False).to(device)
        return self
