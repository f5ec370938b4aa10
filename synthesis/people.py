"""People for training and evaluation: who they are, what images they have, in which split.

Splits are by person, never by slice.
"""

from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict

from synthesis.errors import TrainingError

SPLITS = ("train", "validation", "test")


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Dataset(_Strict):
    """Where people come from."""

    licence: str
    skull: Literal["stripped", "whole head", "none"]


class Person(_Strict):
    """One person's images.

    Attributes:
        mask: `nonzero`, `body`, `whole head` (no mask is at hand: test only) or a label file.
    """

    subject: str
    dataset: str
    split: Literal["train", "validation", "test"]
    mask: str
    images: dict[str, str]
    labels: str | None = None

    @property
    def is_aligned(self) -> bool:
        """Whether the images lie on one another as they are."""
        return self.mask in ("nonzero", "body")


class Manifest(_Strict):
    """The people, and the data sets that they come from."""

    datasets: dict[str, Dataset]
    people: tuple[Person, ...]

    def select(
        self, split: str, contrasts: frozenset[str], dataset: str | None = None
    ) -> list[Person]:
        """Return the people of a split who have at least two of `contrasts`."""
        return [
            person
            for person in self.people
            if person.split == split
            and len(contrasts & set(person.images)) > 1
            and dataset in (None, person.dataset)
        ]


def read_manifest(path: Path) -> Manifest:
    """Read a manifest.

    Raises:
        TrainingError: a person appears twice or names an unknown data set.
    """
    manifest = Manifest.model_validate(yaml.safe_load(path.read_text()))
    subjects = [person.subject for person in manifest.people]
    if len(subjects) != len(set(subjects)):
        raise TrainingError(f"{path}: a subject appears twice; splits are by person")
    for person in manifest.people:
        if person.dataset not in manifest.datasets:
            raise TrainingError(f"{path}: {person.subject}: unknown dataset {person.dataset!r}")
    return manifest
