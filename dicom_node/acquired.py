"""Arrays with an affine as studies that look acquired: the phantom, images that are no DICOM.

Nothing here is on the walk of a study; the demo and the tests send what comes out to the node.
Geometry is that of the affine, the person is fictitious, physics are what the caller knows of the
sequence. A rendered phantom says so: Quality Control Subject (0010,0200) is YES.
"""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

import numpy as np
from highdicom import Volume
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.uid import UID

from dicom_node.identifiers import derive_uid
from dicom_node.images import (
    MOST_STORED,
    ClassicImage,
    date_of,
    measure_heights,
    store_pixels,
    time_of,
)

Acquisition = Mapping[str, str | int | float | list[str]]
"""Attributes by keyword, as the sequence had them: RepetitionTime, EchoTime, ImageType …"""

FEWEST_LEVELS = 256
"""An MR of fewer gray levels is scaled up before it is stored as integers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AcquiredStudy:
    """Who and what a written study says it is.

    Attributes:
        namespace: of the UIDs.
        key: names the study; the same key has the same UIDs.
        patient_name: fictitious, such as PHANTOM^HEAD.
        started: date and time of the study and of every series; aware.
        body_part: Body Part Examined, a CS of PS3.16 table L-1; "" leaves it out.
        character_set: Specific Character Set that the name is written in.
        is_phantom: no person was imaged.
    """

    namespace: uuid.UUID
    key: str
    patient_name: str
    patient_id: str
    started: datetime
    description: str
    body_part: str = "HEAD"
    patient_position: str = "HFS"
    character_set: str = "ISO_IR 100"
    is_phantom: bool = False

    def uid(self, *parts: str) -> str:
        """Return the UID of a part of the study."""
        return derive_uid(self.namespace, "acquired", self.key, *parts)

    @property
    def study_instance_uid(self) -> str:
        """Its Study Instance UID."""
        return self.uid("study")


def write_series(
    study: AcquiredStudy,
    volume: Volume,
    *,
    modality: str,
    number: int,
    description: str,
    acquisition: Acquisition,
) -> list[Dataset]:
    """Return the instances of one series, lowest slice first.

    CT is stored in HU, PT in SUVbw; MR has no unit and is stored as it is when it holds whole
    numbers of 12 bits, else scaled so that its largest value is 4095.

    Args:
        study: what the series belongs to.
        volume: (slices, rows, columns); its Frame of Reference UID, or the study's one when None.
        modality: MR, CT or PT.
        number: Series Number, which also tells the series of a study apart.
        description: Series Description.
        acquisition: overrides every attribute of the same keyword.
    """
    array = np.asarray(volume.array, np.float32)
    pixels = store_pixels(_fit(array) if modality == "MR" else array, modality)
    heights = measure_heights(volume)
    frame_of_reference_uid = UID(volume.frame_of_reference_uid or study.uid("frame of reference"))
    instances: list[Dataset] = []
    for index in np.argsort(heights):
        image = ClassicImage(
            modality=modality,
            study_instance_uid=study.study_instance_uid,
            series_instance_uid=study.uid("series", str(number)),
            sop_instance_uid=study.uid("series", str(number), str(len(instances) + 1)),
            series_number=number,
            instance_number=len(instances) + 1,
            slices=len(heights),
            moment=study.started,
        )
        image.put_plane(volume, int(index))
        image.put_pixels(pixels, int(index))
        image.FrameOfReferenceUID = frame_of_reference_uid
        _put_study(image, study)
        image.SeriesDescription = description
        image.ImageType = [
            "ORIGINAL",
            "PRIMARY",
            *({"MR": ["OTHER"], "CT": ["AXIAL"]}.get(modality, [])),
        ]
        for keyword, value in acquisition.items():
            setattr(image, keyword, value)
        instances.append(image)
    return instances


def _put_study(image: ClassicImage, study: AcquiredStudy) -> None:
    image.SpecificCharacterSet = study.character_set
    image.PatientName = study.patient_name
    image.PatientID = study.patient_id
    image.StudyID = "1"
    image.StudyDate = image.AcquisitionDate = date_of(study.started)
    image.StudyTime = image.AcquisitionTime = time_of(study.started)
    image.StudyDescription = study.description
    image.put_patient_position(study.patient_position)
    if study.body_part:
        image.BodyPartExamined = study.body_part
    else:
        image.Laterality = None
    if study.is_phantom:
        image.QualityControlSubject = "YES"
        image.ImageComments = "RENDERED PHANTOM - NO PERSON WAS IMAGED"


def _fit(array: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return MR intensities that survive rounding to 12 bits."""
    largest = float(array.max(initial=0))
    if largest <= 0 or (
        FEWEST_LEVELS <= largest <= MOST_STORED and np.array_equal(array, np.rint(array))
    ):
        return array
    return array * np.float32(MOST_STORED / largest)
