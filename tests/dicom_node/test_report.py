"""The report that goes with every job, read back as a reader would."""

from io import BytesIO
from pathlib import Path

import highdicom
import pytest
from pydicom import Dataset, dcmread
from pydicom.sr.codedict import codes

from dicom_node.derive import SourceSeries
from dicom_node.domain import ContrastLabel, Role
from dicom_node.elements import encode
from doubles.job import derive, make_sources
from synthesis.types import QualityReport, Verdict

Sources = dict[ContrastLabel, SourceSeries]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    return make_sources(tmp_path_factory.mktemp("study"))


def read_report(sources: Sources, **synthesis: object) -> highdicom.sr.Comprehensive3DSR:
    (report,) = (ds for facts, ds in derive(sources, **synthesis) if facts.role == Role.REPORT)
    return highdicom.sr.Comprehensive3DSR.from_dataset(dcmread(BytesIO(encode(report))))


def find_group(report: highdicom.sr.Comprehensive3DSR) -> Dataset:
    (group,) = report.content.get_image_measurement_groups()
    return group


def read_comments(report: highdicom.sr.Comprehensive3DSR) -> str:
    return "\n".join(
        item.TextValue
        for item in find_group(report)[0].ContentSequence
        if item.name == codes.DCM.Comment
    )


def test_report_is_a_measurement_report_of_a_device(sources: Sources) -> None:
    report = read_report(sources)

    assert report.ContentTemplateSequence[0].TemplateIdentifier == "1500"
    (observer,) = report.content.get_observer_contexts()
    assert observer.observer_identifying_attributes.manufacturer_name == "dicom_node"
    assert observer.observer_identifying_attributes.name == "DICOM_NODE"


def test_figures_and_verdict_are_coded(sources: Sources) -> None:
    group = find_group(read_report(sources))

    figures = {m.name.meaning: m.value for m in group.get_measurements()}
    verdicts = {e.name.meaning: e.value.meaning for e in group.get_qualitative_evaluations()}
    assert figures == {"in_mask_correlation": 0.87, "noise_ratio": 1.25}
    assert verdicts["Quality verdict"] == "Passed with warnings"


def test_model_and_weights_are_named(sources: Sources) -> None:
    report = read_report(sources)

    texts = {item.name.meaning: item.TextValue for item in texts_of(report)}
    assert texts["Algorithm Name"] == "toy-model"
    assert texts["Algorithm Version"] == "1.0"
    assert any("0123456789abcdef" * 4 in item.TextValue for item in texts_of(report))


def texts_of(report: highdicom.sr.Comprehensive3DSR) -> list[Dataset]:
    return [i for i in find_group(report)[0].ContentSequence if i.value_type.value == "TEXT"]


def test_reasons_rule_and_limits_are_told(sources: Sources) -> None:
    comments = read_comments(read_report(sources, description="brain only"))

    assert "FLAIR synthesized from T1w + T2w" in comments
    assert "brain only" in comments
    assert "warn: the mask touches the edge of the image" in comments
    assert "Rule brain-protocol: FLAIR is expected and missing" in comments
    assert "Research use only" in comments


def test_every_source_and_image_is_evidence(sources: Sources) -> None:
    written = derive(sources)
    report = read_report(sources)

    listed = {
        instance.ReferencedSOPInstanceUID
        for study in report.CurrentRequestedProcedureEvidenceSequence
        for series in study.ReferencedSeriesSequence
        for instance in series.ReferencedSOPSequence
    }
    images = {facts.sop_instance_uid for facts, _ in written if facts.role != Role.REPORT}
    received = {h.SOPInstanceUID for source in sources.values() for h in source.datasets}
    assert listed == images | received


def test_refusal_says_why(sources: Sources) -> None:
    quality = QualityReport(verdict=Verdict.REFUSE, reasons=("the input is noise",))

    report = read_report(sources, quality=quality)

    verdicts = {e.value.meaning for e in find_group(report).get_qualitative_evaluations()}
    assert "Refused" in verdicts
    assert "refuse: the input is noise" in read_comments(report)


def test_figure_that_is_not_finite_does_not_end_the_job(sources: Sources) -> None:
    quality = QualityReport(verdict=Verdict.WARN, figures={"ratio": float("nan"), "good": 1.0})

    group = find_group(read_report(sources, quality=quality))

    assert {m.name.meaning for m in group.get_measurements()} == {"good"}


def test_own_words_are_ascii(sources: Sources) -> None:
    quality = QualityReport(verdict=Verdict.WARN, reasons=("5 mm ± 2 – naïve",))

    assert read_comments(read_report(sources, quality=quality)).isascii()


def test_report_is_beside_the_study(sources: Sources, tmp_path: Path) -> None:
    report = read_report(sources)
    header = sources[ContrastLabel("T1w")].datasets[0]

    assert report.StudyInstanceUID == header.StudyInstanceUID
    assert report.PatientID == header.PatientID
    assert 9201 <= report.SeriesNumber < 9300
