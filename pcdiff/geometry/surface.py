"""From a mask to its surface: a closed triangle mesh, and oriented points on it."""

from __future__ import annotations

from typing import Literal

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree

from pcdiff.errors import InputError
from pcdiff.geometry.mesh import Mesh
from pcdiff.geometry.points import PointCloud
from pcdiff.geometry.volume import Volume

LEVEL = 0.5
CLEARANCE = 1e-3  # least distance of a smoothed value from the level
OVERSAMPLING = 5  # candidates per Poisson-disk point


def volume_to_mesh(volume: Volume, sigma_mm: float = 0.6) -> Mesh:
    """The closed surface of a mask in LPS mm, wound outward whatever the sign of det(affine).

    Marching cubes (Lewiner et al. 2003) at 0.5 of the mask smoothed by a Gaussian of `sigma_mm` (0: none), which takes
    the voxels' stairs out of area and normals; parts thinner than about sigma_mm vanish. A mask that touches the
    grid's border is closed there. Raises InputError where the mask, or what smoothing leaves of it, is empty.
    """
    from skimage.measure import marching_cubes

    if not volume.mask.any():
        raise InputError("expected a mask that holds bone to make a surface of, got an empty one")
    sigma = sigma_mm / volume.spacing
    margin = np.ceil(4 * sigma).astype(int) + 1
    low, high = _bounds(volume.mask)
    crop = volume.mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    values = np.pad(crop, [(m, m) for m in margin]).astype(np.float32)
    if sigma_mm > 0:
        gaussian_filter(values, sigma, output=values, mode="constant")
    for plane in values:
        # A vertex next to a grid point would make slivers that float32 files collapse.
        near = np.abs(plane - LEVEL) < CLEARANCE
        plane[near] = np.where(plane[near] < LEVEL, LEVEL - CLEARANCE, LEVEL + CLEARANCE)
    if values.max() < LEVEL:
        raise InputError(f"expected bone thicker than the smoothing of {sigma_mm:g} mm; choose a smaller sigma")
    vertices, faces, _, _ = marching_cubes(values, LEVEL, allow_degenerate=False)
    mesh = Mesh(volume.to_mm(vertices.astype(np.float64) + (low - margin)), faces)
    return mesh if mesh.volume_ml > 0 else Mesh(mesh.vertices, faces[:, ::-1])


def sample_surface(
    mesh: Mesh, n: int, rng: np.random.Generator, method: Literal["area", "poisson_disk"] = "area"
) -> PointCloud:
    """Exactly n points on the surface, with outward unit normals interpolated between vertices.

    area:         independent and uniform per mm2.
    poisson_disk: spread out, by dart throwing: of 5 n uniform candidates in random order a point stays if none kept
                  before it lies within r; r is the largest (to 1 %) that leaves n points (Cook 1986).
    Raises InputError for a mesh without area.
    """
    if method not in ("area", "poisson_disk"):
        raise ValueError(f"method must be 'area' or 'poisson_disk', got {method!r}")
    if method == "area":
        return _uniform(mesh, n, rng)
    candidates = _uniform(mesh, OVERSAMPLING * n, rng)
    return candidates[_spread(candidates.points, n, mesh.area)]


def distance_to(mesh: Mesh, points: np.ndarray) -> np.ndarray:
    """(N, 3) mm -> (N,) mm to the nearest place of the surface, negative inside the solid.

    Within an edge's length of the nearest vertex the surface is the plane that touches it there: finer than the
    vertices lie apart, which matters where two surfaces are some tenths of a millimetre from each other. A few per cent
    short where they are many edges apart.
    """
    normals = vertex_normals(mesh)
    edge = float(np.median(np.linalg.norm(mesh.vertices[mesh.faces[:, 0]] - mesh.vertices[mesh.faces[:, 1]], axis=1)))
    _, nearest = cKDTree(mesh.vertices).query(points)
    offset = points - mesh.vertices[nearest]
    height = np.einsum("nx,nx->n", offset, normals[nearest])
    beside = np.linalg.norm(offset - height[:, None] * normals[nearest], axis=1)
    return np.copysign(np.hypot(height, np.maximum(beside - edge, 0)), height)


def vertex_normals(mesh: Mesh) -> np.ndarray:
    """(V, 3) unit, outward: of each vertex the mean of its triangles, by area."""
    vectors = mesh.area_vectors
    sums = [
        sum(np.bincount(mesh.faces[:, corner], vectors[:, axis], len(mesh.vertices)) for corner in range(3))
        for axis in range(3)
    ]
    return _unit(np.stack(sums, axis=1))


def _bounds(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mask lies in low <= index < high."""
    plane = mask.any(axis=2)
    lines = np.any(plane, axis=1), np.any(plane, axis=0), mask.any(axis=(0, 1))
    spans = [np.flatnonzero(line) for line in lines]
    return np.array([span[0] for span in spans]), np.array([span[-1] + 1 for span in spans])


def _uniform(mesh: Mesh, n: int, rng: np.random.Generator) -> PointCloud:
    vectors = mesh.area_vectors
    cumulative = np.cumsum(np.linalg.norm(vectors, axis=1))
    if len(cumulative) == 0 or not cumulative[-1] > 0:
        raise InputError("expected a mesh with area to sample points on, got an empty one")
    face = np.searchsorted(cumulative, rng.random(n) * cumulative[-1])
    corners = mesh.faces[face]  # (n, 3)
    # Uniform in a triangle (Osada et al. 2002, eq. 1).
    root, other = np.sqrt(rng.random(n)), rng.random(n)
    weights = np.stack([1 - root, root * (1 - other), root * other], axis=1)[:, :, None]  # (n, 3, 1)
    normals = (weights * vertex_normals(mesh)[corners]).sum(axis=1)
    flat = _unit(vectors[face])
    # Where a fold's normals cancel or contradict the triangle, the triangle is right.
    folded = (normals * flat).sum(axis=1) < 0.1
    normals[folded] = flat[folded]
    return PointCloud((weights * mesh.vertices[corners]).sum(axis=1), _unit(normals))


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-30)


def _spread(points: np.ndarray, n: int, area: float) -> np.ndarray:
    """Indices of n points that keep the largest common distance dart throwing finds."""
    low, high = 0.0, np.sqrt(2 * area / (np.sqrt(3) * n))  # no n points of a plane lie further apart than high
    pairs = cKDTree(points).query_pairs(high, output_type="ndarray")  # first < second
    distance = np.linalg.norm(points[pairs[:, 0]] - points[pairs[:, 1]], axis=1)
    best = np.arange(n)
    while high - low > 0.01 * high:
        radius = (low + high) / 2
        kept = _dart_throwing(pairs[distance < radius], len(points))
        if len(kept) >= n:
            low, best = radius, kept[:n]
        else:
            high = radius
    return best


def _dart_throwing(pairs: np.ndarray, count: int) -> np.ndarray:
    """Keep each point, in index order, unless it pairs with one kept before; in rounds, all settled points at once."""
    open_ = np.ones(count, bool)
    kept = np.zeros(count, bool)
    while open_.any():
        waiting = np.zeros(count, bool)
        waiting[pairs[:, 1]] = True
        fresh = open_ & ~waiting
        kept |= fresh
        open_ &= ~fresh
        open_[pairs[fresh[pairs[:, 0]], 1]] = False
        pairs = pairs[open_[pairs].all(axis=1)]
    return np.flatnonzero(kept)
