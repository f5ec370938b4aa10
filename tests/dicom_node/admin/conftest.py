"""What the tests of the page share: one study with a result that waits for a person."""

from collections.abc import Callable, Iterator

import pytest
from pydicom import dcmread
from pydicom.uid import generate_uid

from dicom_node import work
from dicom_node.demonstration.studies import prepare_phantom
from dicom_node.ledger import Job
from doubles.admin import AdminUnderTest, Client
from doubles.bench import CONFIGURATION, Bench
from doubles.ledger import make_derived
from doubles.models import write_copying_model
from doubles.series import make_series

LogIn = Callable[..., Client]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """A phantom head without T2w, of which one was made."""
    folder = tmp_path_factory.mktemp("bench")
    for model in ("brain-any-unet25d", "limb-ct-boosting"):
        write_copying_model(folder / "models", model)
    bench = Bench(folder / "data", folder / "models")
    parcel = prepare_phantom(folder / "study", spacing=(6.0, 3.0, 3.0))
    bench.receive(dcmread(path) for path in parcel.files)
    bench.judge()
    job = bench.claim("T2w")
    work.run(job.plan.plan_id, job.attempt, CONFIGURATION, bench.overrides)
    yield bench
    bench.ledger.close()


@pytest.fixture(scope="module")
def admin(bench: Bench) -> Iterator[AdminUnderTest]:
    with AdminUnderTest(bench).served() as admin:
        yield admin


@pytest.fixture
def log_in(admin: AdminUnderTest) -> LogIn:
    def log_in(name: str, of: AdminUnderTest = admin) -> Client:
        client = Client(of.port)
        assert client.log_in(name).status == 303
        return client

    return log_in


@pytest.fixture
def held(bench: Bench) -> Job:
    """A job with a result that waits for a person; of a study of its own."""
    bench.receive(make_series("T1w", key=generate_uid()))
    bench.judge()
    job = bench.claim("FLAIR")
    uid = generate_uid()
    made = make_derived(sop_instance_uid=uid, path=f"derived/{job.plan.plan_id}/1/image-0001.dcm")
    assert bench.ledger.refuse_job(
        job.plan.plan_id,
        job.attempt,
        ["the image is noise"],
        [made],
        quality={"verdict": "refuse", "reasons": ["the image is noise"]},
    )
    return job
