"""The pieces of an implant, and planes across the rim of each, to look at the joint between implant and bone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from pcdiff.geometry.mesh import Mesh

RIM_GAP_MM = 1.5  # from bone: the implant's surface is its rim
SECTORS = 60  # around a piece
FEW = 4  # vertices in a sector: no rim there
LEAST_SHARE = 0.02  # of the vertices: what is smaller is a crumb, no piece


@dataclass(frozen=True)
class RimPlane:
    """A plane across the rim, mm, LPS. point: (3,) on the rim. across: (3,) unit, from bone to implant.

    outward: (3,) unit, out of the head, perpendicular to `across`.
    """

    point: np.ndarray
    across: np.ndarray
    outward: np.ndarray


def mesh_pieces(mesh: Mesh) -> list[np.ndarray]:
    """(N,) vertex numbers of each connected piece, the one with the most vertices first; crumbs are left out."""
    count, first = len(mesh.vertices), mesh.faces.ravel()
    edges = coo_array((np.ones(len(first), bool), (first, np.roll(mesh.faces, 1, axis=1).ravel())), shape=(count,) * 2)
    _, label = connected_components(edges, directed=False)
    sizes = np.bincount(label)
    return [np.flatnonzero(label == n) for n in np.argsort(-sizes, kind="stable") if sizes[n] >= LEAST_SHARE * count]


def rim_planes(mesh: Mesh, gap_mm: np.ndarray, clearance: float, centre: np.ndarray) -> list[RimPlane]:
    """Planes across the rim of each piece, one after the other around it, beginning at its highest place.

    Args:
        mesh: surface of the implant.
        gap_mm: (V,) distance to bone at its vertices.
        clearance: the gap that was designed, mm.
        centre: (3,) mm, of the head.
    """
    planes = []
    for piece in mesh_pieces(mesh):
        rim = mesh.vertices[piece[gap_mm[piece] < RIM_GAP_MM + clearance]]
        if len(rim) >= FEW * SECTORS // 4:
            planes += _around(rim, mesh.vertices[piece].mean(axis=0), centre)
    return planes


def _around(rim: np.ndarray, middle: np.ndarray, centre: np.ndarray) -> list[RimPlane]:
    """rim: (N, 3) mm. middle: (3,), of the piece."""
    _, _, axes = np.linalg.svd(rim - rim.mean(axis=0), full_matrices=False)
    across = (rim - middle) @ axes[:2].T
    sector = ((np.arctan2(across[:, 1], across[:, 0]) / (2 * np.pi) % 1) * SECTORS).astype(int) % SECTORS
    counts = np.bincount(sector, minlength=SECTORS)
    sums = np.stack([np.bincount(sector, column, SECTORS) for column in rim.T], axis=1)
    points = sums[counts >= FEW] / counts[counts >= FEW, None]
    if len(points) < 3:
        return []
    points = np.roll(points, -int(points[:, 2].argmax()), axis=0)
    planes = []
    for point, before, after in zip(points, np.roll(points, 1, axis=0), np.roll(points, -1, axis=0), strict=True):
        along = _unit(after - before)
        outward = _unit((point - centre) - (point - centre) @ along * along)
        inward = np.cross(along, outward)
        planes.append(RimPlane(point, inward * (np.sign(inward @ (middle - point)) or 1.0), outward))
    return planes


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / max(float(np.linalg.norm(vector)), 1e-9)
