"""Studies that are headers only: what labels and rules are judged by, without a file."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

from dicom_node.assembly import build_study
from dicom_node.domain import Instance, Study
from dicom_node.headers import IDENTITY
from dicom_node.routing import Decision, Judge
from dicom_node.rules import Contrasts, ModelPolicy, Routing
from dicom_node.strict_yaml import read_document

CONFIG = Path(__file__).resolve().parents[2] / "config"
NAMESPACE = UUID(int=7)
NOW = datetime(2026, 1, 1, tzinfo=UTC)
DIGEST = "d" * 64

BRAIN = {"BodyPartExamined": "BRAIN"}
ACQUISITIONS: Mapping[str, Mapping[str, Any]] = {
    "T1w": {"ScanningSequence": ["SE"], "RepetitionTime": 500.0, "EchoTime": 12.0},
    "T1w 3D": {
        "ScanningSequence": ["GR"],
        "SequenceVariant": ["MP"],
        "MRAcquisitionType": "3D",
        "RepetitionTime": 2300.0,
        "EchoTime": 3.0,
        "InversionTime": 900.0,
    },
    "T1c": {
        "ScanningSequence": ["SE"],
        "RepetitionTime": 500.0,
        "EchoTime": 12.0,
        "ContrastBolusAgent": "GADOVIST",
    },
    "T2w": {"ScanningSequence": ["SE"], "RepetitionTime": 4000.0, "EchoTime": 100.0},
    "PDw": {"ScanningSequence": ["SE"], "RepetitionTime": 4000.0, "EchoTime": 20.0},
    "FLAIR": {
        "ScanningSequence": ["SE", "IR"],
        "RepetitionTime": 9000.0,
        "EchoTime": 120.0,
        "InversionTime": 2500.0,
    },
    "DWI": {"ScanningSequence": ["EP", "SE"], "DiffusionBValue": 1000.0, "EchoTime": 90.0},
    "unknown": {},
    "CT": {"Modality": "CT", "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"], "KVP": 120.0},
}


@cache
def load_contrasts() -> Contrasts:
    return Contrasts.model_validate(_read("contrasts.yaml"))


@cache
def load_routing() -> Routing:
    return Routing.model_validate(_read("routing.yaml"))


@cache
def load_policy() -> ModelPolicy:
    return ModelPolicy.model_validate(_read("models.yaml"))


def _read(name: str) -> Any:
    return read_document((CONFIG / name).read_bytes(), name).read()


def make_header(**facts: object) -> dict[str, Any]:
    """Return the header of an axial image of a person, with `facts` over it."""
    header: dict[str, Any] = {
        "Modality": "MR",
        "ImageType": ["ORIGINAL", "PRIMARY", "OTHER"],
        "ImagePositionPatient": [0.0, 0.0, 0.0],
        "ImageOrientationPatient": [1.0, 0.0, 0.0, 0.0, 1.0, 0.0],
        "PixelSpacing": [1.0, 1.0],
        "Rows": 256.0,
        "Columns": 256.0,
        IDENTITY: "patient",
    }
    return {key: value for key, value in (header | facts).items() if value is not None}


def make_instance(
    uid: str, header: Mapping[str, Any] | None, *, series: str = "1.1", study: str = "1"
) -> Instance:
    return Instance(
        sop_instance_uid=uid,
        sop_class_uid="1.2.840.10008.5.1.4.1.1.4",
        series_instance_uid=series,
        study_instance_uid=study,
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        sha256=uid.rjust(64, "0"),
        path=uid,
        header=header,
    )


def make_series(
    uid: str = "1.1", *, slices: int = 24, step: float = 5.0, **facts: object
) -> list[Instance]:
    """Return the instances of one series of parallel slices."""
    return [
        make_instance(
            f"{uid}.{k}",
            make_header(**{"ImagePositionPatient": [0.0, 0.0, k * step], **facts}),
            series=uid,
        )
        for k in range(slices)
    ]


def acquire(*names: str, **facts: object) -> list[Instance]:
    """Return the instances of a study with one series of each name of `ACQUISITIONS`."""
    return [
        instance
        for number, name in enumerate(names, 1)
        for instance in make_series(
            f"1.{number}", **{"SeriesNumber": float(number), **ACQUISITIONS[name], **facts}
        )
    ]


def make_card(
    model_id: str = "brain-any-unet25d",
    *,
    sources: Iterable[str] = ("T1w", "T1c", "T2w", "FLAIR"),
    targets: Mapping[str, str] | None = None,
    anatomy: Iterable[str] = ("BRAIN", "HEAD"),
    required: Iterable[str] = (),
    digest: str = DIGEST,
) -> Any:
    """Return what a decision reads of a model card."""
    states = targets or {
        "T1w": "approved",
        "T2w": "approved",
        "FLAIR": "approved",
        "T1c": "research",
    }
    return SimpleNamespace(
        id=model_id,
        digest=digest,
        sources=tuple(sources),
        required=tuple(required),
        targets={target: SimpleNamespace(state=state, lock="") for target, state in states.items()},
        anatomy=tuple(anatomy),
    )


LIMB_CARD = make_card(
    "limb-ct-boosting",
    sources=["T1w"],
    required=["T1w"],
    targets={"CT": "approved"},
    anatomy=["LEG", "EXTREMITY"],
)
CARDS = (make_card(), LIMB_CARD)


def make_judge(**changes: object) -> Judge:
    """Return a judge by the shipped configuration."""
    facts: dict[str, Any] = {
        "routing": load_routing(),
        "contrasts": load_contrasts(),
        "policy": load_policy(),
        "cards": CARDS,
        "namespace": NAMESPACE,
        "config_digest": "c" * 64,
    }
    return Judge(**(facts | changes))


def label_study(instances: Iterable[Instance], **changes: Any) -> Study:
    found = list(instances)
    return build_study(found[0].study_instance_uid, found, load_contrasts(), **changes)


def decide(instances: Iterable[Instance], **changes: object) -> Decision:
    """Return what the shipped rules say of a study."""
    return make_judge(**changes).judge(label_study(instances), NOW)
