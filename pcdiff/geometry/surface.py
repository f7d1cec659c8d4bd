"""The surface of a mask as a closed triangle mesh, points on it, and distances to it."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree

from pcdiff.errors import InputError
from pcdiff.geometry.directions import unit
from pcdiff.geometry.grid import bounding_box, box_slices
from pcdiff.geometry.mesh import Mesh
from pcdiff.geometry.points import PointCloud
from pcdiff.geometry.volume import Volume

LEVEL = 0.5
MIN_DIFFERENCE = 1e-3  # of a smoothed value from the level


def volume_to_mesh(volume: Volume, sigma_mm: float = 0.6) -> Mesh:
    """The closed surface of a mask, LPS mm, normals outward: its `isosurface` at 0.5 after smoothing.

    sigma_mm: standard deviation of the Gaussian, 0 for none; it takes the voxels' stairs out of area and normals, and
    parts thinner than about sigma_mm vanish. A mask that touches the grid's border is closed there. Raises InputError
    for an empty mask and one that smoothing empties.
    """
    if not volume.mask.any():
        raise InputError("expected a mask with bone to make a surface of, got an empty one; check the mask")
    sigma = sigma_mm / volume.spacing
    margin = np.ceil(4 * sigma).astype(int) + 1
    low, high = bounding_box(volume.mask)
    values = np.pad(volume.mask[box_slices(low, high)], [(m, m) for m in margin]).astype(np.float32)
    if sigma_mm > 0:
        gaussian_filter(values, sigma, output=values, mode="constant")
    for plane in values:
        # A vertex very near to a grid point would give triangles that collapse in float32 files.
        near = np.abs(plane - LEVEL) < MIN_DIFFERENCE
        plane[near] = np.where(plane[near] < LEVEL, LEVEL - MIN_DIFFERENCE, LEVEL + MIN_DIFFERENCE)
    if values.max() < LEVEL:
        raise InputError(
            f"expected bone thicker than the smoothing of {sigma_mm:g} mm, got thinner; choose a smaller sigma"
        )
    return isosurface(values, LEVEL, volume, low - margin)


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
    mesh = Mesh(grid.to_mm(vertices.astype(np.float64) + low), faces)
    return mesh if mesh.volume_ml > 0 else Mesh(mesh.vertices, faces[:, ::-1])


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
    normals = (weights * vertex_normals(mesh)[corners]).sum(axis=1)
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
    normals = vertex_normals(mesh)
    edge = float(np.median(np.linalg.norm(mesh.vertices[mesh.faces[:, 0]] - mesh.vertices[mesh.faces[:, 1]], axis=1)))
    _, nearest = cKDTree(mesh.vertices).query(points)
    offset = points - mesh.vertices[nearest]
    height = np.einsum("nx,nx->n", offset, normals[nearest])
    sideways = np.linalg.norm(offset - height[:, None] * normals[nearest], axis=1)
    return np.copysign(np.hypot(height, np.maximum(sideways - edge, 0)), height)


def vertex_normals(mesh: Mesh) -> np.ndarray:
    """(V, 3) unit, outward: at each vertex the mean of its triangles' normals, weighted by area."""
    vectors = mesh.area_vectors
    sums = [
        sum(np.bincount(mesh.faces[:, corner], vectors[:, axis], len(mesh.vertices)) for corner in range(3))
        for axis in range(3)
    ]
    return unit(np.stack(sums, axis=1))
