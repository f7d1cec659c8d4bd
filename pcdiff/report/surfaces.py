"""A surface to draw: of a mask or a mesh, smooth, and no finer than what draws it needs."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.sparse import coo_array

from pcdiff.geometry.occupancy import head_occupancy
from pcdiff.geometry.volume import Volume

LEVEL = 0.4  # below a half, so that thin bone survives the smoothing
SMOOTHING = 0.9  # voxels of about 0.9 mm
SMOOTH_ROUNDS = 8
GROWTH = 1.12  # of the cells, until there are few enough


@dataclass(frozen=True)
class Shape:
    """A surface to draw. vertices, normals: (V, 3) mm, LPS; faces: (F, 3), wound outward.

    colour: linear RGB 0 to 1, one for all, or (V, 3).
    """

    vertices: np.ndarray
    normals: np.ndarray
    faces: np.ndarray
    colour: tuple[float, float, float] | np.ndarray


def shape_of(volume: Volume, colour: tuple[float, float, float], vertices: int | None = None) -> Shape:
    """The smoothed surface of a mask at about 0.9 mm, with normals from the smoothed volume's gradient.

    For looking at only: `surface.volume_to_mesh` is the accurate one. vertices: at most so many, None for all. Raises
    InputError for an empty mask.
    """
    from skimage.measure import marching_cubes

    head = head_occupancy(volume)
    values = gaussian_filter(np.pad(head.occupancy, 1).astype(np.float32) / 255, SMOOTHING)
    points, faces, normals, _ = marching_cubes(values, min(LEVEL, float(values.max()) / 2))
    linear = head.affine[:3, :3]
    points = (points - 1) @ linear.T + head.affine[:3, 3]
    normals = normals @ np.linalg.inv(linear)
    corner = points[faces]
    areas = np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
    if (corner[:, 0] * areas).sum() < 0:  # the affine mirrors
        faces = faces[:, ::-1]
        areas = -areas
    if (normals[faces[:, 0]] * areas).sum() < 0:
        normals = -normals
    shape = Shape(points, normals, faces, colour)
    if vertices is not None:
        shape, _ = simplified(shape, vertices)
    return replace(shape, normals=smooth_normals(shape.normals, shape.faces))


def simplified(shape: Shape, vertices: int) -> tuple[Shape, np.ndarray]:
    """The shape with at most so many vertices, and (V,) int: the new vertex that each old one went to.

    Vertices that share a cell of a cubic lattice become one, their mean (Rossignac & Borrel 1993). Colours and normals
    are averaged; triangles that shrink to an edge are left out.
    """
    low = shape.vertices.min(axis=0)
    extent = shape.vertices.max(axis=0) - low
    corners = shape.vertices[shape.faces]
    area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1).sum() / 2
    cell = np.sqrt(area / vertices)
    while True:
        index = ((shape.vertices - low) / cell).astype(np.int64)
        size = (extent / cell).astype(np.int64) + 1
        _, home = np.unique(np.ravel_multi_index(tuple(index.T), size), return_inverse=True)
        count = int(home.max()) + 1
        if count <= vertices:
            break
        cell *= GROWTH
    normals = gathered(shape.normals, home)
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    faces = home[shape.faces]
    a, b, c = faces.T
    faces = faces[(a != b) & (b != c) & (c != a)]
    colour = shape.colour if isinstance(shape.colour, tuple) else gathered(np.asarray(shape.colour), home)
    return replace(shape, vertices=gathered(shape.vertices, home), normals=normals, faces=faces, colour=colour), home


def gathered(values: np.ndarray, home: np.ndarray) -> np.ndarray:
    """(V, ...) values at the old vertices -> their means at the new ones."""
    count = np.bincount(home)
    if values.ndim == 1:
        return np.bincount(home, values) / count
    return np.stack([np.bincount(home, column) for column in values.T], axis=1) / count[:, None]


def facing(bone: Shape, piece: Shape) -> np.ndarray:
    """(3,) unit, from the bone's middle to the piece: to its vertex nearest its mean, which lies on one of two."""
    middle = (bone.vertices.min(axis=0) + bone.vertices.max(axis=0)) / 2
    mean = piece.vertices.mean(axis=0)
    towards = piece.vertices[np.linalg.norm(piece.vertices - mean, axis=1).argmin()] - middle
    return towards / max(float(np.linalg.norm(towards)), 1e-9)


def slanted(outward: np.ndarray) -> np.ndarray:
    """(3,) where to look at a piece from: outside, a little from beside it, since what is square to the view shows no
    relief.
    """
    return outward + 0.45 * np.cross([0.0, 0.0, 1.0], outward) + [0.0, 0.0, 0.1]


def smooth_normals(normals: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """(V, 3) unit normals, averaged over neighbours: the voxels' stairs fade. Edges stay: neighbours that face
    elsewhere hardly count.
    """
    first, second = faces.ravel(), np.roll(faces, 1, axis=1).ravel()  # a closed surface has each edge both ways
    normals = (normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)).astype(np.float32)
    for _ in range(SMOOTH_ROUNDS):
        weight = np.clip(np.einsum("ex,ex->e", normals[first], normals[second]), 0, 1) ** 8
        around = coo_array((weight, (first, second)), shape=(len(normals), len(normals))).tocsr() @ normals
        normals = normals + around
        normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    return normals


def part_of(shape: Shape, keep: np.ndarray) -> Shape:
    """The triangles of which every corner is kept, (V,) bool."""
    used, index = np.unique(shape.faces[keep[shape.faces].all(axis=1)], return_inverse=True)
    colour = np.broadcast_to(shape.colour, shape.vertices.shape)[used]
    return Shape(shape.vertices[used], shape.normals[used], index.reshape(-1, 3), colour)
