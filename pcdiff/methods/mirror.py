"""The other side of the head, mirrored and registered to the bone around each defect: the usual clinical practice."""

from __future__ import annotations

import numpy as np

from pcdiff.errors import InputError
from pcdiff.methods.along_rays import RayMethod
from pcdiff.methods.registry import WeightsFiles
from pcdiff.prior.direction_map import MAP, Pose
from pcdiff.prior.fit import PriorFit
from pcdiff.prior.model import ShapePrior
from pcdiff.prior.pose import Surface, register

AROUND_MM = 20.0  # bone within this distance of a defect guides the registration
MIN_MIRRORED = 0.95  # share of a defect that the other side has bone for; the nearest bone serves for the rest
RIGID = 1e6  # pull of the registration's scales to 1
MIN_POINTS = 50  # rays over bone around; the smallest defect has about a thousand, unless it lies at the map's edge


class MirrorMethod(RayMethod):
    """Both tables of the other side, moved rigidly onto the bone around each defect."""

    def tables(self, fit: PriorFit) -> tuple[np.ndarray, np.ndarray]:
        """See `RayMethod`. Raises InputError for a defect that the other side has no bone for."""
        observed = fit.observation
        mirrored = np.stack([observed.outer, observed.outer - observed.thickness])[:, MAP.mirror]
        known = np.isfinite(mirrored).all(0)
        nearest_defect = MAP.filled(np.where(fit.defect > 0, fit.defect, np.nan))[MAP.inside]
        outer, inner = np.full_like(mirrored, np.nan)
        for label in range(1, fit.defects + 1):
            share = known[fit.defect == label].mean()
            if share < MIN_MIRRORED:
                raise InputError(
                    f"method mirror: expected bone on the other side of the whole defect {label}, got it for "
                    f"{share:.0%}; the defect reaches the midline, or both sides lack bone; choose another method"
                )
            near = nearest_defect == label
            motion = self._register(fit, mirrored[0], near)
            outer[near], inner[near] = (_moved(radius, motion)[near] for radius in mirrored)
        return outer, outer - inner

    def _register(self, fit: PriorFit, mirrored: np.ndarray, near: np.ndarray) -> Pose:
        """The rigid motion, in model space, of the mirrored outer table (R,) mm onto the bone of the rays `near`, (R,).

        Point-to-plane registration of the bone around a defect, as of a head to the mean skull.
        """
        settings, observed = self.prior.settings, fit.observation
        around = near & (observed.distance > settings.completion.border_mm) & (observed.distance <= AROUND_MM)
        around &= np.isfinite(observed.outer) & np.isfinite(mirrored)
        bone = MAP.directions[around] * observed.outer[around, None]
        surface = MAP.smoothed(MAP.filled(mirrored)[MAP.inside], 1.0)
        rigid = settings.pose.model_copy(update={"scale_ridge": RIGID, "min_points": MIN_POINTS})
        motion, _ = register(bone, Surface.of(surface, np.ones_like(surface)), Pose(np.eye(3), np.zeros(3)), rigid)
        return motion


def _moved(radius: np.ndarray, motion: Pose, rounds: int = 6) -> np.ndarray:
    """(R,) mm along the rays of a surface (R,) mm after a small motion, by fixed-point iteration."""
    image = MAP.filled(radius)
    moved = image[MAP.inside]
    for _ in range(rounds):
        before = motion.to_model(moved[:, None] * MAP.directions)
        length = np.linalg.norm(before, axis=1)
        moved = moved + MAP.sample(image, before / length[:, None], np.nan) - length
    return moved


def load(files: WeightsFiles) -> MirrorMethod:
    """The method with the shape model of the files. Raises InputError for a file of another kind."""
    return MirrorMethod(ShapePrior.load(files.prior))
