"""Step 10 of the walk: from a synthesis to the instances that go out.

    image series (MR, CT or PT)  +  uncertainty map, where the method has a band  +  report (SR)
    one picture (CR, DX, US or XC)                                                +  report (SR)

A whitelist writes them; no header is ever copied whole. Geometry is that of the reference source,
digit by digit; a picture has none in the patient, so that no map could be placed on it. Every date,
time and UID comes from the plan, so a retry writes the same bytes. What the quality gate refuses
gets its report, for the record, and no image.
"""

import uuid
from collections.abc import Mapping

import numpy as np
from highdicom import VOILUTTransformation, Volume
from highdicom.pm import DerivedPixelContrastValues, ParametricMap, RealWorldValueMapping
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import UID, ExplicitVRLittleEndian
from pydicom.valuerep import format_number_as_ds

from dicom_node import __version__
from dicom_node.domain import ContrastLabel, DerivedInstance, Role, SynthesisPlan
from dicom_node.elements import copy_elements, read_bytes
from dicom_node.errors import JobFailed
from dicom_node.exposures import EXPOSURE_CLASSES
from dicom_node.identity import copy_nameless
from dicom_node.images import (
    SOP_CLASSES,
    ClassicImage,
    date_of,
    fix_creation,
    measure_heights,
    store_pixels,
    time_of,
)
from dicom_node.pictures import write_picture
from dicom_node.provenance import MANUFACTURER, MODEL_NAME, Provenance, SourceSeries
from dicom_node.references import References, put_exposures
from dicom_node.report import write_report
from synthesis.registry import ModelCard
from synthesis.types import Synthesis, Verdict

__all__ = ["SourceSeries", "write_derived"]

