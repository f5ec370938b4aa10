"""The attributes that are read of every received header, by keyword: conditions may name no other.

Most stand at the top of an image; those of enhanced multi-frame images, of code sequences and of
private blocks are brought to the keywords of single-frame images by `headers`.
"""

TEXTS = (
    *("SOPClassUID", "Modality", "Manufacturer", "ManufacturerModelName", "InstanceCreatorUID"),
    *("StudyDescription", "SeriesDescription", "ProtocolName", "BodyPartExamined", "Laterality"),
    *("RequestedProcedureDescription", "PerformedProcedureStepDescription"),
    *("SequenceName", "PulseSequenceName", "MRAcquisitionType", "AngioFlag"),
    *("AcquisitionContrast", "ComplexImageComponent", "ContrastBolusAgent", "Radiopharmaceutical"),
    *("DerivationDescription", "SyntheticData", "FrameOfReferenceUID", "PatientPosition"),
    *("ConvolutionKernel", "Units", "BurnedInAnnotation", "AcquisitionType"),
    *("ViewPosition", "PresentationIntentType", "PhotometricInterpretation"),
)
LISTS = (
    *("ImageType", "ScanningSequence", "SequenceVariant", "ScanOptions"),
    *("CorrectedImage", "SeriesType"),
)
NUMBERS = (
    *("RepetitionTime", "EchoTime", "InversionTime", "FlipAngle", "EchoTrainLength"),
    *("EchoNumbers", "MagneticFieldStrength", "DiffusionBValue", "ContrastBolusVolume", "KVP"),
    *("SliceThickness", "SpacingBetweenSlices", "Rows", "Columns", "NumberOfFrames"),
    *("SeriesNumber", "AcquisitionNumber", "InstanceNumber", "TemporalPositionIdentifier"),
    *("NumberOfTemporalPositions", "TriggerTime"),
)
VECTORS = {
    "ImagePositionPatient": 3,
    "ImageOrientationPatient": 6,
    "PixelSpacing": 2,
    "ImagerPixelSpacing": 2,
}
TRACER_CODE = "RadiopharmaceuticalCodeSequence"
"""Kept as one text, scheme and value (`SCT:35321007`)."""

READABLE = frozenset({*TEXTS, *LISTS, *NUMBERS, *VECTORS, TRACER_CODE})
