"""Thickness of the implant, and its distance to bone: at the vertices of its mesh, and between voxels."""

from __future__ import annotations

import numpy as np

from pcdiff.geometry.grid import voxel_border
from pcdiff.geometry.mesh import Mesh
from pcdiff.geometry.nearest import nearest, search_tree
from pcdiff.geometry.volume import Volume

OUTER_COSINE = 0.5  # `outward_cosine` of the outer surface is above this; of the inner surface, below its negative
FACES = 4  # nearest faces of bone voxels among which the nearest to a point is found
CLOSE_VOXELS = 4.0  # farther away, the distance to a face is taken to be that to its middle
FAR_MM = 10.0  # far from bone, much of it is about equally far, and slow to sort:
FAR_THINNING = 8  # beyond, every eighth face stands for all
THINNING = 4  # every fourth vertex stands for the opposite surface: an error of some hundredths of a millimetre


def outward_cosine(mesh: Mesh, centre: np.ndarray) -> np.ndarray:
    """(V,) cosine between a vertex's normal and the ray from the cranial centre: 1 outside, -1 inside, 0 at the rim.

    centre: (3,) mm.
    """
    ray = mesh.vertices - centre
    return (mesh.vertex_normals * ray).sum(1) / np.maximum(np.linalg.norm(ray, axis=1), 1e-9)


def wall_thickness(mesh: Mesh, cosine: np.ndarray, limit: float = np.inf) -> np.ndarray:
    """(V,) mm from each vertex to the nearest one of the opposite surface.

    A vertex of the rim has the thickness of the nearest outer vertex. All NaN for a mesh without both surfaces.
    cosine: (V,) by `outward_cosine`. limit: mm; where the wall is thicker, the result is infinite and found faster.
    """
    outer, inner = cosine > OUTER_COSINE, cosine < -OUTER_COSINE
    thickness = np.full(len(mesh.vertices), np.nan)
    if not outer.any() or not inner.any():
        return thickness
    step = THINNING if min(np.count_nonzero(outer), np.count_nonzero(inner)) > 1000 * THINNING else 1
    top, bottom = search_tree(mesh.vertices[outer][::step]), search_tree(mesh.vertices[inner][::step])
    thickness[outer] = nearest(bottom, mesh.vertices[outer], distance_upper_bound=limit)[0]
    thickness[inner] = nearest(top, mesh.vertices[inner], distance_upper_bound=limit)[0]
    side = ~(outer | inner)
    thickness[side] = thickness[outer][::step][nearest(top, mesh.vertices[side])[1]]
    return thickness


def bone_gap(points: np.ndarray, bone: Volume) -> np.ndarray:
    """(N, 3) mm -> (N,) mm to the surface of bone, negative inside bone; infinite if there is no bone.

    The surface is that of the voxels as boxes: exact if the grid's axes are perpendicular. Farther away than
    `CLOSE_VOXELS` the distance is that to the middle of a box's face, and beyond `FAR_MM` it may be a tenth too large.
    """
    mask = np.pad(bone.mask, 1)  # index + 1
    centres, axes = [], []
    for axis in range(3):
        found = np.argwhere(np.diff(mask, axis=axis)) - 1.0
        found[:, axis] += 0.5
        centres.append(found)
        axes.append(np.full(len(found), axis))
    faces, across = np.concatenate(centres), np.concatenate(axes)
    if not len(faces):
        return np.full(len(points), np.inf)
    middles = bone.to_mm(faces)
    tree = search_tree(middles)
    close_mm = CLOSE_VOXELS * float(bone.spacing.max())
    gap, _ = nearest(tree, points, distance_upper_bound=max(close_mm, FAR_MM))
    far = np.isinf(gap)
    gap[far], _ = nearest(search_tree(middles[::FAR_THINNING]), points[far])
    close = np.flatnonzero(gap < close_mm)
    _, around = nearest(tree, points[close], k=min(FACES, len(faces)))
    around = around.reshape(len(close), min(FACES, len(faces)))
    offset = np.abs(bone.to_index(points[close])[:, None] - faces[around])  # (N, FACES, 3) voxels
    half = 0.5 * (across[around][..., None] != np.arange(3))
    gap[close] = np.linalg.norm(np.maximum(offset - half, 0) * bone.spacing, axis=-1).min(1)
    index = np.rint(bone.to_index(points)).astype(int) + 1
    inside = ((index >= 0) & (index < mask.shape)).all(1)
    inside[inside] = mask[tuple(index[inside].T)]
    return np.where(inside, -gap, gap)


def voxel_gap(voxels: np.ndarray, bone: Volume, limit: float) -> np.ndarray:
    """(N, 3) index on bone's grid -> (N,) mm from each voxel to the nearest voxel of bone, box to box.

    Infinite beyond `limit`, mm. Between boxes that lie |n| steps apart along an axis there are max(|n| - 1, 0) voxels,
    so this is the distance between centres to bone grown by one voxel in all 26 directions. A tree finds it, so the
    grid's axes need not be perpendicular.
    """
    grown = _grown(bone.mask)
    free = ~grown[tuple(voxels.T)]
    gap = np.where(free, np.inf, 0.0)
    surface = np.argwhere(voxel_border(grown, "edge"))
    if free.any() and len(surface):
        centres = bone.to_mm(voxels[free].astype(float))
        tree = search_tree(bone.to_mm(surface.astype(float)))
        gap[free] = tree.query(centres, distance_upper_bound=limit + 1e-6)[0]
    return gap


def smallest_gap(implant: Volume, bone: Volume, limit: float) -> float:
    """The smallest `voxel_gap` of an implant's voxels, mm; `limit` if none is smaller. Both on one grid."""
    if (implant.mask & _grown(bone.mask)).any():
        return 0.0
    return float(min(limit, voxel_gap(np.argwhere(voxel_border(implant.mask, "edge")), bone, limit).min(initial=limit)))


def _grown(mask: np.ndarray) -> np.ndarray:
    """The mask and the 26 neighbours of its voxels."""
    grown = mask
    for axis in range(3):
        lines, source = np.moveaxis(grown.copy(), axis, 0), np.moveaxis(grown, axis, 0)
        lines[1:] |= source[:-1]
        lines[:-1] |= source[1:]
        grown = np.moveaxis(lines, 0, axis)
    return grown
