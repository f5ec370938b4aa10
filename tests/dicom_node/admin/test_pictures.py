"""Quick looks: which way is up, what is bright, and that the layers lie on one another."""

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dicom_node import work
from dicom_node.admin.pictures import Gallery, Look, Plane
from dicom_node.ledger import Job
from doubles.bench import CONFIGURATION, Bench
from doubles.models import write_copying_model
from doubles.series import make_series, make_volume
from synthesis.types import QualityReport, Synthesis, Verdict, Volume

SHAPE = (10, 24, 32)
SPACING = (3.0, 1.0, 1.0)
MARK = (8, 4, 26)
"""Slice towards the head, row to the front, column to the left of the patient."""


def answer(volumes: Mapping[str, Volume], *, reference: str, **_: Any) -> Synthesis:
    """Return a stand-in for the engine: the source, doubled; the band is wide at the mark."""
    source = volumes[reference]
    band = np.where(source.array > source.array.mean(), 100, 1).astype(np.float32)
    return Synthesis(
        volume=source.with_array((source.array * 2).astype(np.float32)),
        half_width=source.with_array(band),
        covered=source.with_array(np.ones(source.array.shape, np.uint8)),
        pad_value=0.0,
        units="standard scale",
        description="",
        quality=QualityReport(verdict=Verdict.PASS),
        record=[],
        seconds={"predict": 0.5},
    )


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("pictures")
    write_copying_model(folder / "models")
    bench = Bench(folder / "data", folder / "models")
    volume = make_volume(SHAPE, spacing=SPACING, angles=(0, 0), origin=(-16, -12, -15))
    array = np.full(SHAPE, 100, np.float32)
    array[tuple(slice(at - 1, at + 2) for at in MARK)] = 1000
    bench.receive(make_series("T1w", volume.with_array(array)))
    bench.judge()
    yield bench
    bench.ledger.close()


@pytest.fixture(scope="module")
def job(bench: Bench) -> Job:
    job = bench.claim("FLAIR")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(work, "synthesize", answer)
        work.run(job.plan.plan_id, job.attempt, CONFIGURATION, bench.overrides)
    return bench.ledger.job(job.plan.plan_id)


@pytest.fixture
def look(bench: Bench, job: Job) -> Look:
    return Gallery(bench.ledger, bench.store).look(job.plan.plan_id)


def find_mark(look: Look, layer: str, plane: Plane, number: int) -> tuple[float, float]:
    """Return where the brightest spot of a picture is, from its top and left, 0 to 1."""
    picture = np.asarray(Image.open(io.BytesIO(look.draw(layer, plane, number))).convert("L"))
    rows, columns = np.nonzero(picture > picture.max() * 0.8)
    return float(rows.mean() / len(picture)), float(columns.mean() / len(picture[0]))


@pytest.mark.parametrize("layer", ["source", "result", "uncertainty"])
def test_layers_show_one_place_at_one_slice(layer: str, look: Look) -> None:
    top, left = find_mark(look, layer, Plane.TRANSVERSE, MARK[0])

    assert (top, left) == pytest.approx((MARK[1] / 24, MARK[2] / 32), abs=0.05)


def test_head_is_up_front_is_left_and_left_is_right(look: Look) -> None:
    coronal = find_mark(look, "source", Plane.CORONAL, MARK[1])
    sagittal = find_mark(look, "source", Plane.SAGITTAL, MARK[2])

    assert coronal == pytest.approx((1 - (MARK[0] + 0.5) / 10, MARK[2] / 32), abs=0.07)
    assert sagittal == pytest.approx((1 - (MARK[0] + 0.5) / 10, MARK[1] / 24), abs=0.07)


def test_pixels_are_square_whatever_the_spacing(look: Look) -> None:
    picture = Image.open(io.BytesIO(look.draw("source", Plane.CORONAL, 0)))

    assert picture.width / picture.height == pytest.approx(32 / 30, abs=0.02)


def test_uncertainty_is_in_color_and_images_are_gray(look: Look) -> None:
    modes = {
        layer.name: Image.open(io.BytesIO(look.draw(layer.name, Plane.CORONAL, 0))).mode
        for layer in look.layers
    }

    assert modes == {"source": "L", "result": "L", "uncertainty": "P"}


def test_slices_and_layers_that_are_not_there_are_told(look: Look) -> None:
    for layer, number in (("source", 24), ("source", -1), ("truth", 0)):
        with pytest.raises(LookupError):
            look.draw(layer, Plane.CORONAL, number)


def test_result_whose_files_are_gone_is_told(bench: Bench, job: Job) -> None:
    made = [bench.store.path(each.path) for each in bench.ledger.derived(job.plan.plan_id)]
    gone: dict[Path, bytes] = {path: path.read_bytes() for path in made}
    for path in made:
        path.unlink()
    try:
        with pytest.raises(LookupError, match="retention"):
            Gallery(bench.ledger, bench.store).look(job.plan.plan_id)
    finally:
        for path, content in gone.items():
            path.write_bytes(content)
