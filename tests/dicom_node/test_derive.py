"""What goes out: synthetic, honest, and in the right place."""

import json
import re
import tarfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.dataelem import RawDataElement
from pydicom.pixels import apply_windowing
from pydicom.tag import Tag

from dicom_node.conformance import check
from dicom_node.demonstration.validators import find_errors
from dicom_node.derive import SourceSeries, write_derived
from dicom_node.domain import ContrastLabel, Role
from dicom_node.elements import encode, keep_raw_text, read_bytes
from dicom_node.errors import JobFailed
from dicom_node.images import measure_heights
from dicom_node.volumes import read_volume
from doubles.job import (
    Written,
    derive,
    make_card,
    make_plan,
    make_sources,
    make_synthesis,
    read_source,
)
from doubles.series import NAMESPACE, make_series, make_volume, require_validators, write_files
from doubles.tools import require_data
from synthesis.types import QualityReport, Verdict

Sources = dict[ContrastLabel, SourceSeries]

TARGETS = {"FLAIR": "MR", "CT": "CT", "PET": "PT"}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    return make_sources(tmp_path_factory.mktemp("study"))


def pick(written: Written, role: Role) -> list[Dataset]:
    return [ds for facts, ds in written if facts.role == role]


def save(written: Written, folder: Path) -> list[Path]:
    return write_files((ds for _, ds in written), folder)


@pytest.mark.parametrize(("target", "modality"), TARGETS.items())
def test_series_reads_back_as_the_synthesis_on_the_grid_of_the_reference(
    tmp_path: Path, sources: Sources, target: str, modality: str
) -> None:
    images = pick(derive(sources, target, modality), Role.IMAGE)

    volume, _ = read_volume(write_files(images, tmp_path))

    made = make_synthesis(sources["T1w"].volume, modality).volume
    np.testing.assert_allclose(volume.affine, sources["T1w"].volume.affine, atol=1e-9)
    np.testing.assert_allclose(volume.array, made.array, atol=0.5 if modality != "PT" else 1e-3)


def test_geometry_is_that_of_the_source_digit_by_digit(sources: Sources) -> None:
    images = pick(derive(sources), Role.IMAGE)

    for image, header in zip(images, reversed(sources["T1w"].datasets), strict=True):
        for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
            assert read_bytes(image, keyword) == read_bytes(header, keyword)


def test_instances_are_numbered_along_the_normal(sources: Sources) -> None:
    images = pick(derive(sources), Role.IMAGE)

    heights = sorted(measure_heights(sources["T1w"].volume))
    assert [i.InstanceNumber for i in images] == [1, 2, 3, 4, 5, 6]
    np.testing.assert_allclose([i.SliceLocation for i in images], heights, atol=1e-3)


@pytest.mark.parametrize(("target", "modality"), TARGETS.items())
def test_every_instance_says_that_it_is_synthetic(
    sources: Sources, target: str, modality: str
) -> None:
    written = derive(sources, target, modality)

    assert {facts.role for facts, _ in written} == set(Role) - {Role.WITHDRAWAL}
    for _, ds in written:
        assert ds.SyntheticData == "YES"
        assert ds.ContentQualification == "RESEARCH"
        assert ds.SeriesDescription.startswith(f"AI SYNTH {target} ")
        assert ds.SeriesDescription.endswith("NOT ACQUIRED")
        assert ds.Manufacturer == "dicom_node"
    for image in pick(written, Role.IMAGE):
        assert image.ImageType[0] == "DERIVED"
        assert "NOT ACQUIRED" in image.ImageComments


def test_description_names_the_sources_and_the_limits(sources: Sources) -> None:
    image = pick(derive(sources, description="brain only"), Role.IMAGE)[0]

    assert image.SeriesDescription == "AI SYNTH FLAIR brain only (from T1w+T2w) NOT ACQUIRED"
    assert "BRAIN ONLY" in image.ImageComments
    assert "brain only" in image.DerivationDescription
    assert "toy-model 1.0" in image.DerivationDescription


