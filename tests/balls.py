"""Balls on a regular grid: volumes whose surface is known."""

from __future__ import annotations

import numpy as np

from pcdiff.geometry.volume import Volume


def ball(centre: tuple[float, float, float], radius: float, flip: bool = False) -> Volume:
    """A ball (mm) on a 1 mm grid of 64 voxels about the origin; flip: the first axis runs to the right."""
    affine = np.eye(4)
    affine[:3, 3] = -31.5
    if flip:
        affine[0] *= -1
    index = np.moveaxis(np.indices((64, 64, 64)), 0, -1).astype(float)
    mm = index @ affine[:3, :3].T + affine[:3, 3]
    return Volume(np.linalg.norm(mm - centre, axis=-1) <= radius, affine)
