"""What every instance of a job says of its origin: from which series, by what, within which limits.

Built once per job; `derive` and `report` put it into each instance. Nothing of an acquisition is
said, for none made these pixels. Attributes and reasons: the table of `dicom.md`, section 3.
"""

import json
import math
import uuid
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC

import numpy as np
from highdicom import ContributingEquipment, Volume
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import JPEG2000, UID, JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless

from dicom_node import __version__
from dicom_node.domain import ContrastLabel, Role, SynthesisPlan
from dicom_node.elements import copy_as_item, copy_elements, read_bytes, read_numbers
from dicom_node.exposures import EXPOSURE_CLASSES
from dicom_node.identifiers import WRITER_VERSION, derive_uid, installation_uid
from dicom_node.identity import copy_identity
from dicom_node.images import code_item
from synthesis.registry import ModelCard
from synthesis.types import Synthesis

MANUFACTURER = "dicom_node"
"""Of the equipment that made the series (PS3.3 C.7.5.1): this software, never the scanner."""
MODEL_NAME = "dicom-node"
CODING_SCHEME = "99SYNTH"
SYNTHESIS_CODE = Code("SYN001", CODING_SCHEME, "Image synthesis by machine learning model")
"""The standard's codes for derivations (CID 7203) have none for synthesis."""
PRIVATE_GROUP = 0x0077
PRIVATE_CREATOR = "SYNTHNODE PROVENANCE 1"
PREFIX = "AI SYNTH"
COMMENT = "AI-GENERATED SYNTHETIC IMAGE - NOT ACQUIRED - RESEARCH"
LONGEST_DESCRIPTION = 64
LONGEST_DERIVATION = 1024

