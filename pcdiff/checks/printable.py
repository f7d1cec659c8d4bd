"""The print gate: what a printer's software refuses, or builds wrongly, is found here first."""

from __future__ import annotations

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from pcdiff.checks.criteria import Criteria
from pcdiff.checks.report import Check, Figure
from pcdiff.errors import InputError
from pcdiff.geometry.mesh import Mesh

PAIRS = 2**19  # pairs of triangles tested at a time
SAMPLED = 16  # of the triangles, one in so many has its neighbours counted
MANY_PAIRS = 5 * 10**7  # more neighbours than this are not the mesh of an implant
TOUCH = 1e-3  # mm; what reaches less through a plane touches it: slivers of marching cubes do, and no printer sees it
ROUNDING = 1e-9  # mm3


def printable(mesh: Mesh, pieces: int, wall: float, criteria: Criteria) -> Check:
    """pieces: shells that there should be, one per defect. wall: mm, what 99 % of the outer surface have, or NaN."""
    import manifold3d
    import trimesh

    body = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
    solid = manifold3d.Manifold(
        manifold3d.Mesh64(np.ascontiguousarray(mesh.vertices, float), np.ascontiguousarray(mesh.faces, np.uint64))
    )
    manifold = solid.status() == manifold3d.Error.NoError
    shells = _shells(mesh)
    volumes = [Mesh(mesh.vertices, mesh.faces[shells == k]).volume_ml for k in range(shells.max(initial=-1) + 1)]
    crossings = len(self_intersections(mesh))
    size = float(np.ptp(mesh.vertices, axis=0).max())
    faults = [
        text
        for wrong, text in (
            (not body.is_watertight, "it has open edges"),
            (not body.is_winding_consistent, "its triangles face both ways"),
            (not manifold, "it is no manifold"),
            (min(volumes) <= 0, "a shell faces inward"),
            (len(volumes) != pieces, f"it has {len(volumes)} shells where {pieces} should be"),
            (crossings > 0, f"{crossings} pairs of triangles cross"),
            (wall < criteria.min_wall_mm, f"its wall is {wall:.1f} mm at the thinnest"),
            (size > criteria.max_size_mm, f"it is {size:.0f} mm long"),
        )
        if wrong
    ]
    words = "The mesh can be printed as it is." if not faults else f"The mesh cannot be printed: {', '.join(faults)}."
    figures = (
        Figure("watertight", float(body.is_watertight), "", least=1),
        Figure("consistent winding", float(body.is_winding_consistent), "", least=1),
        Figure("manifold", float(manifold), "", least=1),
        Figure("shells beyond or short of one per defect", abs(len(volumes) - pieces), "", most=0),
        Figure("shells that face inward", sum(volume <= 0 for volume in volumes), "", most=0),
        Figure("self-intersections", crossings, "", most=0),
        *([Figure("minimum wall", wall, "mm", least=criteria.min_wall_mm)] if np.isfinite(wall) else []),
        Figure("longest side", size, "mm", most=criteria.max_size_mm),
        Figure("volume", mesh.volume_ml, "ml"),
        Figure("triangles", len(mesh.faces), ""),
    )
    return Check("printable", "Can be printed", words, figures)


