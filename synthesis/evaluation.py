"""Held-out people through the whole engine, beside the baselines, one row per person and task.

The engine gets each person's images as a request would bring them: whole head or stripped, on
their own grids. The truth is put on the reference's grid (registered when it was not aligned);
MR is bias corrected and normalized by its own percentiles inside the covered voxels, exactly as
targets were in training; nothing of the prediction is rescaled.
"""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813
import yaml

from synthesis.engine import synthesize
from synthesis.errors import UnusableInput
from synthesis.methods.baselines import LANDMARKS, match_histogram
from synthesis.metrics.ours import (
    coverage,
    mean_absolute_error,
    peak_signal_to_noise,
    structural_similarity,
)
from synthesis.people import Person
from synthesis.preparation import HU_HIGH, HU_LOW, read_image
from synthesis.preprocessing import (
    affine_of,
    correct_bias,
    measure_scale,
    resample,
    to_canonical,
    to_image,
)
from synthesis.registration import Registration, register_rigid
from synthesis.registry import CONSTANTS, LEARNT, Metric, ModelCard
from synthesis.types import (
    UNITS_PER_NORMALIZED,
    ContrastLabel,
    FloatArray,
    MaskArray,
    Synthesis,
    Verdict,
    Volume,
)

BONE_HU = 200.0
FEWEST_VOXELS = 1000
"""Fewer voxels in common are no comparison."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One person, one target, one set of sources.

    Attributes:
        psnr_db, ssim, mae: of the model; MAE in the target's units.
        copy_psnr_db: of the best source, matched to the truth's own histogram: an oracle that no
            real copy can beat. For CT: of one constant value per body.
        copy_mae: the same baseline's MAE.
        band_coverage: share of voxels whose truth lies within the 90 % band.
        bone_mae: for CT, MAE where the truth is above 200 HU.
    """

    subject: str
    target: str
    sources: tuple[str, ...]
    verdict: str
    reasons: tuple[str, ...]
    psnr_db: float | None = None
    ssim: float | None = None
    mae: float | None = None
    copy_psnr_db: float | None = None
    copy_mae: float | None = None
    band_coverage: float | None = None
    bone_mae: float | None = None
    seconds: float | None = None

    def as_dict(self) -> dict[str, object]:
        """Return the row as JSON types."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A synthesis and its truth on one grid, in the target's units."""

    synthesis: Synthesis
    truth: FloatArray
    mask: MaskArray


def evaluate(
    card: ModelCard,
    people: Sequence[Person],
    *,
    models_folder: Path,
    data_folder: Path,
    targets: Sequence[str] | None = None,
    all_subsets: bool = False,
) -> Iterator[Row]:
    """Yield one row for each person and target, given all other contrasts (or every subset).

    Args:
        card: of the model to judge.
        people: held-out people; the card must not list them as trained on.
        models_folder: where the model lies.
        data_folder: where the people's images lie.
        targets: only these; all of the card's when None.
        all_subsets: also every smaller set of sources.
    """
    for person in people:
        volumes = {
            ContrastLabel(label): volume_of(read_image(data_folder, path))
            for label, path in person.images.items()
        }
        for target in targets or [t for t in card.targets if t in volumes]:
            others = [s for s in card.sources if s in volumes and s != target]
            smallest = 1 if all_subsets else len(others)
            for count in range(smallest, len(others) + 1):
                for subset in itertools.combinations(others, count):
                    yield _judge(
                        card,
                        person.subject,
                        {ContrastLabel(s): volumes[ContrastLabel(s)] for s in subset},
                        volumes[ContrastLabel(target)],
                        ContrastLabel(target),
                        models_folder,
                        aligned=person.is_aligned,
                    )


def volume_of(image: sitk.Image) -> Volume:
    """Return a SimpleITK image as a volume."""
    return Volume(
        array=sitk.GetArrayFromImage(image), affine=affine_of(image), coordinate_system="PATIENT"
    )


def align(truth: Volume, reference: Volume) -> Registration:
    """Return how the truth lies to the reference source, as the engine registers sources."""
    fixed, moving = (
        to_canonical(sitk.Cast(to_image(each), sitk.sitkFloat32)) for each in (reference, truth)
    )
    return register_rigid(fixed, moving, seed=0)


