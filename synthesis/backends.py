"""How a network is run on this machine: the fastest of the ways that give the same answer.

The ways differ in memory layout and library. They are timed once, when a model is first
loaded; each is compared with plain float32, and the choice is kept on the disk by the
digest of network and machine, so that a restart chooses the same and the same plan gives the same
pixels. Precision is no choice of the machine: the card fixes it, because it changes pixels.
"""

import copy
import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from synthesis.devices import is_quick_in_bfloat16
from synthesis.types import Precision

CACHE = "SYNTHESIS_CACHE"
"""Environment variable: folder where choices are kept; by default below XDG_CACHE_HOME."""
REPEATS = 3
LEVELS = 4096
LEVELS_SHARE = 0.999
"""float32 ways differ by at most one of 4096 levels in this share of the values."""
LEAST_PSNR_DB = 50.0
"""bfloat16 is at least this near to float32, or float32 is used."""

Run = Callable[[Tensor, Tensor], Tensor]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """How a network is run.

    Attributes:
        backend: the way.
        precision: of its arithmetic.
        threads: how many compute.
    """

    backend: str
    precision: str
    threads: int

    def as_dict(self) -> dict[str, Any]:
        """Return JSON types, for the record."""
        return asdict(self)


class Accelerated(nn.Module):
    """A network that is run in a chosen way.

    Attributes:
        plain: the network itself.
        choice: the way.
    """

    def __init__(self, plain: nn.Module, choice: Choice, run: Run) -> None:
        super().__init__()
        self.plain = plain
        self.choice = choice
        self._run = run

    def forward(self, stack: Tensor, condition: Tensor) -> Tensor:
        """Answer as the network does."""
        return self._run(stack, condition)


def accelerate(
    network: nn.Module, example: tuple[Tensor, Tensor], precision: Precision
) -> Accelerated:
    """Return the network as it is fastest here, in the card's precision.

    Args:
        network: in inference mode; called with a stack and a condition, see `networks`.
        example: a typical call; its sizes may vary but for the channels.
        precision: of the card. Where bfloat16 is slow or not near enough, it is float32.
    """
    device = example[0].device
    threads = torch.get_num_threads()
    if device.type != "cpu":
        choice = Choice(backend="torch", precision="float32", threads=threads)
        return Accelerated(network, choice, network)
    path = _find_cache() / f"{_digest(network, precision, threads)}.json"
    if kept := _read(path):
        return Accelerated(network, kept, _BUILDERS[kept.backend](network, example, kept.precision))
    tried = precision if is_quick_in_bfloat16(device) else "float32"
    with torch.inference_mode():
        plain: Tensor = network(*example)
        best = next(
            found
            for each in dict.fromkeys([tried, "float32"])
            if (found := _measure(network, example, plain, each))
        )
    choice = Choice(backend=best[0], precision=best[1], threads=threads)
    if choice.precision != tried:
        logger.warning("bfloat16 is farther than %g dB from float32", LEAST_PSNR_DB)
    _write(path, choice)
    return Accelerated(network, choice, best[2])


