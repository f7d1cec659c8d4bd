"""Scores of an implant: those of the AutoImplant challenges, and those that Metrics Reloaded adds.

Definitions: Li et al., "AutoImplant 2020", IEEE TMI 2021, and Li et al., "Towards clinical applicability and
computational efficiency in automatic cranial implant design", MedIA 2023, for DSC, border DSC and HD95; Maier-Hein et
al., "Metrics reloaded", Nature Methods 2024, for HD, MASD and NSD. Everything is in mm, on the input grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from pcdiff.errors import InputError
from pcdiff.geometry.grid import bounding_box, box_slices, voxel_border, voxels_per_mm
from pcdiff.geometry.volume import Volume

# The spacing of an oblique grid is rounded; a voxel exactly on the border must count all the same.
ROUNDING_MM = 1e-6
BLOCK_MM = 2.0  # side of the blocks of `distance_bands`
VERSION = 1  # of the definitions; raise it when the meaning of a score changes: results of two are not comparable


@dataclass(frozen=True)
class SurfaceDistances:
    """Distance of each surface voxel of one mask to the nearest surface voxel of the other, centre to centre.

    a_to_b: (Na,) mm, one per surface voxel of a; infinite where b is empty.
    b_to_a: (Nb,) mm, one per surface voxel of b; infinite where a is empty.
    points: (Na + Nb, 3) mm from the grid's first voxel: the surface voxels of a, then those of b.
    """

    a_to_b: np.ndarray
    b_to_a: np.ndarray
    points: np.ndarray

    def percentile(self, q: float) -> float:
        """The q-th percentile of both directed distances *pooled*, mm; 0 for two empty masks, infinite for one.

        Some libraries return the larger of two directed percentiles, which is another number.
        """
        pooled = np.concatenate([self.a_to_b, self.b_to_a])
        if pooled.size == 0:
            return 0.0
        # With an empty mask all distances are infinite, and interpolation between them gives NaN.
        return float(np.percentile(pooled, q)) if np.isfinite(pooled).all() else float("inf")

    @property
    def mean(self) -> float:
        """MASD: the mean of the two directed means, mm; 0 for two empty masks, infinite for one."""
        means = [distances.mean() for distances in (self.a_to_b, self.b_to_a) if distances.size]
        return float(np.mean(means)) if means else 0.0

    def share_within(self, mm: float) -> float:
        """NSD: the share of both surfaces' voxels at most `mm` from the other surface, 0 to 1; 1 for two empty masks.

        A voxel stands for its piece of surface, as in the reference implementation of Metrics Reloaded; Nikolov et al.
        2021 weight each by its area.
        """
        pooled = np.concatenate([self.a_to_b, self.b_to_a])
        return float((pooled <= mm + ROUNDING_MM).mean()) if pooled.size else 1.0


@dataclass(frozen=True)
class Scores:
    """dsc, bdsc and the NSD at 0.5 and 1 mm: 0 to 1, higher is better. hd95, hd and masd: mm, lower is better."""

    dsc: float
    bdsc: float
    hd95: float
    hd: float
    masd: float
    nsd_05mm: float
    nsd_1mm: float


def dice(a: np.ndarray, b: np.ndarray) -> float:
    """DSC = 2 |a and b| / (|a| + |b|) of two bool masks of the same shape; 1 for two empty masks."""
    total = np.count_nonzero(a) + np.count_nonzero(b)
    return 2.0 * np.count_nonzero(a & b) / total if total else 1.0


def border_dice(
    a: np.ndarray, b: np.ndarray, defective_skull: np.ndarray, spacing: np.ndarray, border_mm: float = 10.0
) -> float:
    """DSC of the voxels at most `border_mm` (Euclidean) from the nearest voxel of the *defective skull*.

    Args:
        a: (I, J, K) bool.
        b: (I, J, K) bool on the same grid.
        defective_skull: (I, J, K) bool on the same grid.
        spacing: (3,) mm, or the linear part (3, 3) of the affine for axes that are not perpendicular.
        border_mm: Width of the border.

    Returns:
        The DSC; 1 if neither mask has a voxel in the border.
    """
    axes = _axes(spacing)
    low, high = bounding_box(a | b)
    # Bone farther than border_mm from the box of both masks is near none of their voxels.
    margin = np.ceil(border_mm * voxels_per_mm(axes)).astype(int)
    a, b, bone = (_crop(mask, low - margin, high + margin) for mask in (a, b, defective_skull))
    union = np.argwhere(a | b)  # (N, 3)
    bone_surface = np.argwhere(voxel_border(bone, beyond="background"))
    near = within_distance(union @ axes.T, bone_surface @ axes.T, border_mm) | bone[tuple(union.T)]
    index = tuple(union[near].T)
    return dice(a[index], b[index])


def surface_distances(a: np.ndarray, b: np.ndarray, spacing: np.ndarray) -> SurfaceDistances:
    """Both directed surface distances of two (I, J, K) bool masks on one grid; spacing: as in `border_dice`.

    A surface voxel is a mask voxel with one of its six neighbours outside the mask; beyond the grid is outside.
    """
    axes = _axes(spacing)
    low, high = bounding_box(a | b)
    # No mask reaches beyond the box of both, so the crop changes no surface.
    borders = (voxel_border(_crop(mask, low, high), beyond="background") for mask in (a, b))
    points_a, points_b = ((np.argwhere(border) + low) @ axes.T for border in borders)
    points = np.concatenate([points_a, points_b])
    return SurfaceDistances(_nearest(points_a, points_b), _nearest(points_b, points_a), points)


def scores(prediction: Volume, truth: Volume, defective_skull: Volume) -> Scores:
    """All scores on the input grid with its true spacing. Raises InputError if the grids differ."""
    for name, volume in (("prediction", prediction), ("defective skull", defective_skull)):
        if volume.mask.shape != truth.mask.shape:
            raise InputError(
                f"{name} must lie on the true implant's grid {truth.mask.shape}, got {volume.mask.shape}; "
                "resample it to that grid"
            )
        if not np.allclose(volume.affine, truth.affine, rtol=0, atol=1e-3):
            raise InputError(
                f"{name} must have the true implant's directions and origin, they differ by up to "
                f"{np.abs(volume.affine - truth.affine).max():.3g} mm; resample it to that grid"
            )
    a, b, axes = prediction.mask, truth.mask, truth.affine[:3, :3]
    apart = surface_distances(a, b, axes)
    return Scores(
        dsc=dice(a, b),
        bdsc=border_dice(a, b, defective_skull.mask, axes),
        hd95=apart.percentile(95),
        hd=apart.percentile(100),
        masd=apart.mean,
        nsd_05mm=apart.share_within(0.5),
        nsd_1mm=apart.share_within(1.0),
    )


def _axes(spacing: np.ndarray) -> np.ndarray:
    """(3,) mm or (3, 3) -> (3, 3), voxel index -> mm but for the origin."""
    spacing = np.asarray(spacing, float)
    return np.diag(spacing) if spacing.ndim == 1 else spacing


def _crop(mask: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """The view low <= index < high of a mask, clipped to the grid."""
    return mask[box_slices(np.maximum(low, 0), high)]


def _nearest(points: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(N, 3) mm, (M, 3) mm -> (N,) mm to the nearest of the others; infinite if there are none."""
    if not len(others):
        return np.full(len(points), np.inf)
    return cKDTree(others).query(points)[0]


