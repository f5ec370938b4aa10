"""Whose study a derived instance belongs to: the attributes that it shares with its source.

A whitelist of the Patient, Clinical Trial and Study modules (PS3.3 C.7.1, C.7.2), copied in the
bytes that came in and under their character set, so that an archive that compares bytes sees one
patient. Private attributes and those of the acquisition are no identity and stay behind.
"""

from collections.abc import Iterable

from pydicom import Dataset

from dicom_node.elements import copy_elements

REQUIRED = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime"),
    *("AccessionNumber", "ReferringPhysicianName", "StudyID"),
)
"""Type 2: present in every instance, empty where the source lacks them."""

IDENTITY = (
    *("SpecificCharacterSet", "StudyInstanceUID", *REQUIRED),
    # Patient
    *("IssuerOfPatientID", "IssuerOfPatientIDQualifiersSequence", "TypeOfPatientID"),
    *("OtherPatientIDs", "OtherPatientIDsSequence", "OtherPatientNames", "PatientBirthTime"),
    *("PatientBirthDateInAlternativeCalendar", "PatientDeathDateInAlternativeCalendar"),
    *("PatientAlternativeCalendar", "EthnicGroup", "EthnicGroupCodeSequence", "PatientComments"),
    *("ReferencedPatientSequence", "SourcePatientGroupIdentificationSequence"),
    *("GroupOfPatientsIdentificationSequence", "QualityControlSubject"),
    *("PatientSpeciesDescription", "PatientSpeciesCodeSequence", "PatientBreedDescription"),
    *("PatientBreedCodeSequence", "BreedRegistrationSequence", "StrainDescription"),
    *("StrainNomenclature", "StrainCodeSequence", "ResponsiblePerson", "ResponsiblePersonRole"),
    *("ResponsibleOrganization", "PatientIdentityRemoved", "DeidentificationMethod"),
    "DeidentificationMethodCodeSequence",
    # Clinical Trial Subject, Clinical Trial Study
    *("ClinicalTrialSponsorName", "ClinicalTrialProtocolID", "ClinicalTrialProtocolName"),
    *("ClinicalTrialSiteID", "ClinicalTrialSiteName", "ClinicalTrialSubjectID"),
    *("ClinicalTrialSubjectReadingID", "ClinicalTrialProtocolEthicsCommitteeName"),
    *("ClinicalTrialProtocolEthicsCommitteeApprovalNumber", "ClinicalTrialTimePointID"),
    *("ClinicalTrialTimePointDescription", "ConsentForClinicalTrialUseSequence"),
    # General Study
    *("StudyDescription", "IssuerOfAccessionNumberSequence", "ReferencedStudySequence"),
    *("ReferringPhysicianIdentificationSequence", "ConsultingPhysicianName"),
    *("ConsultingPhysicianIdentificationSequence", "PhysiciansOfRecord"),
    *("PhysiciansOfRecordIdentificationSequence", "NameOfPhysiciansReadingStudy"),
    *("PhysiciansReadingStudyIdentificationSequence", "ProcedureCodeSequence"),
    *("RequestingService", "RequestingServiceCodeSequence"),
    "ReasonForPerformedProcedureCodeSequence",
    # Patient Study
    *("AdmittingDiagnosesDescription", "AdmittingDiagnosesCodeSequence", "PatientAge"),
    *("PatientSize", "PatientSizeCodeSequence", "PatientWeight", "PatientBodyMassIndex"),
    *("MeasuredAPDimension", "MeasuredLateralDimension", "MedicalAlerts", "Allergies"),
    *("Occupation", "SmokingStatus", "AdditionalPatientHistory", "PregnancyStatus"),
    *("LastMenstrualDate", "PatientSexNeutered", "PatientState", "ReasonForVisit"),
    *("ReasonForVisitCodeSequence", "AdmissionID", "IssuerOfAdmissionIDSequence"),
    *("ServiceEpisodeID", "ServiceEpisodeDescription", "IssuerOfServiceEpisodeIDSequence"),
)


def copy_identity(source: Dataset, target: Dataset) -> None:
    """Make `target` an instance of the patient and the study of `source`."""
    for keyword in REQUIRED:
        setattr(target, keyword, None)
    copy_elements(source, target, IDENTITY)


def copy_nameless(source: Dataset, keywords: Iterable[str]) -> Dataset:
    """Return what highdicom may see of an image, of nobody: it would decode, and log, names."""
    nameless = Dataset()
    for keyword in (*REQUIRED, "Manufacturer"):
        setattr(nameless, keyword, None)
    if hasattr(source, "file_meta"):
        nameless.file_meta = source.file_meta
    copy_elements(source, nameless, keywords)
    return nameless
