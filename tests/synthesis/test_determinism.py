"""The pixels of a shipped network over restarts, and over counts of threads."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from synthesis.types import FloatArray

ROOT = Path(__file__).parents[2]
LEVELS = 4096
PREDICT = """
import sys
import numpy as np
import torch
from pathlib import Path
from synthesis.methods import build_method
from synthesis.registry import LEARNT, load_card, load_method
from synthesis.speed import make_head
models, threads, out, how = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
assert torch.get_num_threads() == threads, torch.get_num_threads()
card = load_card(models, "brain-any-unet25d")
image, mask = make_head((40, 56, 48), seed=1)
if how == "as served":
    method = load_method(models, card.id, card.digest)
    assert method.backend["threads"] == threads
else:
    method = build_method(card.method, card.task, dict(card.parameters))
    method.restore(models / card.id / LEARNT)
answer = method.predict(
    {"T1w": image, "FLAIR": image**2}, target="T2w", mask=mask, spacing=(1.0, 1.0, 1.0), seed=0
)
np.save(out, answer.mean)
"""


def predict(folder: Path, how: str, number: int, threads: int) -> FloatArray:
    """Return what a fresh process with so many threads answers."""
    out = folder / f"{number}.npy"
    subprocess.run(
        [sys.executable, "-c", PREDICT, str(ROOT / "models"), str(threads), str(out), how],
        env=os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)},
        cwd=ROOT,
        check=True,
    )
    array: FloatArray = np.load(out)
    return array


@pytest.mark.integration
def test_network_as_it_is_served_gives_the_same_bytes_after_a_restart(tmp_path: Path) -> None:
    first, again = (predict(tmp_path, "as served", number, threads=2) for number in (1, 2))

    assert first.tobytes() == again.tobytes()


@pytest.mark.integration
def test_number_of_threads_moves_hardly_a_voxel_by_a_level(tmp_path: Path) -> None:
    one, two = (predict(tmp_path, "in float32", threads, threads=threads) for threads in (1, 2))

    level = (one.max() - one.min()) / LEVELS
    steps = np.abs(two - one)[one != 0] / level
    assert np.mean(steps <= 1) >= 0.999, f"up to {steps.max():.1f} levels"