def within_distance(points: np.ndarray, others: np.ndarray, mm: float) -> np.ndarray:
    """(N, 3) mm, (M, 3) mm -> (N,) bool: is the nearest of the others at most `mm` away?"""
    return distance_bands(points, others, [mm + ROUNDING_MM]) == 0


def distance_bands(points: np.ndarray, others: np.ndarray, limits: Sequence[float]) -> np.ndarray:
    """(N, 3) mm, (M, 3) mm -> (N,) int: how many of the ascending limits, mm, the nearest of the others reaches.

    Points are sorted into blocks. The distance of a block's middle decides for all points of a block that no limit
    crosses, which are most.
    """
    if not len(points) or not len(others):
        return np.full(len(points), len(limits))
    tree = cKDTree(others)
    index = np.floor(points / BLOCK_MM).astype(int)
    first, shape = index.min(0), tuple(np.ptp(index, axis=0) + 1)
    code, block = np.unique(np.ravel_multi_index(tuple((index - first).T), shape), return_inverse=True)
    middles = (np.stack(np.unravel_index(code, shape), 1) + first + 0.5) * BLOCK_MM
    reach = BLOCK_MM * np.sqrt(3) / 2 + ROUNDING_MM
    from_middle = tree.query(middles, distance_upper_bound=limits[-1] + 2 * reach)[0]
    least, most = np.digitize(from_middle - reach, limits), np.digitize(from_middle + reach, limits)
    bands: np.ndarray = least[block]
    unsure = (least != most)[block]
    bands[unsure] = np.digitize(tree.query(points[unsure], distance_upper_bound=limits[-1])[0], limits)
    return bands
