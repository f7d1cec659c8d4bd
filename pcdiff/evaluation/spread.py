"""Does the spread of an ensemble's candidates tell where the implant is wrong?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import spearmanr

from pcdiff.geometry.grid import bounding_box, voxel_border
from pcdiff.geometry.mesh import Mesh
from pcdiff.geometry.metrics import within_distance
from pcdiff.geometry.surface import distance_to, volume_to_mesh
from pcdiff.geometry.volume import Volume


def spread_error(implant: Volume, members: Sequence[Mesh], truth: Volume, defective_skull: Volume) -> float:
    """Does an ensemble know where it errs? Spearman's rho over points of the implant's surface; NaN where undefined.

    Between the standard deviation of the members' surfaces there, mm along the normal, and the distance to the true
    implant's surface, mm. The points are the vertices of the outer and the inner surface: within a millimetre and a
    voxel of the bone is the cut rim, which the skull decides and no method.
    """
    if len(members) < 2:
        return float("nan")
    points = volume_to_mesh(implant).vertices
    reach = 1 + float(implant.spacing.max())
    margin = np.ceil(reach / implant.spacing).astype(int) + 1
    low, high = bounding_box(implant.mask)
    bone = defective_skull.crop(low - margin, high + margin)
    points = points[~within_distance(points, bone.to_mm(np.argwhere(voxel_border(bone.mask, "background"))), reach)]
    spread = np.std([distance_to(member, points) for member in members], axis=0)
    error = np.abs(distance_to(volume_to_mesh(truth), points))
    if min(np.ptp(values) if len(values) else 0.0 for values in (spread, error)) == 0:
        return float("nan")
    return float(spearmanr(spread, error).statistic)
