"""Model folders: a card that a person can read, weights, and a digest that ties them together.

A model folder is immutable. Its card lists every learnt file with its SHA-256. Its digest is the
SHA-256 over the names and bytes of these files and over the part of the card that enters the
pixels, so that an edit of a comment or a metric changes no derived UID, and a changed weight can
never pass under an old name. Files that would run code when they are read are refused.
"""

import functools
import hashlib
import json
import zipfile
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from synthesis.errors import UntrustedModel
from synthesis.flat import FLAT_MODALITIES
from synthesis.methods import GENERATIVE, build_method
from synthesis.synthesizer import Synthesizer
from synthesis.types import Anchor, ContrastLabel, Precision, SynthesisTask

CARD = "card.yaml"
LEARNT = "learnt"
CONSTANTS = "constants.json"
"""The training people's median of each target inside the mask, normalized: the least baseline."""

PICKLES = frozenset({".bin", ".ckpt", ".joblib", ".npy", ".pickle", ".pkl", ".pt", ".pth"})
"""Endings of files that hold pickled objects, which run code as they are read."""

LESION_RECALL, FALSE_LESIONS = "lesion_recall", "false_lesions"
"""Names of a card's figures: share of the lesions shown by truth and source that the answer keeps;
lesions that it makes up in a volume without any."""
LEAST_RECALL, MOST_FALSE = 0.9, 0.1
"""What a generative method must reach to be offered for more than research."""

KEPT_WARM = 4
"""How many models stay loaded in a process."""

State = Literal["candidate", "approved", "research", "retired"]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TargetCard(_Strict):
    """What a card says of one target.

    Attributes:
        modality: DICOM modality of the derived series.
        state: approved targets are made when a rule asks; research ones only when the site's
            model policy says so; candidate and retired ones never.
        units: HU, SUVbw, standard scale (MR: median tissue is 500; radiographs: as the anchor says)
            or display (ultrasound and photographs: 0 black, 255 white).
        band_scale: factor on the raw half-width so that the band holds 90 % of the voxels of the
            calibration people (see `uncertainty`).
        pad_value: value of voxels that the sources do not cover, in `units`.
        caution: what a reader must know; goes into the series' description texts.
        lock: why the state is `research` whatever the card says, see `ModelCard.find_lock`;
            computed when the card is read, never written.
    """

    modality: Literal["MR", "CT", "PT", "CR", "DX", "US", "XC"]
    state: State
    units: Literal["HU", "SUVbw", "standard scale", "display"]
    band_scale: float = 1.0
    pad_value: float = 0.0
    caution: str = ""
    lock: str = ""


class TrainingCard(_Strict):
    """Whom the model learnt from, and who was kept apart."""

    subjects: tuple[str, ...]
    validation: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    data: Mapping[str, str]
    trained_on: date
    seed: int


class Metric(_Strict):
    """One held-out figure: mean over `n` people, none of whom was trained on."""

    target: str
    sources: tuple[str, ...]
    name: str
    value: float
    n: int
    subjects: tuple[str, ...]
    baseline: str = ""
    baseline_value: float | None = None


class ModelCard(_Strict):
    """The card of a model folder.

    Attributes:
        anatomy: Body Part Examined values that the model was made for.
        skull: `stripped` (a whole head is masked first), `whole head` or `none`.
        spacing_mm: of the model grid.
        anchor: how images are scaled, see `types.Anchor`.
        precision: of the arithmetic; it changes pixels, and so is no choice of the machine.
        source_units: of each source that has a unit; it keeps it. The others are scaled by their
            anchor.
        bias_field: whether sources without a unit are divided by their N4 bias field.
        generative: whether a network that was trained elsewhere draws what looks real (a GAN, a
            diffusion); of our own methods that is known.
        files: every file below the folder `learnt`, by its path there, to its SHA-256.
        digest: computed when the card is read, never written.
    """

    id: str
    version: str
    method: str
    sources: tuple[str, ...]
    required: tuple[str, ...] = ()
    targets: Mapping[str, TargetCard]
    anatomy: tuple[str, ...]
    skull: Literal["stripped", "whole head", "none"]
    spacing_mm: float
    anchor: Anchor = Anchor()
    precision: Precision = "float32"
    source_units: Mapping[str, Literal["HU", "SUVbw", "display"]] = {}
    bias_field: bool = True
    parameters: Mapping[str, Any] = {}
    generative: bool = False
    description: str
    intended_use: Literal["research"]
    licence: str
    training: TrainingCard
    metrics: tuple[Metric, ...] = ()
    limitations: tuple[str, ...] = ()
    files: Mapping[str, str]
    digest: str = ""

    @model_validator(mode="after")
    def _is_flat_or_not(self) -> "ModelCard":
        flat = [facts.modality in FLAT_MODALITIES for facts in self.targets.values()]
        if any(flat) and (not all(flat) or self.skull != "none" or self.bias_field):
            raise ValueError(
                "a model of pictures (CR, DX, US, XC) has such targets only, "
                "`skull: none` and `bias_field: false`"
            )
        return self

    @property
    def is_flat(self) -> bool:
        """Whether it answers for pictures and not for volumes."""
        return any(facts.modality in FLAT_MODALITIES for facts in self.targets.values())

    def find_lock(self, target: str) -> str:
        """Return why a target is for research whatever the card says; nothing where it is not.

        A generative method may make up lesions and erase them (Cohen 2018): it is offered for more
        only where the card's own figures say that it does neither.
        """
        if not self.generative and self.method not in GENERATIVE:
            return ""
        figures = {m.name: m.value for m in self.metrics if m.target == target}
        recall, false = figures.get(LESION_RECALL), figures.get(FALSE_LESIONS)
        if recall is None or false is None:
            return "it is generative, and its card has no figures on lesions"
        if recall < LEAST_RECALL or false > MOST_FALSE:
            return (
                f"it is generative, keeps {recall:.0%} of lesions (wanted {LEAST_RECALL:.0%}) and "
                f"makes up {false:g} in a volume (at most {MOST_FALSE:g})"
            )
        return ""

    @property
    def task(self) -> SynthesisTask:
        """The task that the method was built for."""
        return SynthesisTask(
            sources=tuple(ContrastLabel(s) for s in self.sources),
            targets=tuple(ContrastLabel(t) for t in self.targets),
            required=tuple(ContrastLabel(r) for r in self.required),
        )


