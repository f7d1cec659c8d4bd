"""The surface of a mask as a closed triangle mesh, points on it, and distances to it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

from pcdiff.errors import InputError
from pcdiff.geometry.directions import unit
from pcdiff.geometry.grid import bounding_box, box_slices
from pcdiff.geometry.mesh import Mesh
from pcdiff.geometry.nearest import search_tree
from pcdiff.geometry.points import PointCloud
from pcdiff.geometry.smoothest import REACH, smoothest
from pcdiff.geometry.volume import Volume

LEVEL = 0.5
ROUNDED_MM = 0.6  # standard deviation of the Gaussian that takes off single voxels and sharp edges,
ROUNDED_VOXELS = 0.6  # at least; a layer of one voxel stays
INTO_BONE_MM = 0.2  # so far the surface may round the corners of bone's voxels off: a smooth rim needs some play


def volume_to_mesh(volume: Volume, bone: Volume | None = None, smooth: bool = True) -> Mesh:
    """The closed surface of a mask, LPS mm, normals outward: smooth across the voxels' terraces, see `smoothest`.

    It lies within half a voxel of the voxels' faces. Edges are rounded by `ROUNDED_MM`, and parts thinner than about
    that vanish. A mask that touches the grid's border is closed there.

    Args:
        volume: The mask.
        bone: On the same grid; the surface reaches into its voxels by `INTO_BONE_MM` at most.
        smooth: False for the plain surface, which passes midway between voxels.

    Raises:
        InputError: An empty mask, and one of which nothing is left when its edges are rounded.
    """
    return Terraces.of(volume).smoothed(bone) if smooth else _midway(volume, *_padded(volume, 1))


@dataclass(frozen=True)
class Terraces:
    """The surface of a mask with rounded edges, midway between voxels: `volume_to_mesh` before it is smooth.

    mesh: the same triangles, LPS mm. mask: (i, j, k) bool, which it encloses; its first voxel has the index `low` on
    the volume's grid.
    """

    mesh: Mesh
    mask: np.ndarray
    low: np.ndarray
    volume: Volume

    @classmethod
    def of(cls, volume: Volume) -> Terraces:
        """Errors as those of `volume_to_mesh`."""
        sigma = np.maximum(ROUNDED_MM / volume.spacing, ROUNDED_VOXELS)
        mask, low = _padded(volume, np.ceil(4 * sigma).astype(int) + 1)
        mask &= gaussian_filter(mask.astype(np.float32), sigma, mode="constant") > LEVEL
        if not mask.any():
            raise InputError(
                f"expected bone thicker than {ROUNDED_MM:g} mm to make a surface of, got thinner; use a finer scan"
            )
        return cls(_midway(volume, mask, low), mask, low, volume)

    def smoothed(self, bone: Volume | None = None) -> Mesh:
        """The smooth surface; bone: as for `volume_to_mesh`."""
        mask, volume = self.mask, self.volume
        axis, outward, beyond = _edges(volume.to_index(self.mesh.vertices) - self.low, mask)
        step = outward[:, None] * volume.affine[:3, :3].T[axis]
        highest, lowest = np.full(len(axis), REACH), np.full(len(axis), -REACH)
        forwards = outward[:, None] * (np.arange(3) == axis[:, None])
        lowest[~_lookup(mask, beyond - 2 * forwards)] = (
            0.01  # a layer of one voxel keeps its thickness, and is no blade
        )
        if bone is not None:
            in_bone = _lookup(bone.mask, beyond + self.low)
            highest[in_bone] = np.minimum(REACH, INTO_BONE_MM / volume.spacing)[axis[in_bone]]
        return smoothest(self.mesh, step, lowest, highest)


def _padded(volume: Volume, margin: int | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The box of a mask with a margin of voxels around it, and the index of its first voxel."""
    if not volume.mask.any():
        raise InputError("expected a mask with bone to make a surface of, got an empty one; check the mask")
    low, high = bounding_box(volume.mask)
    margins = np.broadcast_to(margin, 3)
    return np.pad(volume.mask[box_slices(low, high)], [(m, m) for m in margins]), low - margins


def _midway(volume: Volume, mask: np.ndarray, low: np.ndarray) -> Mesh:
    """The surface midway between the voxels of a mask and the others; low: index of its first voxel on the grid."""
    return isosurface(mask.astype(np.float32), LEVEL, volume, low)


