"""What all methods share that torch trains: one loop, one checkpoint, one moving average.

A method supplies its network, how samples are drawn, and its loss. One that trains further
networks beside it (a discriminator, a registration net, a segmenter) names them as helpers and
says how all of them are updated.
"""

import logging
import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import ClassVar, Self, TypeVar

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from synthesis.augmentation import Batch, Stock
from synthesis.devices import choose_device, time_worked
from synthesis.optimizers import Muon
from synthesis.synthesizer import Parameters, Synthesizer
from synthesis.types import Case

WEIGHTS = "weights.safetensors"
STATE = "state.safetensors"
NETWORK = "network"
"""The name, among the networks under training, of the one that answers."""
LOG_EVERY = 200
SAVE_EVERY = 500
MOMENTS = ("exp_avg", "exp_avg_sq", "step")
LONGEST_GRADIENT = 1.0


class LearnerParameters(Parameters):
    """Hyper-parameters of every method that torch trains.

    Attributes:
        steps: optimizer steps of a full training.
        weight_averaging: decay of the exponential moving average of the weights.
        live_statistics: share of the training after which batch norm keeps its statistics. What a
            small batch measures of itself is a hint that the answer to a single study lacks; the
            last part is learnt without it.
        randomized: share of the samples whose sources come as of another scanner, see
            `augmentation`. The others teach what the sources are as they were acquired.
    """

    steps: int = 9000
    batch: int = 8
    crop: int = 160
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    weight_averaging: float = 0.998
    live_statistics: float = 0.7
    randomized: float = 0.5


L = TypeVar("L", bound=LearnerParameters)


@dataclass(frozen=True, slots=True, kw_only=True)
class Player:
    """A network under training and its optimizer."""

    network: nn.Module
    optimizer: torch.optim.Optimizer


def descend(loss: Tensor, *players: Player) -> None:
    """Let the players take one step down the gradient of the loss, each cut to length 1."""
    for player in players:
        player.optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    for player in players:
        torch.nn.utils.clip_grad_norm_(player.network.parameters(), LONGEST_GRADIENT)
        player.optimizer.step()


class Learner(Synthesizer[L]):
    """A method whose network torch trains; the kept weights are a moving average."""

    channels_last: ClassVar[bool] = True
    """Whether a GPU keeps the weights channels last; only convolutions in two dimensions can."""
    network_: nn.Module

    @abstractmethod
    def build_network(self) -> nn.Module:
        """Return the untrained network that answers."""

    @abstractmethod
    def draw(self, stock: Stock, generator: np.random.Generator) -> Batch:
        """Return the samples of one step."""

    @abstractmethod
    def loss(self, network: nn.Module, batch: Batch, generator: np.random.Generator) -> Tensor:
        """Return the scalar that training makes small."""

    def build_helpers(self) -> dict[str, nn.Module]:
        """Return the untrained networks that only training needs, by name."""
        return {}

    def prepare(self, network: nn.Module, cases: Sequence[Case]) -> None:
        """Give the untrained network what it takes from the people before it learns."""

    def update(
        self,
        players: Mapping[str, Player],
        batch: Batch,
        progress: float,
        generator: np.random.Generator,
    ) -> Tensor:
        """Take one step with every network; returns the loss that is reported.

        Args:
            players: the networks by name.
            batch: what is learnt from.
            progress: how much of the training is over, from 0 to 1; where time is short, of that.
            generator: of further draws.
        """
        player = players[NETWORK]
        loss = self.loss(player.network, batch, generator)
        descend(loss, player)
        return loss.detach()

    def finish(self, players: Mapping[str, Player]) -> None:
        """Keep what else was learnt than the network."""

    def fit(
        self,
        cases: Sequence[Case],
        *,
        validation: Sequence[Case] = (),
        seed: int,
        budget: timedelta | None = None,
        checkpoint: Path | None = None,
    ) -> Self:
        """Learn by Muon with a one-cycle rate; every draw follows from the seed and the step."""
        p = self.parameters
        torch.manual_seed(seed)
        device = choose_device(self.device)
        network = self.build_network()
        self.prepare(network, cases)
        players = {
            name: self._enter(each, device)
            for name, each in {NETWORK: network, **self.build_helpers()}.items()
        }
        average = {k: v.detach().clone() for k, v in network.state_dict().items()}
        step, spent = 0, 0.0
        if checkpoint is not None and (checkpoint / STATE).exists():
            step, spent = _restore_state(checkpoint / STATE, players, average)
        stock = Stock(cases, self.task, device)
        started, running = time_worked(device) - spent, torch.zeros((), device=device)
        seconds = math.inf if budget is None else budget.total_seconds()
        progress = max(step / p.steps, spent / seconds)
        while step < p.steps:
            for player in players.values():
                for group in player.optimizer.param_groups:
                    group["lr"] = _one_cycle(progress) * p.learning_rate
                if progress >= p.live_statistics:
                    _keep_statistics(player.network)
            generator = np.random.default_rng([seed, step])
            running += self.update(players, self.draw(stock, generator), progress, generator)
            step += 1
            _follow(average, network, min(p.weight_averaging, (step + 1) / (step + 10)))
            spent = time_worked(device) - started
            # where time runs out first, the rate falls in time
            progress = max(step / p.steps, spent / seconds)
            stop = step < p.steps and progress >= 1
            if step % LOG_EVERY == 0 or stop or step == p.steps:
                self.network_ = self._averaged(average)
                figure = self._watch(validation, seed) if step % SAVE_EVERY == 0 else ""
                loss = float(running) / LOG_EVERY
                _report(f"step {step} of {p.steps}, loss {loss:.4f}, {spent:.0f} s {figure}")
                running = torch.zeros((), device=device)
            if checkpoint is not None and (step % SAVE_EVERY == 0 or stop or step == p.steps):
                _save_state(checkpoint / STATE, players, average, step, spent, over=step == p.steps)
            if stop:
                break
        self.network_ = self._averaged(average)
        self.finish(players)
        return self

    def _enter(self, network: nn.Module, device: torch.device) -> Player:
        network = network.train().to(device)
        if device.type == "cuda" and self.channels_last:
            network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = Muon(
            network.parameters(),
            self.parameters.learning_rate,
            weight_decay=self.parameters.weight_decay,
            fused=device.type == "cuda",
        )
        return Player(network=network, optimizer=optimizer)

    def _averaged(self, average: Mapping[str, Tensor]) -> nn.Module:
        network = self.build_network()
        network.load_state_dict(average)
        return network.eval().requires_grad_(False).to(choose_device(self.device))

    def _watch(self, validation: Sequence[Case], seed: int) -> str:
        figures = []
        for case in validation:
            middle = case.mask.shape[0] // 2
            cut = slice(max(0, middle - 16), middle + 16)
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

    def save(self, folder: Path) -> None:
        """Write the averaged weights as safetensors."""
        save_file(
            {k: v.contiguous() for k, v in self.network_.state_dict().items()}, folder / WEIGHTS
        )

    def restore(self, folder: Path) -> Self:
        """Read weights."""
        self.network_ = self._averaged(load_file(folder / WEIGHTS))
        return self


