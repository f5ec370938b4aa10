"""What a gate must not let pass, as volumes that are handed to the engine, and who must pass.

A flip is one of the pixels under an unchanged header: what a viewer or a converter does that loses
the axes. A shift is one of the header under unchanged pixels: a patient who moved between series.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813

from synthesis.engine import synthesize
from synthesis.errors import UnusableInput
from synthesis.evaluation import volume_of
from synthesis.people import Person
from synthesis.phantom import render
from synthesis.preparation import read_image
from synthesis.preprocessing import to_canonical
from synthesis.registry import load_card
from synthesis.types import ContrastLabel, FloatArray, Verdict, Volume

ROOT = Path(__file__).parents[2]
MODELS = ROOT / "models"
BRAIN_MODEL, LIMB_MODEL = "brain-any-unet25d", "limb-ct-boosting"
T1W, T2W, FLAIR = (ContrastLabel(name) for name in ("T1w", "T2w", "FLAIR"))
ORDER = (T1W, T2W, FLAIR, ContrastLabel("T1c"))
SHIFT_MM = 10.0
THICK_MM = 4.0
"""Slices of a fast look: the engine keeps them, and has a quarter of the work."""
LIMB = "sts_ctmrpet_nifti/STS_015/MR_T1_image.nii.gz"

Volumes = dict[ContrastLabel, Volume]


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A person's contrasts: canonical, the first two are sources."""

    name: str
    volumes: Volumes

    @property
    def sources(self) -> Volumes:
        """What the engine is given."""
        return dict(list(self.volumes.items())[:2])

    @property
    def target(self) -> ContrastLabel:
        """What it is asked for: a contrast that it is not given."""
        return next(label for label in ORDER if label not in self.sources)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What the engine says of its sources."""

    verdict: Verdict
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Something that must not pass, with the words by which it is told."""

    spoil: Callable[[Volumes], Volumes]
    words: str
    verdict: Verdict = Verdict.REFUSE

    def is_told(self, outcome: Outcome) -> bool:
        """Whether it is told as gravely as it must be, for its own reason."""
        told = re.search(self.words, " ".join(outcome.reasons)) is not None
        return told and outcome.verdict in (self.verdict, Verdict.REFUSE)


Judge = Callable[[Volumes, ContrastLabel], Outcome]


def judge(volumes: Volumes, target: ContrastLabel, model: str = BRAIN_MODEL) -> Outcome:
    """Ask the engine with a shipped model."""
    card = load_card(MODELS, model)
    try:
        answer = synthesize(
            volumes,
            target=target,
            reference=next(iter(volumes)),
            model_id=card.id,
            model_digest=card.digest,
            models_folder=MODELS,
            seed=0,
        )
    except UnusableInput as error:
        return Outcome(verdict=Verdict.REFUSE, reasons=(f"{error.code}: {error}",))
    return Outcome(verdict=answer.quality.verdict, reasons=answer.quality.reasons)


def swap(volumes: Volumes) -> Volumes:
    """Return the pair under each other's label."""
    (first, one), (second, other) = volumes.items()
    return {first: other, second: one}


def flip(axis: int, *, both: bool) -> Callable[[Volumes], Volumes]:
    """Return what reverses the pixels along slices (0), rows (1) or columns (2)."""

    def spoil(volumes: Volumes) -> Volumes:
        labels = list(volumes) if both else list(volumes)[1:]
        flipped = {label: np.flip(volumes[label].array, axis).copy() for label in labels}
        return volumes | {label: volumes[label].with_array(a) for label, a in flipped.items()}

    return spoil


def drown(volumes: Volumes) -> Volumes:
    """Return noise in place of the second contrast's tissue."""
    label = list(volumes)[1]
    image = volumes[label].array
    noise = np.random.default_rng(0).normal(0.5, 0.2, image.shape) * image.max()
    return volumes | {label: volumes[label].with_array(_within(noise, image))}


