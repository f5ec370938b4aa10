"""What is done when memory does not suffice: once more in smaller portions, then elsewhere.

A GPU is shared, and a volume may be larger than any before it. The answer in smaller portions is
that of the larger ones to rounding; what is left is the CPU, slower and in its own precision, or a
person who decides.
"""

import copy
import gc
import logging
from collections.abc import Callable
from typing import Any, Literal

from synthesis.errors import UnusableInput
from synthesis.synthesizer import Synthesizer
from synthesis.types import Prediction

SHARE = 4
"""A smaller portion is the whole divided by this."""

OutOfMemory = Literal["cpu", "hold"]
"""What to do with a volume that a GPU has no memory for: let the CPU answer, or hold it."""

Ask = Callable[[Synthesizer[Any]], Prediction]

logger = logging.getLogger(__name__)


def ask_within_memory(
    method: Synthesizer[Any], ask: Ask, on_cpu: Callable[[], Synthesizer[Any]] | None
) -> tuple[Prediction, Synthesizer[Any]]:
    """Return the answer, and the method that gave it.

    Args:
        method: asked first, and once more in smaller portions where it has some.
        ask: how.
        on_cpu: returns the same method on the CPU, which is asked when a GPU's memory was too
            small; None where that is not wanted.

    Raises:
        UnusableInput: `out_of_memory`.
    """
    answer = _try(ask, method)
    if isinstance(answer, str) and (smaller := _economize(method)) is not None:
        logger.warning("memory.short of=%s again=in_smaller_portions", answer)
        answer = _try(ask, smaller)
    if answer == "gpu" and on_cpu is not None:
        logger.warning("memory.short of=gpu again=on_the_cpu")
        method = on_cpu()
        answer = _try(ask, method)
    if isinstance(answer, str):
        raise UnusableInput(
            "out_of_memory",
            f"the memory of the {answer.upper()} does not suffice, in smaller portions neither; "
            "free some, or use a machine that has more",
        )
    return answer, method


def _try(ask: Ask, method: Synthesizer[Any]) -> Prediction | Literal["cpu", "gpu"]:
    """Return the answer, or whose memory was too small.

    The error is not kept: it holds the frames that hold the memory.
    """
    try:
        return ask(method)
    except (MemoryError, RuntimeError) as error:
        from synthesis.devices import memory_that_ran_out  # noqa: PLC0415 - torch

        short = memory_that_ran_out(error)
        if short is None:
            raise
    from synthesis.devices import release_memory  # noqa: PLC0415 - torch

    gc.collect()
    release_memory()
    return short


def _economize(method: Synthesizer[Any]) -> Synthesizer[Any] | None:
    """Return a method that looks at less at once and shares what the other learnt, or None."""
    from synthesis.backends import in_portions  # noqa: PLC0415 - torch
    from synthesis.methods.brought import Brought  # noqa: PLC0415
    from synthesis.methods.learner import Learner  # noqa: PLC0415 - torch

    smaller = copy.copy(method)
    if isinstance(smaller, Learner):
        smaller.network_ = in_portions(smaller.network_, SHARE)
        return smaller
    if isinstance(smaller, Brought) and smaller.parameters.batch > 1:
        batch = max(1, smaller.parameters.batch // SHARE)
        smaller.parameters = smaller.parameters.model_copy(update={"batch": batch})
        return smaller
    return None
