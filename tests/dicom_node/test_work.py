import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset, dcmread

from dicom_node import work
from dicom_node.demonstration.validators import find_errors
from dicom_node.domain import Mode, Role
from dicom_node.jobs import JobState
from dicom_node.ledger import Job
from dicom_node.status import read_status
from doubles.bench import CONFIGURATION, Bench
from doubles.models import write_copying_model
from doubles.series import make_activity, make_enhanced, make_series, require_validators
from synthesis import backends
from synthesis.errors import UntrustedModel, UnusableInput
from synthesis.phantom import render
from synthesis.types import QualityReport, Synthesis, Verdict, Volume

PASSED = QualityReport(verdict=Verdict.PASS)
REFUSED = QualityReport(verdict=Verdict.REFUSE, reasons=("the image is noise",))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_copying_model(folder)
    return folder


@pytest.fixture
def bench(tmp_path: Path, models: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path / "data", models)
    bench.receive(make_series("T1w"))
    bench.judge()
    yield bench
    bench.ledger.close()


@pytest.fixture
def job(bench: Bench) -> Job:
    return bench.claim("FLAIR")


def answer(report: QualityReport) -> Callable[..., Synthesis]:
    """Return a stand-in for the engine: the reference, halved, with this report."""

    def synthesize(volumes: Mapping[str, Volume], *, reference: str, **_: Any) -> Synthesis:
        source = volumes[reference]
        return Synthesis(
            volume=source.with_array((source.array / 2).astype(np.float32)),
            half_width=None,
            covered=source.with_array(np.ones(source.array.shape, np.uint8)),
            pad_value=0.0,
            units="standard scale",
            description="",
            quality=report,
            record=[{"step": "halve"}],
            seconds={"predict": 0.5},
        )

    return synthesize


def fail(error: Exception) -> Callable[..., Synthesis]:
    def synthesize(*_: Any, **__: Any) -> Synthesis:
        raise error

    return synthesize


def run(bench: Bench, job: Job, attempt: int | None = None) -> Job:
    """Do the job here, and return it as the ledger then has it."""
    work.run(job.plan.plan_id, attempt or job.attempt, CONFIGURATION, bench.overrides)
    return bench.ledger.job(job.plan.plan_id)


def test_good_result_is_recorded_with_its_files_and_deliveries(bench, job, monkeypatch):
    monkeypatch.setattr(work, "synthesize", answer(PASSED))

    done = run(bench, job)

    assert done.state is JobState.DONE
    derived = bench.ledger.derived(job.plan.plan_id)
    assert {each.role for each in derived} == {Role.IMAGE, Role.REPORT}
    assert len(bench.ledger.deliveries()) == len(derived)
    for each in derived:
        assert dcmread(bench.store.path(each.path)).SOPInstanceUID == each.sop_instance_uid


def test_mask_is_stored_beside_what_it_masks(bench, job, monkeypatch):
    monkeypatch.setattr(work, "synthesize", answer(PASSED))

    run(bench, job)

    image = bench.ledger.derived(job.plan.plan_id)[0]
    with np.load(bench.store.path(image.path).parent / work.MASK) as mask:
        assert mask["covered"].all()
        assert mask["affine"].shape == (4, 4)


def test_job_tells_its_steps_and_seconds(bench, job, monkeypatch):
    monkeypatch.setattr(work, "synthesize", answer(PASSED))

    done = run(bench, job)

    assert done.quality["verdict"] == "pass"
    assert set(done.seconds) == {"read", "predict", "write"}
    assert done.record == ({"step": "halve"},)


def test_refused_result_is_held_with_its_report_only(bench, job, monkeypatch):
    monkeypatch.setattr(work, "synthesize", answer(REFUSED))

    held = run(bench, job)

    assert (held.state, held.reason) == (JobState.HELD, "the image is noise")
    assert [each.role for each in bench.ledger.derived(job.plan.plan_id)] == [Role.REPORT]
    assert bench.ledger.deliveries() == []


def test_unusable_sources_hold_the_job(bench, job, monkeypatch):
    error = UnusableInput("registration", "FLAIR cannot be aligned to T1w")
    monkeypatch.setattr(work, "synthesize", fail(error))

    held = run(bench, job)

    assert (held.state, held.reason) == (
        JobState.HELD,
        "registration: FLAIR cannot be aligned to T1w",
    )


