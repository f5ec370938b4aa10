"""A radiograph goes in by `storescu` and comes back to Orthanc with its bone shown apart."""

import io
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread

from dicom_node import conformance
from dicom_node.demonstration.validators import find_errors
from dicom_node.domain import Role
from dicom_node.jobs import JobState
from doubles.dcmtk import storescu
from doubles.exposures import draw, make_exposure, project_thigh, store, write_settings
from doubles.models import write_copying_picture_model
from doubles.node import AE_TITLE
from doubles.series import require_validators, write_files

pytestmark = pytest.mark.acceptance
MODELS = Path(__file__).parents[2] / "models"


@pytest.fixture
def configuration(tmp_path):
    """The example for radiographs, in research mode."""
    return write_settings(tmp_path / "config")


def test_radiograph_comes_back_with_the_bone_that_the_shipped_model_finds(
    configuration, orthanc, make_node, tmp_path
):
    validators = require_validators()
    thigh = project_thigh()
    frontal = make_exposure("DX", store(thigh.signal), ImagerPixelSpacing=["1", "1"])
    lateral = make_exposure("DX", draw(300, 260), number=2, ViewPosition="LL")
    sent = write_files([frontal, lateral], tmp_path / "study")
    node = make_node([f"models_folder={MODELS}"], configuration=configuration)
    node.start()

    answer = storescu(node.port, tmp_path / "study", called=AE_TITLE)
    assert answer.returncode == 0, answer.stderr
    node.wait_for(frontal.StudyInstanceUID)

    with node.ledger() as ledger:
        [job] = ledger.jobs(frontal.StudyInstanceUID)
        derived = ledger.derived(job.plan.plan_id)
    assert (job.plan.target, job.state) == ("DX bone", JobState.DONE), job.reason
    assert [uid for uid, _ in job.plan.source_instances] == [frontal.SOPInstanceUID]
    back = {one.role: one.sop_instance_uid for one in derived}
    assert set(back) == {Role.IMAGE, Role.REPORT}
    instances = [dcmread(io.BytesIO(orthanc.read_instance(uid))) for uid in back.values()]
    assert conformance.check(instances, [frontal]) == []
    assert find_errors(validators, write_files(instances, tmp_path / "back"), sent) == []
    image = next(one for one in instances if one.Modality == "DX")
    assert image.SOPClassUID == frontal.SOPClassUID
    assert image.ImagerPixelSpacing == frontal.ImagerPixelSpacing
    assert "ImagePositionPatient" not in image
    likeness = np.corrcoef(image.pixel_array.ravel(), thigh.bone.ravel())[0, 1]
    assert likeness > 0.9
    assert node.stop() == 0


def test_raw_radiograph_is_received_and_held_by_name(configuration, make_node, tmp_path):
    models = tmp_path / "models"
    write_copying_picture_model(models, "limb-bone-unet2d", "DX", "DX bone", "DX")
    raw = make_exposure(
        "DX",
        PresentationIntentType="FOR PROCESSING",
        SOPClassUID="1.2.840.10008.5.1.4.1.1.1.1.1",
    )
    write_files([raw], tmp_path / "study")
    node = make_node([f"models_folder={models}"], configuration=configuration)
    node.start()

    answer = storescu(node.port, tmp_path / "study", called=AE_TITLE)
    assert answer.returncode == 0, answer.stderr
    with node.ledger() as ledger:
        node.wait_until(
            lambda: ledger.study_row(raw.StudyInstanceUID).hold_code == "presentation_intent"
        )
    assert node.stop() == 0