def self_intersections(mesh: Mesh) -> np.ndarray:
    """(N, 2) pairs of triangles that cross: an edge of one passes through the other.

    Triangles that share a vertex are neighbours and are not compared; touching, and overlap in one plane, is no
    crossing. Raises InputError for a mesh whose triangles lie so thick that it is none.
    """
    triangles = mesh.vertices[mesh.faces].astype(np.float64)  # (F, 3, 3)
    low, high = triangles.min(1), triangles.max(1)
    centre = (low + high) / 2
    reach = np.linalg.norm(high - low, axis=1) / 2
    # in one class are all up to the usual size; beyond, sizes differ by two at most
    sizes = np.floor(np.log2(np.maximum(reach, max(np.median(reach), 1e-9)))).astype(int)
    classes = [np.flatnonzero(sizes == size) for size in np.unique(sizes)]
    trees = [cKDTree(centre[members]) for members in classes]
    found = []
    for a, first in enumerate(classes):
        some = cKDTree(centre[first[::SAMPLED]])  # to count them all would take as long as to find them
        for b in range(a, len(classes)):
            second = classes[b]
            bound = reach[first].max() + reach[second].max()
            if some.count_neighbors(trees[b], bound) * len(first) / some.n > MANY_PAIRS:
                raise InputError("expected the mesh of an implant, got one whose triangles lie on top of each other")
            if a == b:
                pairs = trees[a].query_pairs(bound, output_type="ndarray")
                pairs = first[pairs]
            else:
                near = trees[a].sparse_distance_matrix(trees[b], bound, output_type="coo_matrix")
                pairs = np.stack([first[near.row], second[near.col]], axis=1)
            for start in range(0, len(pairs), PAIRS):
                found.append(_crossing(pairs[start : start + PAIRS], triangles, mesh.faces, low, high))
    return np.concatenate(found) if found else np.zeros((0, 2), int)


def _crossing(
    pairs: np.ndarray, triangles: np.ndarray, faces: np.ndarray, low: np.ndarray, high: np.ndarray
) -> np.ndarray:
    """Those of the pairs (N, 2) that cross."""
    for axis in range(3):
        a, b = pairs.T
        pairs = pairs[(low[a, axis] <= high[b, axis]) & (low[b, axis] <= high[a, axis])]
    for k in range(9):
        a, b = pairs.T
        pairs = pairs[faces[a, k // 3] != faces[b, k % 3]]
    for one, other in ((0, 1), (1, 0)):  # a triangle wholly on one side of the other's plane is clear of it
        height = _heights(triangles[pairs[:, one]], triangles[pairs[:, other]])
        pairs = pairs[~((height > 0).all(1) | (height < 0).all(1))]
    crosses = np.zeros(len(pairs), bool)
    for one, other in ((0, 1), (1, 0)):
        plane, edges = triangles[pairs[:, one]], triangles[pairs[:, other]]
        for k in range(3):
            crosses |= _pierces(edges[:, k], edges[:, (k + 1) % 3], plane)
    return pairs[crosses]


def _heights(plane: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """(N, 3) mm of the second triangles' corners above the planes of the first; less than `TOUCH` is 0."""
    normal = np.cross(plane[:, 1] - plane[:, 0], plane[:, 2] - plane[:, 0])
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-12)
    height = np.einsum("nkx,nx->nk", corners - plane[:, :1], normal)
    return np.where(np.abs(height) > TOUCH, height, 0)


def _pierces(start: np.ndarray, end: np.ndarray, triangle: np.ndarray) -> np.ndarray:
    """(N,) bool: do segments pass through triangles? By the signs of tetrahedra's volumes."""
    a, b, c = triangle.transpose(1, 0, 2)
    height = _heights(triangle, np.stack([start, end], axis=1))
    sides = np.stack([_volume(start, end, *edge) for edge in ((a, b), (b, c), (c, a))])
    # the border of the triangle counts: two shapes that mirror each other meet edge on edge
    return (height.prod(axis=1) < 0) & ((sides > -ROUNDING).all(0) | (sides < ROUNDING).all(0))


def _volume(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray) -> np.ndarray:
    """Six times the signed volume of tetrahedra, (N,)."""
    return np.einsum("nx,nx->n", b - a, np.cross(c - a, d - a))


def _shells(mesh: Mesh) -> np.ndarray:
    """(F,) int: which connected shell each triangle belongs to."""
    count = len(mesh.vertices)
    first, second = mesh.faces[:, [0, 1]].ravel(), mesh.faces[:, [1, 2]].ravel()
    links = coo_matrix((np.ones(len(first), bool), (first, second)), (count, count))
    _, label = connected_components(links, directed=False)
    return np.unique(label[mesh.faces[:, 0]], return_inverse=True)[1]