def compare_with_truth(
    synthesis: Synthesis, truth: Volume, reference: Volume, *, card: ModelCard
) -> dict[str, float]:
    """Return how far a synthesis is from the real series, where both have data.

    A real PET of the same frame of reference is compared where it lies: one machine made both, and
    mutual information with so blurred an image would move it by millimeters that nobody moved.
    Everything else is registered first.

    Args:
        synthesis: on the grid of the reference, not refused.
        truth: the real series; CT in HU, PET in SUVbw, MR in its scanner's units.
        reference: the source whose grid the synthesis has.
        card: of the model.

    Returns:
        `psnr_db`, `ssim` and `mae` (in the target's units).

    Raises:
        UnusableInput: the two cannot be laid on each other, or have nothing in common.
    """
    transform = None
    frame = truth.frame_of_reference_uid
    if synthesis.units != "SUVbw" or frame is None or frame != reference.frame_of_reference_uid:
        found = align(truth, reference)
        if not found.is_trusted:
            raise UnusableInput(
                "registration", "the real series cannot be aligned to the reference"
            )
        transform = found.transform
    pair = place_truth(synthesis, truth, card=card, transform=transform)
    if int(pair.mask.sum()) < FEWEST_VOXELS:
        raise UnusableInput("overlap", f"fewer than {FEWEST_VOXELS} voxels in common")
    made = np.asarray(synthesis.volume.array, dtype=np.float32)
    return {
        "psnr_db": peak_signal_to_noise(pair.truth, made, pair.mask),
        "ssim": structural_similarity(pair.truth, made, pair.mask),
        "mae": mean_absolute_error(pair.truth, made, pair.mask),
    }


def place_truth(
    synthesis: Synthesis,
    truth: Volume,
    *,
    card: ModelCard,
    transform: sitk.Transform | None,
) -> Pair:
    """Bring the truth onto the synthesis's grid and into its units; MR as a training target.

    Args:
        synthesis: on its grid, not refused.
        truth: the real series; CT in HU, PET in SUVbw, MR in its scanner's units.
        card: of the model.
        transform: of `align`; None when the two are aligned already.
    """
    is_ct = synthesis.units == "HU"
    covered = synthesis.covered.array > 0
    grid = to_image(synthesis.volume)
    image = sitk.Cast(to_image(truth), sitk.sitkFloat32)
    placed = resample(image, grid, transform, outside=HU_LOW if is_ct else 0.0)
    array = sitk.GetArrayFromImage(placed).astype(np.float32)
    inside_truth = sitk.Image(image.GetSize(), sitk.sitkUInt8) + 1
    inside_truth.CopyInformation(image)
    seen = sitk.GetArrayFromImage(resample(inside_truth, grid, transform, nearest=True)) > 0
    mask = covered & seen
    if is_ct:
        return Pair(synthesis=synthesis, truth=np.clip(array, HU_LOW, HU_HIGH), mask=mask)
    if synthesis.units == "SUVbw":
        return Pair(synthesis=synthesis, truth=array, mask=mask)
    mask_image = sitk.GetImageFromArray(mask.astype(np.uint8))
    mask_image.CopyInformation(grid)
    flat = correct_bias(placed, mask_image)
    flat = measure_scale(flat, mask, card.anchor).forward(flat) * np.float32(UNITS_PER_NORMALIZED)
    return Pair(synthesis=synthesis, truth=flat, mask=mask)