def test_long_description_keeps_its_warning(sources: Sources) -> None:
    words = "brain only, lower third of the volume left out"

    image = pick(derive(sources, description=words), Role.IMAGE)[0]

    assert len(image.SeriesDescription) <= 64
    assert image.SeriesDescription.startswith("AI SYNTH FLAIR brain only")
    assert image.SeriesDescription.endswith("NOT ACQUIRED")


def test_no_acquisition_is_claimed(sources: Sources) -> None:
    for image in pick(derive(sources), Role.IMAGE):
        assert image.ScanningSequence == "RM"
        assert image.SequenceVariant == "NONE"
        assert image.EchoTime is None
        assert image.RepetitionTime is None
        for keyword in ("ProtocolName", "FlipAngle", "MagneticFieldStrength", "InversionTime"):
            assert keyword not in image


def test_ct_and_pet_say_their_units(sources: Sources) -> None:
    ct = pick(derive(sources, "CT", "CT"), Role.IMAGE)[0]
    pet = pick(derive(sources, "PET", "PT"), Role.IMAGE)

    assert (ct.RescaleSlope, ct.RescaleIntercept, ct.RescaleType) == (1, -1024, "HU")
    assert ct.KVP is None
    assert (pet[0].Units, pet[0].SUVType) == ("GML", "BW")
    assert len({p.RescaleSlope for p in pet}) == 1
    assert "PatientPosition" not in pet[0]
    relation = pet[0].PatientGantryRelationshipCodeSequence[0]
    assert relation.CodeValue == "102540008"


def test_window_of_pet_reaches_from_0_to_5_suv(sources: Sources) -> None:
    pet = pick(derive(sources, "PET", "PT"), Role.IMAGE)[0]

    black, low, high, white, beyond = apply_windowing(np.array([0.0, 0.1, 4.9, 5.0, 9.0]), pet)

    assert black < low < high < white
    assert white == pytest.approx(beyond)


def test_sources_on_and_beside_the_slice_are_referenced(sources: Sources) -> None:
    images = pick(derive(sources), Role.IMAGE)

    t1w = [str(h.SOPInstanceUID) for h in reversed(sources["T1w"].datasets)]
    t2w = {str(h.SOPInstanceUID) for h in sources["T2w"].datasets}
    for k, image in enumerate(images):
        named = [i.ReferencedSOPInstanceUID for i in image.SourceImageSequence]
        assert set(named) - t2w == set(t1w[max(0, k - 1) : k + 2])
        assert set(named) & t2w
        by_series = image.ReferencedSeriesSequence
        assert named == [
            i.ReferencedSOPInstanceUID for s in by_series for i in s.ReferencedInstanceSequence
        ]
    assert [s.SeriesInstanceUID for s in images[0].RelatedSeriesSequence] == [
        source.series_instance_uid for source in sources.values()
    ]


def test_only_the_reference_keeps_the_places_of_its_pixels(sources: Sources) -> None:
    image = pick(derive(sources), Role.IMAGE)[2]

    kept = {
        item.ReferencedSOPInstanceUID
        for item in image.SourceImageSequence
        if item.get("SpatialLocationsPreserved") == "YES"
    }
    assert kept <= {h.SOPInstanceUID for h in sources["T1w"].datasets}
    assert kept


def test_scanner_and_synthesizer_are_the_contributing_equipment(sources: Sources) -> None:
    image = pick(derive(sources), Role.IMAGE)[0]

    items = image.ContributingEquipmentSequence
    purposes = [i.PurposeOfReferenceCodeSequence[0].CodeValue for i in items]
    assert purposes == ["109101", "109101", "109100"]
    assert [i.Manufacturer for i in items] == ["ACME", "ACME", "dicom_node"]
    assert items[-1].DeviceUID == image.DeviceUID


def test_another_model_is_another_device(sources: Sources) -> None:
    devices = set()
    for digest in ("a" * 64, "b" * 64):
        synthesis = make_synthesis(sources["T1w"].volume, half_width=None)
        card = make_card(digest=digest)
        written = write_derived(
            make_plan(sources), synthesis, sources, card, NAMESPACE, station_name="NODE"
        )
        devices.add(written[0][1].DeviceUID)

    assert len(devices) == 2


