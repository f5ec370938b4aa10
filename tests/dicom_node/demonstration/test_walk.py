import io

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.uid import RLELossless

from dicom_node.demonstration.pacs import Orthanc
from dicom_node.demonstration.studies import prepare_phantom
from dicom_node.demonstration.walk import send
from dicom_node.errors import DeliveryError

pytestmark = pytest.mark.integration


@pytest.fixture
def files(tmp_path):
    return prepare_phantom(tmp_path, seed=7, spacing=(30.0, 9.0, 9.0)).files[:2]


def test_sent_instances_arrive_with_their_pixels_compressed_or_not(orthanc: Orthanc, files):
    compressed = dcmread(files[0])
    pixels = compressed.pixel_array.copy()
    compressed.compress(RLELossless, generate_instance_uid=False)
    compressed.save_as(files[0])

    sent = send(files, port=orthanc.port, called="ORTHANC", calling="STORESCU")

    assert sent == 2
    back = dcmread(io.BytesIO(orthanc.read_instance(compressed.SOPInstanceUID)))
    np.testing.assert_array_equal(back.pixel_array, pixels)
    assert orthanc.read_instance(dcmread(files[1]).SOPInstanceUID)


def test_peer_that_does_not_know_us_is_told_as_an_error(orthanc: Orthanc, files):
    with pytest.raises(DeliveryError, match="rejected"):
        send(files, port=orthanc.port, called="ORTHANC", calling="STRANGER")
