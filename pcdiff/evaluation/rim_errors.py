"""Where an implant is wrong: the error of its surface by the distance from the bone around the defect."""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import nan

import numpy as np

from pcdiff.geometry.grid import box_slices, voxel_border, voxels_per_mm
from pcdiff.geometry.metrics import distance_bands, surface_distances
from pcdiff.geometry.volume import Volume

LIMITS_MM = (5.0, 10.0, 20.0)  # between the bands


@dataclass(frozen=True)
class RimErrors:
    """Mean surface distance, mm, of the points in each band of distance from the bone; NaN for a band without points.

    The points are the surface voxels of the designed and of the true implant, each with its distance to the other.
    """

    error_0_5mm: float = nan
    error_5_10mm: float = nan
    error_10_20mm: float = nan
    error_20mm: float = nan


BANDS = tuple(field.name for field in fields(RimErrors))


def rim_errors(implant: Volume, truth: Volume, defective_skull: Volume) -> RimErrors:
    """All volumes on one grid. A point's band is that of its distance to the nearest bone voxel, centre to centre."""
    axes = truth.affine[:3, :3]
    apart = surface_distances(implant.mask, truth.mask, axes)
    if not len(apart.a_to_b) or not len(apart.b_to_a):
        return RimErrors()
    index = np.rint(apart.points @ np.linalg.inv(axes).T).astype(int)
    margin = np.ceil(LIMITS_MM[-1] * voxels_per_mm(axes)).astype(int)
    low = np.maximum(index.min(0) - margin, 0)
    bone = defective_skull.mask[box_slices(low, index.max(0) + 1 + margin)]
    border = (np.argwhere(voxel_border(bone, beyond="background")) + low) @ axes.T
    if not len(border):
        return RimErrors()
    bands = distance_bands(apart.points, border, LIMITS_MM)
    errors = np.concatenate([apart.a_to_b, apart.b_to_a])
    return RimErrors(*(float(errors[bands == k].mean()) if (bands == k).any() else nan for k in range(len(BANDS))))
