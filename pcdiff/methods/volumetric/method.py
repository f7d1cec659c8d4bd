"""The method `unet`: log-odds of the volumetric U-Net are added to those of the shape model's completed tables."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pcdiff.errors import InputError
from pcdiff.geometry.occupancy import Head, head_occupancy
from pcdiff.geometry.volume import Volume
from pcdiff.methods.base import Proposal
from pcdiff.methods.candidates import OrientedPoints
from pcdiff.methods.occupancy.fused import OccupancyCorrection, fused_surfaces
from pcdiff.methods.occupancy.lattice import Lattice, TableMaps, lattice_around
from pcdiff.methods.registry import WeightsFiles
from pcdiff.methods.volumetric.config import FusionConfig
from pcdiff.methods.volumetric.features import LATTICE, STEP, Window, defect_windows, soft_occupancy
from pcdiff.methods.volumetric.model import VolumetricModel
from pcdiff.prior.fit import PriorFit
from pcdiff.prior.model import ShapePrior


@dataclass(frozen=True)
class VolumetricMethod:
    """The shape model, corrected by the U-Net. Nothing is drawn at random, so there is one candidate."""

    prior: ShapePrior
    model: VolumetricModel

    def __call__(
        self, skull: Volume, fit: PriorFit, *, ensemble: int = 1, seed: int = 0, device: str = "cpu"
    ) -> Proposal:
        """See `PriorBasedMethod`. Raises InputError for defects outside the network's lattice."""
        correction = self.predict_correction(fit, head_occupancy(skull), device)
        (surface,) = fused_surfaces(fit, [(fit.outer, fit.thickness)], correction)
        return Proposal([OrientedPoints(surface)])

    def predict_correction(self, fit: PriorFit, head: Head, device: str = "cpu") -> OccupancyCorrection:
        """Log-odds to add to those of the completed tables. Raises InputError for defects outside the lattice."""
        fusion = self.model.config.fusion
        bone = soft_occupancy(head, fit.pose)
        odds = self.model.predict(bone, defect_windows(fit), TableMaps.of(fit), device).log_odds
        window = _surface_window(fit, fusion)
        added = fused(odds[window], bone[window], fusion)
        if not added.any():
            raise InputError(
                "expected a defect within 79 mm of the middle plane, where the U-Net predicts missing bone, got one "
                "outside; check that the skull is a whole head, or choose --method prior"
            )
        low = LATTICE.low + STEP * np.array([side.start for side in window])
        return OccupancyCorrection(Lattice(low, added.shape, STEP), added, fusion.surface)


def load(files: WeightsFiles) -> VolumetricMethod:
    """The method with the weights of the files. Raises InputError for a file of another kind."""
    assert files.own is not None
    return VolumetricMethod(ShapePrior.load(files.prior), VolumetricModel.load(files.own))


def fused(odds: np.ndarray, bone: np.ndarray, fusion: FusionConfig) -> np.ndarray:
    """(I, J, K) float32 log-odds to add to those of the completed tables: the network's output outside bone.

    On present bone the tables go on beyond the defect's border so that the rim fits; the network predicts missing bone
    alone and would remove that band. odds: NaN outside the windows.
    """
    valid = np.isfinite(odds) & (bone < fusion.max_bone)
    limit = 2 * fusion.max_log_odds
    return np.where(valid, np.clip(odds, -limit, limit), 0).astype(np.float32)


def _surface_window(fit: PriorFit, fusion: FusionConfig) -> Window:
    """The part of the lattice that holds the missing tables and a margin."""
    box = lattice_around(fit, fusion.surface)
    first = np.floor((box.low - LATTICE.low) / STEP).astype(int)
    last = first + np.array(box.shape) + 1
    a, b, c = (slice(max(int(f), 0), min(int(n), m)) for f, n, m in zip(first, last, LATTICE.shape, strict=True))
    return a, b, c