def test_private_block_holds_the_job_and_no_patient(sources: Sources) -> None:
    image = pick(derive(sources), Role.IMAGE)[0]

    text = image.private_block(0x0077, "SYNTHNODE PROVENANCE 1")[0x01].value
    record = json.loads(text)
    assert record["plan_id"] == "0f" * 16
    assert record["model"]["id"] == "toy-model"
    assert record["seed"] == 7
    assert "PHANTOM" not in text


def test_two_runs_write_the_same_bytes(sources: Sources) -> None:
    first, second = ([encode(ds) for _, ds in derive(sources)] for _ in range(2))

    assert first == second


def test_seconds_of_the_run_do_not_enter_the_bytes(sources: Sources) -> None:
    slow, fast = (derive(sources, seconds={"predict": s}) for s in (0.1, 99.0))

    assert [encode(ds) for _, ds in slow] == [encode(ds) for _, ds in fast]


def test_another_plan_has_other_uids(sources: Sources) -> None:
    one, two = (
        {facts.sop_instance_uid for facts, _ in derive(sources, plan={"plan_id": i * 32})}
        for i in "ab"
    )

    assert not one & two


def test_every_time_is_that_of_the_plan(sources: Sources) -> None:
    written = derive(sources)

    for _, ds in written:
        for keyword in ("InstanceCreation", "Series", "Content"):
            assert str(ds[f"{keyword}Date"].value) == "20240506"
            assert str(ds[f"{keyword}Time"].value) == "070809"
    text = "".join(str(ds) for _, ds in written)
    assert not re.search(r"DateTime.*DT: '(?!20240506070809)", text)


def test_refused_result_gets_a_report_and_no_image(sources: Sources) -> None:
    refused = QualityReport(verdict=Verdict.REFUSE, reasons=("noise",))

    written = derive(sources, quality=refused)

    assert [facts.role for facts, _ in written] == [Role.REPORT]


def test_method_without_a_band_has_no_uncertainty_map(sources: Sources) -> None:
    written = derive(sources, half_width=None)

    assert pick(written, Role.UNCERTAINTY) == []


def test_uncertainty_map_lies_on_the_series_and_says_its_unit(sources: Sources) -> None:
    written = derive(sources, "CT", "CT")
    images, (band,) = pick(written, Role.IMAGE), pick(written, Role.UNCERTAINTY)

    read = dcmread(BytesIO(encode(band)))
    made = make_synthesis(sources["T1w"].volume, "CT").half_width
    mapping = read.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence[0]
    pixels = np.frombuffer(read.FloatPixelData, "<f4").reshape(made.array.shape)
    slices = {tuple(i.ImagePositionPatient): made.array[6 - i.InstanceNumber] for i in images}
    for frame, plane in zip(read.PerFrameFunctionalGroupsSequence, pixels, strict=True):
        place = tuple(frame.PlanePositionSequence[0].ImagePositionPatient)
        np.testing.assert_array_equal(plane, slices[place])
    assert mapping.MeasurementUnitsCodeSequence[0].CodeValue == "[hnsf'U]"
    assert read.FrameOfReferenceUID == images[0].FrameOfReferenceUID


def test_missing_source_slice_is_not_written_and_is_told(tmp_path: Path) -> None:
    instances = make_series(volume=make_volume((60, 8, 8)))
    del instances[20]
    sources = {ContrastLabel("T1w"): read_source(write_files(instances, tmp_path))}

    written = derive(sources)

    images = pick(written, Role.IMAGE)
    places = {tuple(i.ImagePositionPatient) for i in images}
    assert places == {tuple(i.ImagePositionPatient) for i in instances}
    assert "1 of 60 slices of the T1w source were missing" in images[0].DerivationDescription


