"""Encoder-decoder: one any-subset 2.5-D U-Net for all sources and targets of a task.

Missing sources are zero and named in the condition (Sharma 2020, MM-GAN's implicit imputation);
the band comes from two quantile heads (Angelopoulos 2022, image-to-image regression with
uncertainty). At inference the network looks along every usable axis and the answers are averaged.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Self

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional
from torch.optim.swa_utils import get_ema_multi_avg_fn

from synthesis.augmentation import Batch, Stock
from synthesis.devices import choose_device, exact
from synthesis.losses import (
    gradient_l1,
    masked_l1,
    masked_square,
    pinball,
    structural_dissimilarity,
)
from synthesis.networks import ConditionedUNet, UNetShape
from synthesis.patches import THICK_FROM, VIEWS, batches, bounding_box, usable_views
from synthesis.synthesizer import Parameters, Synthesizer
from synthesis.types import (
    Case,
    ContrastLabel,
    FloatArray,
    MaskArray,
    Prediction,
)

WEIGHTS = "weights.safetensors"
STATE = "state.safetensors"
LOG_EVERY = 200
SAVE_EVERY = 500
CALIBRATION_BATCHES, CALIBRATION_SLICES = 12, 8
BAND = 0.9
"""Share of voxels that the band promises to hold."""
NARROWEST = 1e-4
SLICES_AT_ONCE = {"cpu": 4, "cuda": 32}
"""On a CPU a larger batch is no faster; a GPU wants enough to do."""


class UNetParameters(Parameters):
    """Hyper-parameters of `UNet25D`.

    Attributes:
        slices: neighboring slices per source, odd.
        views: slice axes that are learnt and used (0 axial, 1 coronal, 2 sagittal).
        steps: optimizer steps of a full training.
        weight_averaging: decay of the exponential moving average of the weights.
    """

    slices: int = 5
    width: int = 32
    levels: int = 4
    views: tuple[int, ...] = VIEWS
    crop: int = 160
    batch: int = 8
    steps: int = 9000
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    weight_averaging: float = 0.998
    square_weight: float = 1.0
    dissimilarity_weight: float = 0.3
    gradient_weight: float = 0.2
    band_weight: float = 0.3


class UNet25D(Synthesizer[UNetParameters]):
    """Any subset of the sources to any target, slice by slice with neighbors."""

    parameters_type = UNetParameters
    network_: ConditionedUNet

    def _shape(self) -> UNetShape:
        p = self.parameters
        return UNetShape(
            sources=len(self.task.sources),
            targets=len(self.task.targets),
            slices=p.slices,
            width=p.width,
            levels=p.levels,
        )

    def fit(
        self,
        cases: Sequence[Case],
        *,
        validation: Sequence[Case] = (),
        seed: int,
        budget: timedelta | None = None,
        checkpoint: Path | None = None,
    ) -> Self:
        """Learn by AdamW with a one-cycle rate; the kept weights are a moving average."""
        p = self.parameters
        torch.manual_seed(seed)
        device = choose_device(self.device)
        network = ConditionedUNet(self._shape()).train().to(device)
        if device.type == "cuda":
            network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = torch.optim.AdamW(
            network.parameters(),
            p.learning_rate,
            weight_decay=p.weight_decay,
            fused=device.type == "cuda",
        )
        average = {k: v.detach().clone() for k, v in network.state_dict().items()}
        step = 0
        if checkpoint is not None and (checkpoint / STATE).exists():
            step = _restore_state(checkpoint / STATE, network, optimizer, average)
        stock = Stock(cases, self.task, device)
        started, running = time.monotonic(), torch.zeros((), device=device)
        progress = step / p.steps
        while step < p.steps:
            rate = _one_cycle(progress) * p.learning_rate
            for group in optimizer.param_groups:
                group["lr"] = rate
            batch = stock.draw(
                p.batch,
                size=p.crop,
                slices=p.slices,
                views=p.views,
                generator=np.random.default_rng([seed, step]),
            )
            running += self._step(network, optimizer, batch)
            step += 1
            _follow(average, network, min(p.weight_averaging, (step + 1) / (step + 10)))
            progress = step / p.steps
            if budget is not None:
                # where time runs out first, the rate falls in time
                progress = max(progress, (time.monotonic() - started) / budget.total_seconds())
            stop = step < p.steps and progress >= 1
            if step % LOG_EVERY == 0 or stop or step == p.steps:
                self.network_ = self._averaged(average)
                figure = self._watch(validation, seed) if step % SAVE_EVERY == 0 else ""
                elapsed = time.monotonic() - started
                loss = float(running) / LOG_EVERY
                _report(f"step {step} of {p.steps}, loss {loss:.4f}, {elapsed:.0f} s {figure}")
                running = torch.zeros((), device=device)
            if checkpoint is not None and (step % SAVE_EVERY == 0 or stop or step == p.steps):
                finished = step == p.steps
                _save_state(
                    checkpoint / STATE, average, step, None if finished else (network, optimizer)
                )
            if stop:
                break
        self.network_ = self._averaged(average)
        return self

    def _step(
        self, network: ConditionedUNet, optimizer: torch.optim.Optimizer, batch: Batch
    ) -> Tensor:
        p = self.parameters
        truth, weight = batch.truth, batch.weight
        with torch.autocast(truth.device.type, torch.bfloat16):
            output: Tensor = network(batch.stack, batch.condition)
        mean, lower, upper = output.chunk(3, dim=1)
        loss = masked_l1(mean, truth, weight)
        loss = loss + p.square_weight * masked_square(mean, truth, weight)
        loss = loss + p.dissimilarity_weight * structural_dissimilarity(mean, truth, weight)
        loss = loss + p.gradient_weight * gradient_l1(mean, truth, weight)
        # the band must not pull the mean: it learns around a fixed center
        fixed = mean.detach()
        loss = loss + p.band_weight * pinball(lower - mean + fixed, truth, weight, 0.05)
        loss = loss + p.band_weight * pinball(upper - mean + fixed, truth, weight, 0.95)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        return loss.detach()

    def _averaged(self, average: Mapping[str, Tensor]) -> ConditionedUNet:
        network = ConditionedUNet(self._shape())
        network.load_state_dict(average)
        return network.eval().requires_grad_(False).to(choose_device(self.device))

    def _watch(self, validation: Sequence[Case], seed: int) -> str:
        figures = []
        for case in validation:
            middle = case.mask.shape[0] // 2
            cut = slice(middle - 16, middle + 16)
            for target in (t for t in self.task.targets if t in case.images):
                sources = {
                    label: case.images[label][cut]
                    for label in self.task.sources
                    if label in case.images and label != target
                }
                mask = case.mask[cut]
                prediction = self.predict(
                    sources, target=target, mask=mask, spacing=(3.0, 1.0, 1.0), seed=seed
                )
                error = (prediction.mean - case.images[target][cut])[mask]
                figures.append(f"{target} {-10 * np.log10(np.mean(error**2)):.2f} dB")
        return ", ".join(figures)

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
        self.check_request(sources, target)
        box = bounding_box(mask)
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
        with torch.inference_mode(), exact():
            x, condition = torch.from_numpy(volume).to(device), condition.to(device)
            looks = torch.stack([self._look(x, condition, axis) for axis in views])
            answer = looks.mean(dim=0).cpu().numpy()
        full = np.zeros((3, *mask.shape), np.float32)
        full[(slice(None), *box)] = np.where(mask[box], answer, 0)
        return Prediction(mean=full[0], lower=full[1], upper=full[2])

    def _look(self, volume: Tensor, condition: Tensor, axis: int) -> Tensor:
        """Return (3, slices, rows, columns), predicted slice by slice along an axis."""
        half = self.parameters.slices // 2
        moved = volume.movedim(axis + 1, 1)  # (sources, n, rows, columns)
        count, rows, columns = moved.shape[1:]
        first, last = moved[:, :1], moved[:, -1:]
        wide = torch.cat([first] * half + [moved] + [last] * half, dim=1)
        multiple = self._shape().multiple
        wide = functional.pad(wide, (0, -columns % multiple, 0, -rows % multiple))
        stacks = wide.unfold(1, 2 * half + 1, 1).permute(1, 0, 4, 2, 3)
        # stacks: (n, sources, slices, rows, columns), a view
        out = [
            self.network_(stacks[piece], condition.expand(stacks[piece].shape[0], -1))
            for piece in batches(count, SLICES_AT_ONCE[volume.device.type])
        ]
        answer = torch.cat(out)[:, :, :rows, :columns]  # (n, 3, rows, columns)
        return answer.transpose(0, 1).movedim(1, axis + 1)

    def measure_band(self, cases: Sequence[Case], *, seed: int) -> dict[str, float]:
        """Return the factors by the conformal rule (Vovk 2005) over slices as of other scanners.

        A slice's score is the factor that covers 90 % of its voxels; the kept one is the score of
        rank (n + 1) 0.9, so that nine in ten slices of such people and scanners are covered.
        """
        p = self.parameters
        if not cases:
            return {}
        device = next(self.network_.parameters()).device
        stock = Stock(cases, self.task, device)
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
                mean, lower, upper = self.network_(batch.stack, batch.condition).chunk(3, dim=1)
            ratio = (batch.truth - mean).abs() / ((upper - lower) / 2).clamp_min(NARROWEST)
            targets = batch.condition[:, len(self.task.sources) :].argmax(dim=1)
            for target, values, weight in zip(targets, ratio, batch.weight, strict=True):
                if not weight.any():  # the window missed the person
                    continue
                score = float(np.percentile(values[weight > 0].cpu().numpy(), 100 * BAND))
                scores.setdefault(self.task.targets[int(target)], []).append(score)
        ranks = {t: min(len(s), int(np.ceil((len(s) + 1) * BAND))) for t, s in scores.items()}
        return {t: round(sorted(s)[ranks[t] - 1], 3) for t, s in scores.items()}

    def save(self, folder: Path) -> None:
        """Write the averaged weights as safetensors."""
        save_file(
            {k: v.contiguous() for k, v in self.network_.state_dict().items()}, folder / WEIGHTS
        )

    def restore(self, folder: Path) -> Self:
        """Read weights."""
        self.network_ = self._averaged(load_file(folder / WEIGHTS))
        return self


def _follow(average: Mapping[str, Tensor], network: ConditionedUNet, decay: float) -> None:
    """Move the averaged weights towards the network's; counters are copied."""
    pairs = [(average[key], value) for key, value in network.state_dict().items()]
    floats = [(mine, theirs) for mine, theirs in pairs if theirs.is_floating_point()]
    update = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        update([mine for mine, _ in floats], [theirs for _, theirs in floats], 0)
        for mine, theirs in pairs:
            if not theirs.is_floating_point():
                mine.copy_(theirs)


