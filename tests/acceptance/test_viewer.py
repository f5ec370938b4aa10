"""The completed study at a workstation: OHIF in Chromium over Orthanc, against known answers."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Browser
from pydicom import Dataset, dcmread
from scipy.ndimage import map_coordinates, maximum_filter, minimum_filter

from dicom_node import work
from dicom_node.demonstration.pacs import Orthanc
from dicom_node.demonstration.studies import prepare_phantom
from dicom_node.demonstration.walk import send
from dicom_node.domain import Role
from dicom_node.volumes import read_volume
from doubles.bench import CONFIGURATION, Bench
from doubles.browser import run_chromium
from doubles.job import derive, make_sources
from doubles.models import write_copying_model
from doubles.series import write_files
from doubles.viewer import Ohif, open_ohif, require_ohif, serve_ohif
from synthesis.types import QualityReport, Synthesis, Verdict, Volume

pytestmark = pytest.mark.acceptance

NODE = "DICOM_NODE"


@dataclass(frozen=True, kw_only=True)
class Completed:
    """A study as the PACS has it.

    Attributes:
        source: the reference, and result, as the files say.
        series: UIDs of the series by what they are.
    """

    study: str
    source: Volume
    result: Volume
    series: Mapping[str, str]

    def find_landmark(self) -> list[float]:
        """Return a place inside the head that is off every middle, LPS mm."""
        shape = np.array(self.result.array.shape)
        index = np.round(shape * (0.6, 0.4, 0.6))
        return [float(each) for each in (self.result.affine @ [*index, 1])[:3]]


def answer(volumes: Mapping[str, Volume], *, reference: str, **_: Any) -> Synthesis:
    """Return a stand-in for the engine: the reference upside down in its values, and a band."""
    source = volumes[reference]
    array = np.asarray(source.array, np.float32)
    made = 1000 - 1000 * array / array.max()
    return Synthesis(
        volume=source.with_array(made.astype(np.float32)),
        half_width=source.with_array((20 + made / 10).astype(np.float32)),
        covered=source.with_array(np.ones(array.shape, np.uint8)),
        pad_value=0.0,
        units="standard scale",
        description="",
        quality=QualityReport(verdict=Verdict.PASS),
        record=[],
        seconds={"predict": 0.5},
    )


@pytest.fixture(scope="module")
def completed(tmp_path_factory: pytest.TempPathFactory, orthanc: Orthanc) -> Completed:
    folder = tmp_path_factory.mktemp("viewer")
    write_copying_model(folder / "models")
    bench = Bench(folder / "data", folder / "models")
    parcel = prepare_phantom(folder / "study", seed=7, spacing=(6.0, 3.0, 3.0))
    bench.receive(dcmread(path) for path in parcel.files)
    bench.judge()
    job = bench.claim("T2w")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(work, "synthesize", answer)
        work.run(job.plan.plan_id, job.attempt, CONFIGURATION, bench.overrides)
    made = bench.ledger.derived(job.plan.plan_id)
    files = {
        role: [bench.store.path(each.path) for each in made if each.role is role] for role in Role
    }
    label, contents = next(iter(bench.ledger.read_sources(job.plan.plan_id).items()))
    sources = [bench.store.path(each.path) for each in contents]
    everything: list[Path] = [*parcel.files, *(path for paths in files.values() for path in paths)]
    send(everything, port=orthanc.port, called=orthanc.ae_title, calling=NODE)
    bench.ledger.close()
    return Completed(
        study=parcel.study_instance_uid,
        source=read_volume(sources)[0],
        result=read_volume(files[Role.IMAGE])[0],
        series={
            "source": job.plan.sources[label],
            **{str(each.role): each.series_instance_uid for each in made},
        },
    )


@pytest.fixture(scope="module")
def address(orthanc: Orthanc) -> Iterator[str]:
    with serve_ohif(require_ohif(), orthanc.http) as address:
        yield address


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with run_chromium() as browser:
        yield browser


@pytest.fixture
def ohif(chromium: Browser, address: str) -> Iterator[Ohif]:
    with open_ohif(chromium, address) as ohif:
        yield ohif


def test_completed_study_lists_everything_under_names_that_can_be_read(
    ohif: Ohif, completed: Completed
) -> None:
    ohif.open(completed.study)

    listed = {each["uid"]: each for each in ohif.list_series()}
    kinds = {name: listed[uid]["modality"] for name, uid in completed.series.items()}
    assert kinds == {"source": "MR", "image": "MR", "uncertainty": "PMAP", "report": "SR"}
    assert listed[completed.series["image"]]["images"] == len(completed.result.array)
    for name in ("image", "uncertainty", "report"):
        description = listed[completed.series[name]]["description"]
        assert description.startswith("AI SYNTH T2w")
        seen = ohif.read_thumbnail(description)
        assert seen.startswith("AI SYNTH T2w"), f"{name} is cut off at {seen!r}"


def test_source_and_result_scroll_together(ohif: Ohif, completed: Completed) -> None:
    ohif.open(completed.study)
    ohif.show_side_by_side(completed.series["source"], completed.series["image"])
    ohif.ask("() => commandsManager.runCommand('toggleSynchronizer', {type: 'imageSlice'})")
    before = ohif.read_positions()

    ohif.scroll(0, 5)

    left, right = ohif.read_positions()
    assert left != before[0]
    assert right == pytest.approx(left, abs=1e-3)


def test_result_is_drawn_as_its_files_say(ohif: Ohif, completed: Completed) -> None:
    ohif.open(completed.study)
    ohif.show_side_by_side(completed.series["source"], completed.series["image"])
    landmark = completed.find_landmark()

    for k, volume in enumerate((completed.source, completed.result)):
        ohif.jump(k, landmark)
        check_picture(ohif, k, volume)


def test_planes_that_are_cut_anew_show_the_result_as_its_files_say(
    ohif: Ohif, completed: Completed
) -> None:
    ohif.open(
        completed.study,
        SeriesInstanceUIDs=completed.series["image"],
        hangingprotocolId="mpr",
    )

    for k in range(3):
        check_picture(ohif, k, completed.result)


@pytest.mark.parametrize("series", ["source", "image"])
def test_crosshairs_lead_the_other_planes_to_one_place(
    series: str, ohif: Ohif, completed: Completed
) -> None:
    landmark = completed.find_landmark()
    ohif.open(completed.study, SeriesInstanceUIDs=completed.series[series], hangingprotocolId="mpr")
    assert min(ohif.measure_distances(landmark)) > 3

    ohif.click(0, landmark, "Crosshairs")

    assert max(ohif.measure_distances(landmark)[1:]) < 1


def check_picture(ohif: Ohif, viewport: int, volume: Volume) -> None:
    """Compare what a viewport shows with the volume, wherever that is not at an edge."""
    points, shown = ohif.sample(viewport)
    low, high = ohif.read_windows()[viewport]
    index = np.linalg.inv(volume.affine) @ np.c_[points, np.ones(len(points))].T
    array = np.asarray(volume.array, np.float32)
    expected = 255 * np.clip(
        (map_coordinates(array, index[:3], order=1) - low) / (high - low), 0, 1
    )
    reach = maximum_filter(array, 3) - minimum_filter(array, 3)
    size = np.array(array.shape)[:, None]
    inside = ((index[:3] > 1) & (index[:3] < size - 2)).all(axis=0)
    calm = inside & (map_coordinates(reach, index[:3], order=0) < 0.08 * (high - low))
    assert calm.sum() > 150
    slope, offset = np.polyfit(expected[calm], shown[calm], 1)
    assert slope == pytest.approx(1, abs=0.1)  # what is cut anew is drawn 6 % darker
    assert offset == pytest.approx(0, abs=8)
    assert np.corrcoef(shown[calm], expected[calm])[0, 1] > 0.99
    turned = np.corrcoef(shown[calm], expected[calm][::-1])[0, 1]
    assert turned < 0.95, "the other way up would be seen"


@pytest.fixture(scope="module")
def quantities(tmp_path_factory: pytest.TempPathFactory, orthanc: Orthanc) -> Mapping[str, Any]:
    """A CT and a PET made of one MR: their study, series and volumes."""
    folder = tmp_path_factory.mktemp("quantities")
    sources = make_sources(folder / "sources", key="of the viewer")
    found: dict[str, Any] = {}
    files = list((folder / "sources").rglob("*.dcm"))
    for target, modality, plan_id in (("CT", "CT", "c7" * 16), ("PET", "PT", "be" * 16)):
        written = derive(sources, target, modality, plan={"plan_id": plan_id})
        paths = write_files([dataset for _, dataset in written], folder / target)
        files += paths
        images = [
            path
            for path, (facts, _) in zip(paths, written, strict=True)
            if facts.role is Role.IMAGE
        ]
        header = dcmread(images[0], stop_before_pixels=True)
        found["study"] = str(header.StudyInstanceUID)
        found[target] = (str(header.SeriesInstanceUID), read_volume(images)[0], header)
    send(files, port=orthanc.port, called=orthanc.ae_title, calling=NODE)
    return found


@pytest.mark.parametrize(("target", "unit"), [("CT", "HU"), ("PET", "GML")])
def test_values_have_their_unit_and_window(
    target: str, unit: str, ohif: Ohif, quantities: Mapping[str, Any]
) -> None:
    """GML, grams per milliliter, is what the Standard calls the unit of SUV (C.8.9.1.1.3)."""
    series, volume, header = quantities[target]
    ohif.open(quantities["study"])
    ohif.show_side_by_side(series)
    index = [n // 2 for n in volume.array.shape]
    world = [float(each) for each in (volume.affine @ [*index, 1])[:3]]
    ohif.jump(0, world)

    assert ohif.probe(0, world) == unit
    told = ohif.read_value(0, *index[1:])
    assert told == pytest.approx(float(volume.array[tuple(index)]), rel=1e-3, abs=0.02)
    center, width = float(header.WindowCenter), float(header.WindowWidth)
    [(low, high)] = ohif.read_windows()
    assert low == pytest.approx(center - 0.5 - (width - 1) / 2, abs=0.51)  # C.11.2.1.2.1
    assert high == pytest.approx(center - 0.5 + (width - 1) / 2, abs=0.51)


def draw_by_orthanc(orthanc: Orthanc, series: str) -> Iterator[tuple[Dataset, NDArray[np.float32]]]:
    """Yield the instances of a series, and each as Orthanc's own viewer draws it (0 to 255)."""
    [found] = orthanc.read_json(
        "/tools/find", {"Level": "Series", "Query": {"SeriesInstanceUID": series}}
    )
    for instance in orthanc.read_json(f"/series/{found}/instances")[::8]:
        place = f"/instances/{instance['ID']}"
        file, drawn = orthanc.read(f"{place}/file"), orthanc.read(f"{place}/rendered")
        yield dcmread(BytesIO(file)), np.asarray(Image.open(BytesIO(drawn)), np.float32)


def draw_by_window(image: Dataset) -> NDArray[np.float32]:
    """Return what the window of an image shows, 0 to 255.

    As Orthanc takes a window: half its width to both sides (LINEAR_EXACT, PS3.3 C.11.2.1.3.2),
    whatever the image says. The default of the Standard is half a unit off that: only PET can tell.
    """
    values = image.pixel_array * float(image.get("RescaleSlope", 1))
    values = values + float(image.get("RescaleIntercept", 0))
    center, width = float(image.WindowCenter), float(image.WindowWidth)
    shown = ((values - center) / width + 0.5) * 255
    return np.clip(shown, 0, 255).astype(np.float32)


@pytest.mark.parametrize("target", ["T2w", "CT", "PET"])
def test_orthancs_own_viewer_draws_a_result_as_its_window_says(
    target: str, completed: Completed, quantities: Mapping[str, Any], orthanc: Orthanc
) -> None:
    series = completed.series["image"] if target == "T2w" else quantities[target][0]

    drawn = list(draw_by_orthanc(orthanc, series))

    assert drawn
    assert max(float(picture.std()) for _, picture in drawn) > 10, "something is to be seen"
    for image, picture in drawn:
        assert np.abs(picture - draw_by_window(image)).max() <= 3
