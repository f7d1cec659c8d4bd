"""Surfaces for display: smoothed, simplified to a number of vertices, cut, and the directions to view them from."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.sparse import csr_array

from pcdiff.geometry.occupancy import head_occupancy
from pcdiff.geometry.surface import isosurface
from pcdiff.geometry.volume import Volume
from pcdiff.report.colours import Colour

DISPLAY_LEVEL = 0.4  # below 0.5, so that thin bone survives the smoothing
DISPLAY_SIGMA = 0.9  # voxels of about 0.9 mm
NORMAL_ROUNDS = 8
CELL_GROWTH = 1.12  # factor on the cell's edge per attempt


@dataclass(frozen=True)
class Shape:
    """A surface for display.

    vertices: (V, 3) mm, LPS. normals: (V, 3) unit, outward. faces: (F, 3), wound outward.
    colour: linear RGB 0 to 1, one for all vertices, or (V, 3).
    """

    vertices: np.ndarray
    normals: np.ndarray
    faces: np.ndarray
    colour: Colour | np.ndarray


def shape_of(volume: Volume, colour: Colour, vertices: int | None = None) -> Shape:
    """The smoothed surface of a mask at about 0.9 mm.

    For display only: `geometry.surface.volume_to_mesh` is the accurate surface.

    Args:
        volume: the mask.
        colour: linear RGB.
        vertices: largest number of vertices; None keeps all. Where the surface would have four times as many, it is
            drawn through every second voxel.

    Raises:
        InputError: the mask is empty.
    """
    head = head_occupancy(volume)
    every = 1 if vertices is None or _borders(head.occupancy > 127) < 4 * vertices else 2
    values = gaussian_filter(np.pad(head.occupancy, (1, every)).astype(np.float32) / 255, DISPLAY_SIGMA)
    level = min(DISPLAY_LEVEL, float(values.max()) / 2)
    affine = head.affine @ np.diag([every, every, every, 1.0])
    grid = Volume(np.zeros((1, 1, 1), bool), affine)
    mesh = isosurface(values[::every, ::every, ::every], level, grid, np.full(3, -1 / every))
    shape = Shape(mesh.vertices, mesh.vertex_normals, mesh.faces, colour)
    if vertices is not None:
        shape, _ = simplify(shape, vertices)
    return replace(shape, normals=smooth_normals(shape.normals, shape.faces))


def _borders(mask: np.ndarray) -> int:
    """How many neighbours along an axis differ: about as many as the vertices of the mask's surface."""
    return sum(int(np.count_nonzero(np.diff(mask, axis=axis))) for axis in range(3))


def simplify(shape: Shape, vertices: int) -> tuple[Shape, np.ndarray]:
    """Vertex clustering (Rossignac & Borrel 1993): the vertices in one cell of a cubic lattice become their mean.

    Colours and normals are averaged; triangles that collapse to an edge or a point are removed.

    Args:
        shape: the surface.
        vertices: largest number of vertices.

    Returns:
        The simplified surface, and (V,) int: the new vertex of each old one.
    """
    low = shape.vertices.min(axis=0)
    extent = shape.vertices.max(axis=0) - low
    corners = shape.vertices[shape.faces]
    area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1).sum() / 2
    edge = np.sqrt(area / vertices)
    while True:
        index = ((shape.vertices - low) / edge).astype(np.int64)
        size = (extent / edge).astype(np.int64) + 1
        _, cell = np.unique(np.ravel_multi_index(tuple(index.T), size), return_inverse=True)
        if int(cell.max()) + 1 <= vertices:
            break
        edge *= CELL_GROWTH
    normals = cell_means(shape.normals, cell)
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    faces = cell[shape.faces]
    a, b, c = faces.T
    faces = faces[(a != b) & (b != c) & (c != a)]
    colour = shape.colour if isinstance(shape.colour, tuple) else cell_means(np.asarray(shape.colour), cell)
    return replace(shape, vertices=cell_means(shape.vertices, cell), normals=normals, faces=faces, colour=colour), cell


def cell_means(values: np.ndarray, cell: np.ndarray) -> np.ndarray:
    """(V, ...) values at the old vertices, (V,) their cells -> (C, ...) the mean in each cell."""
    count = np.bincount(cell)
    if values.ndim == 1:
        return np.bincount(cell, values) / count
    return np.stack([np.bincount(cell, column) for column in values.T], axis=1) / count[:, None]


def smooth_normals(normals: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """(V, 3) unit normals averaged over neighbouring vertices, which hides the steps between voxels.

    Edges stay sharp: a neighbour counts with the eighth power of the cosine between the two normals.
    """
    count, first, second = len(normals), faces.ravel(), np.roll(faces, 1, axis=1).ravel()
    order = np.argsort(first, kind="stable")  # a closed surface has each edge both ways
    first, second = first[order], second[order].astype(np.int32)
    starts = np.searchsorted(first, np.arange(count + 1)).astype(np.int32)
    normals = (normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)).astype(np.float32)
    for _ in range(NORMAL_ROUNDS):
        weight = np.clip(np.einsum("ex,ex->e", normals[first], normals[second]), 0, 1) ** 8
        normals = normals + csr_array((weight, second, starts), shape=(count, count)) @ normals
        normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    return normals


def beads(points: np.ndarray, colour: Colour, radius_mm: float) -> Shape:
    """(N, 3) mm as a shape: an octahedron at each point."""
    ends = np.concatenate([np.eye(3), -np.eye(3)])
    sides = np.array(
        [(x, y, z) if (x < 3) ^ (y < 3) ^ (z < 3) else (y, x, z) for x in (0, 3) for y in (1, 4) for z in (2, 5)]
    )
    vertices = (points[:, None] + radius_mm * ends).reshape(-1, 3)
    faces = (6 * np.arange(len(points))[:, None, None] + sides).reshape(-1, 3)
    return Shape(vertices, np.tile(ends, (len(points), 1)), faces, colour)


def select_vertices(shape: Shape, selected: np.ndarray) -> Shape:
    """The triangles whose three vertices are all selected, (V,) bool."""
    used, index = np.unique(shape.faces[selected[shape.faces].all(axis=1)], return_inverse=True)
    colour = np.broadcast_to(shape.colour, shape.vertices.shape)[used]
    return Shape(shape.vertices[used], shape.normals[used], index.reshape(-1, 3), colour)


def outward_direction(bone: Shape, implant: Shape) -> np.ndarray:
    """(3,) unit vector from the bone's centre to the implant, LPS.

    It ends at the vertex nearest the implant's mean: of two pieces it points to one, not between them.
    """
    centre = (bone.vertices.min(axis=0) + bone.vertices.max(axis=0)) / 2
    mean = implant.vertices.mean(axis=0)
    outward = implant.vertices[np.linalg.norm(implant.vertices - mean, axis=1).argmin()] - centre
    return outward / max(float(np.linalg.norm(outward)), 1e-9)


def oblique_view(outward: np.ndarray) -> np.ndarray:
    """(3,) direction to a viewer outside and a little to the side, because a frontal view shows no relief."""
    return outward + 0.45 * np.cross([0.0, 0.0, 1.0], outward) + [0.0, 0.0, 0.1]


def bounds(shapes: list[Shape]) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest corner, (3,) mm each, of all shapes together."""
    return (
        np.min([shape.vertices.min(axis=0) for shape in shapes], axis=0),
        np.max([shape.vertices.max(axis=0) for shape in shapes], axis=0),
    )
