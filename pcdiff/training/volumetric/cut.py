"""The region of space that a virtual craniotomy empties, on the lattice that the network gets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from pcdiff.data.outline import Outline
from pcdiff.methods.volumetric.features import STEP


def cut_region(head: np.ndarray, axes: Sequence[np.ndarray], outlines: Sequence[Outline]) -> np.ndarray:
    """(I, J, K) in [0, 1]: 1 where a craniotomy has emptied space, between 0 and 1 at its walls.

    As with a saw, the largest connected part within an outline is removed, and so is bone that it leaves loose.

    Args:
        head: (I, J, K) share of bone.
        axes: of the lattice, mm.
        outlines: of the defects.
    """
    index = np.argwhere(head > 0)
    points = np.stack([axis[i] for axis, i in zip(axes, index.T, strict=True)], -1)
    region = np.zeros_like(head)
    for outline in outlines:
        near = np.flatnonzero(outline.in_vault(points))
        within = np.zeros_like(head)
        within[tuple(index[near].T)] = np.clip(0.5 - outline.distance_outside(points[near]) / STEP, 0, 1)
        _keep_smaller_parts(head, within)
        region = np.maximum(region, within)
    _remove_loose_bone(head, region)
    return region


def _keep_smaller_parts(head: np.ndarray, within: np.ndarray) -> None:
    """Loose parts of bone within an outline stay: `within` becomes 0 there, in place."""
    labels, count = ndimage.label(head * within >= 0.5)
    if count > 1:
        sizes = np.bincount(labels.ravel())
        sizes[0] = 0
        largest = labels == sizes.argmax()
        within[ndimage.binary_dilation((labels > 0) & ~largest) & ~largest] = 0


def _remove_loose_bone(head: np.ndarray, region: np.ndarray) -> None:
    """Bone that the cut has freed from the skull leaves with it: `region` becomes 1 there, in place."""
    labels, count = ndimage.label(head * (1 - region) >= 0.5)
    if count > 1:
        touching = np.unique(labels[ndimage.binary_dilation(head * region >= 0.5)])
        border = np.ones(head.shape, bool)
        border[1:-1, 1:-1, 1:-1] = False
        sizes = np.bincount(labels.ravel())
        sizes[0] = 0  # of air
        loose = np.setdiff1d(touching, np.r_[0, sizes.argmax(), np.unique(labels[border])])
        if len(loose):
            parts = np.isin(labels, loose)
            region[ndimage.binary_dilation(parts) & (parts | (labels == 0))] = 1
