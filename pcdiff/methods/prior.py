"""The statistical shape model alone: the baseline that every network has to beat."""

from __future__ import annotations

import numpy as np

from pcdiff.methods.along_rays import RayMethod
from pcdiff.methods.registry import WeightsFiles
from pcdiff.prior.fit import PriorFit
from pcdiff.prior.model import ShapePrior


class PriorMethod(RayMethod):
    """The posterior mean of the shape model."""

    def tables(self, fit: PriorFit) -> tuple[np.ndarray, np.ndarray]:
        """See `RayMethod`."""
        return fit.outer, fit.thickness


def load(files: WeightsFiles) -> PriorMethod:
    """The method on the shape model of the files. Raises InputError for a file of another kind."""
    return PriorMethod(ShapePrior.load(files.prior))
