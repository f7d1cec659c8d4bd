"""Bone months after a craniotomy: the rim is resorbed to a rounded or slanting edge, and spurs grow into the defect."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy import ndimage

from pcdiff.data.cases import LoadedCase
from pcdiff.geometry.grid import bounding_box, box_slices
from pcdiff.geometry.volume import Volume

ROUNDING_MM = (1.5, 3.5)  # standard deviation of the Gaussian that rounds the edge
REACH = 3.0  # of its standard deviations from the defect, bone is resorbed
SPURS = (0, 3)  # of each skull
SPUR_MM = (1.0, 2.5)  # radius
LEVEL = (0.5, 0.62)  # of the smoothed bone where the new surface lies: above 0.5 the edge recedes


def healed(case: LoadedCase, rng: np.random.Generator) -> LoadedCase:
    """The same defect with a healed rim; its implant also replaces the bone that was resorbed.

    The random draw takes rounding, resorption, and the number, places and sizes of the spurs. Spurs grow on the brain's
    side of the rim. Skull and implant stay disjoint.
    """
    sigma, level = rng.uniform(*ROUNDING_MM), rng.uniform(*LEVEL)
    skull, implant = case.defective_skull, case.implant
    low, high = bounding_box(implant.mask)
    margin = np.ceil(2 * REACH * sigma / implant.spacing).astype(int) + 2
    low, high = np.maximum(low - margin, 0), np.minimum(high + margin, implant.mask.shape)
    bone, hole = (volume.mask[box_slices(low, high)] for volume in (skull, implant))

    soft = ndimage.gaussian_filter(bone.astype(np.float32), sigma / implant.spacing)
    away = ndimage.distance_transform_edt(~hole, sampling=implant.spacing)
    resorbed = bone & (soft < level) & (away < REACH * sigma)
    rest = _reaching_the_border(bone & ~resorbed)
    spurs = _spurs(rest, hole | (bone & ~rest), implant, low, case, rng)
    mask, filled = skull.mask.copy(), implant.mask.copy()
    mask[box_slices(low, high)] = rest | spurs
    filled[box_slices(low, high)] = (hole | (bone & ~rest)) & ~spurs
    return replace(case, defective_skull=skull.with_mask(mask), implant=implant.with_mask(filled))


def _reaching_the_border(bone: np.ndarray) -> np.ndarray:
    """The components that go on beyond the array: no crumbs are left in the defect."""
    labels, _ = ndimage.label(bone)
    border = np.ones_like(bone)
    border[1:-1, 1:-1, 1:-1] = False
    return np.isin(labels, labels[border & bone])


def _spurs(
    bone: np.ndarray, hole: np.ndarray, grid: Volume, low: np.ndarray, case: LoadedCase, rng: np.random.Generator
) -> np.ndarray:
    """Balls of new bone, half in the rim, on the side of the middle of the head."""
    rim = np.argwhere(ndimage.binary_dilation(hole) & bone)
    spurs = np.zeros_like(bone)
    if not len(rim):
        return spurs
    centre = grid.to_mm(np.argwhere(case.defective_skull.mask)[::97]).mean(0)
    depth = np.linalg.norm(grid.to_mm(rim + low) - centre, axis=1)
    inner = rim[depth < np.quantile(depth, 0.4)]
    for _ in range(int(rng.integers(SPURS[0], SPURS[1] + 1))):
        at = grid.to_mm(inner[rng.integers(len(inner))] + low)
        radius = rng.uniform(*SPUR_MM)
        near = np.argwhere(hole)
        spurs[tuple(near[np.linalg.norm(grid.to_mm(near + low) - at, axis=1) < radius].T)] = True
    return spurs
