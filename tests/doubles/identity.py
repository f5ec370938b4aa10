"""A method that changes nothing, as a third party would add one: through an entry point.

Its answer is one of its sources. Whatever differs between that source and the derived series was
done by reading, the engine or the writer.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Self

from doubles.models import welcome_all, write_card
from synthesis.quality import TABLE
from synthesis.registry import LEARNT
from synthesis.synthesizer import Parameters, Synthesizer
from synthesis.types import Case, ContrastLabel, FloatArray, MaskArray, Prediction

TARGETS = {
    "MR": ("T2w", "standard scale", "T1w", 0.0),
    "CT": ("CTc", "HU", "CT", -1000.0),
    "PT": ("FDG", "SUVbw", "PET", 0.0),
}
"""Of each modality: target, its units, the source that is copied, and the pad value."""
OTHER = "FLAIR"
"""The second source."""


class IdentityParameters(Parameters):
    """Which source is the answer."""

    copied: str


class Identity(Synthesizer[IdentityParameters]):
    """The answer is a source."""

    parameters_type = IdentityParameters

    def fit(
        self,
        cases: Sequence[Case],
        *,
        validation: Sequence[Case] = (),
        seed: int,
        budget: timedelta | None = None,
        checkpoint: Path | None = None,
    ) -> Self:
        return self

    def predict(
        self,
        sources: Mapping[ContrastLabel, FloatArray],
        *,
        target: ContrastLabel,
        mask: MaskArray,
        spacing: tuple[float, float, float],
        seed: int,
    ) -> Prediction:
        self.check_request(sources, target, mask)
        return Prediction(mean=sources[ContrastLabel(self.parameters.copied)])

    def save(self, folder: Path) -> None:
        pass

    def restore(self, folder: Path) -> Self:
        return self


def install_identity(folder: Path) -> None:
    """Write what an installed package has that adds the method; `folder` must be on `sys.path`."""
    package = folder / "identity_method-1.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: identity-method\nVersion: 1\n")
    (package / "entry_points.txt").write_text(
        "[synthesis.methods]\nidentity = doubles.identity:Identity\n"
    )


def write_identity_model(models_folder: Path, modality: str, spacing_mm: float) -> str:
    """Write a model that copies its first source, and return its id."""
    target, units, copied, pad_value = TARGETS[modality]
    model_id = f"identity-{modality.lower()}"
    learnt = models_folder / model_id / LEARNT
    learnt.mkdir(parents=True)
    card = {
        "id": model_id,
        "version": "1",
        "method": "identity",
        "sources": [copied, OTHER],
        "source_units": {} if modality == "MR" else {copied: units},
        "targets": {
            target: {
                "modality": modality,
                "state": "approved",
                "units": units,
                "pad_value": pad_value,
            }
        },
        "anatomy": ["HEAD"],
        "skull": "none",
        "bias_field": False,
        "spacing_mm": spacing_mm,
        "parameters": {"copied": copied},
        "description": "The source itself.",
        "intended_use": "research",
        "licence": "Apache-2.0",
        "training": {"subjects": [], "data": {}, "trained_on": "2026-01-01", "seed": 0},
    }
    (learnt / TABLE).write_text(json.dumps(welcome_all((copied, OTHER))))
    write_card(models_folder / model_id, card)
    return model_id
