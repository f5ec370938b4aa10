"""Radiographs of a CT: what an X-ray detector behind it would have measured, and the bone in it.

    I = sum_k w_k exp(-(mu/rho)_s(E_k) t_s - (mu/rho)_b(E_k) t_b),    p = -ln I

the law of Beer and Lambert for a beam of several energies through two materials (Alvarez and
Macovski 1976, Phys Med Biol 21:733). t_s and t_b are line integrals of density in g/cm2, of soft
tissue and of cortical bone, along parallel rays. The attenuation of both is Hubbell and Seltzer's
(NIST 126, 1995: ICRU-44 cortical bone; water for soft tissue). What the bone adds to the signal,
p(t_s, t_b) - p(t_s, 0), is the image that a dual-energy exposure would give of it.
"""

from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk  # noqa: N813
from numpy.typing import NDArray
from scipy import ndimage

from synthesis.types import FloatArray, MaskArray

ENERGIES_KEV = (30, 40, 50, 60, 80)
SOFT = np.array([0.3756, 0.2683, 0.2269, 0.2059, 0.1837])
"""Of water, cm2/g, at `ENERGIES_KEV`."""
BONE = np.array([1.331, 0.6655, 0.4242, 0.3148, 0.2229])
"""Of cortical bone, cm2/g, at `ENERGIES_KEV`."""
SPECTRA = np.array(
    [
        [0.30, 0.42, 0.24, 0.04, 0.00],  # a limb at about 55 kV
        [0.20, 0.36, 0.30, 0.14, 0.00],  # at about 65 kV
        [0.12, 0.28, 0.31, 0.22, 0.07],  # at about 85 kV
    ]
)
"""Shares of the detected energy, coarse: tube, filter and detector are nobody's in particular."""
BONE_FROM_HU = 150.0
CORTICAL_HU, CORTICAL_DENSITY = 1700.0, 1.92
MUSCLE_DENSITY = 1.06
SKIN_HU = -400.0
"""Below it is air, or the cloth of the table."""
DEPTH_MM = 2.0
"""Between the samples along a ray."""
PIXEL_MM = 1.0
MM_PER_CM = 10.0
GRAZING_CM = 1.0
"""So far within the outermost voxels of what the field of view cuts, a ray runs along the cut."""
MOST_GRAZING = 0.1
"""Share of a line of the detector's shaded pixels whose rays may run along a cut."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Beam:
    """One exposure.

    Attributes:
        angle: of the rays about the long axis of the CT, in degrees; 0 runs from front to back.
        tilt: of the rays towards the long axis, in degrees.
        spectrum: shares of the detected energy, at `ENERGIES_KEV`.
        photons: on a pixel that nothing shades.
        scatter: smooth light on the whole detector, as a share of the mean of the image.
    """

    angle: float
    tilt: float
    spectrum: tuple[float, ...]
    photons: float
    scatter: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Radiograph:
    """Arrays (rows, columns) of `PIXEL_MM`, feet at the last row.

    The detector ends where a cut of the CT's field of view is seen edge on: the limb goes on there,
    and the straight border of what was computed is nothing that a radiograph shows.

    Attributes:
        signal: -ln of the detected share of the beam, with noise and scatter.
        bone: what bone adds to it, without either.
    """

    signal: FloatArray
    bone: FloatArray


def draw_beam(generator: np.random.Generator) -> Beam:
    """Return an exposure from anywhere about a limb."""
    mixture = generator.dirichlet(np.ones(len(SPECTRA)))
    return Beam(
        angle=float(generator.uniform(0, 360)),
        tilt=float(generator.uniform(-10, 10)),
        spectrum=tuple(float(share) for share in mixture @ SPECTRA),
        photons=float(10 ** generator.uniform(3.5, 5)),
        scatter=float(generator.uniform(0, 0.2)),
    )


def split_materials(hounsfield: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the densities of soft tissue and of bone in g/cm3: a voxel is a mixture of the two."""
    share = np.clip((hounsfield - BONE_FROM_HU) / (CORTICAL_HU - BONE_FROM_HU), 0, 1)
    soft = np.clip(1 + np.minimum(hounsfield, BONE_FROM_HU) / 1000, 0, MUSCLE_DENSITY)
    return (soft * (1 - share)).astype(np.float32), (CORTICAL_DENSITY * share).astype(np.float32)


