"""Oriented points in patient millimetres, and the frame that maps them to network units and back."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.spatial import cKDTree

from pcdiff.geometry.directions import orthonormal_pair

NORMAL_NEIGHBOURS = 12  # points to which a paraboloid is fitted


@dataclass(frozen=True)
class PointCloud:
    """Oriented points of a surface.

    points:  (N, 3) float, patient millimetres (LPS).
    normals: (N, 3) float, unit length, pointing out of the solid.
    defect:  (N,) int, k >= 1 on the missing surface of defect k, 0 on the bone around it; None without defects.
    std:     (N,) float, millimetres, standard deviation along the normal; None if unknown.

    Raises ValueError for another shape.
    """

    points: np.ndarray
    normals: np.ndarray
    defect: np.ndarray | None = None
    std: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.points.ndim != 2 or self.points.shape[1] != 3:
            raise ValueError(f"points must have shape (N, 3), got {self.points.shape}")
        if self.normals.shape != self.points.shape:
            raise ValueError(f"normals must have the points' shape {self.points.shape}, got {self.normals.shape}")
        for name in ("defect", "std"):
            value = getattr(self, name)
            if value is not None and value.shape != (len(self.points),):
                raise ValueError(f"{name} must have shape ({len(self.points)},), got {value.shape}")

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, index: np.ndarray | slice) -> PointCloud:
        """The points that a boolean mask, an index array or a slice selects."""
        return PointCloud(
            self.points[index],
            self.normals[index],
            None if self.defect is None else self.defect[index],
            None if self.std is None else self.std[index],
        )

    def moved(self, points: np.ndarray, normals: np.ndarray | None = None) -> PointCloud:
        """The same points with other positions (and normals); labels stay."""
        return replace(self, points=points, normals=self.normals if normals is None else normals)


@dataclass(frozen=True)
class Frame:
    """A similarity between patient millimetres and network units: network = rotation @ (mm - centre) / scale.

    centre: (3,) mm. rotation: (3, 3), orthonormal, rows are the network's axes in patient space. scale: mm per unit.
    Raises ValueError for a matrix that is not orthonormal or a scale that is not positive.
    """

    centre: np.ndarray
    rotation: np.ndarray
    scale: float

    def __post_init__(self) -> None:
        if not np.allclose(self.rotation @ self.rotation.T, np.eye(3), atol=1e-6):
            raise ValueError("rotation must be orthonormal")
        if not self.scale > 0:
            raise ValueError(f"scale must be positive, got {self.scale}")

    def to_network(self, points: np.ndarray) -> np.ndarray:
        """(..., 3) mm -> (..., 3) network units."""
        return (points - self.centre) @ self.rotation.T / self.scale

    def to_mm(self, points: np.ndarray) -> np.ndarray:
        """(..., 3) network units -> (..., 3) mm; the inverse of `to_network`."""
        return points * self.scale @ self.rotation + self.centre

    def rotate_to_network(self, vectors: np.ndarray) -> np.ndarray:
        """Directions (..., 3) in patient axes -> in network axes; their length stays."""
        return vectors @ self.rotation.T

    def rotate_to_patient(self, vectors: np.ndarray) -> np.ndarray:
        """Directions (..., 3) in network axes -> in patient axes; their length stays."""
        return vectors @ self.rotation


def surface_normals(points: np.ndarray, at: np.ndarray, towards: np.ndarray) -> np.ndarray:
    """(M, 3) unit normals at the positions `at` (M, 3) of the surface that `points` (N, 3), N >= 12, sample.

    towards: (M, 3) unit, approximate normals, which also point outward. A paraboloid is fitted to the nearest points:
    near the edge of the samples they lie on one side, where a plane would tilt.
    """
    _, index = cKDTree(points).query(at, NORMAL_NEIGHBOURS)
    offset = points[index] - at[:, None]
    across, along = orthonormal_pair(towards)
    u, v, height = (np.einsum("mkc,mc->mk", offset, axis) for axis in (across, along, towards))
    size = np.sqrt((u**2 + v**2).mean())
    u, v = u / size, v / size
    weight = np.exp(-0.5 * (u**2 + v**2))
    terms = np.stack([np.ones_like(u), u, v, u * u, u * v, v * v], -1)
    system = np.einsum("mka,mk,mkb->mab", terms, weight, terms) + 1e-4 * np.eye(6)
    slopes = np.linalg.solve(system, np.einsum("mka,mk,mk->ma", terms, weight, height)[..., None])[:, 1:3] / size
    normals = towards - slopes[:, 0] * across - slopes[:, 1] * along
    return normals / np.linalg.norm(normals, axis=1, keepdims=True)