def _edges(index: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The edges of the grid on which vertices (V, 3) lie midway.

    Returns (V,) the axis of each edge; (V,) 1 if it leaves the mask upwards, -1 if downwards, and 0 for a vertex inside
    a cell, on no edge; (V, 3) int, the voxel outside the mask.
    """
    halves = np.rint(2 * index).astype(int)
    odd = halves % 2 == 1
    axis, on_edge = odd.argmax(axis=1), odd.sum(axis=1) == 1
    below = halves // 2
    above = below + (np.arange(3) == axis[:, None])
    upwards = mask[tuple(below.T)]
    return axis, np.where(upwards, 1, -1) * on_edge, np.where(upwards[:, None], above, below)


def _lookup(mask: np.ndarray, index: np.ndarray) -> np.ndarray:
    """(N, 3) int -> (N,) bool: the mask there; False beyond its grid."""
    found = np.zeros(len(index), bool)
    within = ((index >= 0) & (index < mask.shape)).all(axis=1)
    found[within] = mask[tuple(index[within].T)]
    return found


def isosurface(values: np.ndarray, level: float, grid: Volume, low: np.ndarray) -> Mesh:
    """The surface where `values` cross `level`, by marching cubes (Lewiner et al. 2003), LPS mm.

    Normals point to the smaller values, also if the affine mirrors. The surface is closed if the outermost layer of
    values is below the level.

    Args:
        values: (i, j, k) float32.
        level: The value at the surface.
        grid: Gives the affine; its mask is not used.
        low: (3,) index of the first value on the grid; values may lie beyond the grid.
    """
    from skimage.measure import marching_cubes

    vertices, faces, _, _ = marching_cubes(values, level, allow_degenerate=False)
    faces = _without_sheets(faces)
    if np.linalg.det(grid.affine[:3, :3]) > 0:
        faces = faces[:, ::-1]  # the library's look inwards, and a mirroring affine turns them
    return Mesh(grid.to_mm(vertices.astype(np.float64) + low), faces)


def _without_sheets(faces: np.ndarray) -> np.ndarray:
    """The triangles (F, 3) without pairs on the same three vertices.

    Where a face of a cell is ambiguous, neighbouring cells may both fill it: a sheet of no thickness, at whose edges
    four triangles meet.
    """
    a, b, c = np.sort(faces, axis=1).astype(np.int64).T
    count = int(faces.max()) + 1
    triangle = (a * count + b) * count + c
    ordered = np.sort(triangle)
    twice = ordered[1:][np.diff(ordered) == 0]
    return faces[~np.isin(triangle, twice)] if len(twice) else faces


def sample_surface(mesh: Mesh, n: int, rng: np.random.Generator) -> PointCloud:
    """Exactly n points on the surface, independent and uniform per mm2 (Osada et al. 2002, eq. 1).

    Their normals point outward and are interpolated between vertices. Raises InputError for a mesh without area.
    """
    vectors = mesh.area_vectors
    cumulative = np.cumsum(np.linalg.norm(vectors, axis=1))
    if len(cumulative) == 0 or not cumulative[-1] > 0:
        raise InputError("expected a mesh with area to sample points on, got an empty one")
    face = np.searchsorted(cumulative, rng.random(n) * cumulative[-1])
    corners = mesh.faces[face]  # (n, 3)
    root, other = np.sqrt(rng.random(n)), rng.random(n)
    weights = np.stack([1 - root, root * (1 - other), root * other], axis=1)[:, :, None]  # (n, 3, 1)
    normals = (weights * mesh.vertex_normals[corners]).sum(axis=1)
    flat = unit(vectors[face])
    # At a fold the normals of the vertices may cancel or contradict the triangle's: then the triangle's is taken.
    folded = (normals * flat).sum(axis=1) < 0.1
    normals[folded] = flat[folded]
    return PointCloud((weights * mesh.vertices[corners]).sum(axis=1), unit(normals))


def distance_to(mesh: Mesh, points: np.ndarray) -> np.ndarray:
    """(N, 3) mm -> (N,) mm to the nearest point of the surface, negative inside the solid.

    The surface around a vertex is taken as its tangent plane, as far as an edge is long. Distances much shorter than
    the edges are therefore right; those of many edges are a few per cent too short.
    """
    normals = mesh.vertex_normals
    edge = float(np.median(np.linalg.norm(mesh.vertices[mesh.faces[:, 0]] - mesh.vertices[mesh.faces[:, 1]], axis=1)))
    _, nearest = search_tree(mesh.vertices).query(points)
    offset = points - mesh.vertices[nearest]
    height = np.einsum("nx,nx->n", offset, normals[nearest])
    sideways = np.linalg.norm(offset - height[:, None] * normals[nearest], axis=1)
    return np.copysign(np.hypot(height, np.maximum(sideways - edge, 0)), height)
