"""Registration-aware GAN: truth that is not quite aligned is laid onto the answer (Kong 2021).

A registration network warps the truth onto the answer before the two are compared, so that the
answer stays where the sources are and needs not blur to hedge. It is needed for training only;
the shifts that it finds say how well the pairs were aligned. Kong warps the answer instead; there
half a pixel of shift smooths it, and the generator learnt to answer with stripes that this
smoothing takes away.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from synthesis.augmentation import Batch
from synthesis.devices import mixed_precision
from synthesis.methods.gan import DISCRIMINATOR, Adversarial, GANParameters
from synthesis.methods.learner import NETWORK, Player, descend
from synthesis.networks import RegistrationUNet, warp

REGISTRATION = "registration"
WHOLE = 0.99
"""Of the mask after warping: less is in part outside."""


class RegGANParameters(GANParameters):
    """Hyper-parameters of `RegGAN`.

    Attributes:
        smooth_weight: of the squared gradient of the shifts, beside a weight of one of the error
            (10 to 20, Kong 2021).
        shift_weight: of the length of the shifts, which keeps the answer from moving by itself.
        registration_width: channels of the registration network's first level.
    """

    adversarial_weight: float = 0.05
    smooth_weight: float = 0.5
    shift_weight: float = 0.01
    registration_width: int = 16


class RegGAN(Adversarial[RegGANParameters]):
    """A GAN for pairs that are misaligned by some pixels."""

    parameters_type = RegGANParameters
    registration_: RegistrationUNet

    def build_helpers(self) -> dict[str, nn.Module]:
        """Return the discriminator and the registration network."""
        p = self.parameters
        registration = RegistrationUNet(self.shape.condition, p.registration_width, p.levels)
        return super().build_helpers() | {REGISTRATION: registration}

    def update(
        self,
        players: Mapping[str, Player],
        batch: Batch,
        progress: float,
        generator: np.random.Generator,
    ) -> Tensor:
        """Move the generator and the registration together, then the discriminator."""
        p = self.parameters
        output = self.forward(players[NETWORK].network, batch)
        image = output[:, :1] * batch.weight
        with mixed_precision(output.device):
            shift = players[REGISTRATION].network(batch.truth, image.detach(), batch.condition)
        weight = batch.weight * (warp(batch.weight, shift.detach()) > WHOLE)
        laid = replace(batch, truth=warp(batch.truth, shift), weight=weight)
        loss = self.regression(output, laid)
        steepness = sum(shift.diff(dim=axis).square().mean() for axis in (2, 3))
        total = loss + p.smooth_weight * steepness + p.shift_weight * shift.abs().mean()
        share = self.adversarial_weight(progress)
        if share > 0:
            total = total + share * (self.judge(players, image, batch) - 1).square().mean()
        descend(total, players[NETWORK], players[REGISTRATION])
        descend(self.tell_apart(players, image.detach(), batch), players[DISCRIMINATOR])
        return loss.detach()

    def finish(self, players: Mapping[str, Player]) -> None:
        """Keep the registration network, which is not saved."""
        network = players[REGISTRATION].network.eval().requires_grad_(False)
        assert isinstance(network, RegistrationUNet)  # noqa: S101 - as built above
        self.registration_ = network

    def find_shift(self, batch: Batch) -> Tensor:
        """Return (batch, 2, rows, columns), how far the truth lies from the answer, in pixels."""
        with torch.inference_mode():
            answer = self.network_(batch.stack, batch.condition)[:, :1] * batch.weight
            shift: Tensor = self.registration_(batch.truth, answer, batch.condition)
        return shift
