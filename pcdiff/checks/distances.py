"""Wall and gap at every vertex of the implant's mesh."""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree

from pcdiff.geometry.mesh import Mesh
from pcdiff.geometry.surface import vertex_normals
from pcdiff.geometry.volume import Volume

FACING = 0.5  # least cosine between a vertex normal and the ray from inside, for outer (or, negative, inner) surface
FACES = 4  # nearest faces of bone voxels among which the nearest to a point is found
CLOSE = 4.0  # voxels; farther away a face is as good as its middle
COARSER = 4  # of the opposite surface's vertices, one in so many says where it is, to some hundredths of a millimetre


def facing(mesh: Mesh, centre: np.ndarray) -> np.ndarray:
    """(V,) cosine between outward normal and the ray from the cranial `centre`: 1 on the outer surface, -1 inside."""
    ray = mesh.vertices - centre
    return (vertex_normals(mesh) * ray).sum(1) / np.maximum(np.linalg.norm(ray, axis=1), 1e-9)


def wall_thickness(mesh: Mesh, faces_out: np.ndarray) -> np.ndarray:
    """(V,) mm from each vertex of the outer surface to the inner one and back; the rim's have the nearest outer one's.

    faces_out: (V,) of `facing`. NaN everywhere for a mesh without both surfaces.
    """
    outer, inner = faces_out > FACING, faces_out < -FACING
    thickness = np.full(len(mesh.vertices), np.nan)
    if not outer.any() or not inner.any():
        return thickness
    step = COARSER if min(np.count_nonzero(outer), np.count_nonzero(inner)) > 1000 * COARSER else 1
    top, bottom = cKDTree(mesh.vertices[outer][::step]), cKDTree(mesh.vertices[inner][::step])
    thickness[outer] = bottom.query(mesh.vertices[outer])[0]
    thickness[inner] = top.query(mesh.vertices[inner])[0]
    side = ~(outer | inner)
    thickness[side] = thickness[outer][::step][top.query(mesh.vertices[side])[1]]
    return thickness


def bone_gap(points: np.ndarray, bone: Volume) -> np.ndarray:
    """(N, 3) mm -> (N,) mm to the surface of the bone's voxels, negative inside bone; infinite where there is none.

    The surface is that of the voxels as boxes, their axes as the grid's: exact where those are perpendicular. Farther
    than `CLOSE` voxels the distance is to the middle of a box's face.
    """
    mask = np.pad(bone.mask, 1)  # index + 1
    centres, axes = [], []
    for axis in range(3):
        lines = np.moveaxis(mask, axis, 0)
        found = np.argwhere(lines[1:] != lines[:-1]).astype(float)
        found[:, 0] += 0.5
        centres.append(np.insert(found[:, 1:], axis, found[:, 0], axis=1) - 1)
        axes.append(np.full(len(found), axis))
    faces, across = np.concatenate(centres), np.concatenate(axes)
    if not len(faces):
        return np.full(len(points), np.inf)
    tree = cKDTree(bone.to_mm(faces), balanced_tree=False, compact_nodes=False)
    gap, _ = tree.query(points)
    close = np.flatnonzero(gap < CLOSE * bone.spacing.max())
    _, nearest = tree.query(points[close], k=min(FACES, len(faces)))
    nearest = nearest.reshape(len(close), min(FACES, len(faces)))
    offset = np.abs(bone.to_index(points[close])[:, None] - faces[nearest])  # (N, FACES, 3) voxels
    half = 0.5 * (across[nearest][..., None] != np.arange(3))
    gap[close] = np.linalg.norm(np.maximum(offset - half, 0) * bone.spacing, axis=-1).min(1)
    index = np.rint(bone.to_index(points)).astype(int) + 1
    inside = ((index >= 0) & (index < mask.shape)).all(1)
    inside[inside] = mask[tuple(index[inside].T)]
    return np.where(inside, -gap, gap)


def voxel_gap(voxels: np.ndarray, bone: Volume, limit: float) -> np.ndarray:
    """Mm between voxels (N, 3) of bone's grid and the nearest voxel of bone, box to box; infinite beyond `limit`.

    The distance of a voxel's centre to those of bone grown by one voxel all around (corners too): between boxes
    |n| steps apart along an axis lie max(|n| - 1, 0) voxels. This is a Euclidean distance transform in mm at these
    voxels alone; by a tree, so that axes need not be perpendicular.
    """
    grown = _grown(bone.mask)
    free = ~grown[tuple(voxels.T)]
    gap = np.where(free, np.inf, 0.0)
    surface = np.argwhere(border(grown))
    if free.any() and len(surface):
        places = bone.to_mm(voxels[free].astype(float))
        tree = cKDTree(bone.to_mm(surface.astype(float)))
        gap[free] = tree.query(places, distance_upper_bound=limit + 1e-6)[0]
    return gap


def least_gap(implant: Volume, bone: Volume, limit: float) -> float:
    """The least `voxel_gap` of an implant, mm; `limit` where there is more."""
    if (implant.mask & _grown(bone.mask)).any():
        return 0.0
    return float(min(limit, voxel_gap(np.argwhere(border(implant.mask)), bone, limit).min(initial=limit)))


def border(mask: np.ndarray) -> np.ndarray:
    """Voxels of a mask with a 6-neighbour outside it; beyond the array all is as it is at the edge."""
    inner = mask.copy()
    for axis in range(3):
        lines, source = np.moveaxis(inner, axis, 0), np.moveaxis(mask, axis, 0)
        lines[1:] &= source[:-1]
        lines[:-1] &= source[1:]
    return mask & ~inner


def _grown(mask: np.ndarray) -> np.ndarray:
    """The mask and all neighbours of its voxels, across corners too."""
    grown = mask
    for axis in range(3):
        lines, source = np.moveaxis(grown.copy(), axis, 0), np.moveaxis(grown, axis, 0)
        lines[1:] |= source[:-1]
        lines[:-1] |= source[1:]
        grown = np.moveaxis(lines, 0, axis)
    return grown