GRID_TOLERANCE_MM = 1e-3
"""The result must lie on the grid of the reference source; this is rounding."""
IMAGE_TYPES = {
    "MR": ["DERIVED", "SECONDARY", "OTHER", "SYNTHETIC"],
    "CT": ["DERIVED", "SECONDARY", "AXIAL", "SYNTHETIC"],
    "PT": ["DERIVED", "PRIMARY"],  # PS3.3 C.8.9.4: no other second value is allowed
}
_PLANE = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness")
_REFERENCED = (
    *("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "Modality"),
    *("FrameOfReferenceUID", "Rows", "Columns", "ImageType", "InstanceNumber"),
)
_UNITS = {
    "HU": Code("[hnsf'U]", "UCUM", "Hounsfield unit"),
    "SUVbw": Code("g/ml{SUVbw}", "UCUM", "Standardized Uptake Value body weight"),
    "standard scale": codes.UCUM.NoUnits,
}


def write_derived(
    plan: SynthesisPlan,
    synthesis: Synthesis,
    sources: Mapping[ContrastLabel, SourceSeries],
    card: ModelCard,
    namespace: uuid.UUID,
    *,
    station_name: str,
) -> list[tuple[DerivedInstance, Dataset]]:
    """Return every instance of a job and its facts, of which the caller fills `sha256` and `path`.

    Args:
        plan: what was decided; the first of its sources is the reference.
        synthesis: what was made, on the grid of the reference.
        sources: every source of the plan, as it was read.
        card: of the model.
        namespace: of this installation.
        station_name: of this node, its AE title.

    Raises:
        JobFailed: the result is not on the grid, not finite, or of a modality that has no writer.
    """
    job = Provenance(
        plan=plan,
        synthesis=synthesis,
        sources={label: sources[label] for label in plan.sources},
        card=card,
        namespace=namespace,
        station_name=station_name,
    )
    images: list[Dataset] = []
    maps: list[Dataset] = []
    if synthesis.quality.verdict is not Verdict.REFUSE:
        images = _write_images(job)
        if synthesis.half_width is not None and not job.is_flat:
            maps = [_write_map(job, synthesis.half_width, images)]
    report = write_report(job, [*images, *maps])
    roles = [(Role.IMAGE, images), (Role.UNCERTAINTY, maps), (Role.REPORT, [report])]
    return [(_facts(role, ds), ds) for role, instances in roles for ds in instances]


def _facts(role: Role, instance: Dataset) -> DerivedInstance:
    return DerivedInstance(
        sop_instance_uid=instance.SOPInstanceUID,
        sop_class_uid=instance.SOPClassUID,
        series_instance_uid=instance.SeriesInstanceUID,
        role=role,
        number=int(instance.InstanceNumber),
        sha256="",
        path="",
    )


def _write_images(job: Provenance) -> list[Dataset]:
    """Return one image per slice of the reference source, lowest first."""
    modality = job.plan.target_modality
    volume = job.synthesis.volume
    _check_grid(volume, job.reference.volume)
    common = Dataset()
    job.put_equipment(common)
    job.put_derivation(common)
    if job.is_flat:
        picture = write_picture(job, common)
        put_exposures(picture, job.sources)
        return [picture]
    if modality not in SOP_CLASSES:
        wanted = ", ".join((*SOP_CLASSES, *EXPOSURE_CLASSES))
        raise JobFailed(f"a target of modality {modality} cannot be written; {wanted} can")
    try:
        pixels = store_pixels(np.asarray(volume.array, np.float32), modality)
    except ValueError as error:
        raise JobFailed(str(error)) from None
    references = References(job.sources, volume)
    heights = measure_heights(volume)
    slots = job.reference.find_slots()
    images: list[Dataset] = []
    for k in np.argsort(heights[slots]):
        header, slot, number = job.reference.datasets[k], int(slots[k]), len(images) + 1
        image = ClassicImage(
            modality=modality,
            study_instance_uid=job.plan.study_instance_uid,
            series_instance_uid=job.uid(Role.IMAGE),
            sop_instance_uid=job.uid(Role.IMAGE, str(number)),
            series_number=job.series_number(Role.IMAGE),
            instance_number=number,
            slices=len(slots),
            moment=job.plan.created_at,
        )
        image.ImageType = IMAGE_TYPES[modality]
        image.SeriesDescription = job.describe_series()
        image.update(common)
        image.put_patient_position(read_bytes(header, "PatientPosition").decode("ascii", "replace"))
        image.put_pixels(pixels, slot)
        image.SpacingBetweenSlices = format_number_as_ds(volume.spacing_between_slices)
        image.SliceLocation = format_number_as_ds(round(float(heights[slot]), 4))
        if modality == "MR":
            copy_elements(header, image, ["MRAcquisitionType"])
        copy_elements(header, image, _PLANE)
        references.put(image, slot)
        images.append(image)
    return images


def _check_grid(volume: Volume, reference: Volume) -> None:
    if volume.spatial_shape != reference.spatial_shape or not np.allclose(
        volume.affine, reference.affine, rtol=0, atol=GRID_TOLERANCE_MM
    ):
        raise JobFailed("the synthesis is not on the grid of its reference source")


def _write_map(job: Provenance, half_width: Volume, images: list[Dataset]) -> Dataset:
    """Return the half width of the 90 % band as a Parametric Map over the synthetic series."""
    _check_grid(half_width, job.reference.volume)
    heights = measure_heights(half_width)[job.reference.find_slots()]
    slots = job.reference.find_slots()[np.argsort(heights)]
    values = np.asarray(half_width.array, np.float32)[slots]
    if not np.isfinite(values).all():
        raise JobFailed("the band of the synthesis has values that are not finite")
    top = max(float(values.max()), 1e-6)
    unit = _UNITS[job.synthesis.units]
    mapping = RealWorldValueMapping(
        lut_label="HALF_WIDTH_90",
        lut_explanation="Half width of the 90 percent band of the synthetic value",
        unit=unit,
        value_range=(0.0, top),
        slope=1.0,
        intercept=0.0,
    )
    window = VOILUTTransformation(
        window_center=top / 2, window_width=top, voi_lut_function="LINEAR_EXACT"
    )
    moment = job.plan.created_at
    result = ParametricMap(
        source_images=[copy_nameless(image, (*_REFERENCED, *_PLANE)) for image in images],
        pixel_array=values,
        series_instance_uid=job.uid(Role.UNCERTAINTY),
        series_number=job.series_number(Role.UNCERTAINTY),
        sop_instance_uid=job.uid(Role.UNCERTAINTY, "1"),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=MODEL_NAME,
        software_versions=__version__,
        device_serial_number=str(job.namespace),
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[mapping],
        voi_lut_transformations=[window],
        derived_pixel_contrast=DerivedPixelContrastValues.QUANTITY,
        content_label="UNCERTAINTY",
        content_description="Half width of the 90 % band of the synthetic value",
        transfer_syntax_uid=ExplicitVRLittleEndian,
        content_date=date_of(moment),
        content_time=time_of(moment),
        series_date=date_of(moment),
        series_time=time_of(moment),
        series_description=job.describe_series("uncertainty"),
    )
    dimensions = job.uid(Role.UNCERTAINTY, "dimensions")  # highdicom draws one at random
    for item in (*result.DimensionOrganizationSequence, *result.DimensionIndexSequence):
        item.DimensionOrganizationUID = UID(dimensions)
    job.put_equipment(result)
    job.put_derivation(result)
    fix_creation(result, moment)
    return result