def _one_cycle(progress: float) -> float:
    warm = 0.05
    if progress < warm:
        return (progress + 1e-3) / warm
    return 0.5 * (1 + float(np.cos(np.pi * (progress - warm) / (1 - warm)))) + 1e-3


def _save_state(
    path: Path,
    average: Mapping[str, Tensor],
    step: int,
    under_way: tuple[ConditionedUNet, torch.optim.Optimizer] | None,
) -> None:
    """Write the averaged weights and, unless training is over, what going on with it needs."""
    tensors = {"step": torch.tensor(step)}
    tensors |= {f"average.{k}": v.contiguous() for k, v in average.items()}
    if under_way is not None:
        network, optimizer = under_way
        names = [name for name, _ in network.named_parameters()]
        tensors |= {f"network.{k}": v.contiguous() for k, v in network.state_dict().items()}
        for index, state in optimizer.state_dict()["state"].items():
            for key in ("exp_avg", "exp_avg_sq", "step"):
                tensors[f"optimizer.{key}.{names[index]}"] = state[key].contiguous()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    save_file(tensors, temporary)
    temporary.rename(path)


def _restore_state(
    path: Path,
    network: ConditionedUNet,
    optimizer: torch.optim.Optimizer,
    average: dict[str, Tensor],
) -> int:
    """Read what `_save_state` wrote; returns the steps done."""
    tensors = load_file(path)
    for key, value in average.items():
        value.copy_(tensors[f"average.{key}"])
    weights = {k.removeprefix("network."): v for k, v in tensors.items() if k[:8] == "network."}
    if not weights:
        return int(tensors["step"])
    network.load_state_dict(weights)
    saved = optimizer.state_dict()
    saved["state"] = {
        index: {
            key: tensors[f"optimizer.{key}.{name}"] for key in ("exp_avg", "exp_avg_sq", "step")
        }
        for index, (name, _) in enumerate(network.named_parameters())
    }
    optimizer.load_state_dict(saved)
    return int(tensors["step"])


def _report(line: str) -> None:
    logging.getLogger(__name__).info(line)
