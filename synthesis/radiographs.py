"""A model of radiographs from CTs: projected people, training, held-out figures.

    CT of a person → many exposures (`projection`) → cases of one image → fit → gate → model folder

A case is a pair of one exposure: the radiograph, scaled as the engine scales one that it receives,
and what bone adds to it, on the same scale. Splits go by person; exposures of one stay together.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813

from synthesis.datasets import cases_folder, read_case, write_case
from synthesis.engine import synthesize
from synthesis.errors import TrainingError
from synthesis.flat import DEPTH_MM, frame, make_volume
from synthesis.metrics.ours import (
    coverage,
    mean_absolute_error,
    peak_signal_to_noise,
    structural_similarity,
)
from synthesis.people import Manifest, Person, digest_images, read_manifest
from synthesis.preparation import read_image
from synthesis.preprocessing import measure_scale, to_canonical
from synthesis.projection import PIXEL_MM, SPECTRA, Beam, Radiograph, draw_beam, expose
from synthesis.registry import CONSTANTS, LEARNT, Metric, ModelCard
from synthesis.training import Experiment, fit, keep
from synthesis.types import (
    UNITS_PER_NORMALIZED,
    Anchor,
    Case,
    ContrastLabel,
    FloatArray,
    Synthesis,
    Verdict,
)

RADIOGRAPH, BONE = ContrastLabel("DX"), ContrastLabel("DX bone")
VIEWS_PER_PERSON = 40
"""Exposures of a person that are learnt from, from anywhere about the limb."""
TEST_ANGLES = tuple(range(0, 180, 30))
"""Of the exposures that judge: all around, for the other side sees the same."""
SHORTEST_SIDE = 48
"""Of an exposure that is learnt from, in pixels: of less there is nothing to see."""
BASELINES = "baselines.json"
"""Slope and offset of the straight line from radiograph to bone that fits the training people."""
BONE_GAIN = np.float32(4)
"""Bone adds at most a quarter of a radiograph's range; on its own scale that is all of it. Without
it a network that answers nothing at all is hard to better."""
BONY = 200.0
"""Bone adds more than a twentieth of the radiograph's range, on the scale of bone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One test person: means over the exposures, where 1000 is a quarter of a radiograph's range.

    Attributes:
        refused: how many exposures the gate refused.
        mae, psnr_db, ssim: of the model.
        bone_mae: where bone is more than 200.
        linear_mae, linear_psnr_db, linear_bone_mae: of the straight line from the radiograph.
        constant_mae: of the training people's median.
        band_coverage: share of pixels whose truth lies within the band.
    """

    subject: str
    exposures: int
    refused: int
    mae: float
    psnr_db: float
    ssim: float
    bone_mae: float
    linear_mae: float
    linear_psnr_db: float
    linear_bone_mae: float
    constant_mae: float
    band_coverage: float


def is_projected(experiment: Experiment) -> bool:
    """Say whether an experiment learns from projected CTs."""
    return {*experiment.sources, *experiment.targets} == {RADIOGRAPH, BONE}


def train_projected(
    experiment: Experiment,
    *,
    data_folder: Path,
    work: Path,
    budget: timedelta | None = None,
    device: str = "auto",
    report: Callable[[float], None] = lambda _: None,
) -> Path:
    """Train a method on projected people and return the folder that holds what it learnt.

    Raises:
        TrainingError: nobody in the manifest can teach it, or a person is not projected yet and
            there are no images.
    """
    manifest = read_manifest(experiment.people)
    cases = {
        split: list(_read_cases(experiment, manifest, split, data_folder, work))
        for split in ("train", "validation")
    }
    watched = cases["validation"][:: max(1, VIEWS_PER_PERSON // 4)]
    checkpoint = work / experiment.model
    method = fit(experiment, cases | {"validation": watched}, checkpoint, budget, device, report)
    learnt = keep(experiment, method, cases, checkpoint, every=4)
    (learnt / BASELINES).write_text(json.dumps(_fit_line(cases["train"])))
    return learnt


def project_person(
    person: Person, data_folder: Path, *, anchor: Anchor, seed: int
) -> Iterator[Case]:
    """Yield a person's exposures as cases.

    Raises:
        TrainingError: the images are others than the manifest's.
    """
    ct = _read_ct(person, data_folder)
    generator = np.random.default_rng([seed, *person.name.encode()])
    made = 0
    while made < VIEWS_PER_PERSON:
        radiograph = expose(ct, draw_beam(generator), generator)
        if min(radiograph.signal.shape) >= SHORTEST_SIDE:
            made += 1
            yield _make_case(person, radiograph, anchor)


def judge_projected(
    card: ModelCard, people: Sequence[Person], *, models_folder: Path, data_folder: Path
) -> Iterator[Row]:
    """Yield one row for each person, exposed all around and sent through the whole engine.

    Raises:
        TrainingError: the images are others than the manifest's.
    """
    learnt = models_folder / card.id / LEARNT
    line = json.loads((learnt / BASELINES).read_text())
    constant = json.loads((learnt / CONSTANTS).read_text())[BONE] * UNITS_PER_NORMALIZED
    for person in people:
        ct = _read_ct(person, data_folder)
        generator = np.random.default_rng(list(person.name.encode()))
        figures: list[dict[str, float]] = []
        for angle in TEST_ANGLES:
            beam = Beam(angle=angle, tilt=0, spectrum=tuple(SPECTRA[1]), photons=3e4, scatter=0.1)
            radiograph = expose(ct, beam, generator)
            synthesis = answer(card, radiograph, models_folder)
            if synthesis.quality.verdict is not Verdict.REFUSE:
                figures.append(_judge(card, radiograph, synthesis, line, constant))
        refused = len(TEST_ANGLES) - len(figures)
        if figures:
            means = {k: float(np.mean([f[k] for f in figures])) for k in figures[0]}
            yield Row(subject=person.subject, exposures=len(TEST_ANGLES), refused=refused, **means)


def summarize_projected(rows: Sequence[Row]) -> list[Metric]:
    """Return the mean over people of each figure; nothing where the gate refused everybody."""
    if not rows:
        return []
    subjects = tuple(sorted(row.subject for row in rows))

    def mean(name: str) -> float:
        return round(float(np.mean([getattr(row, name) for row in rows])), 4)

    return [
        Metric(
            target=BONE,
            sources=(RADIOGRAPH,),
            name=name,
            value=mean(name),
            n=len(subjects),
            subjects=subjects,
            baseline="linear map" if other else "",
            baseline_value=mean(other) if other else None,
        )
        for name, other in (
            ("psnr_db", "linear_psnr_db"),
            ("ssim", ""),
            ("mae", "linear_mae"),
            ("bone_mae", "linear_bone_mae"),
            ("band_coverage", ""),
        )
    ]


def answer(card: ModelCard, radiograph: Radiograph, models_folder: Path) -> Synthesis:
    """Return what the engine makes of a radiograph."""
    return synthesize(
        {RADIOGRAPH: make_volume(radiograph.signal[None], (PIXEL_MM, PIXEL_MM))},
        target=BONE,
        reference=RADIOGRAPH,
        model_id=card.id,
        model_digest=card.digest,
        models_folder=models_folder,
        seed=0,
    )


def scale_truth(card: ModelCard, radiograph: Radiograph) -> tuple[FloatArray, FloatArray]:
    """Return radiograph and bone on the standard scale of the radiograph, as a card has it."""
    everywhere = np.ones(radiograph.signal.shape, np.bool_)
    scale = measure_scale(radiograph.signal, everywhere, card.anchor)
    bone = BONE_GAIN * radiograph.bone / (scale.high - scale.low)
    return scale.forward(radiograph.signal) * np.float32(UNITS_PER_NORMALIZED), (
        bone * np.float32(UNITS_PER_NORMALIZED)
    ).astype(np.float32)


def _judge(
    card: ModelCard,
    radiograph: Radiograph,
    synthesis: Synthesis,
    line: Mapping[str, float],
    constant: float,
) -> dict[str, float]:
    source, truth = (array[None] for array in scale_truth(card, radiograph))
    made = np.asarray(synthesis.volume.array, np.float32)
    straight = np.clip(line["slope"] * source + line["offset"] * UNITS_PER_NORMALIZED, 0, None)
    straight = straight.astype(np.float32)
    everywhere = np.ones(truth.shape, np.bool_)
    bony = truth > BONY if (truth > BONY).any() else everywhere
    width = np.zeros_like(made) if synthesis.half_width is None else synthesis.half_width.array
    return {
        "mae": mean_absolute_error(truth, made, everywhere),
        "psnr_db": peak_signal_to_noise(truth, made, everywhere),
        "ssim": structural_similarity(truth, made, everywhere),
        "bone_mae": mean_absolute_error(truth, made, bony),
        "linear_mae": mean_absolute_error(truth, straight, everywhere),
        "linear_psnr_db": peak_signal_to_noise(truth, straight, everywhere),
        "linear_bone_mae": mean_absolute_error(truth, straight, bony),
        "constant_mae": mean_absolute_error(
            truth, np.full_like(truth, constant, dtype=np.float32), everywhere
        ),
        "band_coverage": coverage(truth, made - width, made + width, everywhere),
    }


def _read_cases(
    experiment: Experiment, manifest: Manifest, split: str, data_folder: Path, work: Path
) -> Iterator[Case]:
    """Yield the cases of a split, projected where they are not yet."""
    cache = cases_folder(work, experiment.spacing_mm, experiment.anchor)
    cache.mkdir(parents=True, exist_ok=True)
    for dataset in experiment.datasets:
        for person in manifest.select(split, frozenset({RADIOGRAPH, BONE}), dataset):
            paths = [cache / f"{person.name}-exposure{k:02d}.npz" for k in range(VIEWS_PER_PERSON)]
            if not all(path.exists() for path in paths):
                made = project_person(
                    person, data_folder, anchor=experiment.anchor, seed=experiment.seed
                )
                for path, case in zip(paths, made, strict=True):
                    write_case(path, case)
            for path in paths:
                case = read_case(path)
                yield Case(
                    subject=person.subject,
                    images=case.images,
                    mask=case.mask,
                    spacing=case.spacing,
                )


def _read_ct(person: Person, data_folder: Path) -> sitk.Image:
    if not data_folder.is_dir():
        raise TrainingError(f"no images lie at {data_folder}; set DICOM_NODE_DATA")
    if person.sha256 is not None and digest_images(person, data_folder) != person.sha256:
        raise TrainingError(
            f"{person.subject}: the images at {data_folder} are others than the manifest says"
        )
    return to_canonical(read_image(data_folder, person.images[RADIOGRAPH]))


def _make_case(person: Person, radiograph: Radiograph, anchor: Anchor) -> Case:
    everywhere = np.ones(radiograph.signal.shape, np.bool_)
    scale = measure_scale(radiograph.signal, everywhere, anchor)
    bone = (BONE_GAIN * radiograph.bone / (scale.high - scale.low)).astype(np.float32)
    return Case(
        subject=person.subject,
        images={
            RADIOGRAPH: frame(scale.forward(radiograph.signal)[None]),
            BONE: frame(bone[None]),
        },
        mask=frame(everywhere[None]),
        spacing=(DEPTH_MM, PIXEL_MM, PIXEL_MM),
    )


def _fit_line(cases: Sequence[Case]) -> dict[str, float]:
    source, bone = (
        np.concatenate([case.images[label][case.mask][::37] for case in cases])
        for label in (RADIOGRAPH, BONE)
    )
    slope, offset = np.polyfit(source.astype(np.float64), bone.astype(np.float64), 1)
    return {"slope": float(slope), "offset": float(offset)}
