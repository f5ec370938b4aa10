"""Unpaired cycle GAN (Zhu 2017): for research only.

It learns from sources and targets that belong to nobody in common: what was made must look like a
target, and the way back must give the source again. Nothing ties it to the person's own target; it
adds and removes lesions to match the two crowds (Cohen 2018).
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from synthesis.augmentation import Batch
from synthesis.devices import mixed_precision
from synthesis.losses import masked_l1
from synthesis.methods.learner import NETWORK, Player, descend
from synthesis.methods.unet import EncoderDecoder, UNetParameters
from synthesis.networks import ConditionedUNet, PatchDiscriminator, UNetShape

BACK = "back"
TARGET_JUDGE, SOURCE_JUDGE = "target_judge", "source_judge"


class CycleGANParameters(UNetParameters):
    """Hyper-parameters of `CycleGAN`.

    Attributes:
        cycle_weight: of the absolute error after both ways, beside a weight of one of the
            discriminators' opinions.
        discriminator_width: channels of the discriminators' first layer.
    """

    slices: int = 1
    cycle_weight: float = 10.0
    discriminator_width: int = 32


class CycleGAN(EncoderDecoder[CycleGANParameters]):
    """Two generators and two discriminators; the pairs are taken apart before they are learnt."""

    parameters_type = CycleGANParameters
    research_only = True

    def build_helpers(self) -> dict[str, nn.Module]:
        """Return the generator back to the sources and the discriminators of both sides."""
        p = self.parameters
        sources, targets = len(self.task.sources), len(self.task.targets)
        back = UNetShape(sources=1, targets=sources, slices=1, width=p.width, levels=p.levels)
        return {
            BACK: ConditionedUNet(back),
            TARGET_JUDGE: PatchDiscriminator(1, targets, p.discriminator_width),
            SOURCE_JUDGE: PatchDiscriminator(1, sources, p.discriminator_width),
        }

    def update(
        self,
        players: Mapping[str, Player],
        batch: Batch,
        progress: float,
        generator: np.random.Generator,
    ) -> Tensor:
        """Move both generators together, then both discriminators."""
        p = self.parameters
        count = len(self.task.sources)
        source, which = _pick_source(batch, count)
        # the target of somebody else, or of another place
        target, weight = batch.truth.roll(1, dims=0), batch.weight.roll(1, dims=0)
        wanted = batch.condition[:, count:]
        wanted_there = wanted.roll(1, dims=0)

        def go(image_stack: Tensor, condition: Tensor) -> Tensor:
            made: Tensor = players[NETWORK].network(image_stack, condition)[:, :1]
            return made

        def back(image: Tensor, to: Tensor) -> Tensor:
            condition = torch.cat([torch.ones_like(to[:, :1]), to], dim=1)
            made: Tensor = players[BACK].network(image[:, :, None], condition)[:, :1]
            return made

        with mixed_precision(target.device):
            made_target = go(batch.stack, batch.condition) * batch.weight
            source_again = back(made_target, which)
            made_source = back(target, which) * weight
            alone = (made_source * which[:, :, None, None])[:, :, None]
            target_again = go(alone, torch.cat([which, wanted_there], dim=1))
            opinions = [
                players[TARGET_JUDGE].network(made_target, wanted),
                players[SOURCE_JUDGE].network(made_source, which),
            ]
        cycle = masked_l1(source_again, source, batch.weight)
        cycle = cycle + masked_l1(target_again, target, weight)
        fooled = sum((opinion - 1).square().mean() for opinion in opinions)
        descend(p.cycle_weight * cycle + fooled, players[NETWORK], players[BACK])
        for name, real, made, known, known_made in (
            (TARGET_JUDGE, target, made_target, wanted_there, wanted),
            (SOURCE_JUDGE, source, made_source, which, which),
        ):
            judge = players[name]
            with mixed_precision(target.device):
                right, wrong = judge.network(real, known), judge.network(made.detach(), known_made)
            descend(0.5 * ((right - 1).square().mean() + wrong.square().mean()), judge)
        return cycle.detach()


def _pick_source(batch: Batch, count: int) -> tuple[Tensor, Tensor]:
    """Return the first source that is given, (batch, 1, rows, columns), and which it is."""
    first = batch.condition[:, :count].argmax(dim=1)
    center = batch.stack[:, :, batch.stack.shape[2] // 2]
    picked = center[torch.arange(len(first), device=first.device), first][:, None]
    return picked, nn.functional.one_hot(first, count).float()