def test_result_off_the_grid_is_refused(sources: Sources) -> None:
    elsewhere = make_volume(origin=(0, 0, 0))

    with pytest.raises(JobFailed, match="not on the grid"):
        derive(sources, volume=elsewhere)


def test_result_that_is_not_finite_is_refused(sources: Sources) -> None:
    volume = sources["T1w"].volume
    broken = volume.with_array(np.full(volume.array.shape, np.nan, np.float32))

    with pytest.raises(JobFailed, match="not finite"):
        derive(sources, volume=broken)


def test_lossy_compression_of_a_source_is_passed_on(tmp_path: Path) -> None:
    instances = make_series()
    for instance in instances:
        instance.LossyImageCompression = "01"
        instance.LossyImageCompressionRatio = "9"
    sources = {ContrastLabel("T1w"): read_source(write_files(instances, tmp_path))}

    image = pick(derive(sources), Role.IMAGE)[0]

    assert image.LossyImageCompression == "01"
    assert image.LossyImageCompressionRatio == 9


def test_source_without_frame_of_reference_gets_one_of_its_own(tmp_path: Path) -> None:
    instances = make_series()
    for instance in instances:
        del instance.FrameOfReferenceUID
    sources = {ContrastLabel("T1w"): read_source(write_files(instances, tmp_path))}

    images = pick(derive(sources), Role.IMAGE)

    assert len({i.FrameOfReferenceUID for i in images}) == 1
    assert images[0].FrameOfReferenceUID.startswith("2.25.")


def test_body_part_comes_from_the_plan_when_the_source_is_silent(tmp_path: Path) -> None:
    instances = make_series(body_part="")
    sources = {ContrastLabel("T1w"): read_source(write_files(instances, tmp_path))}

    image = pick(derive(sources), Role.IMAGE)[0]

    assert image.BodyPartExamined == "BRAIN"


NAMES = {
    "latin 1": ("ISO_IR 100", "M\xfcller^Zo\xeb".encode("latin-1")),
    "utf-8": ("ISO_IR 192", "山田^太郎".encode()),
    "escapes": (
        "ISO 2022 IR 6\\ISO 2022 IR 87",
        b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B",
    ),
    "undeclared": ("", b"M\xfcller^A "),
    "broken": ("ISO_IR 192", b"bro\xff\xfeken^x"),
}


def make_named(folder: Path, case: str) -> tuple[Sources, list[Path]]:
    """Return two sources of a person whose name is in the bytes of a case, and their files."""
    character_set, name = NAMES[case]
    paths: dict[str, list[Path]] = {}
    for number, label in enumerate(("T1w", "T2w"), 1):
        instances = make_series(label, number=number)
        for instance in instances:
            instance.SpecificCharacterSet = character_set.split("\\") if character_set else None
            if not character_set:
                del instance.SpecificCharacterSet
            instance[0x00100010] = RawDataElement(
                Tag(0x00100010), "PN", len(name), name, 0, False, True
            )
            keep_raw_text(instance)
        paths[label] = write_files(instances, folder / label)
    sources = {ContrastLabel(label): read_source(files) for label, files in paths.items()}
    return sources, [path for files in paths.values() for path in files]


@pytest.mark.filterwarnings("ignore")  # of pydicom, about the broken name
@pytest.mark.parametrize("case", NAMES)
def test_identity_keeps_its_bytes_and_character_set(tmp_path: Path, case: str) -> None:
    sources, _ = make_named(tmp_path, case)

    written = save(derive(sources), tmp_path / "out")

    for path in written:
        read = dcmread(path)
        assert read_bytes(read, "PatientName") == NAMES[case][1].strip()
        assert read_bytes(read, "SpecificCharacterSet") == NAMES[case][0].encode()


