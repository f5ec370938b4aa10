import io

import pydicom
import pytest
from pydicom.data import get_testdata_file

from dicom_node.demonstration.pacs import Orthanc
from doubles import dcmtk

pytestmark = pytest.mark.integration


def test_orthanc_gives_back_what_it_was_sent(orthanc: Orthanc, tmp_path):
    file = get_testdata_file("MR_small.dcm")
    sent = pydicom.dcmread(file)

    answer = dcmtk.storescu(orthanc.port, file, called="ORTHANC")

    assert answer.returncode == 0, answer.stderr
    held = orthanc.find_instances(sent.StudyInstanceUID)
    assert held == {sent.SOPInstanceUID: sent.SeriesInstanceUID}
    back = pydicom.dcmread(io.BytesIO(orthanc.read_instance(sent.SOPInstanceUID)))
    assert back.PixelData == sent.PixelData


def test_orthanc_takes_nothing_from_a_stranger(orthanc: Orthanc):
    answer = dcmtk.echoscu(orthanc.port, called="ORTHANC", calling="STRANGER")

    assert answer.returncode != 0


def test_orthanc_speaks_dicomweb(orthanc: Orthanc):
    assert isinstance(orthanc.read_json("/dicom-web/studies"), list)