@pytest.mark.parametrize("policy", ["cpu", "hold"])
def test_engine_is_told_what_to_do_when_memory_runs_out(bench, job, monkeypatch, policy):
    told = {}

    def run_out(*_: Any, **named: Any) -> Synthesis:
        told.update(named)
        raise UnusableInput("out_of_memory", "the memory of the GPU does not suffice")

    monkeypatch.setattr(work, "synthesize", run_out)
    bench.overrides = (*bench.overrides, f"dispatch.out_of_memory={policy}")

    held = run(bench, job)

    assert told["out_of_memory"] == policy
    assert held.state is JobState.HELD
    assert held.reason.startswith("out_of_memory: ")


def test_altered_model_fails_the_job(bench, job, monkeypatch):
    monkeypatch.setattr(work, "synthesize", fail(UntrustedModel("the folder has another digest")))

    failed = run(bench, job)

    assert failed.state is JobState.FAILED
    assert failed.reason == "UntrustedModel: the folder has another digest"


def test_fault_of_the_program_is_no_outcome_of_the_job(bench, job, monkeypatch):
    monkeypatch.setattr(work, "synthesize", fail(KeyError("Doe^Jane")))

    with pytest.raises(KeyError):
        run(bench, job)

    assert bench.ledger.job(job.plan.plan_id).state is JobState.RUNNING


def test_source_that_changed_on_the_disk_holds_the_job(bench, job):
    path = bench.store.path(bench.ledger.read_instances(job.plan.study_instance_uid)[0].path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)

    held = run(bench, job)

    assert held.state is JobState.HELD
    assert (held.reason or "").startswith("source_altered: ")


def test_source_that_is_gone_fails_the_job(bench, job):
    bench.store.delete(bench.ledger.read_instances(job.plan.study_instance_uid)[0].path)

    assert run(bench, job).state is JobState.FAILED


def test_attempt_that_was_overtaken_changes_nothing(bench, job, monkeypatch):
    monkeypatch.setattr(work, "synthesize", answer(PASSED))
    bench.ledger.return_running()
    bench.ledger.claim(9, timedelta(minutes=5))

    overtaken = run(bench, job)

    assert overtaken.state is JobState.RUNNING
    assert bench.ledger.derived(job.plan.plan_id) == []


def test_retry_writes_the_same_bytes(bench, job, monkeypatch):
    monkeypatch.setattr(work, "synthesize", answer(REFUSED))
    run(bench, job)
    first = bench.ledger.derived(job.plan.plan_id)
    bench.ledger.requeue(job.plan.plan_id, "test", "again")

    run(bench, bench.claim("FLAIR"))

    again = bench.ledger.derived(job.plan.plan_id)
    assert [each.sha256 for each in again] == [each.sha256 for each in first]
    assert [each.path for each in again] != [each.path for each in first]


def test_lease_is_renewed_while_the_job_runs(bench, job, monkeypatch):
    before = job.lease_until
    bench.overrides = (*bench.overrides, "dispatch.lease=400 ms")
    renewed = []

    def look(*_: Any, **__: Any) -> Synthesis:
        for _ in range(100):
            work.time.sleep(0.02)
            if bench.ledger.job(job.plan.plan_id).lease_until != before:
                renewed.append(True)
                break
        raise UnusableInput("mask", "no head")

    monkeypatch.setattr(work, "synthesize", look)
    run(bench, job)

    assert renewed == [True]


def render_heads(*labels: str) -> dict[str, Volume]:
    """Return images of one phantom."""
    phantom = render(seed=8, spacing=(5.0, 3.0, 3.0))
    affine = np.zeros((4, 4))
    affine[[2, 1, 0, 3], [0, 1, 2, 3]] = *phantom.spacing, 1
    affine[:3, 3] = -90, -110, -70
    arrays = {
        label: np.rint(phantom.images[label] / phantom.images[label].max() * 1000)
        for label in labels
    }
    return {
        label: Volume(array=array.astype(np.float32), affine=affine, coordinate_system="PATIENT")
        for label, array in arrays.items()
    }


