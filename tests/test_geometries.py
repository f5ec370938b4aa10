"""Geometry and units from files to files, on every case that `make geometry` measures."""

from pathlib import Path

import numpy as np
import pytest

from geometries.cases import draw_faulty_cases, draw_sound_cases
from geometries.impulse import measure_shifts
from geometries.journey import BOUNDS, FEWEST_OTHER_GRIDS, Errors, travel_all
from synthesis.registry import load_cards

pytestmark = pytest.mark.integration

MODELS = Path(__file__).parents[1] / "models"
HALF_A_VOXEL = 0.5


@pytest.fixture(scope="module")
def errors(tmp_path_factory: pytest.TempPathFactory) -> list[Errors | str]:
    return travel_all(draw_sound_cases(), tmp_path_factory.mktemp("sound"))


def test_every_sound_geometry_comes_through(errors: list[Errors | str]) -> None:
    assert len(errors) >= 200
    assert [each for each in errors if not isinstance(each, Errors)] == []


def test_half_of_the_geometries_need_another_grid(errors: list[Errors | str]) -> None:
    others = [e for e in errors if isinstance(e, Errors) and e.ramp is not None]

    assert len(others) >= FEWEST_OTHER_GRIDS


@pytest.mark.parametrize("name", BOUNDS)
def test_error_stays_within_its_bound(errors: list[Errors | str], name: str) -> None:
    found = [(getattr(e, name), e.name) for e in errors if isinstance(e, Errors)]

    assert [pair for pair in found if pair[0] is not None and pair[0] > BOUNDS[name]] == []


def test_body_is_covered(errors: list[Errors | str]) -> None:
    found = [(e.covered, e.name) for e in errors if isinstance(e, Errors)]

    assert min(found)[0] > 0.99, min(found)


def test_what_is_no_volume_is_refused_by_name(tmp_path: Path) -> None:
    cases, codes = zip(*draw_faulty_cases(), strict=True)

    assert travel_all(cases, tmp_path) == list(codes)


@pytest.mark.parametrize("model_id", [card.id for card in load_cards(MODELS) if not card.is_flat])
def test_shipped_model_answers_where_it_is_asked(model_id: str) -> None:
    """What is learnt may pull an answer by parts of a voxel; sampling must not, by whole ones."""
    shift = next(measure_shifts(MODELS, model_id))

    assert (np.abs(shift.mean) - 2 * shift.standard_error).max() < HALF_A_VOXEL
