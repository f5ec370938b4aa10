"""People for training and evaluation: who they are, what images they have, in which split.

Splits are by person, never by slice.
"""

import hashlib
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict

from synthesis.errors import TrainingError

SPLITS = ("train", "validation", "test")
WHOLE_HEAD = "whole head"


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Dataset(_Strict):
    """Where people come from."""

    licence: str
    skull: Literal["stripped", "whole head", "none"]


class Person(_Strict):
    """One person's images of one session.

    Attributes:
        session: tells a person's sessions apart; all of them are in one split.
        site: where the scanner stands; folds by site go by it. The data set when not given.
        mask: `nonzero`, `body`, `whole head` (no mask is at hand: one is made where a brain mask's
            weights are, else the person is for testing through the engine only) or a label file.
        aligned: whether images whose mask is `nonzero` or `body` lie on one another as they are;
            others are registered first.
        sha256: digest of the image files, see `digest_images`; images of another digest are not
            read.
    """

    subject: str
    session: str = ""
    dataset: str
    site: str = ""
    split: Literal["train", "validation", "test"]
    mask: str
    aligned: bool = True
    images: dict[str, str]
    labels: str | None = None
    sha256: str | None = None

    @property
    def name(self) -> str:
        """Of the person's files."""
        return f"{self.subject}_{self.session}" if self.session else self.subject

    @property
    def is_aligned(self) -> bool:
        """Whether the images lie on one another as they are."""
        return self.aligned and self.mask in ("nonzero", "body")


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
        TrainingError: a session appears twice, a person is in two splits, or names an unknown data
            set.
    """
    manifest = Manifest.model_validate(yaml.safe_load(path.read_text()))
    manifest = manifest.model_copy(
        update={
            "people": tuple(
                p if p.site else p.model_copy(update={"site": p.dataset}) for p in manifest.people
            )
        }
    )
    names = [person.name for person in manifest.people]
    if len(names) != len(set(names)):
        raise TrainingError(f"{path}: a session of a subject appears twice")
    splits: dict[str, str] = {}
    for person in manifest.people:
        if splits.setdefault(person.subject, person.split) != person.split:
            raise TrainingError(f"{path}: {person.subject} is in two splits; they go by person")
        if person.dataset not in manifest.datasets:
            raise TrainingError(f"{path}: {person.subject}: unknown dataset {person.dataset!r}")
    return manifest


def digest_images(person: Person, data_folder: Path) -> str:
    """Return the SHA-256 over the files of a person's images, mask and labels, in order.

    Of an archive, the archive's bytes count; of a folder, those of all its files by name.
    """
    digest = hashlib.sha256()
    named = [*person.images.values(), person.labels or "", person.mask]
    paths = (data_folder / name.partition(":")[0] for name in named if name)
    for path in dict.fromkeys(path for path in paths if path.exists()):  # a mask may be a word
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in files:
            if file.is_file():
                digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()