_INSTITUTION = ("InstitutionName", "InstitutionAddress", "InstitutionalDepartmentName")
_SCANNER = (
    *("Manufacturer", "ManufacturerModelName", "SoftwareVersions", "DeviceSerialNumber"),
    *("StationName", *_INSTITUTION),
)
_SERIES = (
    *("BodyPartExamined", "Laterality", "RequestAttributesSequence"),
    *("AcquisitionDate", "AcquisitionTime"),
)
_LOSSY_SYNTAXES = frozenset({JPEGBaseline8Bit, JPEGExtended12Bit, JPEG2000, JPEGLSNearLossless})
_RESAMPLING_STEPS = frozenset({"resample", "inverse"})
"""Of `synthesis.engine`: onto the model's grid, and back."""
_SERIES_NUMBERS = {Role.IMAGE: 9001, Role.UNCERTAINTY: 9101, Role.REPORT: 9201}


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceSeries:
    """One source of a job, as `volumes.read_volume` gives it.

    Attributes:
        datasets: headers of the slices that are there, in the order of the slices.
    """

    series_instance_uid: str
    datasets: tuple[Dataset, ...]
    volume: Volume

    def find_slots(self) -> NDArray[np.int_]:
        """Return the slice number in the volume of each data set."""
        positions = [read_numbers(d, "ImagePositionPatient") for d in self.datasets]
        places = np.column_stack([np.array(positions), np.ones(len(positions))])
        indices: NDArray[np.float64] = places @ self.volume.inverse_affine.T
        return np.rint(indices[:, 0]).astype(int)


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """One job: what was decided, used and made.

    Attributes:
        namespace: of the UIDs of this installation.
        station_name: of this node; its AE title.
    """

    plan: SynthesisPlan
    synthesis: Synthesis
    sources: Mapping[ContrastLabel, SourceSeries]
    card: ModelCard
    namespace: uuid.UUID
    station_name: str

    @property
    def reference(self) -> SourceSeries:
        """The source whose grid, patient and study are taken over."""
        return self.sources[next(iter(self.plan.sources))]

    @property
    def is_flat(self) -> bool:
        """Whether it makes a picture, which has no place in the patient."""
        return self.plan.target_modality in EXPOSURE_CLASSES

    @property
    def figures(self) -> dict[str, float]:
        """The measured figures that are numbers, sorted by name."""
        measured = sorted(self.synthesis.quality.figures.items())
        return {name: float(value) for name, value in measured if math.isfinite(value)}

    @property
    def device_uid(self) -> str:
        """Device UID of the synthesizer: another model is another device (IHE AIR 6.5.3.1)."""
        return derive_uid(self.namespace, "device", self.card.digest)

    def uid(self, role: Role, *parts: str) -> str:
        """Return the UID of a series of this job, or of a part of it."""
        return derive_uid(self.namespace, self.plan.plan_id, role, "native grid", *parts)

    def series_number(self, role: Role) -> int:
        """Return a number that sorts last and tells the targets of a study apart."""
        return _SERIES_NUMBERS[role] + zlib.crc32(self.plan.target.encode()) % 99

    def describe_series(self, kind: str = "") -> str:
        """Return the Series Description; viewers cut it short, so the warning comes first."""
        words = (PREFIX, self.plan.target, kind, self.synthesis.description)
        start = " ".join(as_ascii(word) for word in words if word)
        for origin in ("+".join(self.plan.sources), f"{len(self.plan.sources)} series"):
            text = f"{start} (from {origin}) NOT ACQUIRED"
            if len(text) <= LONGEST_DESCRIPTION:
                return text
        return f"{start[: LONGEST_DESCRIPTION - len(' NOT ACQUIRED')]} NOT ACQUIRED"

    def describe_limits(self) -> list[str]:
        """Return what a reader must know, in sentences."""
        holes = (
            []
            if self.is_flat
            else [
                f"{len(source.volume.array) - len(source.datasets)} of {len(source.volume.array)} "
                f"slices of the {label} source were missing: bridged for computing, not written"
                for label, source in self.sources.items()
                if len(source.datasets) < len(source.volume.array)
            ]
        )
        caution = self.card.targets[self.plan.target].caution
        sentences = [self.synthesis.description, *holes, caution]
        return [as_ascii(sentence).strip().rstrip(".") for sentence in sentences if sentence]

    def describe_derivation(self) -> str:
        """Return what was made from what by which model, with its limits."""
        card = self.card
        made = as_ascii(
            f"{self.plan.target} synthesized from {' + '.join(self.plan.sources)} by model "
            f"{card.id} {card.version} ({card.method}), weights SHA-256 {card.digest[:16]}, "
            f"seed {self.plan.seed}"
        )
        text = ". ".join([made, "Not acquired, for research only", *self.describe_limits()])
        return f"{text[: LONGEST_DERIVATION - 1]}."

    def put_equipment(self, target: Dataset) -> None:
        """Say whose study the instance joins, that it is synthetic, and what made it."""
        template = self.reference.datasets[0]
        copy_identity(template, target)
        target.SyntheticData = "YES"
        target.ContentQualification = "RESEARCH"
        target.InstanceCreatorUID = UID(installation_uid(self.namespace))
        target.Manufacturer = MANUFACTURER
        target.ManufacturerModelName = MODEL_NAME
        target.SoftwareVersions = [__version__, f"{self.card.id} {self.card.version}"]
        target.DeviceSerialNumber = str(self.namespace)
        target.DeviceUID = UID(self.device_uid)
        target.StationName = self.station_name
        target.ContributingEquipmentSequence = self._contributing_equipment()
        target.CodingSchemeIdentificationSequence = [_coding_scheme()]
        block = target.private_block(PRIVATE_GROUP, PRIVATE_CREATOR, create=True)
        block.add_new(0x01, "UT", self._record())
        copy_elements(template, target, _INSTITUTION)

    def put_derivation(self, target: Dataset) -> None:
        """Say what an image shows, how it came about and from which series."""
        template = self.reference.datasets[0]
        copy_elements(template, target, _SERIES)
        if not read_bytes(target, "BodyPartExamined"):
            target.BodyPartExamined = self.plan.anatomy
        if not self.is_flat:
            copy_elements(template, target, ["PositionReferenceIndicator"])
            target.FrameOfReferenceUID = UID(
                self.reference.volume.frame_of_reference_uid
                or derive_uid(
                    self.namespace, "frame of reference", self.reference.series_instance_uid
                )
            )
        limits = [self.synthesis.description.upper(), self.card.targets[self.plan.target].caution]
        target.ImageComments = ". ".join([COMMENT, *(as_ascii(text) for text in limits if text)])
        target.DerivationDescription = self.describe_derivation()
        derivations = [SYNTHESIS_CODE, *self._resampling()]
        target.DerivationCodeSequence = [code_item(code) for code in derivations]
        target.RelatedSeriesSequence = [_related(source) for source in self.sources.values()]
        self._put_lossy(target)

    def _contributing_equipment(self) -> list[Dataset]:
        """Return the scanners (once each), what worked on the sources before, and this node."""
        template = self.reference.datasets[0]
        items: list[Dataset] = []
        for source in self.sources.values():
            header = source.datasets[0]
            if read_bytes(header, "SpecificCharacterSet") != read_bytes(
                template, "SpecificCharacterSet"
            ):
                header = _ascii_only(header)
            scanner = copy_as_item(header, _SCANNER)
            if not read_bytes(scanner, "Manufacturer"):
                scanner.Manufacturer = "UNKNOWN"
            scanner.ContributionDescription = "Acquisition of source images"
            scanner.PurposeOfReferenceCodeSequence = [code_item(codes.DCM.AcquisitionEquipment)]
            earlier = copy_as_item(header, ["ContributingEquipmentSequence"])
            items += [scanner, *earlier.get("ContributingEquipmentSequence", [])]
        synthesizer = ContributingEquipment(
            MANUFACTURER,
            codes.DCM.SynthesizingEquipment,
            manufacturer_model_name=MODEL_NAME,
            software_versions=[__version__, f"{self.card.id} {self.card.version}"],
            device_serial_number=str(self.namespace),
            station_name=self.station_name,
            contribution_datetime=self.plan.created_at.astimezone(UTC).strftime(
                "%Y%m%d%H%M%S+0000"
            ),
            contribution_description=f"Synthesis of {self.plan.target} by {self.card.id}",
        )
        synthesizer.DeviceUID = UID(self.device_uid)
        return [*_distinct(items), synthesizer]

    def _resampling(self) -> list[Code]:
        """Return the code for resampling when a step of the engine was one."""
        steps = {step.get("step") for step in self.synthesis.record}
        return [codes.DCM.SpatialResampling] if steps & _RESAMPLING_STEPS else []

    def _put_lossy(self, target: Dataset) -> None:
        """Pass on that pixels were once compressed with loss (PS3.3 C.7.6.1.1.5)."""
        target.LossyImageCompression = "00"
        for source in self.sources.values():
            header = source.datasets[0]
            meta = getattr(header, "file_meta", Dataset())
            if (
                header.get("LossyImageCompression") == "01"
                or meta.get("TransferSyntaxUID") in _LOSSY_SYNTAXES
            ):
                lossy = ("LossyImageCompressionRatio", "LossyImageCompressionMethod")
                copy_elements(header, target, lossy)
                target.LossyImageCompression = "01"
                return

    def _record(self) -> str:
        """Return the job as JSON, without any attribute of the patient."""
        facts = {
            "plan_id": self.plan.plan_id,
            "rule": self.plan.rule,
            "target": self.plan.target,
            "sources": dict(self.plan.sources),
            "model": {
                "id": self.card.id,
                "version": self.card.version,
                "method": self.card.method,
                "digest": self.card.digest,
            },
            "seed": self.plan.seed,
            "configuration": self.plan.config_digest,
            "writer": WRITER_VERSION,
            "verdict": self.synthesis.quality.verdict,
            "figures": self.figures,
            "pad_value": self.synthesis.pad_value,
            "units": self.synthesis.units,
            "steps": self.synthesis.record,
        }
        return json.dumps(facts, sort_keys=True)


