"""Morphological clean-up of a solid on the lattice of the published method, as published and as corrected."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from pcdiff.geometry.grid import largest_components
from pcdiff.reconstruct.finish import one_piece_per_defect, voids

REACH = 1.1  # times the largest distance of the points from their centre: voxels further away are removed
LINK_MM = 6.0  # points closer than this fill the same defect
MAX_LINKED = 4096  # points that are compared pair by pair; the others join the nearest of them
MIN_SHARE = 0.05  # of the points: smaller groups are strays and fill no defect
MEDIAN_OF_27 = 14


def within_reach(shape: tuple[int, ...], points: np.ndarray) -> np.ndarray:
    """Mask of the given shape: the ball of `ball` around points (N, 3), in voxels."""
    centre, reach = ball(points)
    axes = np.ogrid[tuple(slice(n) for n in shape)]
    square = sum((axis - c) ** 2 for axis, c in zip(axes, centre, strict=True))
    return np.asarray(square <= reach**2)


def ball(points: np.ndarray) -> tuple[np.ndarray, float]:
    """Centre (3,) and radius of a ball around points (N, 3): their mean, and 1.1 times their largest distance to it."""
    centre = points.mean(axis=0)
    return centre, REACH * float(np.linalg.norm(points - centre, axis=1).max())


def smoothed(mask: np.ndarray, select: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Opening, `select`, median, closing, all in 3^3 voxels, then voids filled.

    The mask must not touch the border of its array.
    """
    mask = select(_dilated(_eroded(mask)))
    mask = _window(mask.view(np.uint8), np.add) >= MEDIAN_OF_27
    return filled(_eroded(_dilated(mask)))


def filled(mask: np.ndarray) -> np.ndarray:
    """The mask together with its voids, those that do not reach the border of the array."""
    return mask | voids(mask)


def defects_of(points: np.ndarray) -> np.ndarray:
    """Labels the defect that each of the points (N, 3), mm, fills: (N,) int16, from 1 on, 0 for strays.

    The published method does not label defects: a defect's points are those connected by gaps below `LINK_MM`. If no
    group is large enough, all points are given label 1.
    """
    tree = cKDTree(points[:: -(-len(points) // MAX_LINKED)])
    pairs = tree.query_pairs(LINK_MM, output_type="ndarray")
    links = coo_array((np.ones(len(pairs), bool), pairs.T), shape=(tree.n, tree.n))
    count, group = connected_components(links, directed=False)
    label = np.zeros(count, np.int16)
    large = np.flatnonzero(np.bincount(group) >= MIN_SHARE * tree.n)
    if not len(large):
        return np.ones(len(points), np.int16)
    label[large] = np.arange(1, len(large) + 1)
    _, nearest = tree.query(points, distance_upper_bound=LINK_MM)
    return np.append(label[group], np.int16(0))[nearest]


def piece_per_defect(mask: np.ndarray, points: np.ndarray, defect: np.ndarray) -> np.ndarray:
    """For each defect the largest connected piece of the voxels nearest to its points; points (N, 3) in voxels."""
    if defect.max() == 1:
        return largest_components(mask)
    owner = np.zeros(mask.shape, np.int16)
    where = np.nonzero(mask)
    _, nearest = cKDTree(points[defect > 0]).query(np.stack(where, axis=1))
    owner[where] = defect[defect > 0][nearest]
    return one_piece_per_defect(mask, owner)


def _eroded(mask: np.ndarray) -> np.ndarray:
    return _window(mask, np.logical_and)


def _dilated(mask: np.ndarray) -> np.ndarray:
    return _window(mask, np.logical_or)


def _window(values: np.ndarray, combine: np.ufunc) -> np.ndarray:
    """`combine` over the 3^3 voxels around each, axis by axis, with 0 beyond the border."""
    for axis in range(3):
        lines = np.moveaxis(values, axis, 0)
        result = lines.copy()
        result[1:] = combine(result[1:], lines[:-1])
        result[:-1] = combine(result[:-1], lines[1:])
        if combine is np.logical_and:
            result[[0, -1]] = 0
        values = np.moveaxis(result, 0, axis)
    return values
