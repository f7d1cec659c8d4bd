"""Printability: the faults of a mesh that a printer's software refuses or builds wrongly."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations_with_replacement, product

import numpy as np

from pcdiff.checks.criteria import Criteria
from pcdiff.checks.report import Check, Figure
from pcdiff.errors import InputError
from pcdiff.geometry.directions import unit
from pcdiff.geometry.mesh import Mesh, label_bodies, manifold_of

PAIRS = 2**19  # pairs of triangles tested at a time
USUAL_SIZE = 1.5  # of the median
MAX_PAIRS = 3 * 10**8  # of triangles in neighbouring cells, a minute of work; no mesh of an implant has more
MAX_CELLS = 2**20  # along an axis, so that a cell has a number of 64 bits
SMALLEST_MM = 1e-3  # extent of a triangle, at least: that of a flat mesh is 0 along an axis
TOUCH_MM = 1e-3  # a triangle that reaches less through a plane touches it, as slivers of marching cubes do
ROUNDING_MM3 = 1e-9
FAULTS = {
    "watertight": "it has open edges",
    "consistent_winding": "its triangles face both ways",
    "manifold": "it is not a manifold",
    "bodies": "it has {0.value} separate bodies (expected {0.limit})",
    "inverted_bodies": "{0.value} of its bodies face inward",
    "self_intersections": "{0.value} pairs of triangles intersect",
    "wall": "its wall is {0.value:.1f} mm at the thinnest",
    "longest_side": "it is {0.value:.0f} mm long",
}


def printable(mesh: Mesh, bodies: int, wall: float, criteria: Criteria) -> Check:
    """Can the mesh be printed as it is?

    bodies: expected number of separate bodies, one per defect. wall: mm, the thickness that 99 % of the outer surface
    reach, or NaN if unknown.
    """
    labels = label_bodies(mesh)
    volumes = [Mesh(mesh.vertices, mesh.faces[labels == k]).volume_ml for k in range(labels.max(initial=-1) + 1)]
    size = float(np.ptp(mesh.vertices, axis=0).max())
    known_wall = "Wall thickness, reached by 99 % of the surface"
    figures = (
        Figure("watertight", "Watertight", mesh.is_watertight, expected=True),
        Figure("consistent_winding", "Consistent winding", mesh.is_wound_alike, expected=True),
        Figure("manifold", "Manifold", is_manifold(mesh), expected=True),
        Figure("bodies", "Separate bodies", len(volumes), expected=bodies),
        Figure("inverted_bodies", "Bodies that face inward", sum(volume <= 0 for volume in volumes), expected=0),
        Figure("self_intersections", "Self-intersections", len(self_intersections(mesh)), expected=0),
        *([Figure("wall", known_wall, wall, "mm", minimum=criteria.min_wall_mm)] if np.isfinite(wall) else []),
        Figure("longest_side", "Longest side of its box", size, "mm", maximum=criteria.max_size_mm),
        Figure("volume", "Volume", mesh.volume_ml, "ml"),
        Figure("triangles", "Triangles", len(mesh.faces)),
    )
    faults = [FAULTS[figure.key].format(figure) for figure in figures if figure.passed is False]
    words = "The mesh can be printed as it is." if not faults else f"The mesh cannot be printed: {', '.join(faults)}."
    return Check("printable", "Can be printed", words, figures)


def is_manifold(mesh: Mesh) -> bool:
    """Whether the library that cuts texts into meshes takes it for a manifold.

    It asks that the triangles at each edge come in pairs of opposite direction. Where there is one pair at each edge,
    that is so, and the library, which needs 1.5 us a triangle and keeps other threads waiting, is not asked.
    """
    a, b, c = mesh.faces.T
    whole = not ((a == b) | (b == c) | (c == a)).any() and np.isfinite(mesh.vertices).all()
    if whole and mesh.is_watertight and mesh.is_wound_alike:
        return True
    import manifold3d

    return bool(manifold_of(mesh).status() == manifold3d.Error.NoError)


def self_intersections(mesh: Mesh) -> np.ndarray:
    """(N, 2) indices of the triangles that intersect: an edge of one passes through the other.

    Triangles that share a vertex are not compared; triangles that touch, or overlap in one plane, do not intersect.
    Raises InputError for a mesh with so many overlapping triangles that it cannot be an implant's.
    """
    triangles = mesh.vertices[mesh.faces].astype(np.float64)  # (F, 3, 3)
    p, q, r = triangles.transpose(1, 0, 2)
    normals = unit(mesh.area_vectors)
    low, high = np.minimum(np.minimum(p, q), r).T.copy(), np.maximum(np.maximum(p, q), r).T.copy()
    corners = np.ascontiguousarray(mesh.faces.T.astype(np.int32))
    found = [np.zeros((0, 2), int)]
    found += [_crossing(a, b, triangles, normals, corners, low, high) for a, b in _near_pairs(low, high)]
    return np.concatenate(found)


def _near_pairs(low: np.ndarray, high: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All pairs of triangles whose boxes meet, each once, and others near them: (N,) and (N,) indices at a time.

    low, high: (3, F) mm, the boxes. Raises InputError for too many pairs.
    """
    extent, middle = high - low, (low + high) / 2
    longest = extent.max(axis=0, initial=SMALLEST_MM)
    # One class for all triangles of usual size, as a mesh of marching cubes has them; in the others, sizes differ by a
    # factor of 1.4 at most.
    usual = USUAL_SIZE * np.median(longest) if len(longest) else 1.0
    size = np.ceil(2 * np.log2(np.maximum(longest / usual, 1))).astype(int)
    classes = [np.flatnonzero(size == each) for each in np.unique(size)]
    total = 0
    for some, others in combinations_with_replacement(classes, 2):
        cell = (extent[:, some].max(axis=1) + extent[:, others].max(axis=1)) / 2 + SMALLEST_MM
        cell = np.maximum(cell, np.ptp(middle, axis=1) / MAX_CELLS)
        few, many = sorted((some, others), key=len)
        for ours, theirs, start, end in _near_cells(few, many, middle, cell):
            count = end - start
            total += int(count.sum())
            if total > MAX_PAIRS:
                raise InputError(
                    "expected the mesh of an implant, got one whose triangles lie on top of each other; export it again"
                )
            parts = np.flatnonzero(np.diff(np.cumsum(count) // PAIRS)) + 1
            for one, n, first in zip(*(np.split(each, parts) for each in (ours, count, start)), strict=True):
                within = np.arange(n.sum()) - (np.cumsum(n) - n).repeat(n)
                yield one.repeat(n), theirs[first.repeat(n) + within]


def _near_cells(
    few: np.ndarray, many: np.ndarray, middle: np.ndarray, cell: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Triangles in the cells of a lattice, and those in the same or a neighbouring cell.

    Boxes whose middles lie no farther apart than a cell is long do so. few, many: (A,) and (B,) triangles; if they are
    the same, each pair is found once. middle: (3, F) mm of all boxes. cell: (3,) mm. Yields (A,) triangles, (B,)
    triangles, and (A,) int the first of the latter near each of the former, and the one after the last.
    """
    corner = middle.min(axis=1)
    places = [((middle[:, each].T - corner) / cell).astype(np.int64) for each in (few, many)]
    _, rows, columns = np.max([each.max(axis=0) for each in places], axis=0) + 3  # no two cells have one number
    numbers = [each @ [rows * columns, columns, 1] for each in places]
    orders = [np.argsort(each, kind="stable") for each in numbers]
    ours, theirs = few[orders[0]], many[orders[1]]
    own, near = numbers[0][orders[0]], numbers[1][orders[1]]
    around = [(x * rows + y) * columns for x, y in product((-1, 0, 1), repeat=2)]
    for step in around[4:] if few is many else around:  # of the same ones, the others are met from there
        start, end = np.searchsorted(near, own + step - 1), np.searchsorted(near, own + step + 1, "right")
        yield ours, theirs, np.arange(len(few)) + 1 if few is many and step == 0 else start, end


def _crossing(
    a: np.ndarray,
    b: np.ndarray,
    triangles: np.ndarray,
    normals: np.ndarray,
    corners: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
) -> np.ndarray:
    """(N, 2) the pairs that intersect, of triangles a and b, (N,) each.

    normals: (F, 3) unit. corners: (3, F) int vertices. low, high: (3, F), the triangles' boxes.
    """
    for first, last in zip(low, high, strict=True):
        near = (first[a] <= last[b]) & (first[b] <= last[a])
        a, b = a[near], b[near]
    ours, theirs = corners[:, a], corners[:, b]
    apart = np.ones(len(a), bool)
    for k in range(9):
        apart &= ours[k // 3] != theirs[k % 3]
    a, b = a[apart], b[apart]
    above_a = _heights(triangles[a], normals[a], triangles[b])
    meets = _meets(above_a)
    a, b, above_a = a[meets], b[meets], above_a[meets]
    above_b = _heights(triangles[b], normals[b], triangles[a])
    meets = _meets(above_b)
    a, b, above_a, above_b = a[meets], b[meets], above_a[meets], above_b[meets]
    crosses = _pierces(triangles[b], above_a, triangles[a]) | _pierces(triangles[a], above_b, triangles[b])
    return np.stack([a, b], axis=1)[crosses]


def _heights(plane: np.ndarray, normal: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """(N, 3) mm of the second triangles' corners above the planes of the first; less than `TOUCH_MM` is 0."""
    height = np.einsum("nkx,nx->nk", corners - plane[:, :1], normal)
    return np.where(np.abs(height) > TOUCH_MM, height, 0)


def _meets(height: np.ndarray) -> np.ndarray:
    """(N,) bool: not all corners lie on one side of the plane; height: (N, 3) above it."""
    return np.asarray((height.max(axis=1) >= 0) & (height.min(axis=1) <= 0))


def _pierces(edges: np.ndarray, height: np.ndarray, triangle: np.ndarray) -> np.ndarray:
    """(N,) bool: does an edge of the first triangle pass through the second? By the signs of tetrahedra's volumes.

    edges, triangle: (N, 3, 3) corners. height: (N, 3), of the first's corners above the plane of the second.
    """
    pair, first = np.nonzero(height * np.roll(height, -1, axis=1) < 0)  # the edge's ends lie on both sides
    start, end = edges[pair, first], edges[pair, (first + 1) % 3]
    a, b, c = triangle[pair].transpose(1, 0, 2)
    sides = np.stack([_volume(start, end, *edge) for edge in ((a, b), (b, c), (c, a))])
    # the triangle's border counts: two shapes that mirror each other meet edge on edge
    through = (sides > -ROUNDING_MM3).all(0) | (sides < ROUNDING_MM3).all(0)
    found = np.zeros(len(edges), bool)
    found[pair[through]] = True
    return found


def _volume(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray) -> np.ndarray:
    """Six times the signed volume of tetrahedra, (N,)."""
    return np.einsum("nx,nx->n", b - a, np.cross(c - a, d - a))
