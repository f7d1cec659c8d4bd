"""Outlines of craniotomies: closed curves on the skull, swept through the vault along the saw's direction.

An outline needs only the cranial centre and the outer surface of a skull (`Cranium`). It therefore cuts voxel masks and
maps of directions alike. Everything is in patient millimetres, LPS: +x left, +y posterior, +z superior.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from pcdiff.errors import InputError
from pcdiff.geometry.grid import largest_components
from pcdiff.geometry.volume import Volume

CENTRE_BELOW_TOP = 75.0  # mm; about half the height of an adult brain case
SAMPLING = 3.0  # mm between the bone samples that decide where an outline lies and how large it is
MIN_SAMPLES = 1000  # of bone in a skull
ABOVE_SURFACE, BELOW_SURFACE = 10.0, 25.0  # mm around the smooth outer surface: the vault without the skull base
ANGLES = np.linspace(0, 2 * np.pi, 360, endpoint=False)  # of a curve's radii
RIM_SECTORS = 24


@dataclass(frozen=True)
class Cranium:
    """The parts of a skull that an outline depends on.

    centre:  (3,) mm, the cranial centre.
    surface: (N, 3) mm, the outermost bone along many directions from the centre.
    bone:    (M, 3) mm, samples of the bone; `ml` (M,) is the volume that each represents.
    """

    centre: np.ndarray
    surface: np.ndarray
    bone: np.ndarray
    ml: np.ndarray

    @classmethod
    def from_volume(cls, skull: Volume) -> Cranium:
        """Samples every 3 mm of the largest component of bone; the centre lies 75 mm below the vertex.

        Raises InputError for a mask that holds no skull.
        """
        stride = np.maximum(1, np.round(SAMPLING / skull.spacing)).astype(int)
        coarse = skull.mask[:: stride[0], :: stride[1], :: stride[2]]
        samples = np.argwhere(largest_components(coarse, corners=True))
        if len(samples) < MIN_SAMPLES:
            raise InputError(f"expected a skull, got {skull.ml:.1f} ml of bone; give the mask of a whole vault")
        bone = skull.to_mm(samples * stride)
        top = np.sort(bone[:, 2])[-20]  # a few stray samples must not raise the vertex
        low, high = np.percentile(bone[bone[:, 2] > top - 60], [0.5, 99.5], axis=0)
        centre = np.array([(low[0] + high[0]) / 2, (low[1] + high[1]) / 2, top - CENTRE_BELOW_TOP])

        radius = np.linalg.norm(bone - centre, axis=1)
        cell = cKDTree(_even_directions(2500)).query((bone - centre) / np.maximum(radius, 1e-6)[:, None])[1]
        outwards = np.lexsort((radius, cell))
        outermost = np.r_[np.flatnonzero(np.diff(cell[outwards])), len(outwards) - 1]
        ml = np.full(len(bone), skull.voxel_ml * stride.prod())
        return cls(centre, bone[outwards[outermost]], bone, ml)


@dataclass(frozen=True)
class Outline:
    """The outline of one defect, and the solid that a saw along it removes from the vault.

    kind:       a name in `craniotomy.KINDS`.
    origin:     (3,) mm, on the plane of the curve, at the height of the rim.
    axes:       (3, 3), rows u, v and outward w.
    radii:      (360,) mm, the curve's radius at every degree from u towards v.
    bevel:      (2,) 1/mm, how u and v widen outwards: 0 saws along w, 1/R saws towards a point R below the plane.
    burr_holes: (K, 3) discs u, v, radius in mm beside the curve.
    centre:     (3,) mm, the cranial centre.
    outer:      (6,) mm, smooth radius of the outer surface, quadratic in the direction.
    """

    kind: str
    origin: np.ndarray
    axes: np.ndarray
    radii: np.ndarray
    bevel: np.ndarray
    burr_holes: np.ndarray
    centre: np.ndarray
    outer: np.ndarray

    def contains(self, points: np.ndarray) -> np.ndarray:
        """(N, 3) mm -> (N,) bool: inside the outline, and in the vault."""
        inside = self.in_vault(points)
        inside[inside] = self.distance_outside(points[inside]) < 0
        return inside

    def distance_outside(self, points: np.ndarray) -> np.ndarray:
        """(N, 3) mm -> (N,) mm outside the curve, on its plane, along the line from its middle; negative inside."""
        plane, widened = self._on_plane(points)
        u, v = plane.T
        distance = np.hypot(u, v) - np.interp(np.arctan2(v, u), ANGLES, self.radii, period=2 * np.pi)
        for *middle, radius in self.burr_holes:
            # A burr hole is a cylinder around the saw's line through its middle: it does not widen.
            offset = (plane - middle) * widened / np.sqrt(1 + (self.bevel * middle) ** 2)
            distance = np.minimum(distance, np.hypot(*offset.T) - radius)
        return distance

    def rim_has_bone(self, points: np.ndarray, width: float) -> np.ndarray:
        """Samples of bone (N, 3) mm -> (24,) bool: which sectors of the rim, `width` mm wide, hold bone."""
        near = points[self.in_vault(points)]
        distance = self.distance_outside(near)
        u, v = self._on_plane(near[(distance > 0) & (distance < width)])[0].T
        sector = np.floor(np.arctan2(v, u) / (2 * np.pi) * RIM_SECTORS).astype(int) % RIM_SECTORS
        return np.bincount(sector, minlength=RIM_SECTORS) > 0

    def _on_plane(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(N, 2) mm, where the saw's line through each point meets the plane, and (N, 2) how much wider the cut is."""
        local = (points - self.origin) @ self.axes.T
        widened = np.maximum(1 + local[:, 2:] * self.bevel, 1e-3)
        return local[:, :2] / widened, widened

    def in_vault(self, points: np.ndarray) -> np.ndarray:
        """(N, 3) mm -> (N,) bool: near the outer surface, on the outline's side of the head."""
        radius = np.linalg.norm(points - self.centre, axis=1)
        direction = (points - self.centre) @ self.axes.T / np.maximum(radius, 1e-6)[:, None]
        height = radius - quadratic_terms(direction) @ self.outer
        return (height > -BELOW_SURFACE) & (height < ABOVE_SURFACE) & (direction[:, 2] > 0)


def quadratic_terms(direction: np.ndarray) -> np.ndarray:
    """(N, 3) along u, v, w -> (N, 6): 1, u, v, u^2, u v, v^2."""
    u, v = direction[:, 0], direction[:, 1]
    return np.stack([np.ones_like(u), u, v, u * u, u * v, v * v], axis=1)


def _even_directions(count: int) -> np.ndarray:
    """(count, 3) unit vectors spread evenly: the golden spiral."""
    z = 1 - (2 * np.arange(count) + 1) / count
    turn = np.pi * (3 - 5**0.5) * np.arange(count)
    return np.stack([np.cos(turn) * np.sqrt(1 - z * z), np.sin(turn) * np.sqrt(1 - z * z), z], axis=1)
