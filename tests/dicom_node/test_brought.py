"""A network that others bring, from received series to derived instances."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
from highdicom import Volume

from dicom_node import doctor, work
from dicom_node.domain import DerivedInstance, Instance, Role
from dicom_node.executors import InlineExecutor
from dicom_node.jobs import JobState
from dicom_node.ledger import Job
from dicom_node.volumes import read_volume
from doubles.bench import CONFIGURATION, Bench
from doubles.networks import write_bundle_model, write_onnx_model
from doubles.series import HEAD_MM, make_head, make_series
from synthesis.engine import synthesize
from synthesis.registry import LEARNT
from synthesis.types import ContrastLabel

MODEL = "brain-any-unet25d"
"""The name under which the shipped rules ask for a model of the brain."""
T1W_ALONE = {"sources": ["T1w"], "required": ["T1w"]}
HALF = np.full((1, 1, 1, 1), 0.5, np.float32)


@pytest.fixture(params=["onnx", "bundle"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    models = tmp_path / "models"
    if request.param == "onnx":
        write_onnx_model(models, MODEL, kernel=HALF, **T1W_ALONE)
    else:
        write_bundle_model(models, MODEL, weights="model.ts", **T1W_ALONE)
    affine = np.eye(4)
    affine[:3, :3] = np.diag([HEAD_MM] * 3)[:, ::-1]
    head = np.rint(make_head(0.3)).astype(np.float32)
    bench = Bench(tmp_path / "data", models)
    bench.receive(make_series("T1w", Volume(head, affine, coordinate_system="PATIENT")))
    bench.judge()
    yield bench
    bench.ledger.close()


def run(bench: Bench) -> Job:
    job = bench.claim("T2w")
    work.run(job.plan.plan_id, job.attempt, CONFIGURATION, bench.overrides)
    return bench.ledger.job(job.plan.plan_id)


def read(bench: Bench, instances: Iterable[Instance | DerivedInstance]) -> Volume:
    return read_volume([bench.store.path(each.path) for each in instances])[0]


def test_derived_pixels_are_what_the_network_makes_of_the_received_ones(bench: Bench) -> None:
    done = run(bench)

    assert done.state is JobState.DONE
    derived = bench.ledger.derived(done.plan.plan_id)
    made = read(bench, [each for each in derived if each.role is Role.IMAGE])
    wanted = synthesize(
        {ContrastLabel("T1w"): read(bench, bench.ledger.read_sources(done.plan.plan_id)["T1w"])},
        target=ContrastLabel("T2w"),
        reference=ContrastLabel("T1w"),
        model_id=MODEL,
        model_digest=done.plan.model_digest,
        models_folder=bench.configuration.node.models_folder,
        seed=done.plan.seed,
    )
    assert np.ptp(made.array) > 100
    np.testing.assert_allclose(made.array, wanted.volume.array, atol=0.51)
    np.testing.assert_allclose(made.affine, wanted.volume.affine, atol=1e-6)


def test_altered_network_fails_the_job_by_name(bench: Bench) -> None:
    job = bench.claim("T2w")
    models = bench.configuration.node.models_folder
    [network] = [*(models / MODEL / LEARNT).glob("**/model.*")]
    network.write_bytes(network.read_bytes() + b"\0")

    work.run(job.plan.plan_id, job.attempt, CONFIGURATION, bench.overrides)

    failed = bench.ledger.job(job.plan.plan_id)
    assert failed.state is JobState.FAILED
    assert f"{network.name} is not the file of the card" in str(failed.reason)


def test_doctor_passes_it_forward(bench: Bench) -> None:
    found = {each.check: each for each in doctor.examine(bench.configuration, InlineExecutor())}

    assert found[f"model {MODEL}"].state is doctor.State.OK


def test_doctor_tells_what_is_wrong_with_it(tmp_path: Path) -> None:
    write_onnx_model(tmp_path / "models", MODEL, kernel=HALF)
    bench = Bench(tmp_path / "data", tmp_path / "models")
    found = {each.check: each for each in doctor.examine(bench.configuration, InlineExecutor())}
    bench.ledger.close()

    told = found[f"model {MODEL}"]
    assert told.state is doctor.State.FAILED
    assert "UntrustedModel" in told.detail
    assert "seen an image of 1 channels, wanted 2" in told.detail
