"""Implantable: is there a straight way out of the defect (and so in) on which the implant does not meet the skull?"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from pcdiff.checks.distances import border
from pcdiff.geometry.volume import Volume

TILTS = np.deg2rad([0, 15, 30, 45, 60, 75])  # from the defect's normal; beyond, it would slide along the skull
TRAVEL = 40.0  # mm of the way out that are looked at
COARSE, FINER = 2_000, 8_000  # voxels of the implant's rim that directions are tried with, at first and then
FINE = 60_000  # of the whole implant, with the best direction
RIM = 6.0  # mm from bone; farther in, a voxel is only caught where the rim is caught too
COARSER = 3  # voxels of the grid on which that distance is found


@dataclass(frozen=True)
class Exit:
    """A way out. direction: (3,) unit, LPS. ml: implant that meets bone on the way. mm: how deep it is undercut.

    undercut: (N,) bool of the implant's voxels, in the order of np.argwhere(implant.mask); empty unless asked for.
    """

    direction: np.ndarray
    ml: float
    mm: float
    undercut: np.ndarray


def best_exit(implant: Volume, bone: Volume, normal: np.ndarray, min_body_ml: float = 0.0, exact: bool = False) -> Exit:
    """The direction around the defect's `normal` (3,) with the least volume of implant in the way.

    implant: one piece, and bone: the skull, on one crop. A voxel of bone's surface gives way: two masks that touch
    interlock by their stairs. exact: every voxel is tried at the end, not some, and `undercut` says which are caught.
    A direction's figures: ml is the volume whose straight path meets bone, just what has to go for it to slide out; mm
    is how far that lies outside the part that is free, across the direction, the deepest `min_body_ml` of it left out.
    """
    solid = np.zeros_like(bone.mask, order="C")
    within = (slice(1, -1),) * 3  # beyond the crop there is air, and so in its outermost layer
    solid[within] = (bone.mask & ~border(bone.mask))[within]
    body = np.argwhere(implant.mask)
    # in no storage order, which would make stripes
    some = np.random.default_rng(0).permutation(body)[:FINE]
    rim = some[_near(bone, some)]
    normal = normal / np.linalg.norm(normal)

    def cost(points: np.ndarray, pace: float, direction: np.ndarray) -> tuple[float, float]:
        # where several ways are free, the one nearest to the normal
        return float(np.count_nonzero(_caught(points, solid, bone, direction, pace))), -float(direction @ normal)

    best = min(_cap(normal, TILTS), key=partial(cost, rim[:COARSE], 2.0))
    for spread, count, pace in ((8.0, COARSE, 2.0), (4.0, FINER, 2.0), (2.0, FINER, 1.0)):
        ring = [way for way in _cap(best, np.deg2rad([0.0, spread])) if way @ normal > 0.2]
        best = min(ring, key=partial(cost, rim[:count], pace))
    points = body if exact else some
    hit = _caught(points, solid, bone, best, 1.0)
    share = float(hit.mean()) if len(points) else 0.0
    depth = 0.0
    if hit.any() and not hit.all():
        flat = _across(best)
        free, stuck = (implant.to_mm(points[chosen].astype(float)) @ flat.T for chosen in (~hit, hit))
        depths = np.sort(cKDTree(free).query(stuck)[0])[::-1]
        crumb = int(min_body_ml / implant.ml * len(points))
        depth = float(depths[crumb]) if crumb < len(depths) else 0.0
    elif hit.any():
        depth = float("inf")
    return Exit(best, share * implant.ml, depth, hit if exact else np.zeros(0, bool))


def _near(bone: Volume, voxels: np.ndarray) -> np.ndarray:
    """(N, 3) index -> (N,) bool: within about `RIM` of bone."""
    some = bone.mask[::COARSER, ::COARSER, ::COARSER]
    if not some.any():
        return np.ones(len(voxels), bool)
    distance = ndimage.distance_transform_edt(~some, sampling=COARSER * bone.spacing)
    return distance[tuple((voxels // COARSER).T)] < RIM


def _caught(points: np.ndarray, solid: np.ndarray, grid: Volume, direction: np.ndarray, pace: float) -> np.ndarray:
    """(N, 3) index -> (N,) bool: does a voxel meet bone on its way along `direction`?"""
    length = pace * float(grid.spacing.min())
    step = np.linalg.inv(grid.affine[:3, :3]) @ direction * length
    shape, flat = solid.shape, solid.ravel()
    columns = [np.ascontiguousarray(column, np.intp) for column in points.T]
    hit = np.zeros(len(points), bool)
    for number in range(1, int(TRAVEL / length) + 1):
        shift = np.rint(number * step).astype(int)
        if (np.abs(shift) >= shape).any():
            break
        # what leaves the crop ends in its outermost layer, which is air
        i, j, k = (np.clip(c + s, 0, n - 1) for c, s, n in zip(columns, shift, shape, strict=True))
        hit |= flat[(i * shape[1] + j) * shape[2] + k]
    return hit


def _across(direction: np.ndarray) -> np.ndarray:
    """(2, 3): two unit vectors at right angles to a direction and to each other."""
    helper = np.eye(3)[np.abs(direction).argmin()]
    first = np.cross(direction, helper)
    first /= np.linalg.norm(first)
    return np.stack([first, np.cross(direction, first)])


def _cap(axis: np.ndarray, tilts: np.ndarray) -> list[np.ndarray]:
    """Unit vectors around an axis, in rings as dense as the rings lie apart."""
    first, second = _across(axis)
    step = tilts[1] - tilts[0]
    ways = []
    for tilt in tilts:
        count = max(1, round(2 * np.pi * np.sin(tilt) / step))
        for turn in np.arange(count) * 2 * np.pi / count:
            ways.append(np.cos(tilt) * axis + np.sin(tilt) * (np.cos(turn) * first + np.sin(turn) * second))
    return ways
