"""The traditional methods' own arithmetic, against scikit-learn's on the same numbers."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.decomposition import sparse_encode
from sklearn.ensemble import RandomForestRegressor

from synthesis.methods.dictionary import pursue
from synthesis.methods.features import draw_voxels
from synthesis.methods.forest import read_forest
from synthesis.methods.pieces import ANSWER_RADIUS, cut, find_places, lay
from synthesis.types import Case, ContrastLabel, SynthesisTask

T1W, T2W = ContrastLabel("T1w"), ContrastLabel("T2w")
TASK = SynthesisTask(sources=(T1W,), targets=(T2W,))


def make_regressor(trees: int = 7) -> tuple[RandomForestRegressor, np.ndarray]:
    generator = np.random.default_rng(4)
    x = generator.normal(size=(3000, 6)).astype(np.float32)
    y = (np.sin(3 * x[:, 0]) + x[:, 1] * x[:, 2]).astype(np.float32)
    regressor = RandomForestRegressor(trees, min_samples_leaf=3, random_state=1).fit(x, y)
    # values that lie on a threshold go left in both
    on_edges = np.full((200, 6), regressor.estimators_[0].tree_.threshold[0], np.float32)
    return regressor, np.vstack([generator.normal(size=(9000, 6)).astype(np.float32), on_edges])


def test_forest_answers_as_scikit_learn_does() -> None:
    regressor, x = make_regressor()

    mean, _ = read_forest(regressor).predict(x.T)

    np.testing.assert_allclose(mean, regressor.predict(x), rtol=0, atol=2e-7 * np.abs(mean).max())


def test_every_tree_ends_in_the_leaf_that_scikit_learn_finds() -> None:
    regressor, x = make_regressor()
    forest = read_forest(regressor)

    leaves = forest.find_leaves(x.T)

    for tree, found in zip(regressor.estimators_, leaves, strict=True):
        value = tree.tree_.value[tree.apply(x), 0, 0].astype(np.float32)
        np.testing.assert_array_equal(forest.value[found], value)


def test_forest_of_one_leaf_answers() -> None:
    x = np.zeros((50, 2), np.float32)
    regressor = RandomForestRegressor(3, random_state=0).fit(x, np.full(50, 0.25))

    mean, spread = read_forest(regressor).predict(x.T)

    assert (mean == 0.25).all()
    assert (spread == 0).all()


def test_matching_pursuit_finds_the_codes_of_scikit_learn() -> None:
    generator = np.random.default_rng(2)
    atoms = generator.normal(size=(40, 27)).astype(np.float32)
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    patches = generator.normal(size=(100, 27)).astype(np.float32)

    chosen, weights = pursue(patches, atoms, 4)

    codes = np.zeros((100, 40))
    np.put_along_axis(codes, chosen, weights, axis=1)
    known = sparse_encode(patches, atoms, algorithm="omp", n_nonzero_coefs=4)
    np.testing.assert_allclose(codes, known, rtol=0, atol=1e-4)


@pytest.mark.parametrize("shape", [(9, 12, 11), (1, 6, 7), (8, 8, 8)])
def test_cubes_that_are_cut_and_laid_give_the_image_back(shape: tuple[int, int, int]) -> None:
    generator = np.random.default_rng(3)
    image, mask = generator.normal(size=shape).astype(np.float32), generator.random(shape) < 0.6
    places = find_places(mask)

    again = lay(cut([image], places, ANSWER_RADIUS), places, mask)

    np.testing.assert_allclose(again, np.where(mask, image, 0), rtol=0, atol=1e-6)


def make_person(lesion_voxels: int) -> Case:
    """Return a person whose truth is the number of the voxel, negative in the lesion."""
    shape = (6, 20, 20)
    truth = 1 + np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    mask = truth > 400
    labels = np.zeros(shape, np.uint8)
    labels[3].flat[:lesion_voxels] = 4
    labels[0] = 1  # outside the mask: teaches nobody
    truth[labels > 0] *= -1
    return Case(
        subject="one",
        images={T1W: truth, T2W: truth},
        mask=mask,
        spacing=(3.0, 1.0, 1.0),
        labels=labels,
    )


def draw(case: Case, lesion_share: float) -> np.ndarray:
    generator = np.random.default_rng(3)
    _, truths = draw_voxels([case], TASK, T2W, 500, generator, lesion_share=lesion_share)
    return truths


def test_voxels_hold_the_share_of_lesions_that_is_asked() -> None:
    truths = draw(make_person(300), 0.4)

    assert len(np.unique(truths)) == 500
    assert (truths[:200] < 0).all()
    assert 200 <= (truths < 0).sum() < 260  # 100 of the other 1,800 voxels are of the lesion, too
    assert (np.abs(truths) > 400).all()


def test_all_of_a_lesion_is_drawn_that_is_smaller_than_the_share() -> None:
    truths = draw(make_person(30), 0.4)

    assert (truths < 0).sum() == 30
    assert len(np.unique(truths)) == 500


def test_voxels_are_drawn_evenly_without_a_share_or_without_labels() -> None:
    case = make_person(300)
    places = np.random.default_rng(3).choice(2000, 500, replace=False)

    for person, share in ((case, 0.0), (replace(case, labels=None), 0.4)):
        np.testing.assert_array_equal(draw(person, share), case.images[T2W][case.mask][places])
