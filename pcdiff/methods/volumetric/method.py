"""The method `unet`: log-odds of the volumetric U-Net are added to those of the shape model's completed tables."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pcdiff.geometry.occupancy import Head, head_occupancy
from pcdiff.geometry.volume import Volume
from pcdiff.methods.base import Proposal
from pcdiff.methods.candidates import OrientedPoints
from pcdiff.methods.registry import WeightsFiles
from pcdiff.methods.volumetric.features import LATTICE, STEP, defect_windows, windows_occupancy
from pcdiff.methods.volumetric.fused import FusedSurface
from pcdiff.methods.volumetric.lattice import TableMaps, lattice_around
from pcdiff.methods.volumetric.model import VolumetricModel
from pcdiff.methods.volumetric.surroundings import Surroundings
from pcdiff.prior.fit import PriorFit
from pcdiff.prior.model import ShapePrior


@dataclass(frozen=True)
class VolumetricMethod:
    """The shape model, corrected by the U-Net.

    Nothing is drawn at random, so there is one candidate.
    """

    prior: ShapePrior
    model: VolumetricModel

    def __call__(
        self, skull: Volume, fit: PriorFit, *, ensemble: int = 1, seed: int = 0, device: str = "cpu"
    ) -> Proposal:
        """See `PriorBasedMethod`."""
        _, surface = self.predict_surface(fit, head_occupancy(skull), device)
        return Proposal([OrientedPoints(surface.in_patient(fit))])

    def predict_surface(self, fit: PriorFit, head: Head, device: str = "cpu") -> tuple[Surroundings, FusedSurface]:
        """What the U-Net says, and the surface. A defect beyond the U-Net's lattice is the shape model's alone."""
        windows = defect_windows(fit)
        bone = windows_occupancy(head, fit.pose, windows)
        skull = Surroundings.predict(self.model, bone, windows, TableMaps.of(fit), device)
        box = lattice_around(fit, skull.fusion)
        first = np.floor((box.low - LATTICE.low) / STEP).astype(int)
        return skull, skull.surface(first, first + np.array(box.shape) + 1)


def load(files: WeightsFiles) -> VolumetricMethod:
    """The method with the weights of the files. Raises InputError for a file of another kind."""
    assert files.own is not None
    return load_from(files, files.own)


def load_from(files: WeightsFiles, unet: Path) -> VolumetricMethod:
    """The same with the U-Net of another file."""
    return VolumetricMethod(ShapePrior.load(files.prior), VolumetricModel.load(unet))
