"""Boxes on a voxel grid."""

from __future__ import annotations

import numpy as np


def bounding_box(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(I, J, K) bool -> the box low <= index < high of its true voxels, (3,) int each; both 0 for an empty mask."""
    low, high = np.zeros(3, int), np.zeros(3, int)
    for axis in range(3):
        hits = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        if hits.size:
            low[axis], high[axis] = hits[0], hits[-1] + 1
    return low, high