def make_two_echoes() -> tuple[Dataset, list[Dataset]]:
    """Return an enhanced image of a proton density and a T2 weighted echo, and the second alone."""
    heads = render_heads("T1w", "T2w")
    early, late = (make_series("T2w", heads[label]) for label in ("T1w", "T2w"))
    for image in early:
        image.EchoTime, image.SeriesDescription = 20, "dual echo"
    return make_enhanced(early, late), late


def test_one_volume_of_an_enhanced_image_is_the_source_of_a_job(tmp_path, models):
    enhanced, late = make_two_echoes()
    bench = Bench(tmp_path / "data", models)
    bench.receive([enhanced])
    bench.judge()
    told = bench.ledger.read_judgement(enhanced.StudyInstanceUID).series
    assert [each.label.contrast for each in told] == ["PDw", "T2w"]

    done = run(bench, bench.claim("FLAIR"))

    assert done.state is JobState.DONE, done.reason
    count = len(late)
    assert done.plan.source_frames == {"T2w": tuple(range(2, 2 * count + 1, 2))}
    derived = bench.ledger.derived(done.plan.plan_id)
    paths = [bench.store.path(each.path) for each in derived]
    images = [dcmread(path) for path in paths if "image" in path.name]
    assert len(images) == count
    for k, image in enumerate(images):
        [source] = image.SourceImageSequence
        [series] = image.ReferencedSeriesSequence
        near = {2 * (j + 1) for j in (k - 1, k, k + 1) if 0 <= j < count}
        assert source.ReferencedSOPInstanceUID == enhanced.SOPInstanceUID
        assert set(source.ReferencedFrameNumber) == near
        assert series.ReferencedInstanceSequence[0].ReferencedFrameNumber == sorted(near)[::-1]
        assert list(image.ImagePositionPatient) == list(late[k].ImagePositionPatient)
    received = bench.ledger.read_instances(enhanced.StudyInstanceUID)
    sent = [bench.store.path(each.path) for each in received]
    assert find_errors(require_validators(), paths, sent) == []
    bench.ledger.close()


def test_one_volume_of_an_enhanced_image_is_what_shadow_mode_compares_with(tmp_path, models):
    enhanced, late = make_two_echoes()
    others = make_series("T1w", render_heads("T1w")["T1w"], number=2)

    figures = [
        compare_in_shadow_mode(tmp_path / name, models, "T2w", [*others, *images])[1].quality
        for name, images in (("enhanced", [enhanced]), ("classic", late))
    ]

    enhanced_ones, classic_ones = (each["comparison"] for each in figures)
    assert enhanced_ones == classic_ones
    assert -1 < enhanced_ones["ssim"] < 1


def make_pair() -> list[Dataset]:
    """Return the T1w and T2w of a phantom."""
    heads = render_heads("T1w", "T2w")
    return [
        image
        for number, (label, volume) in enumerate(heads.items(), 1)
        for image in make_series(label, volume, number=number)
    ]


def compare_in_shadow_mode(
    folder: Path, models: Path, target: str, images: Sequence[Dataset]
) -> tuple[Bench, Job]:
    """Receive images, and make `target` of them beside the real one."""
    bench = Bench(folder, models)
    bench.receive(images)
    rules = tuple(
        rule.model_copy(update={"mode": Mode.SHADOW}) for rule in bench.configuration.routing.rules
    )
    routing = bench.configuration.routing.model_copy(update={"rules": rules})
    policy = bench.configuration.models.model_copy(update={"research": (target,)})
    bench.configuration = replace(bench.configuration, routing=routing, models=policy)
    bench.judge()
    return bench, run(bench, bench.claim(target))


def test_shadow_mode_compares_with_the_real_series_and_sends_nothing(tmp_path, models):
    bench, done = compare_in_shadow_mode(tmp_path / "data", models, "T1w", make_pair())

    assert done.state is JobState.DONE, done.reason
    comparison = done.quality["comparison"]
    scanner = {name: comparison[name] for name in work.SCANNER}
    assert scanner == {"manufacturer": "ACME", "model_name": "Magnet 3", "field_strength": 3}
    assert 5 < comparison["psnr_db"] < 40
    assert -1 < comparison["ssim"] < 1
    assert comparison["mae"] > 0
    assert bench.ledger.derived(done.plan.plan_id) != []
    assert bench.ledger.deliveries() == []
    [told] = read_status(bench.ledger, None, done.changed_at)["shadow"]
    assert (told["target"], told["model_name"], told["compared"]) == ("T1w", "Magnet 3", 1)
    bench.ledger.close()


