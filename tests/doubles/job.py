"""A job as it stands when the engine has answered: plan, card, sources, synthesis."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
from highdicom import Volume
from pydicom import Dataset

from dicom_node.derive import SourceSeries, write_derived
from dicom_node.domain import ContrastLabel, DerivedInstance, Mode, SynthesisPlan
from dicom_node.volumes import read_volume
from doubles.series import NAMESPACE, make_series, make_volume, write_files
from synthesis.flat import FLAT_MODALITIES
from synthesis.registry import ModelCard, TargetCard, TrainingCard
from synthesis.types import QualityReport, Synthesis, Verdict

UNITS = {
    "MR": "standard scale",
    "CT": "HU",
    "PT": "SUVbw",
    **dict.fromkeys(("CR", "DX"), "standard scale"),
    **dict.fromkeys(("US", "XC"), "display"),
}
Written = list[tuple[DerivedInstance, Dataset]]


def make_card(target: str = "FLAIR", modality: str = "MR", **changes: object) -> ModelCard:
    facts = {
        "id": "toy-model",
        "version": "1.0",
        "method": "mean image",
        "sources": ("T1w", "T2w"),
        "targets": {target: TargetCard(modality=modality, state="research", units=UNITS[modality])},
        "anatomy": ("BRAIN",),
        "skull": "none",
        "spacing_mm": 1.0,
        "description": "A toy that copies.",
        "intended_use": "research",
        "licence": "CC0",
        "training": TrainingCard(subjects=(), data={}, trained_on=date(2020, 1, 1), seed=0),
        "files": {},
        "digest": "0123456789abcdef" * 4,
        "bias_field": modality not in FLAT_MODALITIES,
    }
    return ModelCard(**(facts | changes))


def make_plan(
    sources: Mapping[ContrastLabel, SourceSeries],
    target: str = "FLAIR",
    modality: str = "MR",
    **changes: object,
) -> SynthesisPlan:
    first = next(iter(sources.values())).datasets[0]
    plan = SynthesisPlan(
        plan_id="0f" * 16,
        study_instance_uid=str(first.StudyInstanceUID),
        generation=1,
        rule="brain-protocol",
        rule_reason="FLAIR is expected and missing",
        target=ContrastLabel(target),
        target_modality=modality,
        anatomy="BRAIN",
        sources={label: source.series_instance_uid for label, source in sources.items()},
        source_instances=(),
        model_id="toy-model",
        model_digest="0123456789abcdef" * 4,
        seed=7,
        mode=Mode.SEND,
        priority=0,
        deliver_to=("PACS",),
        config_digest="c0ffee",
        created_at=datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC),
    )
    return replace(plan, **changes)


def make_synthesis(reference: Volume, modality: str = "MR", **changes: object) -> Synthesis:
    """A result on the grid of `reference`, from its own pixels."""
    array = np.asarray(reference.array, np.float32)
    low, high = np.percentile(array, [1, 99])
    unit = np.clip((array - low) / max(high - low, 1e-6), 0, 1)
    values = {"CT": unit * 1500 - 1000, "PT": unit * 8}.get(
        modality, unit * (255 if UNITS[modality] == "display" else 1000)
    )
    synthesis = Synthesis(
        volume=reference.with_array(values.astype(np.float32)),
        half_width=reference.with_array((0.1 + np.abs(values) / 20).astype(np.float32)),
        covered=reference.with_array(np.ones(array.shape, np.uint8)),
        pad_value=-1000.0 if modality == "CT" else 0.0,
        units=UNITS[modality],
        description="",
        quality=QualityReport(
            verdict=Verdict.WARN,
            reasons=("the mask touches the edge of the image",),
            figures={"in_mask_correlation": 0.87, "noise_ratio": 1.25},
        ),
        record=[{"step": "resample", "spacing": [1, 1, 1]}, {"step": "predict", "seed": 7}],
        seconds={"predict": 0.1},
    )
    return replace(synthesis, **changes)


def read_source(paths: Sequence[Path]) -> SourceSeries:
    volume, headers = read_volume(paths)
    uid = str(headers[0].SeriesInstanceUID)
    return SourceSeries(series_instance_uid=uid, datasets=headers, volume=volume)


def make_sources(folder: Path, **study: object) -> dict[ContrastLabel, SourceSeries]:
    """An oblique T1w of 6 slices and a T2w that crosses it, written below `folder` and read."""
    t1w = make_series("T1w", number=1, **study)
    crossing = make_volume((7, 10, 11), spacing=(3, 2, 2), angles=(0.3, 1.7), origin=(-25, -20, 0))
    t2w = make_series("T2w", crossing, number=2, **study)
    return {
        ContrastLabel("T1w"): read_source(write_files(t1w, folder / "T1w")),
        ContrastLabel("T2w"): read_source(write_files(t2w, folder / "T2w")),
    }


def derive(
    sources: Mapping[ContrastLabel, SourceSeries],
    target: str = "FLAIR",
    modality: str = "MR",
    *,
    plan: Mapping[str, object] | None = None,
    **synthesis: object,
) -> Written:
    """Everything that the job writes."""
    reference = next(iter(sources.values()))
    return write_derived(
        make_plan(sources, target, modality, **(plan or {})),
        make_synthesis(reference.volume, modality, **synthesis),
        sources,
        make_card(target, modality),
        NAMESPACE,
        station_name="DICOM_NODE",
    )