def find_limb(hounsfield: FloatArray) -> MaskArray:
    """Return the largest thing that is no air: the table is another one."""
    thing = ndimage.binary_opening(hounsfield > SKIN_HU, iterations=2)
    labels, count = ndimage.label(thing)
    if count == 0:
        return np.zeros(hounsfield.shape, np.bool_)
    sizes = ndimage.sum_labels(thing, labels, range(1, count + 1))
    limb = labels == 1 + int(np.argmax(sizes))
    return np.asarray(ndimage.binary_dilation(limb, iterations=1), np.bool_)


def expose(ct: sitk.Image, beam: Beam, generator: np.random.Generator) -> Radiograph:
    """Return the radiograph of a canonical CT in HU; everything beside the limb is air.

    Args:
        ct: axes L, P, S.
        beam: how it is exposed.
        generator: of the noise.
    """
    hounsfield = sitk.GetArrayFromImage(ct).astype(np.float32)
    limb = find_limb(hounsfield)
    soft, bone = (
        _integrate(ct, np.where(limb, density, 0).astype(np.float32), beam)
        for density in split_materials(hounsfield)
    )
    window = _collimate(soft + bone, _integrate(ct, _find_cuts(limb), beam) > GRAZING_CM)
    soft, bone = soft[window], bone[window]
    spectrum = np.array(beam.spectrum)
    whole = _transmit(spectrum, soft, bone)
    detected = (whole + beam.scatter * whole.mean()) / (1 + beam.scatter * whole.mean())
    counted = generator.poisson(detected * beam.photons) / beam.photons
    least = 1 / beam.photons
    return Radiograph(
        signal=(-np.log(np.maximum(counted, least))).astype(np.float32),
        bone=(np.log(_transmit(spectrum, soft, 0 * bone)) - np.log(whole)).astype(np.float32),
    )


def _find_cuts(limb: MaskArray) -> FloatArray:
    """Return 1 where the limb touches the border of the field of view, 0 elsewhere."""
    cuts = limb.copy()
    cuts[1:-1, 1:-1, 1:-1] = False
    return cuts.astype(np.float32)


def _collimate(shade: FloatArray, grazing: MaskArray) -> tuple[slice, slice]:
    """Return the rows and columns of most shade between those whose rays run along a cut."""
    window = [slice(None), slice(None)]
    for axis in (0, 1):  # rows first: all columns of a row that leaves the CT are cut
        shaded = shade[window[0], window[1]] > 0
        along = (grazing[window[0], window[1]] & shaded).sum(axis=1 - axis)
        usable = along <= MOST_GRAZING * shaded.sum(axis=1 - axis)
        runs, count = ndimage.label(usable)
        if count:
            weights = ndimage.sum_labels(
                shade[window[0], window[1]].sum(axis=1 - axis), runs, range(1, count + 1)
            )
            window[axis] = ndimage.find_objects(runs)[int(np.argmax(weights))][0]
    return window[0], window[1]


def _transmit(
    spectrum: NDArray[np.float64], soft: FloatArray, bone: FloatArray
) -> NDArray[np.float64]:
    """Return the share of the beam that comes through so much soft tissue and bone (g/cm2)."""
    through = np.exp(-SOFT[:, None, None] * soft - BONE[:, None, None] * bone)
    return np.asarray(np.tensordot(spectrum, through, axes=1))


def _integrate(ct: sitk.Image, density: FloatArray, beam: Beam) -> FloatArray:
    """Return the line integrals of a density in g/cm2, rows from head to foot."""
    image = sitk.GetImageFromArray(density)
    image.CopyInformation(ct)
    extent = np.array(ct.GetSize()) * np.array(ct.GetSpacing())
    wide = float(np.hypot(extent[0], extent[1]))
    size = [round(wide / PIXEL_MM), round(wide / DEPTH_MM), round(extent[2] / PIXEL_MM)]
    turn = sitk.Euler3DTransform()
    center = ct.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in ct.GetSize()])
    turn.SetCenter(center)
    turn.SetRotation(float(np.deg2rad(beam.tilt)), 0.0, float(np.deg2rad(beam.angle)))
    spacing = np.array([PIXEL_MM, DEPTH_MM, PIXEL_MM])
    grid = sitk.Image(size, sitk.sitkFloat32)
    grid.SetSpacing(spacing.tolist())
    grid.SetOrigin((np.array(center) - (np.array(size) - 1) / 2 * spacing).tolist())
    turned = sitk.Resample(image, grid, turn, sitk.sitkLinear, 0.0)
    summed = sitk.GetArrayFromImage(turned).sum(axis=1) * np.float32(DEPTH_MM / MM_PER_CM)
    return np.asarray(summed[::-1], np.float32)
