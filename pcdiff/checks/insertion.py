"""Insertion: a straight path along which each piece of the implant goes into its defect without meeting bone.

Paths are searched in the direction of removal, out of the head; the implant goes in along the reverse.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from pcdiff.checks.criteria import Criteria
from pcdiff.checks.direction_words import describe_vector
from pcdiff.checks.report import Check, Figure
from pcdiff.figures import of_pieces
from pcdiff.geometry.directions import orthonormal_pair
from pcdiff.geometry.grid import components, voxels_of
from pcdiff.geometry.nearest import search_tree
from pcdiff.geometry.volume import Volume

TILTS = np.deg2rad([0, 15, 30, 45, 60, 75])  # from the defect's normal; at 90 degrees the implant slides along bone
TRAVEL_MM = 40.0  # length of the path that is tested
FIRST_VOXELS, NEXT_VOXELS = 2_000, 8_000  # of the implant's rim: for the first directions, and for finer ones
FINAL_VOXELS = 60_000  # of the whole implant, for the best direction
PLAY_MM = 0.5  # depth of bone that does not count: masks that touch interlock by their stairs, and bone is filed so far
MAX_STEP_MM = 1.0  # twice the play; wider voxels are divided, so that their stairs do not count either
NEAR_BONE_MM = 6.0  # only these voxels choose the direction: a voxel farther in collides only if the rim does
DISTANCE_STEP = 3  # voxels; that distance is measured on a coarser grid


@dataclass(frozen=True)
class RemovalPath:
    """A straight path out of the defect.

    direction: (3,) unit, LPS, out of the head. collision_ml: volume of the implant that meets bone along the path.
    undercut_mm: how deep that volume lies under the overhanging bone; infinite if all of the piece collides.
    undercut: (N, 3) int index of the voxels that meet bone; empty unless exact.
    """

    direction: np.ndarray
    collision_ml: float
    undercut_mm: float
    undercut: np.ndarray


def removal_paths(
    implant: Volume, bone: Volume, centre: np.ndarray, min_body_ml: float = 0.0, exact: bool = False
) -> list[RemovalPath]:
    """The best path of each piece of the implant, the largest piece first.

    implant, bone: on one grid. centre: (3,) mm, of the cranium; the search starts in the direction from it to the
    piece. min_body_ml, exact: as for `best_removal_path`.
    """
    return [
        best_removal_path(implant.with_voxels(piece), bone, implant.to_mm(piece.mean(0)) - centre, min_body_ml, exact)
        for piece in components(implant.mask)
    ]


def best_removal_path(
    implant: Volume, bone: Volume, normal: np.ndarray, min_body_ml: float = 0.0, exact: bool = False
) -> RemovalPath:
    """The direction around the defect's normal along which the least volume of the implant meets bone.

    The outermost `PLAY_MM` of bone do not count, whatever the size of the voxels. The colliding volume is what must be
    removed before the piece can slide out. Its depth is the largest distance, across the direction,
    from the part that is free.

    Args:
        implant: one piece.
        bone: the skull, on the same crop.
        normal: (3,) direction around which to search, LPS, of any length.
        min_body_ml: the deepest part of this volume is left out of the depth.
        exact: test every voxel along the best direction, and return which of them collide.
    """
    solid, parts = _without_play(bone)
    body = voxels_of(implant.mask)
    # random order, because the storage order would sample in stripes
    sample = np.random.default_rng(0).permutation(body)[:FINAL_VOXELS]
    best = _best_direction(sample, parts, solid, bone, normal / np.linalg.norm(normal))
    points = body if exact else sample
    hit = _collides(points * parts, solid, best, 1.0)
    share = float(hit.mean()) if len(points) else 0.0
    depth = _undercut_mm(implant, points, hit, best, min_body_ml)
    return RemovalPath(best, share * implant.ml, depth, points[hit] if exact else points[:0])


def implantable(paths: Sequence[RemovalPath], criteria: Criteria) -> Check:
    """Can the implant be inserted? From the best path of each piece, the largest piece first."""
    figures = []
    for number, path in enumerate(paths, 1):
        piece, suffix = (f"Piece {number}: ", f"_{number}") if len(paths) > 1 else ("", "")
        figures += [
            Figure(
                f"collision_volume{suffix}",
                f"{piece}Colliding volume",
                path.collision_ml,
                "ml",
                maximum=criteria.max_collision_ml,
            ),
            Figure(
                f"undercut_depth{suffix}",
                f"{piece}Undercut depth",
                path.undercut_mm,
                "mm",
                maximum=criteria.max_collision_mm,
            ),
        ]
    ml, mm = sum(path.collision_ml for path in paths), max(path.undercut_mm for path in paths)
    ways = of_pieces([describe_vector(-path.direction) for path in paths])
    words = f"Insertion direction: {ways}. " + (
        "No collision with bone on this path."
        if ml == 0
        else f"On the best straight path {ml:.2f} ml collide with bone; the undercut is up to {mm:.1f} mm deep."
    )
    return Check("implantable", "Can be inserted without collision", words, tuple(figures))


def _without_play(bone: Volume) -> tuple[Volume, np.ndarray]:
    """Bone without its outermost `PLAY_MM`, and (3,) int: the parts into which its grid divides each voxel.

    There is air in the outermost layer of the crop, and bone goes on beyond it. Voxels wider than `MAX_STEP_MM` are
    divided, and the bone between them is smooth.
    """
    parts = np.ceil(bone.spacing / MAX_STEP_MM - 1e-6).astype(int)
    # one memory order for all arrays: combining two of different orders takes ten times as long
    mask, affine = np.ascontiguousarray(bone.mask), bone.affine
    if (parts > 1).any():
        smooth = ndimage.gaussian_filter(mask.astype(np.float32), bone.spacing.max() / 2 / bone.spacing, mode="nearest")
        shape = (np.array(mask.shape) - 1) * parts + 1
        mask = ndimage.zoom(smooth, shape / mask.shape, order=1) > 0.5
        affine = affine @ np.diag([*1 / parts, 1.0])
    fine = Volume(mask, affine)
    deep = mask.copy()
    for step in _steps_to_air(fine.spacing):
        # views of the mask and of its neighbours that lie one such step away
        here, there = (
            tuple(slice(max(s, 0), n + min(s, 0)) for s, n in zip(sign * step, mask.shape, strict=True))
            for sign in (1, -1)
        )
        deep[here] &= mask[there]
    solid = np.zeros_like(deep, order="C")
    within = (slice(1, -1),) * 3
    solid[within] = deep[within]
    return fine.with_mask(solid), parts


def _steps_to_air(spacing: np.ndarray) -> np.ndarray:
    """(N, 3) steps on a grid from the centre of a voxel to those whose box lies within `PLAY_MM`."""
    reach = np.floor(PLAY_MM / spacing + 0.5).astype(int)
    steps = np.stack(np.meshgrid(*(np.arange(-n, n + 1) for n in reach), indexing="ij"), -1).reshape(-1, 3)
    distance = np.linalg.norm(np.maximum(np.abs(steps) - 0.5, 0) * spacing, axis=1)
    return steps[(distance <= PLAY_MM + 1e-9) & steps.any(1)]


def _best_direction(
    sample: np.ndarray, parts: np.ndarray, solid: Volume, bone: Volume, normal: np.ndarray
) -> np.ndarray:
    """(N, 3) index of voxels, in random order -> (3,) unit: the direction in which the fewest of them meet `solid`.

    Of several free directions, the one nearest to the normal.
    """
    rim = sample[_near(bone, sample)] * parts

    def best_of(directions: list[np.ndarray], points: np.ndarray, pace: float) -> np.ndarray:
        best, least = directions[0], (len(points) + 1, 0.0)
        for direction in directions:
            hits = int(np.count_nonzero(_collides(points, solid, direction, pace, least[0])))
            if (cost := (hits, -float(direction @ normal))) < least:
                best, least = direction, cost
        return best

    best = best_of(_cap(normal, TILTS), rim[:FIRST_VOXELS], 2.0)
    for degrees, count, pace in ((8.0, FIRST_VOXELS, 2.0), (4.0, NEXT_VOXELS, 2.0), (2.0, NEXT_VOXELS, 1.0)):
        ring = [direction for direction in _cap(best, np.deg2rad([0.0, degrees])) if direction @ normal > 0.2]
        best = best_of(ring, rim[:count], pace)
    return best


def _undercut_mm(
    implant: Volume, points: np.ndarray, hit: np.ndarray, direction: np.ndarray, min_body_ml: float
) -> float:
    """The largest distance across `direction` from a voxel that collides to those that are free, mm.

    points: (N, 3) index of the implant's voxels. hit: (N,) bool. The deepest `min_body_ml` do not count. Infinite if
    no voxel is free.
    """
    if not hit.any():
        return 0.0
    if hit.all():
        return float("inf")
    flat = np.stack(orthonormal_pair(direction))
    free, stuck = (implant.to_mm(points[chosen].astype(float)) @ flat.T for chosen in (~hit, hit))
    depths = np.sort(search_tree(free).query(stuck)[0])[::-1]
    ignored = int(min_body_ml / implant.ml * len(points))
    return float(depths[ignored]) if ignored < len(depths) else 0.0


def _near(bone: Volume, voxels: np.ndarray) -> np.ndarray:
    """(N, 3) index -> (N,) bool: within about `NEAR_BONE_MM` of bone."""
    coarse = bone.mask[::DISTANCE_STEP, ::DISTANCE_STEP, ::DISTANCE_STEP]
    if not coarse.any():
        return np.ones(len(voxels), bool)
    distance = ndimage.distance_transform_edt(~coarse, sampling=DISTANCE_STEP * bone.spacing)
    return distance[tuple((voxels // DISTANCE_STEP).T)] < NEAR_BONE_MM


def _collides(
    points: np.ndarray, solid: Volume, direction: np.ndarray, pace: float, enough: float = np.inf
) -> np.ndarray:
    """(N, 3) index -> (N,) bool: does a point meet `solid` as it moves along `direction`, in steps of `pace` voxels?

    enough: once more points than these meet it, the others are left undecided, False.
    """
    length = pace * float(solid.spacing.min())
    step = np.linalg.inv(solid.affine[:3, :3]) @ direction * length
    shape, flat = solid.mask.shape, solid.mask.ravel()
    number = np.arange(1, int(TRAVEL_MM / length) + 1)
    shift = np.rint(number[:, None] * step).astype(int)
    room = np.where(step > 0, np.array(shape) - 1 - points, points)  # voxels to the grid's border
    # how many steps a point stays in the grid; beyond it there is air
    steps = np.min([np.searchsorted(np.abs(s), r, side="right") for s, r in zip(shift.T, room.T, strict=True)], axis=0)
    order = np.argsort(-steps)  # so that those still in the grid are always the first
    inside = np.searchsorted(-steps[order], -number, side="right")
    at = np.ravel_multi_index(tuple(points[order].T), shape)
    met = np.zeros(len(points), bool)
    for count, offset in zip(inside, shift @ [shape[1] * shape[2], shape[2], 1], strict=True):
        met[:count] |= flat[at[:count] + offset]
        if np.count_nonzero(met) > enough:
            break
    hit = np.empty_like(met)
    hit[order] = met
    return hit


def _cap(axis: np.ndarray, tilts: np.ndarray) -> list[np.ndarray]:
    """Unit vectors in rings around an axis; within a ring they lie as far apart as the rings do."""
    first, second = orthonormal_pair(axis)
    step = tilts[1] - tilts[0]
    directions = []
    for tilt in tilts:
        count = max(1, round(2 * np.pi * np.sin(tilt) / step))
        for turn in np.arange(count) * 2 * np.pi / count:
            directions.append(np.cos(tilt) * axis + np.sin(tilt) * (np.cos(turn) * first + np.sin(turn) * second))
    return directions
