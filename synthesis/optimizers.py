"""What steps networks take: a convolution moves in all its directions alike, the rest by AdamW.

Muon (Jordan 2024, "Muon: an optimizer for hidden layers in neural networks") replaces the momentum
of a matrix by the nearest one whose singular values are all one, so that a few strong directions do
not drown what a network has yet to learn. torch's own takes no convolutions, and reckons in
bfloat16, which not every device is quick in.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

MOMENTUM = 0.95
SIZE = 0.2
"""A step's root mean square, as a share of the rate, that AdamW's have (Liu 2025, eq. 4)."""
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Of a polynomial that, five times over, takes singular values to 0.7 to 1.2 (Jordan 2024)."""
ITERATIONS = 5
MATRIX = 2


class Muon(torch.optim.AdamW):
    """Muon for the kernels of convolutions, AdamW for weights of any other kind.

    A step uses up the gradients of the kernels.

    Args:
        parameters: of a network.
        rate: of learning, for both.
        weight_decay: decoupled, for both.
        fused: AdamW's, for a GPU.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], rate: float, *, weight_decay: float, fused: bool
    ) -> None:
        super().__init__(parameters, rate, weight_decay=weight_decay, fused=fused)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move every weight that has a gradient."""
        for group in self.param_groups:
            for kernel in group["params"]:
                if kernel.ndim > MATRIX and kernel.grad is not None:
                    self._move(kernel, kernel.grad, group["lr"], group["weight_decay"])
                    kernel.grad = None
        return super().step(closure)

    def _move(self, kernel: Tensor, gradient: Tensor, rate: float, weight_decay: float) -> None:
        state = self.state[kernel]
        if not state:
            # AdamW wants a count of every weight that it restores
            state["step"], state["exp_avg"] = torch.zeros(()), torch.zeros_like(kernel)
        state["step"] += 1
        momentum = state["exp_avg"].lerp_(gradient, 1 - MOMENTUM)
        ahead = gradient.lerp(momentum, MOMENTUM).flatten(1)  # (outputs, inputs of a voxel)
        kernel.mul_(1 - rate * weight_decay)
        change = orthogonalize(ahead).view_as(kernel)
        kernel.add_(change, alpha=-rate * SIZE * max(ahead.shape) ** 0.5)


def orthogonalize(matrix: Tensor) -> Tensor:
    """Return about the nearest matrix whose singular values are all one (Jordan 2024)."""
    first, third, fifth = NEWTON_SCHULZ
    is_tall = matrix.shape[0] > matrix.shape[1]
    x: Tensor = matrix.T if is_tall else matrix
    x = x / x.norm().clamp_min(1e-12)
    for _ in range(ITERATIONS):
        square = x @ x.T
        x = first * x + (third * square + fifth * square @ square) @ x
    return x.T if is_tall else x
