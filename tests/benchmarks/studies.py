"""The studies that receivers are measured with: realistic headers, noise for pixels, fresh UIDs.

    mr      180 × MR 256 × 256, unsigned 16 bit (135 KB each)
    ct      300 × CT 512 × 512, signed 16 bit (528 KB each)
    small  2000 × MR 64 × 64 (12 KB each), of which most is header

Each data set is built once with placeholders for its UIDs, which every run replaces by others of
the same length, so that nothing that is sent is a duplicate of what was sent before.
"""

import hashlib
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from pydicom import Dataset, dcmwrite
from pydicom.sequence import Sequence

from dicom_node.part10 import encode_file_meta

EXPLICIT = "1.2.840.10008.1.2.1"
MR = "1.2.840.10008.5.1.4.1.1.4"
CT = "1.2.840.10008.5.1.4.1.1.2"

_ROOT = "1.2.826.0.1.3680043.10.1599"
_STUDY, _SERIES, _INSTANCE = (f"{_ROOT}.{digit * 12}.{digit * 6}" for digit in "789")


@dataclass(frozen=True)
class Kind:
    """One kind of study."""

    sop_class_uid: str
    instances: int
    size: int
    signed: bool


KINDS = {
    "mr": Kind(MR, 180, 256, signed=False),
    "ct": Kind(CT, 300, 512, signed=True),
    "small": Kind(MR, 2000, 64, signed=False),
}


@dataclass(frozen=True)
class Sample:
    """One instance to send: what its C-STORE request says, and its data set as encoded."""

    sop_class_uid: str
    sop_instance_uid: str
    data_set: bytes

    @property
    def digest(self) -> str:
        """The SHA-256 of the data set."""
        return hashlib.sha256(self.data_set).hexdigest()


class Study:
    """All instances of one kind, encoded once."""

    def __init__(self, name: str, instances: int | None = None) -> None:
        kind = KINDS[name]
        self.name = name
        self._sop_class_uid = kind.sop_class_uid
        rng = np.random.default_rng(1)
        noise = rng.integers(0, 1200, (8, kind.size, kind.size), dtype="<u2")
        self._templates = [
            _encode(_build_dataset(kind, number, noise[number % 8].tobytes()))
            for number in range(instances or kind.instances)
        ]

    def samples(self, run: int) -> list[Sample]:
        """Return the instances under the UIDs of `run`."""
        found = []
        for number, template in enumerate(self._templates):
            uids = {
                placeholder: f"{_ROOT}.{10**11 + run}.{10**5 + serial}"
                for placeholder, serial in ((_STUDY, 1), (_SERIES, 2), (_INSTANCE, 100 + number))
            }
            head, pixels = template[:16_384], template[16_384:]
            for placeholder, uid in uids.items():
                head = head.replace(placeholder.encode(), uid.encode())
            found.append(Sample(self._sop_class_uid, uids[_INSTANCE], head + pixels))
        return found

    def write_files(self, folder: Path, run: int, most: int | None = None) -> list[Path]:
        """Write instances as DICOM files for senders that want files."""
        folder.mkdir(parents=True, exist_ok=True)
        paths = []
        for number, sample in enumerate(self.samples(run)[:most]):
            meta = encode_file_meta(sample.sop_class_uid, sample.sop_instance_uid, EXPLICIT)
            paths.append(folder / f"{number:05d}.dcm")
            paths[-1].write_bytes(meta + sample.data_set)
        return paths


def _item(**elements: object) -> Dataset:
    item = Dataset()
    for keyword, value in elements.items():
        setattr(item, keyword, value)
    return item


def _build_dataset(kind: Kind, number: int, pixels: bytes) -> Dataset:
    """Return an image with the hundred and some elements that a scanner writes."""
    image = _item(
        SpecificCharacterSet="ISO_IR 100",
        ImageType=["ORIGINAL", "PRIMARY", "M", "ND"],
        SOPClassUID=kind.sop_class_uid,
        SOPInstanceUID=_INSTANCE,
        StudyDate="20240215",
        SeriesDate="20240215",
        AcquisitionDate="20240215",
        StudyTime="101501.000000",
        AcquisitionTime=f"1015{12 + number % 40:02d}.{number:06d}",
        AccessionNumber="ACC00000001",
        Modality="CT" if kind.signed else "MR",
        Manufacturer="BENCHMARK",
        InstitutionName="General Hospital",
        ReferringPhysicianName="Referring^Doctor",
        StudyDescription="HEAD WITHOUT AND WITH CONTRAST",
        SeriesDescription="AX 3D BRAIN THIN SLICE",
        ManufacturerModelName="Model 9000",
        PatientName="Benchmark^Phantom",
        PatientID="PID000001",
        PatientBirthDate="19610812",
        PatientSex="F",
        PatientWeight="71.5",
        BodyPartExamined="HEAD",
        SliceThickness="1.0",
        DeviceSerialNumber="SN-000123",
        SoftwareVersions=["version 1.0", "patch 7"],
        ProtocolName="HEAD ROUTINE",
        PatientPosition="HFS",
        StudyInstanceUID=_STUDY,
        SeriesInstanceUID=_SERIES,
        StudyID="1",
        SeriesNumber=3,
        InstanceNumber=number + 1,
        ImagePositionPatient=["-64.0000", "-64.0000", f"{number - 100:.4f}"],
        ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
        FrameOfReferenceUID=f"{_ROOT}.5",
        SliceLocation=f"{number - 100:.4f}",
        SamplesPerPixel=1,
        PhotometricInterpretation="MONOCHROME2",
        Rows=kind.size,
        Columns=kind.size,
        PixelSpacing=[0.5, 0.5],
        BitsAllocated=16,
        BitsStored=16,
        HighBit=15,
        PixelRepresentation=int(kind.signed),
        WindowCenter="600",
        WindowWidth="1200",
        RescaleIntercept="-1024" if kind.signed else "0",
        RescaleSlope="1",
        PerformedProcedureStepID="PPS1",
    )
    image.ProcedureCodeSequence = Sequence(
        [_item(CodeValue="RPID123", CodingSchemeDesignator="RADLEX", CodeMeaning="Head")]
    )
    image.RequestAttributesSequence = Sequence(
        [_item(ScheduledProcedureStepID="SPS1", RequestedProcedureID="RP1")]
    )
    image.ReferencedImageSequence = Sequence(
        [
            _item(ReferencedSOPClassUID=kind.sop_class_uid, ReferencedSOPInstanceUID=f"1.2.3.{n}")
            for n in range(3)
        ]
    )
    block = image.private_block(0x0029, "BENCHMARK HEADER", create=True)
    for element in range(60):
        block.add_new(element, "LO", f"value {element:02d} of {number % 7}")
    image.add_new("PixelData", "OW", pixels)
    return image


def _encode(dataset: Dataset) -> bytes:
    out = BytesIO()
    dcmwrite(out, dataset, implicit_vr=False, little_endian=True)
    return out.getvalue()
