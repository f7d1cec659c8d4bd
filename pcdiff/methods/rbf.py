"""Thin-plate splines through the bone around the defects, outer and inner table apart (Carr, Fright & Beatson 1997)."""

from __future__ import annotations

import numpy as np
from scipy.interpolate import RBFInterpolator

from pcdiff.methods.along_rays import RayMethod
from pcdiff.methods.registry import WeightsFiles
from pcdiff.prior.direction_map import MAP, RADIUS
from pcdiff.prior.fit import PriorFit, choose_sites
from pcdiff.prior.model import ShapePrior

# Spacing of the sites by distance from the defect: from, to, spacing in mm. Bone up to 30 mm off gave the same figures.
RINGS = ((0.0, 6.0, 2.0), (6.0, 15.0, 4.0))


class RbfMethod(RayMethod):
    """The surfaces of least bending that meet the bone around the defects; they know no other head."""

    def tables(self, fit: PriorFit) -> tuple[np.ndarray, np.ndarray]:
        """See `RayMethod`."""
        observed = fit.observation
        outer, inner = spline(fit, observed.outer), spline(fit, observed.outer - observed.thickness)
        return outer, outer - inner


def spline(fit: PriorFit, values: np.ndarray) -> np.ndarray:
    """Values along rays, (R,) mm, NaN where unknown, continued over the defects by a thin-plate spline.

    The spline over directions d at the reference radius is s(d) = p(d) + sum_i w_i phi(|d - d_i|) with p linear and
    phi(r) = r^2 log r. It meets the values on bone from `border_mm` to 15 mm from the defects. Returns (R,) mm: the
    spline at the fit's targets, NaN elsewhere.
    """
    distance, completion = fit.observation.distance, fit.prior.settings.completion
    sites = choose_sites(distance, np.isfinite(values) & (distance > completion.border_mm), RINGS)
    places = MAP.directions * RADIUS
    continued = np.full(len(values), np.nan)
    surface = RBFInterpolator(places[sites], values[sites], kernel="thin_plate_spline")
    continued[fit.targets] = surface(places[fit.targets])
    return continued


def load(files: WeightsFiles) -> RbfMethod:
    """The method with the shape model of the files. Raises InputError for a file of another kind."""
    return RbfMethod(ShapePrior.load(files.prior))