def as_ascii(text: str) -> str:
    """Return own text so that it reads the same in every character set."""
    return text.encode("ascii", "replace").decode()


def _coding_scheme() -> Dataset:
    item = Dataset()
    item.CodingSchemeDesignator = CODING_SCHEME
    item.CodingSchemeName = "dicom_node synthesis codes"
    item.CodingSchemeResponsibleOrganization = MANUFACTURER
    return item


def _related(source: SourceSeries) -> Dataset:
    item = Dataset()
    item.StudyInstanceUID = source.datasets[0].StudyInstanceUID
    item.SeriesInstanceUID = UID(source.series_instance_uid)
    purpose = codes.DCM.SourceSeriesForImageProcessingOperation
    item.PurposeOfReferenceCodeSequence = [code_item(purpose)]
    return item


def _ascii_only(header: Dataset) -> Dataset:
    """Return the equipment of a header, less what another character set would garble."""
    keywords = [k for k in _SCANNER if read_bytes(header, k).isascii()]
    return copy_as_item(header, keywords)


def _distinct(items: list[Dataset]) -> list[Dataset]:
    """Return each equipment once; two series are often of one scanner."""
    purposes = [item.get("PurposeOfReferenceCodeSequence") or [Dataset()] for item in items]
    keys = [
        (str(purpose[0].get("CodeValue")), *(read_bytes(item, k) for k in _SCANNER))
        for item, purpose in zip(items, purposes, strict=True)
    ]
    return [item for k, item in enumerate(items) if keys[k] not in keys[:k]]
