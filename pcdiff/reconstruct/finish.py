"""From the indicator of the completed bone to the implant: one piece per defect, flush with the rim."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from pcdiff.geometry.grid import box_slices, dilated, eroded, largest_components
from pcdiff.geometry.nearest import nearest, search_tree
from pcdiff.geometry.points import PointCloud
from pcdiff.geometry.volume import Volume

REACH_MM = 3.0  # of the implant beyond the points labelled as defect, since the labels end at an estimated rim
SEAM_VOXELS = 2  # gaps along the rim up to twice this wide are closed,
SEAM_LEVEL = 0.3  # but only where the indicator exceeds this


def finish(values: np.ndarray, low: np.ndarray, skull: Volume, points: PointCloud) -> Volume:
    """The implant on the skull's own grid, disjoint from the skull.

    Args:
        values: (i, j, k) indicator of the completed bone, 0.5 at its surface.
        low: (3,) index of its first voxel on the skull's grid.
        skull: The defective skull.
        points: Points with `defect` labels. Voxels near the points of a defect are implant; voxels near other points
            are slivers on the surrounding bone.

    Returns:
        The implant. It has no voxel in a defect that the indicator leaves open.

    Raises:
        ValueError: No point is labelled as a defect.
    """
    if points.defect is None or not np.any(points.defect > 0):
        raise ValueError("finish needs points labelled with the defect they fill (defect >= 1), got none")
    low = np.asarray(low, int)
    bone = skull.mask[box_slices(low, low + values.shape)]

    # From here on only the neighbourhood of the defects is needed, which saves time.
    index = skull.to_index(points.points[points.defect > 0]) - low
    reach = (REACH_MM + 1.0) * skull.voxels_per_mm + SEAM_VOXELS + 1
    start = np.clip(np.floor(index.min(0) - reach), 0, values.shape).astype(int)
    stop = np.clip(np.ceil(index.max(0) + reach) + 1, start, values.shape).astype(int)
    near = box_slices(start, stop)
    values, bone = values[near], np.ascontiguousarray(bone[near])  # in the values' memory order: mixed ones are slow

    owner = nearest_defect((values > SEAM_LEVEL) & ~bone, skull, low + start, points)
    implant = (values > 0.5) & (owner > 0)
    implant = one_piece_per_defect(without_slivers(implant), owner)
    implant = one_piece_per_defect(close_seam(implant, bone, owner > 0), owner)

    return skull.with_crop(implant, low + start)


def nearest_defect(where: np.ndarray, skull: Volume, low: np.ndarray, points: PointCloud) -> np.ndarray:
    """Label of the defect that each voxel belongs to, int16 (i, j, k); 0 outside `where` and where bone is nearer.

    A voxel belongs to the defect of the nearest defect point, unless a point of the bone is nearer by over `REACH_MM`.
    This is decided for blocks of 2 x 2 x 2 voxels: eight times fewer searches, with an error below a voxel.
    """
    assert points.defect is not None
    padded = np.pad(where, [(0, n % 2) for n in where.shape])
    blocks = padded[::2, ::2, ::2].copy()
    for corner in np.ndindex(2, 2, 2):
        blocks |= padded[tuple(slice(c, None, 2) for c in corner)]
    found = np.argwhere(blocks)
    mm = skull.to_mm(2.0 * found + 0.5 + low)

    in_defect = points.defect > 0
    to_defect, index = nearest(search_tree(points.points[in_defect]), mm)
    label = points.defect[in_defect][index]
    if not in_defect.all():
        near = max(0.0, to_defect.max(initial=0) - REACH_MM)  # bone farther away decides nothing
        to_bone, _ = nearest(search_tree(points.points[~in_defect]), mm, distance_upper_bound=near)
        label = np.where(to_defect <= to_bone + REACH_MM, label, 0)
    owner = np.zeros(blocks.shape, np.int16)
    owner[tuple(found.T)] = label
    for axis in range(3):
        owner = owner.repeat(2, axis)
    return owner[tuple(slice(n) for n in where.shape)] * where


def one_piece_per_defect(mask: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """The largest face-connected piece among the voxels of each defect label; `owner` holds the labels, int16."""
    selected = np.zeros_like(mask)
    for k, box in enumerate(ndimage.find_objects(owner), start=1):
        if box is None:
            continue
        selected[box] |= largest_components(mask[box] & (owner[box] == k))
    return selected


def without_slivers(mask: np.ndarray) -> np.ndarray:
    """Removes parts thinner than three voxels, except within two voxels of a thicker part: a wedge at the rim stays."""
    grown = dilated(eroded(mask))
    for _ in range(2):
        grown = dilated(grown) & mask
    return grown


def close_rim(implant: np.ndarray, bone: np.ndarray) -> np.ndarray:
    """The implant with the gaps between it and bone filled, where both are near; (i, j, k) bool each."""
    rim = dilated(implant, SEAM_VOXELS) & dilated(bone, SEAM_VOXELS)
    closed = eroded(dilated(implant | bone, SEAM_VOXELS), SEAM_VOXELS)
    filled: np.ndarray = implant | (closed & rim & ~bone)
    return filled


def close_seam(implant: np.ndarray, bone: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """Fills gaps between implant and bone, and voids that both enclose, with `allowed` voxels that are not bone."""
    implant = implant | (close_rim(implant, bone) & allowed)

    # Voids enclosed by implant and bone are filled where allowed, those inside the implant alone everywhere.
    for solid, fillable in ((implant | bone, allowed & ~bone), (implant, ~bone)):
        implant = implant | (voids(solid) & fillable)
    return implant


def voids(mask: np.ndarray) -> np.ndarray:
    """The background of a mask that is not face-connected to the border of the array."""
    background, count = ndimage.label(~mask)
    enclosed = np.ones(count + 1, bool)
    enclosed[0] = False
    for axis in range(3):
        for end in (0, -1):
            enclosed[np.take(background, end, axis)] = False
    return enclosed[background]
