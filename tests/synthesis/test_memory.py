"""What is done when memory does not suffice, on a device that has room for so many voxels."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from doubles.models import write_model
from synthesis.engine import synthesize
from synthesis.errors import UnusableInput
from synthesis.memory import OutOfMemory
from synthesis.methods import build_method
from synthesis.methods.learner import Learner
from synthesis.phantom import render
from synthesis.registry import load_card, load_method
from synthesis.types import ContrastLabel, Synthesis, SynthesisTask, Volume

T1W, T2W = ContrastLabel("T1w"), ContrastLabel("T2w")
TASK = SynthesisTask(sources=(T1W,), targets=(T2W,))
SMALL = {"width": 8, "levels": 2, "slices": 3}
PHANTOM = render(seed=8, spacing=(4.0, 4.0, 4.0))
AS_MUCH_AS_IS_WANTED = 10**9


class FakeDevice(nn.Module):
    """A network on a device without room for more than so many voxels at once."""

    def __init__(self, network: nn.Module, room: int, error: Exception) -> None:
        super().__init__()
        self.network = network
        self.room = room
        self.error = error
        self.asked: list[int] = []

    def forward(self, stack: Tensor, condition: Tensor) -> Tensor:
        self.asked.append(stack.numel())
        if stack.numel() > self.room:
            raise self.error
        answer: Tensor = self.network(stack, condition)
        return answer


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    method = build_method("unet25d", TASK, SMALL)
    assert isinstance(method, Learner)
    torch.manual_seed(0)
    method.network_ = method.build_network().eval().requires_grad_(False)
    write_model(folder, "unet25d", method, TASK)
    return folder


def run(
    models: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    room: int = AS_MUCH_AS_IS_WANTED,
    error: Exception | None = None,
    policy: OutOfMemory = "hold",
) -> tuple[Synthesis, FakeDevice]:
    """Synthesize on the fake device; what is loaded for the CPU has all the room that it wants."""
    card = load_card(models, "unet25d")
    method = load_method(models, card.id, card.digest)
    spare = load_method(models, card.id, card.digest, "cpu")
    assert isinstance(method, Learner)
    device = FakeDevice(method.network_, room, error or torch.OutOfMemoryError("out of memory"))
    monkeypatch.setattr(method, "network_", device)

    def load(*named: Any) -> Any:
        return spare if named[3:] == ("cpu",) else method

    monkeypatch.setattr("synthesis.engine.load_method", load)
    affine = np.eye(4)
    affine[:3, :3] = np.fliplr(np.diag(PHANTOM.spacing))
    image = Volume(array=PHANTOM.images[T1W], affine=affine, coordinate_system="PATIENT")
    answer = synthesize(
        {T1W: image},
        target=T2W,
        reference=T1W,
        model_id=card.id,
        model_digest=card.digest,
        models_folder=models,
        seed=0,
        out_of_memory=policy,
    )
    return answer, device


def test_what_is_too_much_at_once_is_answered_in_smaller_portions(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, device = run(models, monkeypatch)
    room = max(device.asked) // 4
    monkeypatch.undo()

    again, device = run(models, monkeypatch, room=room)

    assert max(device.asked) > room, "the first try was too much"
    np.testing.assert_allclose(again.volume.array, whole.volume.array, atol=0.01)


def test_a_gpu_without_room_leaves_the_volume_to_the_cpu(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = run(models, monkeypatch)
    monkeypatch.undo()

    again, device = run(models, monkeypatch, room=0, policy="cpu")

    assert len(device.asked) == 2, "one try and one more in smaller portions"
    np.testing.assert_array_equal(again.volume.array, whole.volume.array)


def test_a_gpu_without_room_holds_the_volume_where_the_site_wants_that(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UnusableInput, match="GPU") as refusal:
        run(models, monkeypatch, room=0, policy="hold")

    assert refusal.value.code == "out_of_memory"


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_a_cpu_without_room_holds_the_volume(
    models: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    with pytest.raises(UnusableInput, match="CPU") as refusal:
        run(models, monkeypatch, room=0, policy="cpu", error=error)

    assert refusal.value.code == "out_of_memory"


def test_another_error_is_not_taken_for_want_of_memory(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RuntimeError, match="shapes"):
        run(models, monkeypatch, room=0, policy="cpu", error=RuntimeError("shapes differ"))
