"""Does the spread of an ensemble's candidates predict the error of the implant?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import spearmanr

from pcdiff.checks.recommend import surface_std
from pcdiff.geometry.grid import bounding_box, voxel_border
from pcdiff.geometry.mesh import Mesh
from pcdiff.geometry.metrics import within_distance
from pcdiff.geometry.surface import distance_to, volume_to_mesh
from pcdiff.geometry.volume import Volume


@dataclass(frozen=True)
class Spread:
    """How the candidates' spread compares with the implant's error, over points of its surface.

    Spread: standard deviation of the candidates' surfaces along the normal, mm. Error: distance to the true implant's
    surface, mm.

    spread_error: Spearman's rho between both, -1 to 1. within_1sd, within_2sd: share of the points whose error is at
    most one and two standard deviations; 0.68 and 0.95 for candidates that are spread as the truth is. NaN for fewer
    than two candidates, and if spread or error is the same at all points.
    """

    spread_error: float = math.nan
    within_1sd: float = math.nan
    within_2sd: float = math.nan


def compare_spread(implant: Volume, members: Sequence[Mesh], truth: Volume, defective_skull: Volume) -> Spread:
    """Compares at the mesh's vertices on the outer and the inner surface.

    The rim, within a millimetre and a voxel of bone, is left out, because the skull alone determines it.

    Args:
        implant: the designed implant.
        members: the surfaces of the candidates.
        truth: the true implant, on the same grid.
        defective_skull: on the same grid.
    """
    if len(members) < 2:
        return Spread()
    points = volume_to_mesh(implant).vertices
    reach = 1 + float(implant.spacing.max())
    margin = np.ceil(reach / implant.spacing).astype(int) + 1
    low, high = bounding_box(implant.mask)
    bone = defective_skull.crop(low - margin, high + margin)
    border = bone.to_mm(np.argwhere(voxel_border(bone.mask, "background")))
    points = points[~within_distance(points, border, reach)]
    spread = surface_std(points, members)
    error = np.abs(distance_to(volume_to_mesh(truth), points))
    if min(np.ptp(values) if len(values) else 0.0 for values in (spread, error)) == 0:
        return Spread()
    within = [float((error <= times * spread).mean()) for times in (1, 2)]
    return Spread(float(spearmanr(spread, error).statistic), *within)
