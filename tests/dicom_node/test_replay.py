"""What a derived series says of its making, taken out of its file, makes it again."""

import json
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset, dcmread

from dicom_node import work
from dicom_node.domain import Role
from dicom_node.images import store_pixels
from dicom_node.provenance import PRIVATE_CREATOR, PRIVATE_GROUP
from dicom_node.volumes import read_volume
from doubles.bench import CONFIGURATION, Bench
from doubles.models import write_copying_model
from doubles.series import make_series
from synthesis.engine import replay
from synthesis.phantom import render
from synthesis.types import ContrastLabel, Volume

pytestmark = pytest.mark.integration


def receive_head(bench: Bench) -> dict[str, list[Dataset]]:
    """Receive a T1w and a T2w of a phantom; they are a few millimetres apart."""
    phantom = render(seed=8, spacing=(5.0, 3.0, 3.0))
    series = {}
    for number, label in enumerate(("T1w", "T2w"), 1):
        affine = np.zeros((4, 4))
        affine[[2, 1, 0, 3], [0, 1, 2, 3]] = *phantom.spacing, 1
        affine[:3, 3] = -90 + 3 * number, -110, -70 - 2 * number
        array = np.rint(phantom.images[label] / phantom.images[label].max() * 1000)
        volume = Volume(array=array.astype(np.float32), affine=affine, coordinate_system="PATIENT")
        series[label] = make_series(label, volume, number=number)
        bench.receive(series[label])
    return series


def test_record_in_the_file_replays_to_identical_pixels(tmp_path: Path) -> None:
    models = tmp_path / "models"
    write_copying_model(models)
    bench = Bench(tmp_path / "data", models)
    receive_head(bench)
    bench.judge()
    job = bench.claim("FLAIR")
    work.run(job.plan.plan_id, job.attempt, CONFIGURATION, bench.overrides)
    derived = bench.ledger.derived(job.plan.plan_id)
    images = [dcmread(bench.store.path(d.path)) for d in derived if d.role is Role.IMAGE]
    contents = bench.ledger.read_sources(job.plan.plan_id)
    bench.ledger.close()

    record = json.loads(images[0].private_block(PRIVATE_GROUP, PRIVATE_CREATOR)[0x01].value)
    volumes = {
        ContrastLabel(label): read_volume([bench.store.path(i.path) for i in instances])[0]
        for label, instances in contents.items()
    }
    again = replay(record["steps"], volumes, models_folder=models)

    stored = store_pixels(np.asarray(again.volume.array, np.float32), "MR").array
    assert {step["step"] for step in record["steps"]} >= {"register", "normalize", "predict"}
    assert len(images) == len(stored)
    for image, plane in zip(images, stored[::-1], strict=True):
        assert image.PixelData == plane.astype("<u2").tobytes()
