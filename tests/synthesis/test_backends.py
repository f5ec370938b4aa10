"""Back ends: the same answer whichever is chosen, and the same choice after a restart."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from synthesis import backends, devices
from synthesis.backends import accelerate, agrees, list_ways
from synthesis.networks import ConditionedUNet, UNetShape
from synthesis.patches import find_window

SHAPE = UNetShape(sources=2, targets=1, width=8, levels=3)
EXAMPLE = (torch.rand(2, 2, 5, 48, 32), torch.ones(2, 3))


class Rounding(nn.Module):
    """Its answer is the further from float32 the less of it is kept."""

    def forward(self, stack: Tensor, condition: Tensor) -> Tensor:
        middle = stack[:, :1, 2] + 100
        kept = middle.bfloat16().float() if torch.is_autocast_enabled("cpu") else middle
        return kept + 0 * condition.sum()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(backends.CACHE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def network() -> ConditionedUNet:
    torch.manual_seed(1)
    return ConditionedUNet(SHAPE).eval().requires_grad_(False)


def read_choices(cache: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in cache.glob("*.json")]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this machine pass for one that is quick in bfloat16."""
    monkeypatch.setattr(backends, "is_quick_in_bfloat16", lambda _: True)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_every_way_gives_the_answer_of_plain_float32(
    network: ConditionedUNet, precision: str
) -> None:
    with torch.inference_mode():
        plain = network(*EXAMPLE)
    other = (torch.rand(3, 2, 5, 32, 64), torch.ones(3, 3))

    ways = dict(list_ways(network, EXAMPLE, precision))

    assert set(ways) == {"torch", "channels last", "openvino"}
    for run in ways.values():
        assert agrees(run(*EXAMPLE), plain, precision)
        assert run(*other).shape == (3, 3, 32, 64)  # of any size


def test_choice_is_kept_over_a_restart(network: ConditionedUNet, cache: Path) -> None:
    first = accelerate(network, EXAMPLE, "float32")
    [path] = cache.glob("*.json")
    slowest = {"backend": "torch", "precision": "float32", "threads": 1}
    path.write_text(json.dumps(slowest))

    again = accelerate(network, EXAMPLE, "float32")

    assert first.choice.precision == "float32"
    assert again.choice.as_dict() == slowest


def test_other_weights_and_another_precision_are_measured_anew(
    network: ConditionedUNet, cache: Path
) -> None:
    torch.manual_seed(2)
    for each, precision in (
        (network, "float32"),
        (network, "bfloat16"),
        (ConditionedUNet(SHAPE).eval(), "float32"),
    ):
        accelerate(each, EXAMPLE, precision)

    assert len(read_choices(cache)) == 3


@pytest.mark.usefixtures("quick")
def test_bfloat16_that_is_too_far_becomes_float32(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "_BUILDERS", {"torch": backends._build_torch})

    chosen = accelerate(Rounding(), EXAMPLE, "bfloat16")

    assert chosen.choice.precision == "float32"
    assert read_choices(cache)[0]["precision"] == "float32"


def test_bfloat16_is_not_tried_where_it_is_slow(
    network: ConditionedUNet, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU without AVX-512 the first request would wait for minutes."""
    tried = []

    def build(network: nn.Module, example: Any, precision: str) -> backends.Run:
        tried.append(precision)
        return backends._build_torch(network, example, precision)

    monkeypatch.setattr(backends, "is_quick_in_bfloat16", lambda _: False)
    monkeypatch.setattr(backends, "_BUILDERS", {"torch": build})

    chosen = accelerate(network, EXAMPLE, "bfloat16")

    assert tried == ["float32"]
    assert chosen.choice.precision == "float32"
    assert read_choices(cache)[0]["precision"] == "float32"


def test_networks_learn_in_bfloat16_where_it_is_quick_and_in_float32_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    convolution, image = nn.Conv2d(1, 1, 3), torch.rand(1, 1, 8, 8)
    for quick, precision in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(devices, "is_quick_in_bfloat16", lambda _, quick=quick: quick)
        with devices.mixed_precision(image.device):
            assert convolution(image).dtype is precision


def test_bfloat16_is_called_quick_only_where_it_is() -> None:
    """The slow one is 20 to 70 times slower."""
    convolution, image = nn.Conv2d(32, 32, 3), torch.rand(2, 32, 32, 32)
    taken = {}
    for enabled in (True, False):
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            taken[enabled] = backends._time(lambda *_: convolution(image), EXAMPLE)

    if devices.is_quick_in_bfloat16(image.device):
        assert taken[True] < 10 * taken[False]
    else:
        assert taken[True] > taken[False]


def test_cache_that_cannot_be_written_costs_only_the_next_measurement(
    network: ConditionedUNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(backends.CACHE, str(tmp_path / "file"))

    assert accelerate(network, EXAMPLE, "float32").choice.backend


def test_damaged_choice_is_measured_anew(network: ConditionedUNet, cache: Path) -> None:
    accelerate(network, EXAMPLE, "float32")
    [path] = cache.glob("*.json")
    for content in ("", "[]", '{"backend": "none", "precision": "float32", "threads": 1}'):
        path.write_text(content)

        assert accelerate(network, EXAMPLE, "float32").choice.backend != "none"


def test_window_holds_the_mask_and_begins_where_pooling_does() -> None:
    inside = np.zeros((200, 150), bool)
    inside[90:120, 40:60] = True

    rows, columns = find_window(inside, 16) or (slice(0), slice(0))

    assert (rows, columns) == (slice(64, 144), slice(16, 80))
    assert find_window(np.zeros((20, 20), bool), 16) is None
