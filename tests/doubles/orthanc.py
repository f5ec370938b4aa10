"""What tests do to the PACS that all of them share."""

import urllib.request

from dicom_node.demonstration.pacs import Orthanc


def forget(orthanc: Orthanc, study: str) -> None:
    """Let it forget a study, so that each run fills it anew."""
    query = {"Level": "Study", "Query": {"StudyInstanceUID": study}}
    for found in orthanc.read_json("/tools/find", query):
        request = urllib.request.Request(f"{orthanc.http}/studies/{found}", method="DELETE")
        urllib.request.urlopen(request, timeout=30).close()
    assert orthanc.find_instances(study) == {}
