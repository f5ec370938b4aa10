"""What all networks share that answer slice by slice from neighboring slices (2.5-D)."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from synthesis.augmentation import Batch, Stock
from synthesis.devices import exact
from synthesis.methods.learner import Learner, LearnerParameters
from synthesis.patches import (
    THICK_FROM,
    VIEWS,
    WINDOW_MARGIN,
    batches,
    bounding_box,
    find_window,
    usable_views,
)
from synthesis.types import Case, ContrastLabel, FloatArray, MaskArray, Prediction

CALIBRATION_BATCHES, CALIBRATION_SLICES = 12, 8
BAND = 0.9
"""Share of voxels that the band promises to hold."""
NARROWEST = 1e-4
WITH_BAND = 3
"""Channels of an answer with a band: mean, 5th and 95th percentile."""
SLICES_AT_ONCE = {"cpu": 4, "cuda": 32}
"""On a CPU a larger batch is no faster; a GPU wants enough to do."""


class SliceParameters(LearnerParameters):
    """Hyper-parameters of every method that answers slice by slice.

    Attributes:
        slices: neighboring slices per source, odd.
        views: slice axes that are learnt and used (0 axial, 1 coronal, 2 sagittal).
    """

    slices: int = 5
    views: tuple[int, ...] = VIEWS


S = TypeVar("S", bound=SliceParameters)


class SliceLearner(Learner[S]):
    """Any subset of the sources to any target, slice by slice with neighbors.

    Missing sources are zero and named in the condition (Sharma 2020, MM-GAN's implicit
    imputation). The answer is the mean of the answers along every usable axis.
    """

    with_labels: ClassVar[bool] = False
    """Whether samples come with the labels of those people who have some."""

    @property
    def multiple(self) -> int:
        """Rows and columns of what the network is given are divisible by this."""
        return 1

    def answer(self, stack: Tensor, condition: Tensor, noise: torch.Generator) -> Tensor:
        """Answer for the center slices.

        Args:
            stack: (batch, sources, slices, rows, columns); absent sources are zero.
            condition: (batch, sources + targets), see `Batch`.
            noise: of what is drawn at random, on the CPU.

        Returns:
            (batch, 1, rows, columns) or, with a band, (batch, 3, rows, columns): mean, 5th and
            95th percentile.
        """
        answer: Tensor = self.network_(stack, condition)
        return answer

    def draw(self, stock: Stock, generator: np.random.Generator) -> Batch:
        """Return samples along the method's views."""
        p = self.parameters
        return stock.draw(
            p.batch,
            size=p.crop,
            slices=p.slices,
            views=p.views,
            generator=generator,
            randomized=p.randomized,
            labels=self.with_labels,
        )

    def predict(
        self,
        sources: Mapping[ContrastLabel, FloatArray],
        *,
        target: ContrastLabel,
        mask: MaskArray,
        spacing: tuple[float, float, float],
        seed: int,
    ) -> Prediction:
        """Average the network's answers along every usable axis."""
        self.check_request(sources, target, mask)
        # it begins at multiples, so that the answer is that of the whole array
        near = bounding_box(mask, WINDOW_MARGIN)
        box = tuple(slice(side.start - side.start % self.multiple, side.stop) for side in near)
        shape = mask[box].shape
        volume = np.zeros((len(self.task.sources), *shape), np.float32)
        condition = torch.zeros(1, len(self.task.sources) + len(self.task.targets))
        condition[0, len(self.task.sources) + self.task.targets.index(target)] = 1
        for label, array in sources.items():
            channel = self.task.sources.index(label)
            volume[channel] = np.where(mask[box], array[box], 0)
            condition[0, channel] = 1
        views = [v for v in usable_views(spacing, THICK_FROM) if v in self.parameters.views]
        views = views or list(self.parameters.views[:1])
        device = next(self.network_.parameters()).device
        noise = torch.Generator().manual_seed(seed)
        with torch.inference_mode(), exact():
            x, condition = torch.from_numpy(volume).to(device), condition.to(device)
            looks = torch.stack(
                [self._look(x, condition, axis, noise, mask[box]) for axis in views]
            )
            answer = looks.mean(dim=0).cpu().numpy()
        full = np.zeros((len(answer), *mask.shape), np.float32)
        full[(slice(None), *box)] = np.where(mask[box], answer, 0)
        if len(full) < WITH_BAND:
            return Prediction(mean=full[0])
        return Prediction(mean=full[0], lower=full[1], upper=full[2])

    def _look(
        self,
        volume: Tensor,
        condition: Tensor,
        axis: int,
        noise: torch.Generator,
        mask: MaskArray,
    ) -> Tensor:
        """Return (1 or 3, slices, rows, columns), predicted slice by slice along an axis.

        Only a window about the mask of a few slices is looked at; elsewhere the answer is zero.
        """
        half = self.parameters.slices // 2
        moved = volume.movedim(axis + 1, 1)  # (sources, n, rows, columns)
        inside = np.moveaxis(mask, axis, 0)
        count, rows, columns = inside.shape
        first, last = moved[:, :1], moved[:, -1:]
        wide = torch.cat([first] * half + [moved] + [last] * half, dim=1)
        wide = functional.pad(wide, (0, -columns % self.multiple, 0, -rows % self.multiple))
        stacks = wide.unfold(1, 2 * half + 1, 1).permute(1, 0, 4, 2, 3)
        # stacks: (n, sources, slices, rows, columns), a view
        full = torch.zeros(0, device=volume.device)
        for piece in batches(count, SLICES_AT_ONCE[volume.device.type]):
            window = find_window(np.asarray(inside[piece].any(axis=0)), self.multiple)
            if window is None:
                continue
            stack = stacks[piece][..., window[0], window[1]]
            answer = self.answer(stack, condition.expand(stack.shape[0], -1), noise)
            if not full.numel():
                full = answer.new_zeros(count, answer.shape[1], *wide.shape[2:])
            full[(piece, slice(None), *window)] = answer
        return full[:, :, :rows, :columns].transpose(0, 1).movedim(1, axis + 1)

    def measure_band(self, cases: Sequence[Case], *, seed: int) -> dict[str, float]:
        """Return the factors by the conformal rule (Vovk 2005) over slices as of other scanners.

        A slice's score is the factor that covers 90 % of its voxels; the kept one is the score of
        rank (n + 1) 0.9, so that nine in ten slices of such people and scanners are covered.
        """
        p = self.parameters
        if not cases:
            return {}
        stock = Stock(cases, self.task, next(self.network_.parameters()).device)
        noise = torch.Generator().manual_seed(seed)
        scores: dict[str, list[float]] = {}
        for number in range(CALIBRATION_BATCHES):
            batch = stock.draw(
                CALIBRATION_SLICES,
                size=p.crop,
                slices=p.slices,
                views=p.views,
                generator=np.random.default_rng([seed, number]),
            )
            with torch.inference_mode(), exact():
                answer = self.answer(batch.stack, batch.condition, noise)
            if answer.shape[1] < WITH_BAND:
                return {}
            mean, lower, upper = answer.chunk(3, dim=1)
            ratio = (batch.truth - mean).abs() / ((upper - lower) / 2).clamp_min(NARROWEST)
            targets = batch.condition[:, len(self.task.sources) :].argmax(dim=1)
            for target, values, weight in zip(targets, ratio, batch.weight, strict=True):
                if not weight.any():  # the window missed the person
                    continue
                score = float(np.percentile(values[weight > 0].cpu().numpy(), 100 * BAND))
                scores.setdefault(self.task.targets[int(target)], []).append(score)
        ranks = {t: min(len(s), int(np.ceil((len(s) + 1) * BAND))) for t, s in scores.items()}
        return {t: round(sorted(s)[ranks[t] - 1], 3) for t, s in scores.items()}
