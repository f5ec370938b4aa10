"""Send every case through the node's whole path and print the worst errors beside their bounds.

    make geometry

Exit code 1 when a bound is broken. The last lines tell how far each shipped model moves what it is
shown.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from geometries.cases import draw_faulty_cases, draw_sound_cases
from geometries.impulse import measure_shifts
from geometries.journey import BOUNDS, FEWEST_OTHER_GRIDS, Errors, travel_all
from synthesis.registry import load_cards

MODELS = Path(__file__).parents[2] / "models"
MOST_SHIFT = 0.1
"""Voxels."""


def main() -> int:
    """Measure and print; return 0, or 1 when a bound is broken."""
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        sound = travel_all(draw_sound_cases(), Path(folder) / "sound")
        faulty = [case for case, _ in draw_faulty_cases()]
        codes = travel_all(faulty, Path(folder) / "faulty")
    through = [each for each in sound if isinstance(each, Errors)]
    console.print(f"{len(through)} of {len(sound)} geometries came through")
    refused = sum(
        code == wanted for code, (_, wanted) in zip(codes, draw_faulty_cases(), strict=True)
    )
    console.print(f"{refused} of {len(faulty)} that are no volume were refused by name")
    table = Table("error", "cases", "median", "worst", "bound", "worst case")
    broken = len(through) < len(sound) or refused < len(faulty)
    for name, bound in BOUNDS.items():
        found = [(getattr(e, name), e.name) for e in through if getattr(e, name) is not None]
        worst, case = max(found)
        broken |= worst > bound
        median = np.median([value for value, _ in found])
        table.add_row(name, str(len(found)), f"{median:.3g}", f"{worst:.4g}", f"{bound:g}", case)
    console.print(table)
    broken |= sum(each.ramp is not None for each in through) < FEWEST_OTHER_GRIDS
    console.print(_measure_models())
    return int(broken)


def _measure_models() -> Table:
    table = Table("model", "target", "shift in voxels (slices, rows, columns)", "standard error")
    for card in (card for card in load_cards(MODELS) if not card.is_flat):
        for shift in measure_shifts(MODELS, card.id):
            far = np.abs(shift.mean).max() > MOST_SHIFT
            moved, spread = (
                ", ".join(f"{v:+.2f}" for v in each) for each in (shift.mean, shift.standard_error)
            )
            table.add_row(card.id, shift.target, f"{moved}{' over 0.1' if far else ''}", spread)
    return table


if __name__ == "__main__":
    sys.exit(main())
