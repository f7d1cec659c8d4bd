"""A triangle mesh in patient millimetres, its STL file, and the mask of its inside."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pcdiff.errors import InputError
from pcdiff.files import written_beside
from pcdiff.foreign import parsing, read_bytes
from pcdiff.geometry.directions import unit
from pcdiff.geometry.volume import Volume

if TYPE_CHECKING:
    import manifold3d

MAX_MESH_BYTES = 512 * 2**20
FAR_MM = 1e5  # no place in a scan is so far from its origin
EXPORT_AGAIN = "export it again"
STL_TRIANGLE = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
SPACES = ("lps", "ras")
SNAP = 2**17  # steps per voxel in `mesh_to_mask`: finer than float32 millimetres, coarse enough for int64 products
PAIRS_AT_A_TIME = 2**19  # of a triangle and a column of voxels


@dataclass(frozen=True)
class Mesh:
    """Triangles, wound so that normals point out of the solid.

    vertices: (V, 3) float, patient millimetres (LPS). faces: (F, 3) int. Raises ValueError for another shape.
    """

    vertices: np.ndarray
    faces: np.ndarray

    def __post_init__(self) -> None:
        for name in ("vertices", "faces"):
            value = getattr(self, name)
            if value.ndim != 2 or value.shape[1] != 3:
                raise ValueError(f"{name} must have shape (N, 3), got {value.shape}")

    @property
    def area_vectors(self) -> np.ndarray:
        """(F, 3) mm2: the outward normal of each triangle; its length is the triangle's area."""
        return np.stack(self._areas, axis=1)

    @cached_property
    def vertex_normals(self) -> np.ndarray:
        """(V, 3) unit, outward: at each vertex the mean of its triangles' normals, weighted by area."""
        corners = np.ascontiguousarray(self.faces.T)
        sums = [sum(np.bincount(corner, area, len(self.vertices)) for corner in corners) for area in self._areas]
        return unit(np.stack(sums, axis=1))

    @property
    def _areas(self) -> list[np.ndarray]:
        """Three times (F,): the area vectors, coordinate by coordinate, which takes a third of the time."""
        a, b, c = np.ascontiguousarray(self.faces.T)
        sides = [(v[b] - v[a], v[c] - v[a]) for v in np.ascontiguousarray(self.vertices.T, np.float64)]
        (ux, wx), (uy, wy), (uz, wz) = sides
        return [0.5 * (uy * wz - uz * wy), 0.5 * (uz * wx - ux * wz), 0.5 * (ux * wy - uy * wx)]

    @cached_property
    def volume_ml(self) -> float:
        """Enclosed volume in millilitres by the divergence theorem; negative if the normals point inward."""
        return float((self.vertices[self.faces[:, 0]] * self.area_vectors).sum()) / 3000.0

    @property
    def is_watertight(self) -> bool:
        """Whether every edge belongs to exactly two triangles. Equal vertices must be one, as in all meshes here."""
        return self._paired_edges[0]

    @property
    def is_wound_alike(self) -> bool:
        """Whether the two triangles of each edge that belongs to two run through it in opposite directions."""
        return self._paired_edges[1]

    @cached_property
    def _paired_edges(self) -> tuple[bool, bool]:
        start, end = self.faces.astype(np.int64).ravel(), np.roll(self.faces, -1, axis=1).astype(np.int64).ravel()
        edge = np.minimum(start, end) * len(self.vertices) + np.maximum(start, end)
        run = np.sort(2 * edge + (start > end))
        first = np.flatnonzero(np.diff(run // 2, prepend=-1))
        pair = np.diff(first, append=len(run)) == 2
        one, other = run[first[pair]], run[first[pair] + 1]
        collapsed = one // 2 % (len(self.vertices) + 1) == 0  # the edge from a vertex to itself
        return bool(pair.size and pair.all()), bool(((one != other) | collapsed).all())


def manifold_of(mesh: Mesh) -> manifold3d.Manifold:
    """The mesh as the solid of the library that cuts and merges; its `status` says whether it takes it for one."""
    import manifold3d

    vertices, faces = np.ascontiguousarray(mesh.vertices, float), np.ascontiguousarray(mesh.faces, np.uint64)
    return manifold3d.Manifold(manifold3d.Mesh64(vertices, faces))


def check_space(space: str) -> None:
    """Raises InputError unless the axes are `lps` or `ras`."""
    if space not in SPACES:
        raise InputError(f"mesh space {space!r}: expected lps or ras; most medical software expects lps")


def in_space(vertices: np.ndarray, space: str) -> np.ndarray:
    """(V, 3) LPS mm -> the same in `lps` or `ras`, and back.

    RAS is half a turn about z, so normals keep pointing outward. Raises InputError for another space.
    """
    check_space(space)
    return vertices * (1.0, 1.0, 1.0) if space == "lps" else vertices * (-1.0, -1.0, 1.0)


def write_stl(mesh: Mesh, path: str | Path, space: str = "lps") -> None:
    """Writes a binary STL: float32, mm, outward normals, `SPACE=LPS` or `RAS` in the header.

    Triangles that float32 collapses to a line are left out; their neighbours then meet, and the solid stays closed.
    Raises InputError for a mesh without triangles, another space, and a folder that is missing or not writable.
    """
    corners = in_space(mesh.vertices, space).astype(np.float32)[mesh.faces]  # (F, 3, 3)
    same = [(corners[:, i] == corners[:, j]).all(axis=1) for i, j in ((0, 1), (1, 2), (2, 0))]
    corners = corners[~np.any(same, axis=0)]
    if len(corners) == 0:
        raise InputError(f"{path}: expected a mesh with triangles, got an empty one; there is no implant to write")
    triangles = np.zeros(len(corners), STL_TRIANGLE)
    triangles["corners"] = corners
    normals = np.cross(*np.diff(corners.astype(np.float64), axis=1).transpose(1, 0, 2))
    triangles["normal"] = normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-30)
    # A binary file must not begin with "solid", which marks text. 3D Slicer reads the space from this comment.
    header = f"binary STL by pcdiff; SPACE={space.upper()}; UNIT=mm".encode().ljust(80)
    with written_beside(Path(path)) as part, part.open("wb") as file:
        file.write(header + np.uint32(len(triangles)).astype("<u4").tobytes())
        file.write(triangles.tobytes())


def read_stl(path: str | Path, space: str | None = None) -> Mesh:
    """Reads a binary or text STL file; equal corners become one vertex. Bytes after the triangles are left out.

    Its coordinates are mm; the mesh is in LPS. space: of the file, `lps` or `ras`; None takes RAS if the header holds
    SPACE=RAS, else LPS. Raises InputError for a file that is missing, damaged or without triangles, and for coordinates
    that are no place in a scan.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: expected an STL file, found none; check the path")
    data = read_bytes(path, "an STL file", EXPORT_AGAIN, MAX_MESH_BYTES)
    end = 84 + 50 * int.from_bytes(data[80:84], "little")
    text = data.lstrip()[:5].lower() == b"solid" and b"facet" in data[:1000] and len(data) != end
    if not text and not 84 <= end <= len(data):
        raise InputError(f"{path}: not an STL file, or a truncated one; {EXPORT_AGAIN}")
    corners = _text_corners(data, path) if text else np.frombuffer(data, STL_TRIANGLE, (end - 84) // 50, 84)["corners"]
    corners = corners.reshape(-1, 3)
    check_mesh(Mesh(corners, np.arange(len(corners)).reshape(-1, 3)), path)
    vertices, index = _merged(corners)
    if space is None:
        space = "ras" if b"SPACE=RAS" in data[:80] else "lps"
    return Mesh(in_space(vertices.astype(np.float64), space), index.reshape(-1, 3))


def _merged(corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Corners (N, 3) without repetitions, (V, 3) in the order in which they first occur, and (N,) int, that of each."""
    rows = (corners + 0.0).view(f"V{3 * corners.itemsize}")[:, 0]  # as bytes, which -0.0 would not share with 0.0
    _, first, index = np.unique(rows, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return corners[first[order]], rank[index]


def _text_corners(data: bytes, path: Path) -> np.ndarray:
    """(F, 3, 3) of a text STL."""
    import trimesh

    with parsing(path, "an STL file, but its text is damaged", EXPORT_AGAIN):
        loaded = trimesh.load_mesh(BytesIO(data), file_type="stl", process=False)
        return np.asarray(loaded.vertices, np.float64)[np.asarray(loaded.faces)]


def check_mesh(mesh: Mesh, path: Path) -> None:
    """Raises InputError for a mesh from a file without triangles, and one whose vertices are missing, or no places."""
    if len(mesh.faces) == 0:
        raise InputError(f"{path}: the {path.suffix.lstrip('.').upper()} file holds no triangles; {EXPORT_AGAIN}")
    if not 0 <= mesh.faces.min() <= mesh.faces.max() < len(mesh.vertices):
        raise InputError(f"{path}: expected triangles of its own vertices, got others; {EXPORT_AGAIN}")
    if not np.abs(mesh.vertices).max() < FAR_MM:
        raise InputError(f"{path}: expected coordinates in millimetres, got NaN or some beyond 100 m; {EXPORT_AGAIN}")


def mesh_to_mask(mesh: Mesh, volume: Volume) -> np.ndarray:
    """(I, J, K) bool: the voxels of the volume's grid whose centre lies inside the closed mesh.

    Each column of voxel centres along k is a ray. The triangles that it crosses are found in the (i, j) projection; a
    centre is inside if an odd number of crossings lies below it. Vertices are rounded to 1/2**17 voxel, so that all
    tests are exact integers. A ray through an edge or a vertex is shifted symbolically (Edelsbrunner & Muecke 1990): it
    crosses exactly one of the triangles that meet there, and the parity stays right.

    Raises ValueError for a mesh more than 4096 voxels from the grid's origin, where int64 would overflow.
    """
    index = volume.to_index(np.asarray(mesh.vertices, np.float64))
    if index.size and not np.abs(index).max() < 2**12:
        raise ValueError(f"mesh must lie within 4096 voxels of the grid's origin, got {np.abs(index).max():.0f}")
    shape = volume.mask.shape
    triangles = np.rint(index * SNAP).astype(np.int64)[mesh.faces]  # (F, 3, 3)
    crossings = [_crossings(chunk, i, j) for chunk, i, j in _columns(triangles, shape)]
    i, j, height = (np.concatenate(column) for column in zip(*crossings, strict=True))
    first = np.clip(np.ceil(height), 0, shape[2]).astype(np.int64)  # the first centre above the crossing
    keep = first < shape[2]
    cell, count = np.unique(np.ravel_multi_index((i[keep], j[keep], first[keep]), shape), return_counts=True)
    inside = np.zeros(shape, bool, order="F")
    inside[np.unravel_index(cell[count % 2 == 1], shape)] = True
    for k in range(1, shape[2]):
        inside[:, :, k] ^= inside[:, :, k - 1]
    return inside


def _columns(triangles: np.ndarray, shape: tuple[int, ...]) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Triangles (n, 3, 3) and the columns i (n,), j (n,) of voxels inside their bounding boxes, in chunks."""
    corner = triangles[:, :, :2]
    low = np.maximum(-(-corner.min(axis=1) // SNAP), 0)  # ceil
    high = np.minimum(corner.max(axis=1) // SNAP, np.array(shape[:2]) - 1)
    extent = np.maximum(high - low + 1, 0)  # (F, 2)
    pairs = extent.prod(axis=1)
    triangles, low, extent, pairs = (x[pairs > 0] for x in (triangles, low, extent, pairs))
    for group in np.split(np.arange(len(pairs)), np.flatnonzero(np.diff(np.cumsum(pairs) // PAIRS_AT_A_TIME)) + 1):
        owner = np.repeat(group, pairs[group])
        rank = np.arange(len(owner)) - np.repeat(np.cumsum(pairs[group]) - pairs[group], pairs[group])
        yield triangles[owner], low[owner, 0] + rank // extent[owner, 1], low[owner, 1] + rank % extent[owner, 1]


def _crossings(triangles: np.ndarray, i: np.ndarray, j: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """i, j and height (voxels) where the ray of a column crosses its triangle; other pairs are dropped."""
    point = np.stack([i, j], axis=1) * SNAP
    weights, sides = [], []
    for start, end in ((1, 2), (2, 0), (0, 1)):  # the edge opposite to each corner gives its barycentric weight
        a, b = triangles[:, start, :2], triangles[:, end, :2]
        (dx, dy), (px, py) = (b - a).T, (point - a).T
        weight = dx * py - dy * px
        # For a ray on the edge's line: the shift by (eps, eps**2) adds -dy * eps, then dx * eps**2.
        sides.append(np.where(weight != 0, weight, np.where(dy != 0, -dy, dx)) > 0)
        weights.append(weight)
    hit = (sides[0] == sides[1]) & (sides[1] == sides[2]) & (sum(weights) != 0)
    w = np.stack(weights, axis=1)[hit].astype(np.float64)
    height = (w * triangles[hit, :, 2]).sum(axis=1) / w.sum(axis=1) / SNAP
    return i[hit], j[hit], height


def label_bodies(mesh: Mesh) -> np.ndarray:
    """(F,) int: the connected body that each triangle belongs to, from 0."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    count = len(mesh.vertices)
    first, second = mesh.faces[:, [0, 1]].ravel(), mesh.faces[:, [1, 2]].ravel()
    links = coo_matrix((np.ones(len(first), bool), (first, second)), (count, count))
    _, label = connected_components(links, directed=False)
    return np.unique(label[mesh.faces[:, 0]], return_inverse=True)[1]