@pytest.mark.catalogue("D36")
@pytest.mark.catalogue("D37")
@pytest.mark.filterwarnings("ignore")  # of pydicom, about dates and times that are none
def test_dates_that_are_none_are_kept_and_private_texts_left_behind(tmp_path: Path) -> None:
    odd = {
        "StudyDate": (0x00080020, "DA", b"2O240230"),
        "StudyTime": (0x00080030, "TM", b"246099"),
        "PatientBirthDate": (0x00100030, "DA", b"99999999"),
    }
    sources: Sources = {}
    for number, label in enumerate(("T1w", "T2w"), 1):
        instances = make_series(label, number=number)
        for instance in instances:
            for tag, vr, value in odd.values():
                instance[tag] = RawDataElement(Tag(tag), vr, len(value), value, 0, False, True)
            keep_raw_text(instance)
            instance.private_block(0x0099, "CANARY", create=True).add_new(1, "LO", "CANARY")
            instance.ImageComments = "CANARY" * 1_500
        sources[ContrastLabel(label)] = read_source(write_files(instances, tmp_path / label))

    written = save(derive(sources), tmp_path / "out")

    for path in written:
        assert b"CANARY" not in path.read_bytes()
        read = dcmread(path)
        assert {keyword: read_bytes(read, keyword) for keyword in odd} == {
            keyword: value for keyword, (_, _, value) in odd.items()
        }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.integration
@pytest.mark.parametrize("case", ["latin 1", "utf-8", "escapes"])
@pytest.mark.parametrize(("target", "modality"), TARGETS.items())
def test_validators_find_no_error(tmp_path: Path, case: str, target: str, modality: str) -> None:
    sources, files = make_named(tmp_path, case)

    written = save(derive(sources, target, modality, description="brain only"), tmp_path / "out")

    assert find_new_errors(written, files) == set()


def find_new_errors(written: list[Path], files: list[Path]) -> set[str]:
    """Return the kinds of error that the derived files have and the sources lack."""

    def kinds(lines: list[str]) -> set[str]:
        return {
            line[line.find("Error") :].split(" for file")[0] for line in lines if "Error" in line
        }

    validators = require_validators()
    return kinds(find_errors(validators, written, files)) - kinds(
        find_errors(validators, files, [])
    )


REAL = {
    "oblique T1 with a hole": (("adi", "mocoMEMPRAGE_220FOV_RMS"), "T2w", "MR"),
    "oblique T2 with a hole": (("adi", "AX_FSE_T2"), "FLAIR", "MR"),
    "limb MR": (("STS_015", "MR_T1", "image"), "CT", "CT"),
    "limb CT": (("STS_015", "CT", "image"), "PET", "PT"),
    "limb PET": (("STS_015", "PET", "image"), "T1w", "MR"),
    "GE": (("ge", "anatomical", "001"), "CT", "CT"),
    "GE, implicit": (("ge", "anatomical", "001_implicit"), "CT", "CT"),
    "Siemens": (("siemens", "anatomical", "001"), "PET", "PT"),
    "Hitachi": (("hitachi", "anatomical", "001"), "CT", "CT"),
    "enhanced": (("hyperfine", "anatomical", "001"), "CT", "CT"),
}


@pytest.fixture(scope="module")
def real_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every real study that `REAL` names."""
    folder = tmp_path_factory.mktemp("real")
    with tarfile.open(require_data("dicom_brain_adi", "adi.tar.xz")) as archive:
        archive.extractall(folder, filter="data")
    (folder / "STS_015").symlink_to(require_data("sts_ctmrpet_dicom", "STS_015"))
    for maker in require_data("dicom_syntax", "dicom2nifti").iterdir():
        (folder / maker.name).symlink_to(maker)
    return folder


@pytest.mark.integration
@pytest.mark.parametrize("name", REAL)
def test_series_made_from_a_real_one_has_no_error_of_its_own(
    tmp_path: Path, real_images: Path, name: str
) -> None:
    parts, target, modality = REAL[name]
    files = sorted(p for p in real_images.joinpath(*parts).iterdir() if p.is_file())
    sources = {ContrastLabel("source"): read_source(files)}

    written = derive(sources, target, modality)

    problems = check([ds for _, ds in written], sources["source"].datasets)
    some = [written[0], *written[-3:]]
    assert problems == []
    assert find_new_errors(save(some, tmp_path), files[:3]) == set()
