"""Quick looks: which way is up, what is bright, and that the layers lie on one another."""

import io
import re
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dicom_node import work
from dicom_node.admin.pictures import VOLUME_PLANES, Gallery, Look, Plane, _look_at_pictures
from dicom_node.jobs import JobState
from dicom_node.ledger import Job
from doubles.admin import AdminUnderTest, Client
from doubles.bench import CONFIGURATION, Bench
from doubles.exposures import draw, make_exposure, write_settings
from doubles.models import write_copying_model, write_copying_picture_model
from doubles.series import make_series, make_volume, write_files
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


BRIGHT = (12, 70)
"""Row and column of the middle of the one bright square of a picture of 60 rows and 120 columns."""


@pytest.fixture(scope="module")
def exposures(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """What is made of a radiograph and of a photograph, each with a bright spot."""
    folder = tmp_path_factory.mktemp("exposures")
    write_copying_picture_model(folder / "models", "limb-bone-unet2d", "DX", "DX bone", "DX")
    infrared = ("skin-infrared-of-your-own", "XC", "XC infrared", "XC")
    write_copying_picture_model(folder / "models", *infrared)
    bench = Bench(folder / "data", folder / "models", write_settings(folder / "config"))
    wide = {"ImagerPixelSpacing": ["1", "1"]}
    for modality, samples, top, own in (("DX", 1, 4095, wide), ("XC", 3, 255, {})):
        pixels = draw(60, 120, samples, top) // 4
        pixels[BRIGHT[0] - 5 : BRIGHT[0] + 6, BRIGHT[1] - 5 : BRIGHT[1] + 6] = top
        bench.receive([make_exposure(modality, pixels, study=modality, **own)])
    bench.judge()
    for job in bench.ledger.claim(9, timedelta(minutes=5)):
        work.run(job.plan.plan_id, job.attempt, bench.settings, bench.overrides)
    yield bench
    bench.ledger.close()


def find_look(bench: Bench, target: str) -> tuple[str, Look]:
    [job] = [each for each in bench.ledger.jobs() if each.plan.target == target]
    assert job.state is JobState.DONE, job.reason
    return job.plan.plan_id, Gallery(bench.ledger, bench.store).look(job.plan.plan_id)


@pytest.mark.parametrize(("target", "mode"), [("DX bone", "L"), ("XC infrared", "RGB")])
def test_picture_lies_as_it_came_and_keeps_its_colors(
    target: str, mode: str, exposures: Bench
) -> None:
    _, look = find_look(exposures, target)

    pictures = {
        layer.name: Image.open(io.BytesIO(look.draw(layer.name, Plane.PICTURE, 0)))
        for layer in look.layers
    }

    assert {each.mode for each in pictures.values()} == {mode}
    source, result = (
        np.asarray(pictures[name].convert("L"), float) for name in ("source", "result")
    )
    assert source.shape[1] / source.shape[0] == pytest.approx(2, abs=0.02)
    rows, columns = np.nonzero(source > source.max() * 0.8)
    place = rows.mean() / len(source) * 60, columns.mean() / len(source[0]) * 120
    assert place == pytest.approx((BRIGHT[0] + 0.5, BRIGHT[1] + 0.5), abs=0.6)
    ways = [result, result[::-1], result[:, ::-1], result[::-1, ::-1]]
    likeness = [np.corrcoef(source.ravel(), each.ravel())[0, 1] for each in ways]
    assert likeness[0] > 0.5
    assert likeness[0] == max(likeness)
    assert look.edges == {Plane.PICTURE: {"left": "R", "right": "L", "top": "H", "bottom": "F"}}


def test_picture_is_shown_beside_its_source_without_a_slider(exposures: Bench) -> None:
    plan_id, _ = find_look(exposures, "DX bone")
    with AdminUnderTest(exposures).served() as admin:
        client = Client(admin.port)
        client.log_in("V. Viewer")
        page = client.get(f"/jobs/{plan_id}").text
        pictures = re.findall(r'<img src="(/jobs/[^"]+)"', page)
        answers = [client.get(each).status for each in pictures]
        others = [
            client.get(f"/jobs/{plan_id}/result/{plane}/0.png").status for plane in VOLUME_PLANES
        ]

    assert "DX, acquired" in page
    assert "DX bone, synthetic" in page
    assert 'type="range"' not in page
    assert answers == [200, 200]
    assert others == [404, 404, 404]


def test_orientation_that_is_none_is_not_shown(tmp_path: Path) -> None:
    files = write_files(
        [make_exposure("XC", PatientOrientation=["L", "SMITH"]), make_exposure("XC", number=2)],
        tmp_path,
    )

    assert [_look_at_pictures(("", each), ("", each)).edges[Plane.PICTURE] for each in files] == [
        {},
        {"left": "R", "right": "L", "top": "H", "bottom": "F"},
    ]
