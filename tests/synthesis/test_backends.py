"""Back ends: the same answer whichever is chosen, and the same choice after a restart."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from synthesis import backends
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


def test_bfloat16_that_is_too_far_becomes_float32(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "_BUILDERS", {"torch": backends._build_torch})

    chosen = accelerate(Rounding(), EXAMPLE, "bfloat16")

    assert chosen.choice.precision == "float32"
    assert read_choices(cache)[0]["precision"] == "float32"


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
