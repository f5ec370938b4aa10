"""Radiographs, ultrasound images and photographs that look acquired, valid in their IODs."""

import re
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813
import yaml
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian

from dicom_node.derive import SourceSeries
from dicom_node.exposures import EXPOSURE_CLASSES
from dicom_node.identifiers import derive_uid
from dicom_node.volumes import read_picture
from doubles.node import CONFIGURATION
from doubles.series import NAMESPACE, write_files
from synthesis.projection import SPECTRA, Beam, Radiograph, expose
from synthesis.types import FloatArray

STARTED = datetime(2020, 1, 2, 3, 4, 5, tzinfo=UTC)
COLOR = np.ndim(np.zeros((1, 1, 1)))
TARGETS = {"CR": "CR bone", "DX": "DX bone", "US": "US despeckled", "XC": "XC infrared"}
"""What is made of a picture in these tests, by modality."""
OWN: Mapping[str, Mapping[str, object]] = {
    "CR": {"ImagerPixelSpacing": ["0.2", "0.2"], "ViewPosition": "AP", "PlateID": "P1"},
    "DX": {
        "ImagerPixelSpacing": ["0.143", "0.143"],
        "ViewPosition": "AP",
        "PresentationIntentType": "FOR PRESENTATION",
        "PatientOrientation": ["L", "F"],
        "ImageLaterality": "R",
        "PixelIntensityRelationship": "LOG",
        "PixelIntensityRelationshipSign": -1,
        "RescaleIntercept": "0",
        "RescaleSlope": "1",
        "RescaleType": "US",
        "PresentationLUTShape": "IDENTITY",
        "BurnedInAnnotation": "NO",
        "LossyImageCompression": "00",
        "WindowCenter": "2048",
        "WindowWidth": "4096",
        "DetectorType": "SCINTILLATOR",
        "AcquisitionContextSequence": [],
    },
    "US": {"LossyImageCompression": "00", "BurnedInAnnotation": "NO"},
    "XC": {"LossyImageCompression": "00", "AcquisitionContextSequence": []},
}


def draw(rows: int = 60, columns: int = 48, samples: int = 1, top: int = 4095) -> NDArray[np.int_]:
    """Return a smooth pattern (rows, columns) or (rows, columns, 3) from 0 to `top`."""
    down, right = np.mgrid[0:rows, 0:columns]
    planes = [1 + np.sin(down / (7 + k)) * np.cos(right / (5 + k)) for k in range(samples)]
    pattern = np.rint(np.stack(planes, axis=-1) * top / 2).astype(int)
    return pattern if samples > 1 else pattern[..., 0]


def project_thigh() -> Radiograph:
    """Return a radiograph of a thigh of muscle with a shaft of bone, 1 mm pixels."""
    down, right = np.mgrid[-80:80, -80:80]
    hounsfield = np.full((160, 160, 160), -1000, np.float32)
    for radius, value in ((60, 40), (14, 1400), (8, -20)):
        hounsfield[:, np.hypot(down, right) < radius] = value
    beam = Beam(angle=0, tilt=0, spectrum=tuple(SPECTRA[1]), photons=3e4, scatter=0.1)
    return expose(sitk.GetImageFromArray(hounsfield), beam, np.random.default_rng(0))


def store(signal: FloatArray, top: int = 4095) -> NDArray[np.int_]:
    """Return what a detector stores of a signal: from 0 to `top`."""
    return np.rint(np.clip(signal / signal.max(), 0, 1) * top).astype(int)


def make_exposure(
    modality: str,
    pixels: NDArray[np.int_] | None = None,
    *,
    study: str = "study",
    number: int = 1,
    **changes: object,
) -> Dataset:
    """Return one acquired picture; a change of None takes an attribute away."""
    is_radiograph = modality in {"CR", "DX"}
    if pixels is None:
        pixels = draw(top=4095 if is_radiograph else 255)
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.SOPClassUID = EXPOSURE_CLASSES[modality]
    image.SOPInstanceUID = derive_uid(NAMESPACE, study, str(number), "instance")
    image.SeriesInstanceUID = derive_uid(NAMESPACE, study, str(number))
    image.StudyInstanceUID = derive_uid(NAMESPACE, study)
    facts: dict[str, object] = {
        "SpecificCharacterSet": "ISO_IR 100",
        "ImageType": ["ORIGINAL", "PRIMARY"],
        "PatientName": "PHANTOM^LIMB",
        "PatientID": "PHANTOM-2",
        "PatientBirthDate": "",
        "PatientSex": "",
        "StudyDate": "20200102",
        "StudyTime": "030405",
        "AcquisitionDate": "20200102",
        "AcquisitionTime": "030405",
        "ContentDate": "20200102",
        "ContentTime": "030405",
        "AccessionNumber": "",
        "ReferringPhysicianName": "",
        "StudyID": "1",
        "SeriesNumber": number,
        "InstanceNumber": 1,
        "Modality": modality,
        "Manufacturer": "ACME",
        "BodyPartExamined": "THIGH",
        "PatientOrientation": ["L", "F"],
        "SamplesPerPixel": 3 if pixels.ndim == COLOR else 1,
        "PhotometricInterpretation": "RGB" if pixels.ndim == COLOR else "MONOCHROME2",
        "Rows": pixels.shape[0],
        "Columns": pixels.shape[1],
        "BitsAllocated": 16 if is_radiograph else 8,
        "BitsStored": 12 if is_radiograph else 8,
        "HighBit": 11 if is_radiograph else 7,
        "PixelRepresentation": 0,
    }
    if pixels.ndim == COLOR:
        facts["PlanarConfiguration"] = 0
    if modality == "DX":
        region = Dataset()
        region.CodeValue, region.CodingSchemeDesignator = "68367000", "SCT"
        region.CodeMeaning = "Thigh"
        facts["AnatomicRegionSequence"] = [region]
    for keyword, value in {**facts, **OWN[modality], **changes}.items():
        if value is not None:
            setattr(image, keyword, value)
    stored = pixels.astype("<u2" if is_radiograph else "u1").tobytes()
    image.add_new("PixelData", "OW" if is_radiograph else "OB", stored + b"\0" * (len(stored) % 2))
    image.file_meta.MediaStorageSOPClassUID = UID(str(image.SOPClassUID))
    image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
    return image


def read_source(image: Dataset, folder: Path) -> SourceSeries:
    """Return a picture as a job has it."""
    volume, headers = read_picture(write_files([image], folder)[0])
    uid = str(headers[0].SeriesInstanceUID)
    return SourceSeries(series_instance_uid=uid, datasets=headers, volume=volume)


def write_settings(folder: Path) -> Path:
    """Return a copy of the shipped settings with the example for pictures, its rules in force."""
    shutil.copytree(CONFIGURATION, folder)
    shutil.copy(folder / "examples" / "radiographs" / "routing.yaml", folder)
    routing, policy = folder / "routing.yaml", folder / "models.yaml"
    text = re.sub('mode: (shadow|"off")', "mode: send", routing.read_text())
    routing.write_text(text)
    makes = [make["target"] for rule in yaml.safe_load(text)["rules"] for make in rule["makes"]]
    policy.write_text(policy.read_text().replace("research: []", f"research: {makes}"))
    return folder
