"""The mean healthy skull, posed on the patient and deformed to the rim: the prior that Matzkin et al. (2020) use."""

from __future__ import annotations

import numpy as np

from pcdiff.methods.along_rays import RayMethod
from pcdiff.methods.rbf import spline
from pcdiff.methods.registry import WeightsFiles
from pcdiff.prior.fit import PriorFit
from pcdiff.prior.model import ShapePrior


class MeanMethod(RayMethod):
    """The mean skull and the spline through the bone's deviation from it. Matzkin et al. add a network instead."""

    def tables(self, fit: PriorFit) -> tuple[np.ndarray, np.ndarray]:
        """See `RayMethod`."""
        mean_outer, mean_thickness = self.prior.mean
        outer = mean_outer + spline(fit, fit.observation.outer - mean_outer)
        thickness = mean_thickness + spline(fit, fit.observation.thickness - mean_thickness)
        return outer, thickness


def load(files: WeightsFiles) -> MeanMethod:
    """The method on the mean of the files' shape model. Raises InputError for a file of another kind."""
    return MeanMethod(ShapePrior.load(files.prior))