def noise_like(tensor: Tensor, generator: np.random.Generator) -> Tensor:
    """Return standard normal noise, the same on every device; one draw from the generator."""
    seed = int(generator.integers(2**31))
    grain = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(seed))
    return grain.to(tensor.device)


def _follow(average: Mapping[str, Tensor], network: nn.Module, decay: float) -> None:
    """Move the averaged weights towards the network's; counters are copied."""
    pairs = [(average[key], value) for key, value in network.state_dict().items()]
    floats = [(mine, theirs) for mine, theirs in pairs if theirs.is_floating_point()]
    update = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        update([mine for mine, _ in floats], [theirs for _, theirs in floats], 0)
        for mine, theirs in pairs:
            if not theirs.is_floating_point():
                mine.copy_(theirs)


def _keep_statistics(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            module.eval()


def _one_cycle(progress: float) -> float:
    warm = 0.05
    if progress < warm:
        return (progress + 1e-3) / warm
    return 0.5 * (1 + float(np.cos(np.pi * (progress - warm) / (1 - warm)))) + 1e-3


def _save_state(
    path: Path,
    players: Mapping[str, Player],
    average: Mapping[str, Tensor],
    step: int,
    spent: float,
    *,
    over: bool,
) -> None:
    """Write the averaged weights and, unless training is over, what going on with it needs."""
    tensors = {"step": torch.tensor(step), "spent": torch.tensor(spent)}
    tensors |= {f"average.{k}": v.contiguous() for k, v in average.items()}
    for name, player in players.items():
        if over and name == NETWORK:
            continue
        weights = player.network.state_dict()
        tensors |= {f"{name}.weights.{k}": v.contiguous() for k, v in weights.items()}
        if over:
            continue
        names = [key for key, _ in player.network.named_parameters()]
        for index, state in player.optimizer.state_dict()["state"].items():
            for moment, values in state.items():
                tensors[f"{name}.{moment}.{names[index]}"] = values.contiguous()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    save_file(tensors, temporary)
    temporary.rename(path)


def _restore_state(
    path: Path, players: Mapping[str, Player], average: Mapping[str, Tensor]
) -> tuple[int, float]:
    """Read what `_save_state` wrote; returns the steps done and the seconds spent on them."""
    tensors = load_file(path)
    for key, value in average.items():
        value.copy_(tensors[f"average.{key}"])
    for name, player in players.items():
        prefix = f"{name}.weights."
        weights = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        if weights:
            player.network.load_state_dict(weights)
        saved = player.optimizer.state_dict()
        saved["state"] = {
            index: {
                moment: tensors[f"{name}.{moment}.{key}"]
                for moment in MOMENTS
                if f"{name}.{moment}.{key}" in tensors
            }
            for index, (key, _) in enumerate(player.network.named_parameters())
            if f"{name}.step.{key}" in tensors
        }
        player.optimizer.load_state_dict(saved)
    return int(tensors["step"]), float(tensors["spent"])


def _report(line: str) -> None:
    logging.getLogger(__name__).info(line)
