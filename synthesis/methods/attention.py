"""Task-driven by its structure: edges as inputs, attention to lesions (after Ea-GAN, Yu 2019).

The network is given the sources' edges and weighs its features by a map that learns, where people
have labels, to find the labelled regions; there an error costs more, and edges are compared as
such.
"""

from typing import cast

import numpy as np
from torch import Tensor, nn
from torch.nn import functional

from synthesis.augmentation import Batch
from synthesis.devices import mixed_precision
from synthesis.losses import masked_l1
from synthesis.methods.segmentation import TaskDriven, TaskParameters, classify
from synthesis.networks import AttentiveUNet, sobel


class AttentionParameters(TaskParameters):
    """Hyper-parameters of `Attention`.

    Attributes:
        edge_weight: of the difference of the edges.
        region_weight: further weight of a pixel's absolute error inside the labelled regions.
    """

    edge_weight: float = 0.3
    region_weight: float = 4.0


class Attention(TaskDriven[AttentionParameters]):
    """The encoder-decoder with edges and an attention branch."""

    parameters_type = AttentionParameters

    def build_network(self) -> nn.Module:
        """Return an `AttentiveUNet`."""
        return AttentiveUNet(self.shape)

    def loss(self, network: nn.Module, batch: Batch, generator: np.random.Generator) -> Tensor:
        """Return regression, edges, errors inside the regions, and the attention's own error."""
        p = self.parameters
        with mixed_precision(batch.truth.device):
            output, odds = cast(AttentiveUNet, network).attend(batch.stack, batch.condition)
        mean = output[:, :1]
        classes = classify(batch, p.regions)[:, None]
        region, known = (classes > 0).float(), (classes >= 0).float()
        loss = self.regression(output, batch)
        loss = loss + p.edge_weight * masked_l1(sobel(mean), sobel(batch.truth), batch.weight)
        share = region.sum() / batch.weight.sum().clamp_min(1)
        loss = loss + p.region_weight * share * masked_l1(mean, batch.truth, region)
        found = functional.binary_cross_entropy_with_logits(odds, region, known, reduction="sum")
        return loss + p.task_weight * found / known.sum().clamp_min(1)
