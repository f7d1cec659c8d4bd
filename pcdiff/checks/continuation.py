"""The outer surface just inside the rim, compared with the surrounding bone continued over it.

Only the measured outer table of this skull is used, smooth in curvature across the rim; no shape model and no mirrored
side. So it also sees what a method and its shape model get wrong together, and defects across the midline.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage
from scipy.interpolate import RBFInterpolator

from pcdiff.prior.defects import VAULT
from pcdiff.prior.direction_map import MAP, PIXEL

BORDER_MM = 2.0  # bone nearer to the defect may be cut aslant and is left out
AROUND_MM = 40.0  # bone up to here fixes the curvature; more changed nothing on skulls
CELL_MM = 4.0  # the outer table is averaged in cells of this width: single rays are noisy
REACH_MM = 12.0  # from bone; farther in, true surfaces leave the continued one by more than a millimetre
SMOOTHING = 100.0  # of the spline: a cell's noise of 0.1 mm is not continued
MAX_TILT_DEG = 70.0  # from the vertex; temples and brows below bend too sharply to be continued
MIN_CELLS = 20


def continued_surface(outer: np.ndarray, defect: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rays of the vault within defects and close to bone, and the radius at which bone would continue there.

    A cubic spline with a quadratic trend, over the direction map, through the outer table around the defects.

    Args:
        outer: (R,) model mm, outer radius of bone, NaN where it is not known.
        defect: (R,) int labels, 0 on bone.

    Returns:
        (T,) ray numbers, ascending, and (T,) model mm; empty if there is too little bone around.
    """
    none = np.zeros(0, int), np.zeros(0)
    inside = MAP.to_image(defect > 0, False)
    from_defect = ndimage.distance_transform_edt(~inside)[MAP.inside] * PIXEL
    upper = MAP.directions[:, 2] > np.cos(np.deg2rad(MAX_TILT_DEG))
    bone = np.isfinite(outer) & upper & (from_defect > BORDER_MM) & (from_defect < AROUND_MM)
    if not bone.any():
        return none
    from_bone = ndimage.distance_transform_edt(~MAP.to_image(bone, False))[MAP.inside] * PIXEL
    rays = np.flatnonzero((defect > 0) & VAULT & (from_bone < REACH_MM + BORDER_MM))
    places = np.argwhere(MAP.inside) * PIXEL
    cell = np.unique((places[bone] // CELL_MM).astype(int), axis=0, return_inverse=True)[1].ravel()
    sums = [np.bincount(cell, values) for values in (*places[bone].T, outer[bone])]
    *at, radius = np.array(sums) / np.bincount(cell)
    if len(radius) < MIN_CELLS or not len(rays):
        return none
    spline = RBFInterpolator(np.stack(at, -1), radius, kernel="cubic", degree=2, smoothing=SMOOTHING)
    return rays, spline(places[rays])
