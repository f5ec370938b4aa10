"""Conditional GAN: the encoder-decoder against a patch discriminator (pix2pix, Isola 2017).

The regression loss is kept, and the adversarial one joins it late and with little weight: it
sharpens, and what it adds is in part invented. Both sides play least squares (Mao 2017).
"""

from collections.abc import Mapping
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from synthesis.augmentation import Batch
from synthesis.devices import mixed_precision
from synthesis.methods.learner import NETWORK, Player, descend
from synthesis.methods.unet import EncoderDecoder, UNetParameters
from synthesis.networks import PatchDiscriminator

DISCRIMINATOR = "discriminator"
RAMP = 0.01
"""The least share of the training over which the discriminator's say rises."""


class GANParameters(UNetParameters):
    """Hyper-parameters of the adversarial methods.

    Attributes:
        adversarial_weight: beside a weight of one of the absolute error.
        adversarial_from: share of the training after which the discriminator has a say; it rises
            to its full weight over as long a share.
        discriminator_width: channels of the discriminator's first layer.
    """

    adversarial_weight: float = 0.01
    adversarial_from: float = 0.3
    discriminator_width: int = 32


A = TypeVar("A", bound=GANParameters)


class Adversarial(EncoderDecoder[A], Generic[A]):
    """The encoder-decoder with a discriminator that sees sources and image."""

    def build_helpers(self) -> dict[str, nn.Module]:
        """Return the discriminator."""
        p = self.parameters
        inputs = len(self.task.sources) + 1
        return {
            DISCRIMINATOR: PatchDiscriminator(inputs, self.shape.condition, p.discriminator_width)
        }

    def adversarial_weight(self, progress: float) -> float:
        """Return the weight of the discriminator's opinion when so much of the training is over."""
        p = self.parameters
        late = progress - p.adversarial_from
        return p.adversarial_weight * min(1.0, max(0.0, late / max(p.adversarial_from, RAMP)))

    def update(
        self,
        players: Mapping[str, Player],
        batch: Batch,
        progress: float,
        generator: np.random.Generator,
    ) -> Tensor:
        """Move the generator, then the discriminator."""
        output = self.forward(players[NETWORK].network, batch)
        loss = self.regression(output, batch)
        image = output[:, :1] * batch.weight
        weight = self.adversarial_weight(progress)
        total = loss
        if weight > 0:
            total = loss + weight * (self.judge(players, image, batch) - 1).square().mean()
        descend(total, players[NETWORK])
        descend(self.tell_apart(players, image.detach(), batch), players[DISCRIMINATOR])
        return loss.detach()

    def judge(self, players: Mapping[str, Player], image: Tensor, batch: Batch) -> Tensor:
        """Return the discriminator's score of each patch of an image, 1 for real."""
        center = batch.stack[:, :, batch.stack.shape[2] // 2]
        with mixed_precision(image.device):
            score: Tensor = players[DISCRIMINATOR].network(
                torch.cat([center, image], dim=1), batch.condition
            )
        return score

    def tell_apart(self, players: Mapping[str, Player], image: Tensor, batch: Batch) -> Tensor:
        """Return the discriminator's loss."""
        real = self.judge(players, batch.truth, batch)
        made = self.judge(players, image, batch)
        return 0.5 * ((real - 1).square().mean() + made.square().mean())


class GAN(Adversarial[GANParameters]):
    """A conditional GAN from any subset of the sources to any target."""

    parameters_type = GANParameters
