"""A surface whose vertices follow its moved anchors."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.sparse import csr_array
from scipy.spatial import cKDTree

from pcdiff.geometry.directions import unit
from pcdiff.geometry.mesh import Mesh
from pcdiff.methods.surface.anchors import Anchors
from pcdiff.methods.volumetric.fused import FusedSurface

NEIGHBOURS = 8  # anchors that a vertex follows
SAME_SIDE = 0.3  # least cosine between the normals of a vertex and of an anchor that it follows
FADE_MM = 4.0  # beyond a defect's border the bone is there, and nothing moves


def move(surface: FusedSurface, anchors: Anchors, displacements: np.ndarray) -> list[FusedSurface]:
    """The surface as its anchors move: displacements (K, N) mm along their normals -> K surfaces."""
    weights = followed(surface, anchors)
    before = Mesh(surface.points, surface.faces).vertex_normals
    surfaces = []
    for displacement in displacements:
        points = surface.points + (weights @ displacement)[:, None] * surface.normals
        # the smooth normals of the surface, turned as those of its triangles turn
        turned = surface.normals + Mesh(points, surface.faces).vertex_normals - before
        surfaces.append(replace(surface, points=points, normals=unit(turned)))
    return surfaces


def followed(surface: FusedSurface, anchors: Anchors) -> csr_array:
    """(V, N) sparse weights of the anchors for each vertex, of the near ones on its side of the bone."""
    count = min(NEIGHBOURS, len(anchors.positions))
    distance, index = cKDTree(anchors.positions).query(surface.points, count)
    distance, index = distance.reshape(-1, count), index.reshape(-1, count)
    reach = distance[:, [min(3, count - 1)]] + 1e-6
    weight = np.exp(-((distance / reach) ** 2))
    cosine = np.einsum("vkc,vc->vk", anchors.normals[index], surface.normals)
    weight *= np.clip(cosine - SAME_SIDE, 0, None)
    fade = np.where(surface.of_defect, 1.0, np.clip(1 + surface.border / FADE_MM, 0, 1))
    weight *= (fade / np.maximum(weight.sum(1), 1e-9))[:, None]
    rows = np.repeat(np.arange(len(weight)), count)
    return csr_array((weight.ravel(), (rows, index.ravel())), (len(weight), len(anchors.positions)))
