"""What the U-Net says about a skull: fields on the lattice, and the surface that they and the shape model give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pcdiff.geometry.grid import box_slices
from pcdiff.methods.occupancy.fused import FusedSurface, OccupancyCorrection, fused_surface
from pcdiff.methods.occupancy.lattice import Lattice, TableMaps
from pcdiff.methods.volumetric.config import FusionConfig
from pcdiff.methods.volumetric.features import LATTICE, STEP, Window
from pcdiff.methods.volumetric.model import VolumetricModel


@dataclass(frozen=True)
class Surroundings:
    """Fields of a skull in the shape model's space.

    bone, mean: `LAYOUT.shape` float32 share of bone, of the skull and of the mean head. added: the same shape, log-odds
    to add to those of the tables. features: (C, I/2, J/2, K/2) float32 of the U-Net, 0 outside its windows. maps: the
    completed tables.
    """

    bone: np.ndarray
    mean: np.ndarray
    added: np.ndarray
    features: np.ndarray
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
        odds = found.log_odds
        if fusion.alone:
            # a second opinion: its errors are others, above all where the tables are wrong
            odds = odds + fusion.alone * model.predict(bone, windows, None, device, mirror).log_odds
        mean = model.mean / np.float32(255)
        return cls(bone, mean, fused(odds, bone, fusion), found.features, maps, fusion)

    def surface(self, first: np.ndarray, last: np.ndarray) -> FusedSurface:
        """Where the log-odds of the completed tables and those added are 0 together, in a box of lattice points.

        first, last: (3,) int, first point and the one after the last. Beyond the lattice nothing is added.
        """
        low, high = np.maximum(first, 0), np.minimum(last, LATTICE.shape)
        part = np.zeros(last - first, np.float32)
        part[box_slices(low - first, high - first)] = self.added[box_slices(low, high)]
        i, j, k = part.shape
        lattice = Lattice(LATTICE.low + STEP * first, (i, j, k), STEP)
        return fused_surface(self.maps, OccupancyCorrection(lattice, part, self.fusion.surface))


def fused(odds: np.ndarray, bone: np.ndarray, fusion: FusionConfig) -> np.ndarray:
    """(I, J, K) float32 log-odds to add to those of the completed tables: the network's output outside bone.

    On present bone the tables go on beyond the defect's border so that the rim fits; the network predicts missing bone
    alone and would remove that band. odds: NaN outside the windows.
    """
    valid = np.isfinite(odds) & (bone < fusion.max_bone)
    limit = 2 * fusion.max_log_odds
    return np.where(valid, np.clip(odds, -limit, limit), 0).astype(np.float32)
