"""Encoder-decoder: one any-subset 2.5-D U-Net for all sources and targets of a task.

Missing sources are zero and named in the condition (Sharma 2020, MM-GAN's implicit imputation);
the band comes from two quantile heads (Angelopoulos 2022, image-to-image regression with
uncertainty). At inference the network looks along every usable axis and the answers are averaged.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Self

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from synthesis.augmentation import Sample, draw_sample
from synthesis.losses import gradient_l1, masked_l1, pinball, structural_dissimilarity
from synthesis.networks import ConditionedUNet, UNetShape
from synthesis.patches import VIEWS, batches, pad_to_multiple, stack_neighbors, usable_views
from synthesis.preprocessing import THICK_FROM, bounding_box
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
        network = ConditionedUNet(self._shape()).train()
        optimizer = torch.optim.AdamW(
            network.parameters(), p.learning_rate, weight_decay=p.weight_decay
        )
        average = {k: v.detach().clone() for k, v in network.state_dict().items()}
        step = 0
        if checkpoint is not None and (checkpoint / STATE).exists():
            step = _restore_state(checkpoint / STATE, network, optimizer, average)
        deadline = time.monotonic() + budget.total_seconds() if budget else None
        started, running = time.monotonic(), 0.0
        with ThreadPoolExecutor(1) as loader:
            pending = loader.submit(self._draw_batch, cases, seed, step)
            while step < p.steps:
                batch = pending.result()
                pending = loader.submit(self._draw_batch, cases, seed, step + 1)
                rate = _one_cycle(step / p.steps) * p.learning_rate
                for group in optimizer.param_groups:
                    group["lr"] = rate
                loss = self._step(network, optimizer, batch)
                running += loss
                step += 1
                decay = min(p.weight_averaging, (step + 1) / (step + 10))
                for key, value in network.state_dict().items():
                    if value.is_floating_point():
                        average[key].lerp_(value, 1 - decay)
                    else:
                        average[key].copy_(value)
                stop = deadline is not None and time.monotonic() > deadline
                if step % LOG_EVERY == 0 or stop or step == p.steps:
                    self.network_ = self._averaged(average)
                    figure = self._watch(validation, seed) if step % SAVE_EVERY == 0 else ""
                    elapsed = time.monotonic() - started
                    _report(f"step {step} loss {running / LOG_EVERY:.4f} {elapsed:.0f} s {figure}")
                    running = 0.0
                if checkpoint is not None and (step % SAVE_EVERY == 0 or stop or step == p.steps):
                    _save_state(checkpoint / STATE, network, optimizer, average, step)
                if stop:
                    break
        self.network_ = self._averaged(average)
        return self

    def _draw_batch(self, cases: Sequence[Case], seed: int, step: int) -> list[Sample]:
        p = self.parameters
        generator = np.random.default_rng([seed, step])
        # a person with more contrasts teaches more tasks
        weights = np.array([len(c.images) * (len(c.images) - 1) for c in cases], float)
        picks = generator.choice(len(cases), p.batch, p=weights / weights.sum())
        return [
            draw_sample(
                cases[int(i)],
                self.task,
                size=p.crop,
                slices=p.slices,
                views=p.views,
                generator=generator,
            )
            for i in picks
        ]

    def _step(
        self, network: ConditionedUNet, optimizer: torch.optim.Optimizer, batch: list[Sample]
    ) -> float:
        p = self.parameters
        x = torch.from_numpy(np.stack([s.stack for s in batch]))  # (b, sources, slices, r, c)
        condition = torch.from_numpy(np.stack([s.condition for s in batch]))
        truth = torch.from_numpy(np.stack([s.truth for s in batch]))  # (b, 1, r, c)
        weight = torch.from_numpy(np.stack([s.weight for s in batch]))
        with torch.autocast("cpu", torch.bfloat16):
            output: Tensor = network(x, condition)
        mean, lower, upper = output.chunk(3, dim=1)
        loss = masked_l1(mean, truth, weight)
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
        return float(loss.detach())

    def _averaged(self, average: Mapping[str, Tensor]) -> ConditionedUNet:
        network = ConditionedUNet(self._shape())
        network.load_state_dict(average)
        return network.eval().requires_grad_(False)

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
        answer = sum(self._look(volume, condition, axis) for axis in views) / len(views)
        full = np.zeros((3, *mask.shape), np.float32)
        full[(slice(None), *box)] = np.where(mask[box], answer, 0)
        return Prediction(mean=full[0], lower=full[1], upper=full[2])

    def _look(self, volume: FloatArray, condition: Tensor, axis: int) -> FloatArray:
        p = self.parameters
        stack = stack_neighbors(volume, axis, p.slices)  # (n, sources, slices, rows, columns)
        rows, columns = stack.shape[-2:]
        out = np.empty((3, stack.shape[0], rows, columns), np.float32)
        with torch.inference_mode():
            for piece in batches(stack.shape[0], 4):
                part = pad_to_multiple(stack[piece], self._shape().multiple)
                x = torch.from_numpy(np.ascontiguousarray(part))
                y = self.network_(x, condition.expand(x.shape[0], -1)).numpy()
                out[:, piece] = np.moveaxis(y[:, :, :rows, :columns], 1, 0)
        return np.moveaxis(out, 1, axis + 1)  # (3, slices, rows, columns)

    def save(self, folder: Path) -> None:
        """Write the averaged weights as safetensors."""
        save_file(
            {k: v.contiguous() for k, v in self.network_.state_dict().items()}, folder / WEIGHTS
        )

    def restore(self, folder: Path) -> Self:
        """Read weights."""
        self.network_ = self._averaged(load_file(folder / WEIGHTS))
        return self


def _one_cycle(progress: float) -> float:
    warm = 0.05
    if progress < warm:
        return (progress + 1e-3) / warm
    return 0.5 * (1 + float(np.cos(np.pi * (progress - warm) / (1 - warm)))) + 1e-3


def _save_state(
    path: Path,
    network: ConditionedUNet,
    optimizer: torch.optim.Optimizer,
    average: Mapping[str, Tensor],
    step: int,
) -> None:
    names = [name for name, _ in network.named_parameters()]
    tensors = {"step": torch.tensor(step)}
    tensors |= {f"network.{k}": v.contiguous() for k, v in network.state_dict().items()}
    tensors |= {f"average.{k}": v.contiguous() for k, v in average.items()}
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
    tensors = load_file(path)
    network.load_state_dict(
        {k.removeprefix("network."): v for k, v in tensors.items() if k.startswith("network.")}
    )
    for key, value in average.items():
        value.copy_(tensors[f"average.{key}"])
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
