"""One derived radiograph, ultrasound image or photograph, in the SOP class of its modality.

Its rows and columns are those of the reference source, and so is what is told of them: the spacing
on the detector, the orientation of the rows, the view, the region. There is no plane in the
patient, and none is made up. Its values are new, so it is shown as it is: brighter is more
(MONOCHROME2, IDENTITY), through a window of its own; those of the source were for other pixels.
"""

from typing import Any

import numpy as np
from highdicom import SOPClass
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from dicom_node.domain import Role
from dicom_node.elements import copy_elements, read_bytes
from dicom_node.errors import JobFailed
from dicom_node.exposures import EXPOSURE_CLASSES, RADIOGRAPHS
from dicom_node.images import MOST_STORED, MR_WINDOW_PERCENTILES, date_of, fix_creation, time_of
from dicom_node.provenance import Provenance

IMAGE_TYPE = ["DERIVED", "SECONDARY"]
COPIED = (
    # where rows and columns run, and how large a pixel is: as the source tells it
    *("PatientOrientation", "ImagerPixelSpacing", "PixelSpacing", "PixelSpacingCalibrationType"),
    *("PixelSpacingCalibrationDescription", "NominalScannedPixelSpacing", "PixelAspectRatio"),
    *("SequenceOfUltrasoundRegions", "BurnedInAnnotation"),
    # what is seen from where
    *("ImageLaterality", "AnatomicRegionSequence", "ViewPosition", "ViewCodeSequence"),
)
_ONLY_OF = {
    "ImagerPixelSpacing": RADIOGRAPHS,
    "ImageLaterality": frozenset({"DX"}),
    "SequenceOfUltrasoundRegions": frozenset({"US"}),
    "ViewPosition": RADIOGRAPHS,
    "ViewCodeSequence": frozenset({"DX"}),
}
"""Attributes that the other IODs do not know; ViewPosition of CR is Type 2."""
_WHITE = 255
_REQUIRED: dict[str, dict[str, Any]] = {
    "CR": {"BodyPartExamined": None, "ViewPosition": None},
    "DX": {
        "PresentationIntentType": "FOR PRESENTATION",
        "AnatomicRegionSequence": [],
        "ImageLaterality": "U",
        "DetectorType": None,
        "RescaleIntercept": "0",
        "RescaleSlope": "1",
        "RescaleType": "US",
        "BurnedInAnnotation": "NO",
        "AcquisitionContextSequence": [],
        "PixelIntensityRelationship": "LOG",
        "PixelIntensityRelationshipSign": 1,
    },
    "US": {},
    "XC": {"AcquisitionContextSequence": []},
}
"""What each IOD requires, where the source does not say otherwise. Nothing is said of exposures."""


def write_picture(job: Provenance, common: Dataset) -> Dataset:
    """Return the one image of a job, less its references.

    Args:
        job: what was decided, used and made.
        common: equipment and derivation of the job.

    Raises:
        JobFailed: the result is not finite.
    """
    modality, header = job.plan.target_modality, job.reference.datasets[0]
    moment = job.plan.created_at
    image = SOPClass(
        study_instance_uid=job.plan.study_instance_uid,
        series_instance_uid=job.uid(Role.IMAGE),
        series_number=job.series_number(Role.IMAGE),
        sop_instance_uid=job.uid(Role.IMAGE, "1"),
        sop_class_uid=EXPOSURE_CLASSES[modality],
        instance_number=1,
        modality=modality,
        transfer_syntax_uid=ExplicitVRLittleEndian,
        content_date=date_of(moment),
        content_time=time_of(moment),
        series_date=date_of(moment),
        series_time=time_of(moment),
    )
    fix_creation(image, moment)
    for keyword, value in _REQUIRED[modality].items():
        setattr(image, keyword, value)
    image.ImageType = IMAGE_TYPE
    image.SeriesDescription = job.describe_series()
    image.update(common)
    allowed = [k for k in COPIED if modality in _ONLY_OF.get(k, EXPOSURE_CLASSES)]
    copy_elements(header, image, [k for k in allowed if k in header])
    if modality == "DX":
        _put_intensity(image, header)
        if not read_bytes(header, "ImagerPixelSpacing"):
            copy_elements(header, image, ["PixelSpacing"])
            image.ImagerPixelSpacing = image.PixelSpacing
    _put_pixels(image, np.asarray(job.synthesis.volume.array, np.float32), modality)
    return image


def _put_intensity(image: Dataset, header: Dataset) -> None:
    """Say how values relate to the beam, as the source does; inverted ones were turned round."""
    relation = str(header.get("PixelIntensityRelationship") or "")
    sign = header.get("PixelIntensityRelationshipSign")
    if relation in {"LIN", "LOG"}:
        image.PixelIntensityRelationship = relation
    inverted = header.get("PhotometricInterpretation") == "MONOCHROME1"
    if sign in {1, -1}:
        image.PixelIntensityRelationshipSign = int(-sign if inverted else sign)


def _put_pixels(image: Dataset, array: NDArray[np.float32], modality: str) -> None:
    """Take the samples (1 or 3, rows, columns): 12 bits of a radiograph, else 8."""
    if not np.isfinite(array).all():
        raise JobFailed("a picture with values that are not finite cannot be stored")
    is_radiograph = modality in RADIOGRAPHS
    top = MOST_STORED if is_radiograph else _WHITE
    stored = np.clip(np.rint(array), 0, top).astype("<u2" if is_radiograph else "u1")
    is_color = len(stored) > 1
    image.SamplesPerPixel = len(stored)
    image.PhotometricInterpretation = "RGB" if is_color else "MONOCHROME2"
    image.Rows, image.Columns = stored.shape[1:]
    image.BitsAllocated = 16 if is_radiograph else 8
    image.BitsStored = 12 if is_radiograph else 8
    image.HighBit = image.BitsStored - 1
    image.PixelRepresentation = 0
    if is_color:
        image.PlanarConfiguration = 0
    if is_radiograph:
        bright = stored[stored > 0]
        low, high = np.percentile(bright, MR_WINDOW_PERCENTILES) if bright.size else (0, 1)
        low = min(0, low) if modality == "DX" else low
        image.WindowCenter = round((low + high) / 2)
        image.WindowWidth = max(1, round(high - low))
        image.PresentationLUTShape = "IDENTITY"
    pixels = np.moveaxis(stored, 0, -1).tobytes()
    image.add_new("PixelData", "OW" if is_radiograph else "OB", pixels + b"\0" * (len(pixels) % 2))
