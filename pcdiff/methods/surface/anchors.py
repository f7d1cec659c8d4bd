"""The skull as the point network reads it: fields in model space, and anchors on a surface with profiles of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import map_coordinates

from pcdiff.methods.surface.config import LAYOUT
from pcdiff.methods.volumetric.features import LATTICE, STEP
from pcdiff.methods.volumetric.fused import FusedSurface
from pcdiff.methods.volumetric.lattice import map_position, table_log_odds
from pcdiff.methods.volumetric.surroundings import Surroundings


def read(skull: Surroundings, points: np.ndarray) -> np.ndarray:
    """(..., 3) model mm -> (..., LAYOUT.channels) float32, as `LAYOUT.fields`."""
    fine = np.moveaxis((points - LATTICE.low) / STEP, -1, 0)
    pixels, radius = map_position(points)
    outer, inner, border = skull.maps.sample(pixels, "outer", "inner", "border")
    tables = table_log_odds(outer - radius, radius - inner, border, skull.fusion)
    added, bone, mirrored, mean = (
        map_coordinates(field, fine, order=1, mode="nearest")
        for field in (skull.added, skull.bone, skull.bone[::-1], skull.mean)
    )
    scale = LAYOUT.log_odds_scale
    near = np.clip(border / LAYOUT.border_scale_mm, -2, 2)
    fields = [np.clip(tables + added, -2 * scale, 2 * scale) / scale, tables / scale, bone, mirrored, mean, near]
    return np.stack(fields, -1).astype(np.float32)


@dataclass(frozen=True)
class Anchors:
    """Points of a surface for the network.

    positions: (N, 3) model mm. normals: (N, 3) unit, out of the bone. static: (N, S), see `LAYOUT.static`. profile:
    (N, T, C), what is read at each of `LAYOUT.offsets_mm` along the normal.
    """

    positions: np.ndarray
    normals: np.ndarray
    static: np.ndarray
    profile: np.ndarray


def make_anchors(surface: FusedSurface, surroundings: Surroundings, chosen: np.ndarray) -> Anchors:
    """Anchors at the vertices `chosen` (N,) of a surface."""
    positions, normals = surface.points[chosen], surface.normals[chosen]
    offsets = np.array(LAYOUT.offsets_mm)
    profile = read(surroundings, positions[:, None] + offsets[:, None] * normals[:, None])
    static = [
        *(positions.T / LAYOUT.position_scale_mm),
        *normals.T,
        *surroundings.maps.sample(map_position(positions)[0], "outer_std", "thickness_std"),
        np.clip(surface.border[chosen] / LAYOUT.border_scale_mm, -2, 2),
    ]
    return Anchors(
        positions.astype(np.float32), normals.astype(np.float32), np.stack(static, -1).astype(np.float32), profile
    )


def spread_vertices(surface: FusedSurface, count: int) -> np.ndarray:
    """(count,) vertices of the defects, evenly spread: furthest-point sampling from the first one.

    A surface with fewer vertices gives each of them, some more than once. Raises ValueError for one without any.
    """
    candidates = np.flatnonzero(surface.of_defect)
    if not len(candidates):
        raise ValueError("expected a surface with vertices of a defect, got none")
    if len(candidates) <= count:
        return np.resize(candidates, count)
    points = np.ascontiguousarray(surface.points[candidates], np.float32)
    chosen = np.zeros(count, int)
    nearest = np.full(len(points), np.inf, np.float32)
    for step in range(1, count):
        difference = points - points[chosen[step - 1]]
        np.minimum(nearest, np.einsum("nc,nc->n", difference, difference), out=nearest)
        chosen[step] = nearest.argmax()
    return candidates[chosen]


def stacked(anchors: Sequence[Anchors]) -> dict[str, np.ndarray]:
    """A batch, by name."""
    return {name: np.stack([getattr(a, name) for a in anchors]) for name in vars(anchors[0])}
