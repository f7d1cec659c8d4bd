"""An implant that a person edited, in the place of a method's answer: made to fit, and proved again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pcdiff.errors import InputError
from pcdiff.geometry.grid import CRUMB_ML, bounding_box, box_slices, components, largest_components, voxels_of
from pcdiff.geometry.volume import Volume
from pcdiff.imaging.implants import read_implant
from pcdiff.methods.base import Proposal
from pcdiff.methods.candidates import Mask
from pcdiff.methods.registry import WeightsFiles
from pcdiff.prior.fit import PriorFit
from pcdiff.prior.model import ShapePrior
from pcdiff.reconstruct.finish import SEAM_VOXELS, close_rim

MIN_INSIDE = 0.5  # share of the implant's voxels on rays through a defect
OTHER_AXES = "Export a mesh in RAS again in LPS, or give the implant as a mask on the scan's grid, which needs no axes"
MARGIN = 2 * SEAM_VOXELS  # voxels around the implant


@dataclass(frozen=True)
class EditedImplant:
    """The file of an implant, as the one answer. Of the shape model only the places of the defects are used.

    What lies in bone is taken away, gaps of up to four voxels along the rim are closed, and crumbs are left out.
    """

    prior: ShapePrior
    file: Path

    def __call__(
        self, skull: Volume, fit: PriorFit, *, ensemble: int = 1, seed: int = 0, device: str = "cpu"
    ) -> Proposal:
        """See `PriorBasedMethod`. Raises InputError for a file that is no implant on this skull's defects."""
        implant = self._outside_bone(skull)
        inside = float((fit.defect_at(skull.to_mm(voxels_of(implant).astype(float))) > 0).mean())
        if inside < MIN_INSIDE:
            raise InputError(
                f"{self.file}: expected an implant in the defects to be closed, got {inside:.0%} of it there; is it of "
                f"this patient, are its defects chosen, and is a mesh in LPS millimetres? {OTHER_AXES}"
            )
        voxels_of_crumb = CRUMB_ML * 1000 / abs(float(np.linalg.det(skull.affine[:3, :3])))
        pieces = max(sum(len(part) >= voxels_of_crumb for part in components(implant)), 1)
        low, high = bounding_box(implant)
        box = box_slices(np.maximum(low - MARGIN, 0), np.minimum(high + MARGIN, implant.shape))
        implant[box] = close_rim(implant[box], skull.mask[box])
        return Proposal([Mask(skull.with_mask(largest_components(implant, pieces, corners=True)))])

    def check(self, skull: Volume) -> None:
        """See `ChecksSkull`."""
        self._outside_bone(skull)

    def _outside_bone(self, skull: Volume) -> np.ndarray:
        """(I, J, K) bool: the implant without what lies in bone."""
        implant = read_implant(self.file, skull, other_axes=OTHER_AXES).mask & ~skull.mask
        if not implant.any():
            raise InputError(f"{self.file}: expected an implant, got one that lies in bone altogether")
        return implant


def load(files: WeightsFiles) -> EditedImplant:
    """The method for an implant's file."""
    assert files.own is not None
    return EditedImplant(ShapePrior.load(files.prior), files.own)
