"""PET series of known dose, weight and times as SUV, and what a header lacks for it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag

from dicom_node.elements import keep_raw_text
from dicom_node.errors import UnusableStudy
from dicom_node.volumes import read_volume
from doubles.series import make_activity, make_volume, write_files
from doubles.tools import require_data

HALF_LIFE = 6586.2
"""Seconds, of fluorine-18."""
ACTIVITY = make_volume(highest=30_000)
"""In Bq/ml."""
LEFT = 70_000 / 200e6
"""Factor to SUV of `make_activity`: 70 kg, 400 MBq, one half-life before the scan."""

WEIGHT = Tag("PatientWeight")

Change = Callable[[list[Dataset]], None]


def read_suv(folder: Path, change: Change = lambda _: None) -> NDArray[np.float32]:
    """Return the values of the series, in the order of its instances."""
    instances = make_activity(ACTIVITY)
    change(instances)
    volume, _ = read_volume(write_files(instances, folder))
    return volume.array[::-1]


def set_all(**values: object) -> Change:
    def change(instances: list[Dataset]) -> None:
        for instance in instances:
            for keyword, value in values.items():
                setattr(instance, keyword, value)

    return change


def set_tracer(**values: object) -> Change:
    def change(instances: list[Dataset]) -> None:
        for instance in instances:
            for keyword, value in values.items():
                setattr(instance.RadiopharmaceuticalInformationSequence[0], keyword, value)

    return change


def set_each(keyword: str, value: Callable[[int], object]) -> Change:
    def change(instances: list[Dataset]) -> None:
        for k, instance in enumerate(instances):
            setattr(instance, keyword, value(k))

    return change


def set_private(group: int, creator: str, element: int, vr: str, value: str) -> Change:
    def change(instances: list[Dataset]) -> None:
        for instance in instances:
            block = instance.private_block(group, creator, create=True)
            block.add_new(element, vr, value)

    return change


def set_counts(element: int, value: str) -> Change:
    return both(set_all(Units="CNTS"), set_philips(element, value))


def set_philips(element: int, value: str) -> Change:
    return set_private(0x7053, "Philips PET Private Group", element, "DS", value)


def both(*changes: Change) -> Change:
    def change(instances: list[Dataset]) -> None:
        for each in changes:
            each(instances)

    return change


EXACT = {"rtol": 1e-4, "atol": 1e-6}


def test_activity_is_suv_by_weight_and_what_is_left_of_the_dose(tmp_path: Path) -> None:
    instances = make_activity(ACTIVITY)
    expected = [
        each.pixel_array * float(each.RescaleSlope) * 70_000 / (400e6 / 2) for each in instances
    ]

    np.testing.assert_allclose(read_suv(tmp_path), expected, **EXACT)


def test_each_slice_keeps_its_own_slope(tmp_path: Path) -> None:
    slopes = [0.5 + k / 7 for k in range(6)]

    suv = read_suv(tmp_path, set_each("RescaleSlope", lambda k: f"{slopes[k]:.12f}"))

    for values, slope, instance in zip(suv, slopes, make_activity(ACTIVITY), strict=True):
        np.testing.assert_allclose(values, instance.pixel_array * slope * LEFT, **EXACT)


def make_late(instances: list[Dataset]) -> None:
    """Have the series made an hour after a scan of two bed positions, 100 s and 300 s in."""
    for k, instance in enumerate(instances):
        instance.SeriesTime = "150000"
        instance.AcquisitionTime = "114946.2" if k < 3 else "115306.2"


OFFSETS_MS = {
    k: (100.0 if k < 3 else 300.0) * 1000 + 119_622.0 for k in range(6)
}  # of 240 s the mean activity is at 119.622 s: k = ln 2 / 6586.2, kT = 0.025258

SCANNED = {
    "the series is as old as the scan": (lambda _: None, LEFT),
    "corrected to the injection": (set_all(DecayCorrection="ADMIN"), LEFT / 2),
    "corrected to the injection, whose time is not told": (
        both(
            set_all(DecayCorrection="ADMIN", SeriesTime=""),
            set_tracer(
                RadiopharmaceuticalStartDateTime=None,
                RadiopharmaceuticalStartTime=None,
                RadionuclideHalfLife=None,
            ),
        ),
        LEFT / 2,
    ),
    "only the clock of the injection is told": (
        set_tracer(RadiopharmaceuticalStartDateTime=None),
        LEFT,
    ),
    "injected before midnight": (
        both(
            set_tracer(
                RadiopharmaceuticalStartDateTime=None, RadiopharmaceuticalStartTime="231013.8"
            ),
            set_all(SeriesTime="010000", AcquisitionTime="010000"),
        ),
        LEFT,
    ),
    "injected before midnight, by date": (
        both(
            set_tracer(
                RadiopharmaceuticalStartDateTime="20200101231013.8",
                RadiopharmaceuticalStartTime="231013",
            ),
            set_all(SeriesTime="010000", AcquisitionTime="010000"),
        ),
        LEFT,
    ),
    "injection told in another time zone": (
        both(
            set_tracer(RadiopharmaceuticalStartDateTime="20200102085820+0000"),
            set_all(TimezoneOffsetFromUTC="+0100"),
        ),
        LEFT,
    ),
    "series made later, by the reference times of the frames": (
        both(
            make_late,
            set_all(ActualFrameDuration="240000"),
            set_each("FrameReferenceTime", lambda k: f"{OFFSETS_MS[k]:.1f}"),
        ),
        LEFT,
    ),
    "series made later, by what GE keeps": (
        both(
            make_late,
            set_private(0x0009, "GEMS_PETD_01", 0x0D, "DT", "20200102114806.20"),
        ),
        LEFT,
    ),
    "series made later, by its first acquisition": (
        both(make_late, set_all(FrameReferenceTime="0")),
        LEFT * 2 ** (100 / HALF_LIFE),
    ),
    "Philips, counts and a factor to SUV": (set_counts(0x00, "0.000215"), 0.000215),
    "Philips, counts and a factor to activity": (set_counts(0x09, "3.5"), 3.5 * LEFT),
    "Philips, counts and a factor to SUV of zero": (
        both(set_counts(0x00, "0"), set_philips(0x09, "3.5")),
        3.5 * LEFT,
    ),
    "SUV already": (set_all(Units="GML", SUVType="BW"), 1.0),
    "SUV already, of no type, which means body weight": (set_all(Units="GML", SUVType=None), 1.0),
}


@pytest.mark.parametrize("case", SCANNED)
def test_suv_of_known_dose_weight_and_times(case: str, tmp_path: Path) -> None:
    change, factor = SCANNED[case]
    written = [each.pixel_array * float(each.RescaleSlope) for each in make_activity(ACTIVITY)]

    suv = read_suv(tmp_path, change)

    np.testing.assert_allclose(suv, np.array(written) * factor, **EXACT)


def weigh_in_words(instances: list[Dataset]) -> None:
    for instance in instances:
        instance[WEIGHT] = RawDataElement(WEIGHT, "DS", 6, b"heavy ", 0, False, True)
        keep_raw_text(instance)


def add_tracer(instances: list[Dataset]) -> None:
    for instance in instances:
        sequence = instance.RadiopharmaceuticalInformationSequence
        instance.RadiopharmaceuticalInformationSequence = [*sequence, *sequence]


REFUSED = {
    "units": (set_all(Units=None), "Units is missing"),
    "units of no activity": (set_all(Units="PROPCNTS"), "Units"),
    "lean body mass": (set_all(Units="GML", SUVType="LBM"), "SUV Type"),
    "counts without a factor": (set_all(Units="CNTS"), "SUV Scale Factor"),
    "counts of another maker": (
        both(set_all(Units="CNTS"), set_private(0x7053, "ACME", 0, "DS", "2")),
        "SUV Scale Factor",
    ),
    "weight": (set_all(PatientWeight=None), "Patient's Weight is missing"),
    "weight of zero": (set_all(PatientWeight="0"), "Patient's Weight is not believed"),
    "weight that is none": (weigh_in_words, "Patient's Weight"),
    "weight in grams": (set_all(PatientWeight="70000"), "Patient's Weight is not believed"),
    "two weights": (
        set_each("PatientWeight", lambda k: "70" if k else "71"),
        "Patient's Weight differs",
    ),
    "dose": (set_tracer(RadionuclideTotalDose=None), "Radionuclide Total Dose is missing"),
    "dose in megabecquerels": (set_tracer(RadionuclideTotalDose="400"), "Total Dose is not believ"),
    "half-life": (set_tracer(RadionuclideHalfLife=None), "Radionuclide Half Life is missing"),
    "half-life in minutes": (set_tracer(RadionuclideHalfLife="109.77"), "half-lives before"),
    "tracer": (
        set_all(RadiopharmaceuticalInformationSequence=[]),
        "Radiopharmaceutical Information Sequence is missing",
    ),
    "two tracers": (add_tracer, "several tracers"),
    "no attenuation correction": (set_all(CorrectedImage=["DECY", "SCAT"]), "Corrected Image"),
    "no decay correction": (set_all(DecayCorrection="NONE"), "Decay Correction"),
    "decay correction not told": (set_all(DecayCorrection=None), "Decay Correction is missing"),
    "injection": (
        set_tracer(RadiopharmaceuticalStartDateTime=None, RadiopharmaceuticalStartTime=None),
        "Radiopharmaceutical Start DateTime is missing",
    ),
    "injection told by the day": (
        set_tracer(RadiopharmaceuticalStartDateTime="20200102", RadiopharmaceuticalStartTime=None),
        "Radiopharmaceutical Start DateTime is missing",
    ),
    "injection after the scan": (
        set_tracer(
            RadiopharmaceuticalStartDateTime="20200102114900",
            RadiopharmaceuticalStartTime="114900",
        ),
        "after the scan",
    ),
    "injection after the scan, by the clock": (
        set_tracer(RadiopharmaceuticalStartDateTime=None, RadiopharmaceuticalStartTime="114900"),
        "after the scan",
    ),
    "date of the injection shifted apart": (
        set_tracer(RadiopharmaceuticalStartDateTime="20191230095820"),
        "half-lives before",
    ),
    "two clocks of the injection": (
        set_tracer(RadiopharmaceuticalStartTime="105820"),
        "contradict",
    ),
    "long-lived tracer without a day": (
        set_tracer(RadiopharmaceuticalStartDateTime=None, RadionuclideHalfLife="282276"),
        "Radiopharmaceutical Start DateTime is missing",
    ),
    "injection in an unknown time zone": (
        set_tracer(RadiopharmaceuticalStartDateTime="20200102085820+0000"),
        "Timezone Offset From UTC is missing",
    ),
    "series time": (set_all(SeriesTime=""), "Series Time is missing"),
    "acquisition date": (set_all(AcquisitionDate=""), "Acquisition Date is missing"),
    "series made later, times at odds": (
        both(make_late, set_all(ActualFrameDuration="240000", FrameReferenceTime="219622")),
        "Frame Reference Time",
    ),
    "dynamic series made later": (
        both(make_late, set_all(SeriesType=["DYNAMIC", "IMAGE"], FrameReferenceTime="0")),
        "Frame Reference Time is missing",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_header_that_lacks_what_suv_needs_is_refused_by_name(case: str, tmp_path: Path) -> None:
    change, named = REFUSED[case]

    with pytest.raises(UnusableStudy, match=named) as refusal:
        read_suv(tmp_path, change)

    assert refusal.value.code == "suv"
    for value in ("70", "400", "2020", "heavy", "105820", "109"):
        assert value not in str(refusal.value)


LEFT_OF_STS = {"ADMIN": 1.0, "START": 2 ** (-(55 * 60 + 30) / 6588.0)}
"""Share of the dose from 09:18:00 to 10:13:30, as the headers of STS_015 tell."""


@pytest.mark.integration
@pytest.mark.parametrize("decays_from", LEFT_OF_STS)
def test_real_pet_written_as_activity_has_the_suv_of_its_scanner(
    decays_from: str, tmp_path: Path
) -> None:
    folder = require_data("sts_ctmrpet_dicom", "STS_015", "PET", "image")
    paths = sorted(folder.glob("*.dcm"))
    suv, _ = read_volume(paths)
    instances = [dcmread(path) for path in paths]
    for each in instances:
        [tracer] = each.RadiopharmaceuticalInformationSequence
        left = float(tracer.RadionuclideTotalDose) * LEFT_OF_STS[decays_from]
        slope = float(each.RescaleSlope) * left / (float(each.PatientWeight) * 1000)
        each.RescaleSlope = f"{slope:.10f}"
        each.Units, each.DecayCorrection = "BQML", decays_from
        del each[Tag("SUVType")]

    activity, _ = read_volume(write_files(instances, tmp_path))

    assert len({float(each.RescaleSlope) for each in instances}) == len(paths)
    np.testing.assert_allclose(activity.array, suv.array, rtol=1e-4, atol=1e-4)