def load_cards(models_folder: Path) -> list[ModelCard]:
    """Return the cards of every model below `models_folder`, sorted by id, digests computed.

    Raises:
        UntrustedModel: a card cannot be read; the message names file and key.
    """
    return [_read_card(path.parent) for path in sorted(models_folder.glob(f"*/{CARD}"))]


def load_card(models_folder: Path, model_id: str) -> ModelCard:
    """Return one model's card.

    Raises:
        UntrustedModel: there is no such model, or its card cannot be read.
    """
    for card in load_cards(models_folder):
        if card.id == model_id:
            return card
    raise UntrustedModel(f"no model {model_id!r} below {models_folder}")


@functools.lru_cache(maxsize=KEPT_WARM)
def load_method(
    models_folder: Path, model_id: str, digest: str, device: str = "auto"
) -> Synthesizer[Any]:
    """Return the trained method of a model, whose digest must be `digest`.

    Args:
        models_folder: where the site keeps its models.
        model_id: folder below `models_folder`.
        digest: the folder must have it.
        device: see `Synthesizer`.

    Raises:
        UntrustedModel: the folder's digest is another one.
    """
    card = load_card(models_folder, model_id)
    if card.digest != digest:
        raise UntrustedModel(
            f"model {model_id}: the plan wants digest {digest[:16]}, "
            f"the folder has {card.digest[:16]}; plan again"
        )
    try:
        method = build_method(card.method, card.task, dict(card.parameters), device=device)
    except ValidationError as error:
        raise UntrustedModel(f"{models_folder / model_id / CARD}: parameters: {error}") from None
    method.restore(models_folder / model_id / LEARNT)
    method.accelerate(card.precision)
    return method


def hash_files(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file below the folder `learnt` of a model folder.

    Raises:
        UntrustedModel: one of them holds pickled objects.
    """
    learnt = folder / LEARNT
    hashes = {}
    for path in sorted(p for p in learnt.glob("**/*") if p.is_file()):
        if _is_pickle(path):
            raise UntrustedModel(
                f"{path}: pickled weights run code as they are read, wanted safetensors, ONNX or "
                "TorchScript; docs/models.md tells how to convert them"
            )
        hashes[path.relative_to(learnt).as_posix()] = hashlib.sha256(path.read_bytes()).hexdigest()
    return hashes


def compute_digest(card: Mapping[str, Any], hashes: Mapping[str, str]) -> str:
    """Return the digest, 64 hexadecimal digits, of a card's settings and its files' SHA-256."""
    keys = (
        "id",
        "version",
        "method",
        "sources",
        "required",
        "skull",
        "spacing_mm",
        "anchor",
        "parameters",
    )
    enters = {key: card.get(key) for key in keys}
    enters |= {key: card[key] for key in ("precision", "source_units", "bias_field") if key in card}
    enters["targets"] = {
        target: {k: facts.get(k) for k in ("units", "band_scale", "pad_value")}
        for target, facts in card.get("targets", {}).items()
    }
    digest = hashlib.sha256(json.dumps(enters, sort_keys=True, default=str).encode())
    for name, content in hashes.items():
        digest.update(name.encode())
        digest.update(bytes.fromhex(content))
    return digest.hexdigest()


def _is_pickle(path: Path) -> bool:
    """Tell by the name, and of torch's archives by what lies in them: TorchScript has code."""
    if path.suffix in PICKLES:
        return True
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        members = {name.partition("/")[2] for name in archive.namelist()}
    return "data.pkl" in members and not any(name.startswith("code/") for name in members)


def _check_files(path: Path, listed: Mapping[str, str], hashes: Mapping[str, str]) -> None:
    """Check that the card lists what is there, as it is."""
    problems = [f"{name} is listed and not there" for name in listed if name not in hashes]
    for name, content in hashes.items():
        if name not in listed:
            problems.append(f"{name} is not listed, wanted `{name}: {content}`")
        elif listed[name] != content:
            problems.append(f"{name} is not the file of the card: its SHA-256 is {content}")
    if problems:
        raise UntrustedModel(f"{path}: files: {'; '.join(problems)}")


def _read_card(folder: Path) -> ModelCard:
    path = folder / CARD
    try:
        facts = yaml.safe_load(path.read_text())
        if facts["id"] != folder.name:
            raise UntrustedModel(f"{path}: id {facts['id']!r} is not the folder's name")
        hashes = hash_files(folder)
        _check_files(path, facts.get("files") or {}, hashes)
        return _lock(ModelCard.model_validate({**facts, "digest": compute_digest(facts, hashes)}))
    except (OSError, yaml.YAMLError, ValidationError, KeyError, TypeError) as error:
        raise UntrustedModel(f"{path}: {error}") from error


def _lock(card: ModelCard) -> ModelCard:
    """Return the card with every target for research only that its figures lock."""
    targets = {
        target: facts.model_copy(update={"state": "research", "lock": lock})
        if facts.state in ("candidate", "approved") and (lock := card.find_lock(target))
        else facts
        for target, facts in card.targets.items()
    }
    return card.model_copy(update={"targets": targets})