UPTAKE_MODEL = "limb-pet-example"
"""Named by a rule that `config/routing.yaml` ships switched off."""


def make_limb() -> tuple[list[Dataset], list[Dataset], Volume]:
    """Return T1w and PET of one scanner, and the PET's activity in Bq/ml."""
    anatomy = render_heads("T1w", "T2w")
    activity = anatomy["T2w"].with_array(anatomy["T2w"].array * np.float32(20))
    t1w = make_series("T1w", anatomy["T1w"], body_part="EXTREMITY")
    pet = make_activity(activity, number=2, body_part="EXTREMITY")
    for image in pet:
        image.RadiopharmaceuticalInformationSequence[0].Radiopharmaceutical = None
        image.ManufacturerModelName = "Ring 5"
    return t1w, pet, activity


def compare_uptake(folder: Path, images: Sequence[Dataset]) -> tuple[Bench, Job]:
    models = folder / "models"
    write_copying_model(models, UPTAKE_MODEL, targets=("PET",), modality="PT", units="SUVbw")
    return compare_in_shadow_mode(folder / "data", models, "PET", images)


def test_shadow_mode_compares_a_pet_in_suv_and_keeps_it_with_its_scanner(tmp_path):
    t1w, pet, activity = make_limb()

    bench, done = compare_uptake(tmp_path, [*t1w, *pet])

    assert done.state is JobState.DONE, done.reason
    assert bench.ledger.deliveries() == []
    derived = bench.ledger.derived(done.plan.plan_id)
    paths = [bench.store.path(each.path) for each in derived if each.role is Role.IMAGE]
    images = sorted((dcmread(path) for path in paths), key=lambda each: each.InstanceNumber)
    made = np.array([each.pixel_array * float(each.RescaleSlope) for each in images])
    real = activity.array * 70_000 / (400e6 / 2)
    with np.load(paths[0].parent / work.MASK) as mask:
        inside = mask["covered"][::-1]
    comparison = done.quality["comparison"]
    assert comparison["mae"] == pytest.approx(np.abs(made - real)[inside].mean(), rel=2e-3)
    [told] = read_status(bench.ledger, None, done.changed_at)["shadow"]
    assert (told["target"], told["manufacturer"], told["model_name"]) == ("PET", "ACME", "Ring 5")
    assert (told["field_strength"], told["compared"], told["not_compared"]) == (None, 1, {})
    bench.ledger.close()


def test_pet_that_lacks_the_weight_is_not_compared_and_says_so(tmp_path):
    t1w, pet, _ = make_limb()
    for image in pet:
        del image.PatientWeight

    bench, done = compare_uptake(tmp_path, [*t1w, *pet])

    assert done.state is JobState.DONE
    [told] = read_status(bench.ledger, None, done.changed_at)["shadow"]
    assert (told["compared"], told["not_compared"]) == (0, {"suv": 1})
    bench.ledger.close()


def test_real_series_that_cannot_be_compared_with_is_no_fault_of_the_job(
    tmp_path, models, monkeypatch
):
    error = UnusableInput("registration", "the real series cannot be aligned")
    monkeypatch.setattr(work, "compare_with_truth", fail(error))

    bench, done = compare_in_shadow_mode(tmp_path / "data", models, "T2w", make_pair())

    assert done.state is JobState.DONE
    assert done.quality["comparison"]["problem"] == "registration"
    [told] = read_status(bench.ledger, None, done.changed_at)["shadow"]
    assert (told["compared"], told["not_compared"], told["ssim"]) == (0, {"registration": 1}, None)
    bench.ledger.close()


def test_choice_of_a_back_end_is_kept_with_the_node(bench, job, monkeypatch):
    monkeypatch.setenv(backends.CACHE, "set, so that it is restored")
    monkeypatch.delenv(backends.CACHE)
    monkeypatch.setattr(work, "synthesize", answer(PASSED))

    run(bench, job)

    data_folder = bench.configuration.node.data_folder
    assert Path(os.environ[backends.CACHE]).parent == data_folder
