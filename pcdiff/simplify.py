"""Fewer triangles for looking at: what a browser turns and a renderer draws need not resolve a tenth of a millimetre."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from pcdiff.picture import Shape

GROWTH = 1.12  # of the cells, until there are few enough


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
