"""Oriented points in patient millimetres."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np


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
