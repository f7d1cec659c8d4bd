"""What the U-Net says about a skull: fields on the lattice, and the surface that they and the shape model give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage
from scipy.ndimage import map_coordinates
from scipy.special import expit, logit

from pcdiff.geometry.grid import box_slices
from pcdiff.methods.volumetric.config import FusionConfig
from pcdiff.methods.volumetric.features import LATTICE, STEP, Window, prior_log_odds
from pcdiff.methods.volumetric.fused import FusedSurface, fused_surface
from pcdiff.methods.volumetric.lattice import Lattice, TableMaps
from pcdiff.methods.volumetric.model import VolumetricModel

SMALL = 1e-4  # log-odds of 9: more than the tables can say
RIM = 1  # lattice points from missing bone within which present bone is completed, too


@dataclass(frozen=True)
class Surroundings:
    """Fields of a skull in the shape model's space.

    bone, mean: `LAYOUT.shape` float32 share of bone, of the skull and of the mean head. added: the same shape, log-odds
    to add to those of the tables. maps: the completed tables.
    """

    bone: np.ndarray
    mean: np.ndarray
    added: np.ndarray
    maps: TableMaps
    fusion: FusionConfig

    @classmethod
    def predict(
        cls,
        model: VolumetricModel,
        bone: np.ndarray,
        windows: Sequence[Window],
        maps: TableMaps,
        device: str = "cpu",
        mirror: bool = True,
    ) -> Surroundings:
        """Runs the U-Net; arguments as in `VolumetricModel.predict`."""
        fusion = model.config.fusion
        found = model.predict(bone, windows, maps, device, mirror)
        added = np.zeros(LATTICE.shape, np.float32)
        for window in windows:
            tables = prior_log_odds(maps, window, fusion)
            added[window] = fused(found[window], bone[window], tables, fusion)
        return cls(bone, model.mean / np.float32(255), added, maps, fusion)

    def surface(self, first: np.ndarray, last: np.ndarray) -> FusedSurface:
        """Where the log-odds of the completed tables and those added are 0 together, in a box of lattice points.

        first, last: (3,) int, first point and the one after the last. Beyond the lattice nothing is added.
        """
        low, high = np.maximum(first, 0), np.minimum(last, LATTICE.shape)
        part = np.zeros(last - first, np.float32)
        part[box_slices(low - first, high - first)] = self.added[box_slices(low, high)]
        i, j, k = part.shape
        lattice = Lattice(LATTICE.low + STEP * first, (i, j, k), STEP)
        surface = fused_surface(self.maps, lattice, part, self.fusion)
        at = (surface.points - LATTICE.low) / STEP
        present = map_coordinates(self.bone, at.T, order=1, mode="nearest") >= self.fusion.max_bone
        return replace(surface, of_defect=surface.of_defect & ((surface.border > 0) | ~present))


def at_rim(missing: np.ndarray, bone: np.ndarray) -> np.ndarray:
    """(I, J, K) bool: points beside missing bone that hold present bone; missing, bone: (I, J, K) shares."""
    rim: np.ndarray = ndimage.binary_dilation(missing > 0.5, iterations=RIM) & (bone > 0)
    return rim


def fused(odds: np.ndarray, bone: np.ndarray, tables: np.ndarray, fusion: FusionConfig) -> np.ndarray:
    """(I, J, K) float32 log-odds to add to those of the completed tables, (I, J, K).

    The network says which share of a lattice point's surroundings is missing bone. Beside missing bone, what is present
    is added to that share: the surface is that of the completed bone, also at the rim, where a point has both.
    Elsewhere present bone stays with the tables, which go on beyond the defect's border.

    At the tables the network counts less, because on vaults the shape model is more accurate; where it finds bone off
    the tables it counts in full. odds: the network's output, NaN outside the windows.
    """
    known = np.isfinite(odds)
    missing = expit(np.where(known, odds, -np.inf) + tables)
    rim = at_rim(missing, bone)
    completed = logit(np.clip(missing + bone, SMALL, 1 - SMALL)) - tables
    near, far = fusion.near_mm
    rise = np.clip((np.abs(tables) * fusion.slope_mm - near) / (far - near), 0, 1)
    limit = 2 * fusion.max_log_odds
    added = (fusion.near + (1 - fusion.near) * rise) * np.clip(np.where(rim, completed, odds), -limit, limit)
    return np.where(known & (rim | (bone < fusion.max_bone)), added, 0).astype(np.float32)
