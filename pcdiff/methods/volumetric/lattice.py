"""A lattice in model space around the defects, and the completed tables at its points."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.ndimage import map_coordinates

from pcdiff.environment import side_by_side
from pcdiff.methods.volumetric.config import LAYOUT, FusionConfig
from pcdiff.prior.direction_map import MAP, PIXEL
from pcdiff.prior.fit import PriorFit


@dataclass(frozen=True)
class Lattice:
    """(I, J, K) points along the model's axes, `step` mm apart; the first is at low (3,), model mm."""

    low: np.ndarray
    shape: tuple[int, int, int]
    step: float

    @property
    def points(self) -> np.ndarray:
        """(I, J, K, 3) model mm."""
        axes = [low + self.step * np.arange(n) for low, n in zip(self.low, self.shape, strict=True)]
        return np.stack(np.meshgrid(*axes, indexing="ij"), -1)

    def finer(self, times: int) -> Lattice:
        """The same box with `times` as many steps along each side."""
        i, j, k = ((n - 1) * times + 1 for n in self.shape)
        return Lattice(self.low, (i, j, k), self.step / times)


@dataclass(frozen=True)
class TableMaps:
    """Completed tables over the defects and the band around them, as images of the direction map.

    outer, inner, outer_std, thickness_std: (SIZE, SIZE) mm. border: (SIZE, SIZE) mm from the defect's border, positive
    inside.
    """

    outer: np.ndarray
    inner: np.ndarray
    outer_std: np.ndarray
    thickness_std: np.ndarray
    border: np.ndarray

    @classmethod
    def of(cls, fit: PriorFit) -> TableMaps:
        """The posterior mean of the shape model."""
        defect = MAP.to_image(fit.defect > 0, False)
        border = ndimage.distance_transform_edt(defect) - ndimage.distance_transform_edt(~defect)
        return cls(
            _extended(fit, fit.outer),
            _extended(fit, fit.outer - fit.thickness),
            _extended(fit, fit.std[0]),
            _extended(fit, fit.std[1]),
            (border * PIXEL).astype(np.float32),
        )

    def sample(self, pixels: np.ndarray, *names: str) -> list[np.ndarray]:
        """(...) values of the named images at pixels (2, ...)."""
        return side_by_side(lambda name: map_coordinates(getattr(self, name), pixels, order=1, mode="nearest"), names)


def lattice_around(fit: PriorFit, fusion: FusionConfig) -> Lattice:
    """The lattice over the missing tables and a margin."""
    points = missing_table_points(fit)
    step = LAYOUT.step_mm
    low = np.floor((points.min(0) - fusion.margin_mm) / step) * step
    i, j, k = np.ceil((points.max(0) + fusion.margin_mm - low) / step).astype(int).tolist()
    return Lattice(low, (i, j, k), step)


def missing_table_points(fit: PriorFit) -> np.ndarray:
    """(N, 3) model mm: points of the missing outer table, and at 0.9 of their radius (about the inner table)."""
    rays = np.flatnonzero((fit.defect > 0) & np.isfinite(fit.outer))
    outer = MAP.directions[rays] * fit.outer[rays, None]
    return np.concatenate([outer, 0.9 * outer])


def map_position(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points (..., 3) model mm -> (2, ...) pixels of the direction map and (...) mm from the centre."""
    radius = np.linalg.norm(points, axis=-1)
    return np.moveaxis(MAP.to_pixel(points / np.maximum(radius, 1e-6)[..., None]), -1, 0), radius


def table_log_odds(
    below_outer: np.ndarray, above_inner: np.ndarray, border: np.ndarray, fusion: FusionConfig
) -> np.ndarray:
    """Log-odds of bone between the completed tables: depth below the nearest of their surfaces, scaled and clipped.

    below_outer, above_inner: mm from the tables. border: mm from the defect's border along the map.
    """
    depth = np.minimum(np.minimum(below_outer, above_inner), border + fusion.extension_mm)
    return np.clip(depth / fusion.slope_mm, -fusion.max_log_odds, fusion.max_log_odds)


def _extended(fit: PriorFit, values: np.ndarray) -> np.ndarray:
    """(R,) -> (SIZE, SIZE) float32: the values over defects and band, and the nearest of them elsewhere."""
    known = np.full(len(values), np.nan)
    known[fit.targets] = values[fit.targets]
    return MAP.filled(known).astype(np.float32)
