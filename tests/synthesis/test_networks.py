"""Networks and what they are trained by: tiles, edges, shifts, regions, single images."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor, nn

from synthesis.augmentation import Batch, Stock
from synthesis.methods import build_method
from synthesis.methods.segmentation import classify, cross_entropy, dice_loss
from synthesis.metrics.ours import mean_absolute_error
from synthesis.networks import (
    ConditionedUNet,
    ConditionedVolumeUNet,
    DiffusionUNet,
    DilatedCNN,
    UNetShape,
    sobel,
    warp,
)
from synthesis.patches import tile_starts, tile_weights
from synthesis.phantom import render
from synthesis.speed import make_head
from synthesis.types import Case, ContrastLabel, SynthesisTask

T1W, T2W = ContrastLabel("T1w"), ContrastLabel("T2w")
TASK = SynthesisTask(sources=(T1W,), targets=(T2W,), required=(T1W,))
SHIFT = 2


def make_image(seed: int) -> Case:
    """Return one slice of a head whose target is a curve of its source."""
    phantom = render(seed=seed, spacing=(6.0, 3.0, 3.0))
    middle = slice(15, 16)
    mask = phantom.brain[middle]
    source = np.where(mask, phantom.images[T1W][middle] / 1000, 0).astype(np.float32)
    target = np.where(mask, 1.2 - source, 0).astype(np.float32)
    return Case(
        subject=f"image-{seed}",
        images={T1W: source, T2W: target},
        mask=mask,
        spacing=(1.0, 3.0, 3.0),
        labels=phantom.tissues[middle],
    )


def make_shifted(seed: int) -> Case:
    """Return one slice of blobs whose target lies some pixels farther along the columns."""
    field = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(1, 96, 96)), (0, 3, 3))
    source = (0.5 + 0.3 * np.tanh(2 * field / field.std())).astype(np.float32)
    mask = np.zeros(source.shape, bool)
    mask[:, 6:-6, 6:-6] = True
    return Case(
        subject=f"blobs-{seed}",
        images={T1W: source, T2W: np.roll(1.1 - source, SHIFT, axis=2)},
        mask=mask,
        spacing=(1.0, 1.0, 1.0),
    )


@pytest.mark.parametrize(
    ("count", "size", "overlap"), [(96, 96, 0.5), (97, 96, 0.5), (200, 64, 0.7)]
)
def test_tiles_cover_the_axis_and_overlap_as_asked(count: int, size: int, overlap: float) -> None:
    starts = tile_starts(count, size, overlap)

    assert (starts[0], starts[-1]) == (0, count - size)
    assert all(
        after - before <= size * (1 - overlap) + 1 for before, after in itertools.pairwise(starts)
    )


def test_tiles_of_an_image_add_up_to_the_image() -> None:
    image = np.random.default_rng(0).normal(size=(20, 33, 41)).astype(np.float32)
    total, share = np.zeros_like(image), np.zeros_like(image)
    weights = tile_weights((8, 16, 16))
    for z in tile_starts(20, 8, 0.5):
        for y in tile_starts(33, 16, 0.5):
            for x in tile_starts(41, 16, 0.5):
                where = (slice(z, z + 8), slice(y, y + 16), slice(x, x + 16))
                total[where] += weights * image[where]
                share[where] += weights

    np.testing.assert_allclose(total / share, image, rtol=0, atol=1e-5)


def test_slope_of_one_has_an_edge_of_one() -> None:
    ramp = torch.arange(9.0).expand(1, 1, 7, 9)

    edges = sobel(ramp)

    torch.testing.assert_close(edges[..., 1:-1], torch.ones(1, 1, 7, 7), rtol=0, atol=1e-4)
    assert sobel(torch.full((1, 1, 5, 5), 3.0)).max() < 1e-3


def test_warp_takes_each_pixel_from_where_the_shift_points() -> None:
    image = torch.rand(1, 1, 8, 10)
    shift = torch.zeros(1, 2, 8, 10)
    shift[:, 0] = 2

    torch.testing.assert_close(warp(image, shift)[..., :8], image[..., 2:])
    torch.testing.assert_close(warp(image, torch.zeros_like(shift)), image)


def make_batch(labels: list[list[int]], weight: list[list[float]]) -> Batch:
    one = torch.ones(1, 1, 2, 2)
    return Batch(
        stack=one[None],
        condition=torch.ones(1, 2),
        truth=one,
        weight=torch.tensor(weight)[None, None],
        labels=torch.tensor(labels)[None],
    )


def test_regions_become_classes_and_what_nobody_knows_costs_nothing() -> None:
    batch = make_batch([[0, 4], [2, 1]], [[1, 1], [1, 0]])
    unlabelled = make_batch([[-1, -1], [-1, -1]], [[1, 1], [1, 1]])
    odds = torch.randn(1, 3, 2, 2)

    assert classify(batch, ((1, 4), (2,))).tolist() == [[[0, 1], [2, -1]]]
    nobody = classify(unlabelled, ((1, 4), (2,)))
    assert (nobody == -1).all()
    assert cross_entropy(odds, nobody) == 0
    assert dice_loss(odds, nobody) == 0


def test_sure_and_right_segmentation_costs_nothing() -> None:
    classes = torch.tensor([[[0, 1], [2, -1]]])
    odds = 50 * torch.nn.functional.one_hot(classes.clamp_min(0), 3).movedim(-1, 1).float()

    assert cross_entropy(odds, classes) < 1e-6
    assert dice_loss(odds, classes) < 1e-6
    assert dice_loss(-odds, classes) > 0.4


def test_labels_are_drawn_where_their_image_lies() -> None:
    image, mask = make_head((24, 40, 32), seed=1)
    labels = np.zeros(image.shape, np.uint8)
    labels[:, 12:, 14:] = 3
    case = Case(
        subject="one",
        images={T1W: image, T2W: labels.astype(np.float32)},
        mask=mask,
        spacing=(1.0, 1.0, 1.0),
        labels=labels,
    )

    batch = Stock([case], TASK, torch.device("cpu")).draw(
        6, size=32, slices=1, views=(0,), generator=np.random.default_rng(1), labels=True
    )

    # interpolation blurs the image of the labels, and nothing else may part them
    inside = batch.weight[:, 0] > 0
    agree = (batch.truth[:, 0] > 1.5) == (batch.labels == 3)
    assert agree[inside].float().mean() > 0.95


def test_whole_truth_holds_the_center_slice() -> None:
    image, mask = make_head((24, 40, 32), seed=1)
    case = Case(
        subject="one", images={T1W: image, T2W: 1 - image}, mask=mask, spacing=(1.0, 1.0, 1.0)
    )
    stock = Stock([case], TASK, torch.device("cpu"))

    flat, whole = (
        stock.draw(3, size=16, slices=5, views=(0,), generator=np.random.default_rng(1), whole=w)
        for w in (False, True)
    )

    assert whole.truth.shape == (3, 1, 5, 16, 16)
    assert torch.equal(whole.truth[:, :, 2], flat.truth)


def _two_targets(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Return a network of two targets and what it is asked, its first target wanted."""
    shape = UNetShape(sources=2, targets=2, slices=1, width=8, levels=2)
    flat = torch.rand(1, 2, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    wanted = torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    match name:
        case "slices":
            return ConditionedUNet(shape), (flat, wanted)
        case "pixels":
            return DilatedCNN(shape), (flat, wanted)
        case "states":
            return DiffusionUNet(shape), (flat, wanted, flat[:, 0], torch.zeros(1))
        case _:
            volumes = ConditionedVolumeUNet(sources=2, targets=2, width=8, levels=2)
            return volumes, (flat.expand(-1, -1, 8, -1, -1), wanted)


@pytest.mark.parametrize(
    ("name", "last"),
    [("slices", "refine.2"), ("pixels", "layers.10"), ("states", "refine.2"), ("volumes", "head")],
)
def test_each_target_has_a_last_layer_of_its_own(name: str, last: str) -> None:
    network, asked = _two_targets(name)

    network(*asked).sum().backward()

    gradient = network.get_parameter(f"{last}.weight").grad
    assert gradient is not None
    wanted, other = gradient.chunk(2)
    assert wanted.abs().max() > 0
    assert other.abs().max() == 0


def test_single_images_are_learnt() -> None:
    small: dict[str, Any] = {
        "width": 8,
        "levels": 2,
        "steps": 200,
        "crop": 32,
        "batch": 8,
        "learning_rate": 5e-3,
    }
    method = build_method("unet2d", TASK, small, device="cpu")
    method.fit([make_image(seed) for seed in (1, 2, 3)], seed=3)
    case = make_image(9)

    made = method.predict(
        {T1W: case.images[T1W]}, target=T2W, mask=case.mask, spacing=case.spacing, seed=0
    ).mean

    constant = np.full_like(made, np.median(case.images[T2W][case.mask]))
    errors = [mean_absolute_error(case.images[T2W], m, case.mask) for m in (constant, made)]
    assert errors[1] < 0.5 * errors[0]


def test_registration_recovers_the_shift_of_the_truth() -> None:
    small: dict[str, Any] = {
        "width": 8,
        "levels": 2,
        "steps": 250,
        "crop": 48,
        "batch": 4,
        "slices": 1,
        "views": (0,),
        "learning_rate": 5e-3,
        "registration_width": 8,
        "discriminator_width": 8,
    }
    cases = [make_shifted(seed) for seed in range(4)]
    method = build_method("reggan", TASK, small, device="cpu").fit(cases, seed=3)

    batch = Stock(cases, TASK, torch.device("cpu")).draw(
        16, size=48, slices=1, views=(0,), generator=np.random.default_rng(4)
    )
    shift = method.find_shift(batch)
    length = torch.linalg.vector_norm(shift, dim=1)[batch.weight[:, 0] > 0]
    assert float(length.mean()) == pytest.approx(SHIFT, abs=0.5)


def test_one_step_of_a_bridge_is_its_mean_and_draws_spread() -> None:
    small: dict[str, Any] = {
        "width": 8,
        "levels": 2,
        "steps": 30,
        "crop": 32,
        "batch": 4,
        "slices": 1,
        "views": (0,),
    }
    case = make_image(1)
    learnt = build_method("bridge", TASK, small, device="cpu").fit([case], seed=3)

    def answer(**changes: int) -> Any:
        method = build_method("bridge", TASK, small | changes, device="cpu")
        method.network_ = learnt.network_
        return method.predict(
            {T1W: case.images[T1W]}, target=T2W, mask=case.mask, spacing=case.spacing, seed=5
        )

    one, many = answer(), answer(samples=3)
    assert one.lower is None
    np.testing.assert_allclose(many.mean, one.mean, rtol=0, atol=1e-5)
    spread = answer(samples=3, sampling_steps=5)
    assert (spread.upper - spread.lower)[case.mask].mean() > 1e-3
