"""Clean-up of a solid on the paper's lattice, as published and as corrected."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from pcdiff.geometry.grid import largest_components
from pcdiff.reconstruct.finish import one_piece_per_defect, voids

REACH = 1.1  # of the points' largest distance from their centre: what lies further away is no implant
LINK_MM = 6.0  # points nearer than this fill the same defect
LINKED = 4096  # points at most that are compared pair by pair; the others join the nearest
STRAY = 0.05  # a group with a smaller share of the points fills no defect
MEDIAN_OF_27 = 14


def within_reach(shape: tuple[int, ...], points: np.ndarray) -> np.ndarray:
    """Mask of the given shape: the ball around the mean of points (N, 3), in voxels, and 1.1 times their reach."""
    centre, reach = ball(points)
    axes = np.ogrid[tuple(slice(n) for n in shape)]
    square = sum((axis - c) ** 2 for axis, c in zip(axes, centre, strict=True))
    return np.asarray(square <= reach**2)


def ball(points: np.ndarray) -> tuple[np.ndarray, float]:
    """(centre (3,), radius) of `within_reach`."""
    centre = points.mean(axis=0)
    return centre, REACH * float(np.linalg.norm(points - centre, axis=1).max())


def smoothed(mask: np.ndarray, keep: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Opening, `keep`, median and closing in 3^3 voxels, voids filled. The mask must not touch its array's border."""
    mask = keep(_dilated(_eroded(mask)))
    mask = _window(mask.view(np.uint8), np.add) >= MEDIAN_OF_27
    return filled(_eroded(_dilated(mask)))


def filled(mask: np.ndarray) -> np.ndarray:
    """The mask and every void in it that does not reach the array's border."""
    return mask | voids(mask)


def defects_of(points: np.ndarray) -> np.ndarray:
    """(N,) int16 label of the defect that each point (N, 3) mm fills, from 1 on; 0 for strays.

    Groups of points that hang together within `LINK_MM`: the paper's points know no defects. All are one where none
    is a
    group.
    """
    tree = cKDTree(points[:: -(-len(points) // LINKED)])
    pairs = tree.query_pairs(LINK_MM, output_type="ndarray")
    links = coo_array((np.ones(len(pairs), bool), pairs.T), shape=(tree.n, tree.n))
    count, group = connected_components(links, directed=False)
    label = np.zeros(count, np.int16)
    large = np.flatnonzero(np.bincount(group) >= STRAY * tree.n)
    if not len(large):
        return np.ones(len(points), np.int16)
    label[large] = np.arange(1, len(large) + 1)
    _, nearest = tree.query(points, distance_upper_bound=LINK_MM)
    return np.append(label[group], np.int16(0))[nearest]


def piece_per_defect(mask: np.ndarray, points: np.ndarray, defect: np.ndarray) -> np.ndarray:
    """For each defect the largest piece of the voxels that are nearest to its points; points (N, 3) in voxels."""
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
    """`combine` over the 3^3 voxels around each; beyond the border is 0. Axis by axis: a cube is separable."""
    for axis in range(3):
        lines = np.moveaxis(values, axis, 0)
        result = lines.copy()
        result[1:] = combine(result[1:], lines[:-1])
        result[:-1] = combine(result[:-1], lines[1:])
        if combine is np.logical_and:
            result[[0, -1]] = 0
        values = np.moveaxis(result, 0, axis)
    return values
