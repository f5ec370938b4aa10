"""Coupled dictionaries: a sparse code over source atoms makes the target (Roy 2013, MIMECS).

Both dictionaries are learnt at once on joined patches (Yang 2010, eq. 6), so that a code means the
same in both, by the method of optimal directions (Engan 1999): code, refit the atoms, go on. A new
patch is coded over the source atoms alone by orthogonal matching pursuit in its batch form
(Rubinstein 2008, algorithm 2); the target atoms are refitted to such codes (Zeyde 2010, eq. 8).
Patches are centered by the training mean and not by their own: the level is what tells a tissue.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synthesis.methods.pieces import BLOCK, PieceMethod, PieceParameters
from synthesis.patches import batches
from synthesis.types import FloatArray

RIDGE = 1e-6
"""Keeps two atoms that are nearly the same from being told apart by noise."""
SMALLEST = 1e-6


class DictionaryParameters(PieceParameters):
    """Hyper-parameters of `CoupledDictionary`.

    Attributes:
        used: atoms in the code of a patch.
        passes: times that the training patches are coded and the atoms refitted.
    """

    atoms: int = 256
    used: int = 4
    passes: int = 10
    patches_per_person: int = 5000


class CoupledDictionary(PieceMethod[DictionaryParameters]):
    """Sparse codes over coupled dictionaries, from all sources to each target."""

    parameters_type = DictionaryParameters

    def learn(
        self, x: FloatArray, y: FloatArray, *, seed: int, generator: np.random.Generator
    ) -> dict[str, FloatArray]:
        """Return a pair of dictionaries."""
        p = self.parameters
        center, level = x.mean(axis=0), y.mean(axis=0)
        scale = np.float32(x.std()), np.float32(y.std())
        x, y = (x - center) / scale[0], y - level
        # each side counts the same, however many voxels it has
        joined = np.hstack([x / np.sqrt(x.shape[1]), y / scale[1] / np.sqrt(y.shape[1])])
        joint = learn_atoms(joined, p.atoms, p.used, p.passes, generator)
        atoms = _unit(joint[:, : x.shape[1]])
        return {
            "center": center,
            "scale": scale[0].reshape(1),
            "atoms": atoms,
            "level": level,
            "answers": _refit(x, y, atoms, p.used),
        }

    def answer(self, patches: FloatArray, learnt: Mapping[str, FloatArray]) -> FloatArray:
        """Code each patch over the source atoms, and sum the target's."""
        centered = (patches - learnt["center"]) / learnt["scale"]
        chosen, weights = pursue(centered, learnt["atoms"], self.parameters.used)
        summed = np.einsum("pk,pkv->pv", weights, learnt["answers"][chosen])
        return np.asarray(summed + learnt["level"], np.float32)


def learn_atoms(
    patches: FloatArray, count: int, used: int, passes: int, generator: np.random.Generator
) -> FloatArray:
    """Return (count, voxels) atoms of length one over which the patches have sparse codes."""
    atoms = _unit(patches[generator.choice(len(patches), count, replace=False)])
    for _ in range(passes):
        fitted = _refit(patches, patches, atoms, used)
        is_idle = np.linalg.norm(fitted, axis=1) < SMALLEST
        strangers = generator.choice(len(patches), int(is_idle.sum()), replace=False)
        fitted[is_idle] = patches[strangers]
        atoms = _unit(fitted)
    return atoms


def _refit(patches: FloatArray, wanted: FloatArray, atoms: FloatArray, used: int) -> FloatArray:
    """Return (atoms, values) that make `wanted` best from the patches' codes over the atoms."""
    square = np.eye(len(atoms))
    product = np.zeros((len(atoms), wanted.shape[1]))
    for piece in batches(len(patches), BLOCK):
        chosen, weights = pursue(patches[piece], atoms, used)
        dense = np.zeros((len(chosen), len(atoms)), np.float32)
        np.put_along_axis(dense, chosen, weights, axis=1)
        square += dense.T @ dense
        product += dense.T @ wanted[piece]
    return np.linalg.solve(square, product).astype(np.float32)


def _unit(vectors: FloatArray) -> FloatArray:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, SMALLEST), np.float32)


def pursue(
    patches: FloatArray, atoms: FloatArray, used: int
) -> tuple[NDArray[np.intp], FloatArray]:
    """Return, for each patch, the atoms of its sparse code and their weights, (patches, used).

    Orthogonal matching pursuit: take the atom most like what is left, fit all that were taken,
    and go on (Pati 1993), with correlations instead of residuals (Rubinstein 2008).

    Args:
        patches: (patches, voxels).
        atoms: (atoms, voxels) of length one.
        used: how many atoms a code may have.
    """
    first = patches @ atoms.T  # (patches, atoms)
    gram = atoms @ atoms.T
    left = first.copy()
    chosen = np.empty((len(patches), 0), np.intp)
    weights: NDArray[Any] = np.empty((len(patches), 0), np.float32)
    for _ in range(used):
        np.put_along_axis(left, chosen, 0, axis=1)
        best = np.abs(left).argmax(axis=1)
        chosen = np.column_stack([chosen, best])
        system = gram[chosen[:, :, None], chosen[:, None, :]].astype(np.float64)
        system += RIDGE * np.eye(chosen.shape[1])
        wanted = np.take_along_axis(first, chosen, axis=1).astype(np.float64)
        weights = np.linalg.solve(system, wanted[..., None])[..., 0]
        left = first - np.einsum("pk,pka->pa", weights.astype(np.float32), gram[chosen])
    return chosen, weights.astype(np.float32)
