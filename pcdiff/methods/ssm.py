"""The modes of the statistical shape model fitted to the intact bone (Fuessinger et al. 2018)."""

from __future__ import annotations

import numpy as np

from pcdiff.methods.along_rays import RayMethod
from pcdiff.methods.registry import WeightsFiles
from pcdiff.prior.fit import PriorFit
from pcdiff.prior.model import ShapePrior

RIM_MM = 5.0  # distance from the defects over which the weight of bone falls to 1/e
RIDGE = 1.0  # mm2, s^2: what the modes leave of a ray, times the number of neighbouring rays that err together


class SsmMethod(RayMethod):
    """The most probable head of the shape model, given the bone; what no mode describes, it leaves."""

    def tables(self, fit: PriorFit) -> tuple[np.ndarray, np.ndarray]:
        """See `RayMethod`."""
        outer, thickness = self.prior.mean + np.tensordot(self.fit_modes(fit), self.prior.modes, 1)
        return outer, thickness

    def fit_modes(self, fit: PriorFit) -> np.ndarray:
        """(M,) the modes' weights b = (Phi^T W Phi + s^2 I)^-1 Phi^T W (x - mean).

        x: both tables of the intact rays. Phi: the modes there, scaled to one standard deviation. W: exp(-distance /
        `RIM_MM`), because the implant has to meet the rim. s^2: `RIDGE`.
        """
        observed = fit.observation
        deviation = np.stack([observed.outer, observed.thickness]) - self.prior.mean
        known = np.isfinite(deviation) & (observed.distance > self.prior.settings.completion.border_mm)
        modes = self.prior.modes[:, known].T
        weighted = modes.T * np.broadcast_to(np.exp(-observed.distance / RIM_MM), known.shape)[known]
        fitted: np.ndarray = np.linalg.solve(
            weighted @ modes + RIDGE * np.eye(modes.shape[1]), weighted @ deviation[known]
        )
        return fitted


def load(files: WeightsFiles) -> SsmMethod:
    """The method on the files' shape model. Raises InputError for a file of another kind."""
    return SsmMethod(ShapePrior.load(files.prior))