def shift(volumes: Volumes) -> Volumes:
    """Return the second contrast 10 mm towards the left."""
    label = list(volumes)[1]
    affine = volumes[label].affine.copy()
    affine[0, 3] += SHIFT_MM
    moved = Volume(array=volumes[label].array, affine=affine, coordinate_system="PATIENT")
    return volumes | {label: moved}


FAULTS: Mapping[str, Fault] = {
    "swapped pair": Fault(spoil=swap, words="looks like"),
    "both upside down": Fault(spoil=flip(0, both=True), words="upside down|^mask"),
    "both back to front": Fault(spoil=flip(1, both=True), words="back to front|^mask"),
    "one upside down": Fault(spoil=flip(0, both=False), words="does not lie on|^registration"),
    "one back to front": Fault(spoil=flip(1, both=False), words="does not lie on|^registration"),
    "one mirrored": Fault(spoil=flip(2, both=False), words="left and right are exchanged"),
    "noise": Fault(spoil=drown, words="noise|^registration"),
    "10 mm shift": Fault(spoil=shift, words=r"lay (9|10)\.\d mm from", verdict=Verdict.WARN),
}


def find_failures(judge: Judge, subjects: Iterator[Subject] | list[Subject]) -> list[str]:
    """Return which faults a judge lets pass and whom it refuses without one."""
    failures = []
    for subject in subjects:
        clean = judge(subject.sources, subject.target)
        if clean.verdict is Verdict.REFUSE:
            failures.append(f"{subject.name} refused: {'; '.join(clean.reasons)}")
        for name, fault in FAULTS.items():
            outcome = judge(fault.spoil(subject.sources), subject.target)
            if not fault.is_told(outcome):
                failures.append(f"{subject.name}, {name}: {outcome.verdict} {outcome.reasons}")
    return failures


def read_subject(person: Person, data: Path, *, thick: bool = False) -> Subject:
    """Return a person's contrasts as they were acquired, or with slices 4 mm apart."""
    images = {
        label: to_canonical(read_image(data, person.images[label]))
        for label in ORDER
        if label in person.images
    }
    if thick:
        images = {label: _thin_out(image) for label, image in images.items()}
    return Subject(name=person.subject, volumes={k: volume_of(v) for k, v in images.items()})


def render_subject() -> Subject:
    """Return a rendered head."""
    phantom = render(seed=3, spacing=(THICK_MM, 1.0, 1.0))
    affine = np.eye(4)
    affine[:3, :3] = np.fliplr(np.diag(phantom.spacing))
    volumes = {
        label: Volume(array=phantom.images[label], affine=affine, coordinate_system="PATIENT")
        for label in ORDER[:3]
    }
    return Subject(name="phantom", volumes=volumes)


def read_limb(data: Path) -> Volume:
    """Return a T1w image of a thigh."""
    return volume_of(read_image(data, LIMB))


def render_limb() -> Volume:
    """Return a thigh: fat about muscle about bone about marrow."""
    shape = (40, 180, 180)
    _, back, left = np.meshgrid(*(np.arange(n) - n / 2 for n in shape), indexing="ij")
    radius = np.hypot(back, left)
    image = np.select([radius < 8, radius < 14, radius < 60, radius < 75], [700, 60, 300, 800], 5)
    grain = np.random.default_rng(0).normal(0, 12, shape)
    affine = np.eye(4)
    affine[:3, :3] = np.fliplr(np.diag((4.0, 1.0, 1.0)))
    array = (image + grain).astype(np.float32)
    return Volume(array=array, affine=affine, coordinate_system="PATIENT")


def _within(noise: np.ndarray, image: FloatArray) -> FloatArray:
    return np.where(image > 0.05 * image.max(), noise, image).astype(np.float32)


def _thin_out(image: sitk.Image) -> sitk.Image:
    step = max(1, round(THICK_MM / image.GetSpacing()[2]))
    return image[:, :, step // 2 :: step]
