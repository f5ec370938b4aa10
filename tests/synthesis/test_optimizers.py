"""Steps of training: convolutions move in all directions alike, the rest as AdamW has it."""

import pytest
import torch
from torch import nn

from synthesis.optimizers import SIZE, Muon, orthogonalize


@pytest.mark.parametrize("shape", [(8, 72), (72, 8), (1, 9), (16, 16)])
def test_singular_values_become_nearly_one(shape: tuple[int, int]) -> None:
    torch.manual_seed(1)
    matrix = torch.randn(shape) @ torch.diag(torch.linspace(0.1, 1, shape[1]))
    matrix = 1e-3 * matrix  # gradients are small

    turned = orthogonalize(matrix)

    values = torch.linalg.svdvals(turned)
    assert values.min() > 0.5
    assert values.max() < 1.3
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    assert (
        torch.nn.functional.cosine_similarity(turned.flatten(), (left @ right).flatten(), 0) > 0.97
    )


@pytest.mark.parametrize("convolution", [nn.Conv2d(4, 6, 3), nn.Conv3d(4, 6, 3)])
def test_kernel_moves_as_far_as_adamw_would_however_small_its_gradient_is(
    convolution: nn.Module,
) -> None:
    kernel = convolution.weight
    assert isinstance(kernel, nn.Parameter)
    before = kernel.detach().clone()
    optimizer = Muon([kernel], 0.01, weight_decay=0, fused=False)
    kernel.grad = 1e-6 * torch.randn(kernel.shape, generator=torch.Generator().manual_seed(1))

    optimizer.step()

    moved = (kernel.detach() - before).square().mean().sqrt()
    assert float(moved) == pytest.approx(0.01 * SIZE, rel=0.3)


def test_everything_but_kernels_moves_by_adamw() -> None:
    ours, theirs = nn.Linear(3, 2), nn.Linear(3, 2)
    theirs.load_state_dict(ours.state_dict())
    mine = Muon(ours.parameters(), 0.01, weight_decay=0.1, fused=False)
    plain = torch.optim.AdamW(theirs.parameters(), 0.01, weight_decay=0.1)
    x = torch.randn(5, 3)
    for _ in range(3):
        for network, optimizer in ((ours, mine), (theirs, plain)):
            optimizer.zero_grad()
            network(x).square().sum().backward()
            optimizer.step()

    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one, other)


def test_what_has_no_gradient_stays() -> None:
    convolution = nn.Conv2d(1, 1, 3)
    before = [p.detach().clone() for p in convolution.parameters()]

    Muon(convolution.parameters(), 0.01, weight_decay=0.1, fused=False).step()

    for one, other in zip(before, convolution.parameters(), strict=True):
        assert torch.equal(one, other)
