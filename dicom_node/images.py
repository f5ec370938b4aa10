"""One single-frame MR, CT or PT image: what a derived and a phantom instance have in common.

highdicom has no class for these, so this is a subclass of its public base (design note, `dicom.md`
section 2). It fills geometry, pixels and every attribute that the IODs of PS3.3 A.3, A.4 and A.21
require; who is imaged and how the pixels came about is told by `derive` and `acquired`.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from highdicom import SOPClass, Volume
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import (
    UID,
    CTImageStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
    PositronEmissionTomographyImageStorage,
)
from pydicom.valuerep import DA, TM, format_number_as_ds

from dicom_node.identifiers import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME

SOP_CLASSES: dict[str, UID] = {
    "MR": MRImageStorage,
    "CT": CTImageStorage,
    "PT": PositronEmissionTomographyImageStorage,
}
MOST_STORED = 4095
"""12 bits, what MR and CT viewers expect."""
CT_INTERCEPT = -1024
CT_WINDOW = (40, 400)
PT_WINDOW = (3, 6)
"""From 0 to 5 SUV: the formula takes a half off the center and one off the width (C.11.2.1.2.1)."""
MR_WINDOW_PERCENTILES = (1, 99)
"""Of the voxels above 0. One window only: some viewers drop the window when there are two."""
_MOST_PT = 32_767
"""PT stores 16 signed bits (PS3.3 C.8.9.4.1.5 wants 16 bits stored)."""

_POSITIONS = {
    "S": codes.SCT.Supine,
    "P": codes.SCT.Prone,
    "DR": codes.SCT.RightLateralDecubitus,
    "DL": codes.SCT.LeftLateralDecubitus,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredPixels:
    """Integers to store, and how they read back: value = stored * slope + intercept."""

    array: NDArray[np.uint16] | NDArray[np.int16]
    slope: str
    intercept: int
    window: tuple[float, float]


def store_pixels(array: NDArray[np.float32], modality: str) -> StoredPixels:
    """Return what to store for a series: MR 0..4095 as it is, CT from HU, PT from SUVbw.

    Values beyond what can be stored go to the nearest that can.

    Raises:
        ValueError: a value is not finite.
    """
    if not np.isfinite(array).all():
        raise ValueError("a volume with values that are not finite cannot be stored")
    if modality == "PT":
        slope = format_number_as_ds(max(float(array.max()), 1e-3) / _MOST_PT)
        stored = np.clip(np.rint(array / float(slope)), 0, _MOST_PT).astype(np.int16)
        return StoredPixels(array=stored, slope=slope, intercept=0, window=PT_WINDOW)
    if modality == "CT":
        raised = np.clip(np.rint(array - CT_INTERCEPT), 0, MOST_STORED).astype(np.uint16)
        return StoredPixels(array=raised, slope="1", intercept=CT_INTERCEPT, window=CT_WINDOW)
    plain = np.clip(np.rint(array), 0, MOST_STORED).astype(np.uint16)
    bright = plain[plain > 0]
    low, high = np.percentile(bright, MR_WINDOW_PERCENTILES) if bright.size else (0, 1)
    window = (round((low + high) / 2), max(1, round(high - low)))
    return StoredPixels(array=plain, slope="1", intercept=0, window=window)


class ClassicImage(SOPClass):
    """One instance, valid in its IOD, of nobody: patient and study attributes are still empty."""

    def __init__(
        self,
        *,
        modality: str,
        study_instance_uid: str,
        series_instance_uid: str,
        sop_instance_uid: str,
        series_number: int,
        instance_number: int,
        slices: int,
        moment: datetime,
    ) -> None:
        """Fill what the standard requires and the slice does not decide.

        Args:
            modality: MR, CT or PT.
            study_instance_uid: of the study that the instance joins.
            series_instance_uid: of its own series.
            sop_instance_uid: its own.
            series_number: of its own series.
            instance_number: 1 for the slice lowest along the normal.
            slices: instances of the series.
            moment: when series and content came to be; every date and time of this instance.
        """
        super().__init__(
            study_instance_uid=study_instance_uid,
            series_instance_uid=series_instance_uid,
            series_number=series_number,
            sop_instance_uid=sop_instance_uid,
            sop_class_uid=SOP_CLASSES[modality],
            instance_number=instance_number,
            modality=modality,
            transfer_syntax_uid=ExplicitVRLittleEndian,
            content_date=date_of(moment),
            content_time=time_of(moment),
            series_date=date_of(moment),
            series_time=time_of(moment),
        )
        fix_creation(self, moment)
        self.BurnedInAnnotation = "NO"
        required = {"PositionReferenceIndicator": None, "SliceThickness": None}
        for keyword, value in (required | _REQUIRED[modality]).items():
            setattr(self, keyword, value)
        if modality == "PT":
            self.NumberOfSlices = slices
            self.ImageIndex = instance_number

    def put_plane(self, volume: Volume, index: int) -> None:
        """Take geometry from the affine of a volume."""
        affine = volume.affine
        down, right = affine[:3, 1], affine[:3, 2]
        spacing = (float(np.linalg.norm(down)), float(np.linalg.norm(right)))
        cosines = (*(right / spacing[1]), *(down / spacing[0]))
        self.ImagePositionPatient = [_ds(v) for v in affine[:3, 3] + index * affine[:3, 0]]
        self.ImageOrientationPatient = [_ds(v) for v in cosines]
        self.PixelSpacing = [_ds(v) for v in spacing]
        self.SliceThickness = _ds(np.linalg.norm(affine[:3, 0]))

    def put_pixels(self, pixels: StoredPixels, index: int) -> None:
        """Take the pixels of one slice."""
        plane = pixels.array[index]
        signed = plane.dtype == np.int16
        self.SamplesPerPixel = 1
        self.PhotometricInterpretation = "MONOCHROME2"
        self.Rows, self.Columns = plane.shape
        self.BitsAllocated = 16
        self.BitsStored = 16 if signed else 12
        self.HighBit = self.BitsStored - 1
        self.PixelRepresentation = int(signed)
        if self.Modality != "MR":
            self.RescaleSlope = pixels.slope
            self.RescaleIntercept = pixels.intercept
        self.WindowCenter, self.WindowWidth = pixels.window
        self.add_new("PixelData", "OW", plane.astype(plane.dtype.newbyteorder("<")).tobytes())

    def put_patient_position(self, position: str) -> None:
        """Take Patient Position; PT says it in codes instead (PS3.3 C.8.9.4.1.3)."""
        if self.Modality != "PT":
            self.PatientPosition = position
            return
        lying = _POSITIONS.get(position[2:])
        first = {"HF": codes.SCT.Headfirst, "FF": codes.SCT.FeetFirst}.get(position[:2])
        self.PatientOrientationCodeSequence = []
        self.PatientGantryRelationshipCodeSequence = [code_item(first)] if first else []
        if lying:
            recumbent = code_item(codes.SCT.Recumbent)
            recumbent.PatientOrientationModifierCodeSequence = [code_item(lying)]
            self.PatientOrientationCodeSequence = [recumbent]


def measure_heights(volume: Volume) -> NDArray[np.float64]:
    """Return, in mm, how far each slice lies along the normal, rows cross columns (C.7.6.2.1.1)."""
    affine = volume.affine
    normal = np.cross(affine[:3, 2], affine[:3, 1])
    normal = normal / np.linalg.norm(normal)
    origins = affine[:3, 3] + np.arange(volume.spatial_shape[0])[:, None] * affine[:3, 0]
    heights: NDArray[np.float64] = origins @ normal
    return heights


def fix_creation(dataset: Dataset, moment: datetime) -> None:
    """Overwrite what highdicom says of the clock and of itself as the writer."""
    dataset.InstanceCreationDate = date_of(moment)
    dataset.InstanceCreationTime = time_of(moment)
    dataset.file_meta.ImplementationClassUID = UID(IMPLEMENTATION_CLASS_UID)
    dataset.file_meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME


def date_of(moment: datetime) -> DA:
    """Return the date in UTC."""
    return DA(moment.astimezone(UTC).strftime("%Y%m%d"))


def time_of(moment: datetime) -> TM:
    """Return the time in UTC, to the second."""
    return TM(moment.astimezone(UTC).strftime("%H%M%S"))


def code_item(code: Code) -> Dataset:
    """Return a code as a sequence item (PS3.3 table 8.8-1)."""
    item = Dataset()
    item.CodeValue = code.value
    item.CodingSchemeDesignator = code.scheme_designator
    item.CodeMeaning = code.meaning
    return item


def _ds(value: Any) -> str:
    return format_number_as_ds(float(value) + 0.0)  # + 0.0 turns a negative zero


_REQUIRED: dict[str, dict[str, Any]] = {
    "MR": {
        "ScanningSequence": "RM",
        "SequenceVariant": "NONE",
        "ScanOptions": None,
        "MRAcquisitionType": None,
        "RepetitionTime": None,
        "EchoTime": None,
        "EchoTrainLength": None,
        "PresentationLUTShape": "IDENTITY",
    },
    "CT": {
        "AcquisitionNumber": None,
        "KVP": None,
        "RescaleType": "HU",
        "PresentationLUTShape": "IDENTITY",
    },
    "PT": {
        "AcquisitionNumber": None,
        "AcquisitionDate": None,
        "AcquisitionTime": None,
        "Units": "GML",
        "SUVType": "BW",
        "SeriesType": ["STATIC", "IMAGE"],
        "CountsSource": "EMISSION",
        "DecayCorrection": "NONE",
        "CorrectedImage": None,
        "CollimatorType": None,
        "ActualFrameDuration": None,
        "FrameReferenceTime": "0",
        "RadiopharmaceuticalInformationSequence": [],
    },
}
"""What each IOD requires. Of an acquisition nothing is invented: MR says Research Mode, which is an
enumerated value of Scanning Sequence (PS3.3 C.8.3.1), and leaves the timing empty."""
