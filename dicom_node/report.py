"""The report that goes with every job: a TID 1500 SR with provenance, figures and verdict.

It is the one object that is written also when the quality gate refuses: then it says why there is
no image. Content follows PS3.16 TID 1500 and 1501; what has no code there is coded in 99SYNTH.
"""

import zlib
from collections.abc import Sequence

from highdicom.sr import (
    AlgorithmIdentification,
    CodedConcept,
    Comprehensive3DSR,
    DeviceObserverIdentifyingAttributes,
    Measurement,
    MeasurementReport,
    MeasurementsAndQualitativeEvaluations,
    ObservationContext,
    ObserverContext,
    QualitativeEvaluation,
    RelationshipTypeValues,
    TextContentItem,
    TrackingIdentifier,
)
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from dicom_node.domain import Role
from dicom_node.identity import copy_nameless
from dicom_node.images import date_of, fix_creation, time_of
from dicom_node.provenance import (
    CODING_SCHEME,
    MANUFACTURER,
    MODEL_NAME,
    SYNTHESIS_CODE,
    Provenance,
    as_ascii,
)
from synthesis.types import Verdict

VERDICT_NAME = Code("SYN010", CODING_SCHEME, "Quality verdict")
VERDICTS = {
    Verdict.PASS: Code("SYN011", CODING_SCHEME, "Passed"),
    Verdict.WARN: Code("SYN012", CODING_SCHEME, "Passed with warnings"),
    Verdict.REFUSE: Code("SYN013", CODING_SCHEME, "Refused"),
}
PROCEDURES = {
    "MR": codes.LN.MRIUnspecifiedBodyRegion,
    "CT": codes.LN.CTUnspecifiedBodyRegion,
    "PT": codes.LN.PETUnspecifiedBodyRegion,
    "CR": codes.LN.XRUnspecifiedBodyRegion,
    "DX": codes.LN.XRUnspecifiedBodyRegion,
}
"""Of the study that the sources are from (CID 100)."""
INTENDED_USE = "Research use only. Not a medical device. Not for diagnosis or treatment planning."
_EVIDENCE = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")


def write_report(job: Provenance, derived: Sequence[Dataset]) -> Dataset:
    """Return the report of a job.

    Args:
        job: what was decided, used and made.
        derived: the images that go with it; none when the result was refused.
    """
    moment = job.plan.created_at
    headers = [header for source in job.sources.values() for header in source.datasets]
    report = Comprehensive3DSR(
        evidence=[copy_nameless(instance, _EVIDENCE) for instance in (*headers, *derived)],
        content=_write_content(job)[0],
        series_instance_uid=job.uid(Role.REPORT),
        series_number=job.series_number(Role.REPORT),
        sop_instance_uid=job.uid(Role.REPORT, "1"),
        instance_number=1,
        manufacturer=MANUFACTURER,
        is_complete=True,
        is_final=True,
        content_date=date_of(moment),
        content_time=time_of(moment),
        series_date=date_of(moment),
        series_time=time_of(moment),
        series_description=job.describe_series("report"),
    )
    job.put_equipment(report)
    fix_creation(report, moment)
    return report


def _write_content(job: Provenance) -> MeasurementReport:
    device = DeviceObserverIdentifyingAttributes(
        uid=job.device_uid,
        name=job.station_name,
        manufacturer_name=MANUFACTURER,
        model_name=MODEL_NAME,
        serial_number=str(job.namespace),
    )
    observer = ObserverContext(
        observer_type=codes.DCM.Device, observer_identifying_attributes=device
    )
    modality = str(job.reference.datasets[0].get("Modality"))
    return MeasurementReport(
        observation_context=ObservationContext(observer_device_context=observer),
        procedure_reported=PROCEDURES.get(modality, codes.LN.MRIUnspecifiedBodyRegion),
        title=codes.DCM.ImagingMeasurementReport,
        imaging_measurements=[_write_group(job)],
    )


def _write_group(job: Provenance) -> MeasurementsAndQualitativeEvaluations:
    quality = job.synthesis.quality
    figures = [
        Measurement(name=_figure_code(name), value=value, unit=codes.UCUM.NoUnits)
        for name, value in job.figures.items()
    ]
    verdict = QualitativeEvaluation(
        name=CodedConcept.from_code(VERDICT_NAME),
        value=CodedConcept.from_code(VERDICTS[quality.verdict]),
    )
    group = MeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(
            uid=job.uid(Role.REPORT, "tracking"), identifier=f"Synthesis of {job.plan.target}"
        ),
        finding_type=CodedConcept.from_code(SYNTHESIS_CODE),
        algorithm_id=AlgorithmIdentification(
            name=as_ascii(job.card.id),
            version=as_ascii(job.card.version),
            family=codes.DCM.ArtificialIntelligence,
            manufacturer=MANUFACTURER,
            parameters=[f"seed {job.plan.seed}", f"weights SHA-256 {job.card.digest}"],
        ),
        measurements=figures,
        qualitative_evaluations=[verdict],
    )
    reasons = [f"{quality.verdict}: {reason}" for reason in quality.reasons]
    why = f"Rule {job.plan.rule}: {job.plan.rule_reason}"
    for text in (job.describe_derivation(), why, *reasons, job.card.description, INTENDED_USE):
        group[0].ContentSequence.append(
            TextContentItem(
                name=codes.DCM.Comment,
                value=as_ascii(text),
                relationship_type=RelationshipTypeValues.CONTAINS,
            )
        )
    return group


def _figure_code(name: str) -> CodedConcept:
    """Return a code for a figure: its name is the meaning, a checksum of it the value."""
    value = f"SYNQ-{zlib.crc32(name.encode()):08X}"
    return CodedConcept(value=value, scheme_designator=CODING_SCHEME, meaning=as_ascii(name)[:64])