def in_portions(network: nn.Module, count: int) -> nn.Module:
    """Return a network that answers as another one does, each batch in so many portions.

    The two share their weights.
    """

    def forward(*given: Tensor) -> Tensor:
        size = -(-len(given[0]) // count)
        portions = zip(*(torch.split(tensor, size) for tensor in given), strict=True)
        return torch.cat([network(*portion) for portion in portions])

    smaller = copy.copy(network)
    smaller.forward = forward
    return smaller


def list_ways(
    network: nn.Module, example: tuple[Tensor, Tensor], precision: str
) -> Iterator[tuple[str, Run]]:
    """Yield each way that is installed here, built."""
    for name, build in _BUILDERS.items():
        try:
            yield name, build(network, example, precision)
        except ImportError:  # an extra that is not installed
            continue


def agrees(answer: Tensor, plain: Tensor, precision: str) -> bool:
    """Tell whether an answer is as near to plain float32 as its precision promises."""
    error = (answer - plain).abs()
    spread = float(plain.max() - plain.min())
    if precision == "float32":
        return float((error <= spread / LEVELS).float().mean()) >= LEVELS_SHARE
    mean = error[:, 0].square().mean()
    return float(10 * torch.log10(spread**2 / mean.clamp_min(1e-20))) >= LEAST_PSNR_DB


def _measure(
    network: nn.Module, example: tuple[Tensor, Tensor], plain: Tensor, precision: str
) -> tuple[str, str, Run] | None:
    """Return the fastest way of this precision that agrees, or None."""
    timed = []
    for name, run in list_ways(network, example, precision):
        answer = run(*example)
        if agrees(answer, plain, precision):
            timed.append((_time(run, example), name, run))
        else:
            logger.warning("%s in %s does not agree with float32", name, precision)
    if not timed:
        return None
    _, name, run = min(timed, key=lambda each: each[0])
    return name, precision, run


def _time(run: Run, example: tuple[Tensor, Tensor]) -> float:
    taken = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        run(*example)
        taken.append(time.perf_counter() - began)
    return min(taken)


def _build_torch(network: nn.Module, _: tuple[Tensor, Tensor], precision: str) -> Run:
    def run(stack: Tensor, condition: Tensor) -> Tensor:
        enabled = precision == "bfloat16"
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            answer: Tensor = network(stack, condition)
        return answer.float()

    return run


def _build_channels_last(network: nn.Module, example: tuple[Tensor, Tensor], precision: str) -> Run:
    turned = copy.deepcopy(network).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return _build_torch(turned, example, precision)


def _build_openvino(network: nn.Module, example: tuple[Tensor, Tensor], precision: str) -> Run:
    """Compile for any batch, rows and columns.

    The front end is called itself: `openvino.convert_model` loads a package that may report usage.
    """
    import openvino  # noqa: PLC0415 - an extra
    from openvino.frontend import FrontEndManager  # noqa: PLC0415
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder  # noqa: PLC0415

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # it traces by what torch calls deprecated
        decoder = TorchScriptPythonDecoder(network, example_input=example)
        front = FrontEndManager().load_by_framework("pytorch")
        model = front.convert(front.load(decoder))
    stack, condition = example
    sources, slices = stack.shape[1:3]
    first, second = model.inputs
    model.reshape({first: [-1, sources, slices, -1, -1], second: [-1, condition.shape[1]]})
    settings = {
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bfloat16" else "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "NUM_STREAMS": 1,
    }
    compiled = openvino.Core().compile_model(model, "CPU", settings)

    def run(stack: Tensor, condition: Tensor) -> Tensor:
        given = [np.ascontiguousarray(tensor.numpy()) for tensor in (stack, condition)]
        return torch.from_numpy(np.array(compiled(given)[0]))

    return run


_BUILDERS: dict[str, Callable[[nn.Module, tuple[Tensor, Tensor], str], Run]] = {
    "torch": _build_torch,
    "channels last": _build_channels_last,
    "openvino": _build_openvino,
}


def _digest(network: nn.Module, precision: str, threads: int) -> str:
    """Return a digest of the weights, the precision, the machine and the libraries."""
    digest = hashlib.sha256(f"{precision} {threads} {_describe_machine()}".encode())
    for name, tensor in network.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _describe_machine() -> str:
    libraries = []
    for name in ("torch", "openvino"):
        try:
            libraries.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            libraries.append(f"no {name}")
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{platform.machine()} {capability} {', '.join(libraries)}"


def _find_cache() -> Path:
    named = os.environ.get(CACHE)
    if named:
        return Path(named)
    general = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(general) / "dicom_node"


def _read(path: Path) -> Choice | None:
    try:
        kept = Choice(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None
    return kept if kept.backend in _BUILDERS else None


def _write(path: Path, choice: Choice) -> None:
    """Keep a choice; where that is not possible the next start measures again."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.part")
        part.write_text(json.dumps(choice.as_dict()))
        part.replace(path)
    except OSError:
        logger.warning("the choice of a back end cannot be kept below %s", path.parent)
