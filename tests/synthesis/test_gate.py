"""The gate of the shipped brain model: held-out people pass, what must not pass does not."""

from pathlib import Path

import numpy as np
import pytest

from doubles.tools import require_data
from synthesis.engine import synthesize
from synthesis.evaluation import volume_of
from synthesis.people import read_manifest
from synthesis.phantom import render
from synthesis.preparation import prepare, read_image
from synthesis.preprocessing import measure_scale
from synthesis.quality import check_input
from synthesis.registry import LEARNT, load_card
from synthesis.types import Anchor, Case, ContrastLabel, Verdict

ROOT = Path(__file__).parents[2]
MODELS = ROOT / "models"
LEARNT_FOLDER = MODELS / "brain-any-unet25d" / LEARNT
T1W, T2W, FLAIR = (ContrastLabel(name) for name in ("T1w", "T2w", "FLAIR"))


def read_case(subject: str) -> Case:
    data = require_data()
    people = read_manifest(ROOT / "config/experiments/people.yaml").people
    [person] = [p for p in people if p.subject == subject]
    return prepare(person, data, spacing_mm=1.0, anchor=Anchor())


def render_case() -> Case:
    phantom = render()
    mask = phantom.brain
    images = {}
    for label in (T1W, T2W, FLAIR):
        scaled = measure_scale(phantom.images[label], mask, Anchor()).forward(phantom.images[label])
        images[label] = np.where(mask, scaled, 0).astype(np.float32)
    return Case(subject="phantom", images=images, mask=mask, spacing=phantom.spacing)


@pytest.fixture(scope="module", params=["phantom", "stroke-1", "openms_cs-26"])
def case(request: pytest.FixtureRequest) -> Case:
    return render_case() if request.param == "phantom" else read_case(request.param)


def judge(case: Case, **labelled: np.ndarray) -> Verdict:
    sources = {ContrastLabel(label): image for label, image in labelled.items()}
    return check_input(sources, case.mask, case.spacing, LEARNT_FOLDER).verdict


def test_a_person_that_the_model_never_met_passes(case: Case) -> None:
    for label in (T1W, T2W, FLAIR):
        assert judge(case, **{label: case.images[label]}) is Verdict.PASS


def test_a_swapped_pair_is_refused(case: Case) -> None:
    assert judge(case, T1w=case.images[T2W], T2w=case.images[T1W]) is Verdict.REFUSE
    assert judge(case, T2w=case.images[FLAIR], FLAIR=case.images[T2W]) is Verdict.REFUSE


def test_noise_is_refused(case: Case) -> None:
    generator = np.random.default_rng(0)
    noise = generator.normal(0.5, 0.2, case.mask.shape).astype(np.float32)
    drowned = case.images[T1W] + generator.normal(0, 0.3, case.mask.shape).astype(np.float32)

    for image in (noise, drowned):
        assert judge(case, T1w=np.where(case.mask, image, 0)) is Verdict.REFUSE


@pytest.mark.integration
def test_another_anatomy_is_refused() -> None:
    data = require_data()
    card = load_card(MODELS, "brain-any-unet25d")
    limb = volume_of(read_image(data, "sts_ctmrpet_nifti/STS_015/MR_T1_image.nii.gz"))

    answer = synthesize(
        {T1W: limb},
        target=T2W,
        reference=T1W,
        model_id=card.id,
        model_digest=card.digest,
        models_folder=MODELS,
        seed=0,
    )

    assert answer.quality.verdict is Verdict.REFUSE