def _judge(
    card: ModelCard,
    subject: str,
    sources: Mapping[ContrastLabel, Volume],
    truth: Volume,
    target: ContrastLabel,
    models_folder: Path,
    *,
    aligned: bool,
) -> Row:
    reference = next(iter(sources))
    names = tuple(str(s) for s in sources)
    try:
        synthesis = synthesize(
            sources,
            target=target,
            reference=reference,
            model_id=card.id,
            model_digest=card.digest,
            models_folder=models_folder,
            seed=0,
        )
    except UnusableInput as error:
        return Row(
            subject=subject,
            target=target,
            sources=names,
            verdict=Verdict.REFUSE,
            reasons=(f"{error.code}: {error}",),
        )
    if synthesis.quality.verdict is Verdict.REFUSE:
        return Row(
            subject=subject,
            target=target,
            sources=names,
            verdict=Verdict.REFUSE,
            reasons=synthesis.quality.reasons,
        )
    is_ct = synthesis.units == "HU"
    transform = None if aligned else align(truth, sources[reference]).transform
    pair = place_truth(synthesis, truth, card=card, transform=transform)
    made = np.asarray(synthesis.volume.array, dtype=np.float32)
    if is_ct:
        constants = json.loads((models_folder / card.id / LEARNT / CONSTANTS).read_text())
        constant = constants[target] * UNITS_PER_NORMALIZED
        copies = [np.where(pair.mask, constant, HU_LOW).astype(np.float32)]
    else:
        copies = list(_oracle_copies(sources, pair, aligned=aligned))
    best = max(copies, key=lambda copy: peak_signal_to_noise(pair.truth, copy, pair.mask))
    bone = pair.mask & (pair.truth > BONE_HU)
    band = None
    if synthesis.half_width is not None:
        width = synthesis.half_width.array
        band = coverage(pair.truth, made - width, made + width, pair.mask)
    return Row(
        subject=subject,
        target=target,
        sources=names,
        verdict=synthesis.quality.verdict,
        reasons=synthesis.quality.reasons,
        psnr_db=peak_signal_to_noise(pair.truth, made, pair.mask),
        ssim=structural_similarity(pair.truth, made, pair.mask),
        mae=mean_absolute_error(pair.truth, made, pair.mask),
        copy_psnr_db=peak_signal_to_noise(pair.truth, best, pair.mask),
        copy_mae=mean_absolute_error(pair.truth, best, pair.mask),
        band_coverage=band,
        bone_mae=mean_absolute_error(pair.truth, made, bone) if is_ct and bone.any() else None,
        seconds=sum(synthesis.seconds.values()),
    )


def _oracle_copies(
    sources: Mapping[ContrastLabel, Volume], pair: Pair, *, aligned: bool
) -> Iterator[FloatArray]:
    landmarks = [float(v) for v in np.percentile(pair.truth[pair.mask], LANDMARKS)]
    reference = next(iter(sources.values()))
    grid = to_image(pair.synthesis.volume)
    for volume in sources.values():
        image = sitk.Cast(to_image(volume), sitk.sitkFloat32)
        transform = None
        if volume is not reference and not aligned:
            transform = align(volume, reference).transform
        array = sitk.GetArrayFromImage(resample(image, grid, transform)).astype(np.float32)
        yield match_histogram(array, pair.mask, landmarks)


def summarize(rows: Sequence[Row]) -> list[Metric]:
    """Return the mean over people of each figure, for each target, given all other contrasts."""
    summary = []
    for target in dict.fromkeys(row.target for row in rows):
        full: dict[str, Row] = {}
        for row in rows:
            best = full.get(row.subject)
            if row.target != target or row.psnr_db is None:
                continue
            if best is None or len(row.sources) > len(best.sources):
                full[row.subject] = row
        if not full:
            continue
        is_ct = any(row.bone_mae is not None for row in full.values())
        baseline = "constant" if is_ct else "matched copy"
        for name, field, other in (
            ("psnr_db", "psnr_db", "copy_psnr_db"),
            ("ssim", "ssim", None),
            ("mae", "mae", "copy_mae"),
            ("bone_mae", "bone_mae", None),
            ("band_coverage", "band_coverage", None),
        ):
            values = {s: getattr(row, field) for s, row in full.items()}
            values = {s: v for s, v in values.items() if v is not None}
            if not values:
                continue
            against = None
            if other is not None:
                against = float(np.mean([getattr(full[s], other) for s in values]))
            summary.append(
                Metric(
                    target=target,
                    sources=tuple(dict.fromkeys(s for r in full.values() for s in r.sources)),
                    name=name,
                    value=round(float(np.mean(list(values.values()))), 4),
                    n=len(values),
                    subjects=tuple(sorted(values)),
                    baseline=baseline if against is not None else "",
                    baseline_value=None if against is None else round(against, 4),
                )
            )
    return summary


def write_metrics(card_path: Path, summary: Sequence[Metric]) -> None:
    """Write figures into a card in place of those of their names; the digest stays as it is."""
    facts = yaml.safe_load(card_path.read_text())
    names = {metric.name for metric in summary}
    kept = [metric for metric in facts.get("metrics", ()) if metric["name"] not in names]
    facts["metrics"] = [*(metric.model_dump(mode="json") for metric in summary), *kept]
    card_path.write_text(yaml.safe_dump(facts, sort_keys=False, allow_unicode=True, width=100))
