"""Training pairs of the surface denoiser: anchors on the fused surface of a fitted case, and their true displacements.

The case was never an input of the U-Net's training: on cases that the U-Net has learned its surface is better than in
use, and the denoiser would learn to move it too little.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.ndimage import map_coordinates

from pcdiff.methods.surface.anchors import Anchors, make_anchors, spread_vertices
from pcdiff.methods.volumetric.features import LATTICE, STEP
from pcdiff.methods.volumetric.method import VolumetricMethod
from pcdiff.methods.volumetric.surroundings import Surroundings
from pcdiff.training.volumetric.fitted import FittedCase

REACH_MM = 6.0  # a true surface farther off is another surface
PROBE_MM = 0.25  # between the places where it is looked for


@dataclass(frozen=True)
class Pair:
    """Anchors and their target.

    target: (N,) mm along the normal to the surface of the complete head. valid: (N,) 1 where there is one, else 0.
    """

    anchors: Anchors
    target: np.ndarray
    valid: np.ndarray


def make_pair(case: FittedCase, base: VolumetricMethod, count: int) -> Pair:
    """Pair with `count` anchors. Raises ValueError for a case whose fused surface has none."""
    bone = case.bone / np.float32(255)
    skull = Surroundings.predict(base.model, bone, case.windows, case.maps, mirror=False)
    sides = np.array([[[side.start, side.stop] for side in window] for window in case.windows])
    surface = skull.surface(sides[..., 0].min(0), sides[..., 1].max(0))
    anchors = make_anchors(surface, skull, spread_vertices(surface, count))
    target, valid = true_displacements(anchors, bone + case.missing / np.float32(255))
    return Pair(anchors, target, valid)


def true_displacements(anchors: Anchors, complete: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N,) mm along each normal to the nearest place where the complete head's bone ends, and 1 where there is one.

    complete: `LATTICE.shape` share of bone.
    """
    offsets = np.arange(-REACH_MM, REACH_MM + PROBE_MM / 2, PROBE_MM)
    points = anchors.positions[:, None] + offsets[:, None] * anchors.normals[:, None]
    # cubic: linear interpolation on 2 mm would move the surface by up to 0.15 mm
    share = map_coordinates(complete, np.moveaxis((points - LATTICE.low) / STEP, -1, 0), order=3)  # (N, T)
    first, second = share[:, :-1], share[:, 1:]
    ends = (first >= 0.5) & (second < 0.5)
    at = offsets[:-1] + PROBE_MM * (first - 0.5) / np.maximum(first - second, 1e-6)
    at = np.where(ends, at, np.inf)
    nearest = np.take_along_axis(at, np.abs(at).argmin(1)[:, None], 1)[:, 0]
    valid = np.isfinite(nearest)
    return np.where(valid, nearest, 0).astype(np.float32), valid.astype(np.float32)


def mirrored(case: FittedCase) -> FittedCase:
    """The mirror image of a case."""
    width = LATTICE.shape[0]
    maps = replace(case.maps, **{name: values[::-1].copy() for name, values in vars(case.maps).items()})
    windows = tuple((slice(width - a.stop, width - a.start), b, c) for a, b, c in case.windows)
    return replace(case, bone=case.bone[::-1], missing=case.missing[::-1], maps=maps, windows=windows)
