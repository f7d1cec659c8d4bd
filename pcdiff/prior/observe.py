"""Both tables of a posed defective skull along the rays of the map, and the defects between them."""

from __future__ import annotations

import numpy as np

from pcdiff.geometry.volume import Volume
from pcdiff.prior.defects import Observation, check_view, find_defects, open_rays
from pcdiff.prior.direction_map import MAP, RADII, Pose, crossing, inner_table, profiles
from pcdiff.prior.model import ShapePrior

EVERY = 7  # the robust fit of the modes uses one ray in seven


def observe(prior: ShapePrior, occupancy: np.ndarray, affine: np.ndarray, pose: Pose, field: Volume) -> Observation:
    """Reads both tables along every ray, and finds the defects within the field of view.

    occupancy: (I, J, K) uint8, 255 = bone; affine: (4, 4) index -> mm. field: a volume on the scan's grid; only its
    extent is used. Raises InputError where the scan ends below the top of the head.
    """
    settings = prior.settings.tables
    profile, _ = profiles(occupancy, affine, pose, MAP.directions)
    outer = crossing(profile, prior.mean[0], outward=True)
    expected = _expected_tables(prior, outer, inner_table(profile, outer - prior.mean[1], settings.inner_reach_mm))
    for _ in range(2):
        outer = crossing(profile, expected[0], outward=True)
        inner = inner_table(profile, expected[0] - expected[1], settings.inner_reach_mm)
        expected = _expected_tables(prior, outer, inner)
    outer[np.abs(outer - expected[0]) > settings.max_deviation_mm] = np.nan
    thickness = outer - inner
    thickness[(thickness <= 0) | (np.abs(thickness - expected[1]) > settings.max_deviation_mm)] = np.nan

    near_tables = (expected[0] - expected[1] - settings.absent_slack_mm)[:, None] <= RADII
    near_tables &= (expected[0] + settings.absent_slack_mm)[:, None] >= RADII
    index = field.to_index(pose.to_patient(MAP.directions * expected[0][:, None]))
    in_view = np.asarray(((index > -0.5) & (index < np.array(field.mask.shape) - 0.5)).all(1))
    check_view(in_view)
    absent = ~((profile >= 0.5) & near_tables).any(1) & in_view
    usually_bone = prior.present >= prior.settings.defects.min_presence
    return open_rays(outer, thickness, find_defects(absent, in_view, usually_bone, prior.settings.defects))


def _expected_tables(prior: ShapePrior, outer: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """(2, R) expected outer radius and thickness, mm: a robust fit of the leading modes to the radii read, (R,) each.

    Iteratively reweighted least squares with Cauchy weights and a standard normal prior on the modes' weights.
    """
    settings, limits = prior.settings.tables, prior.settings.population
    values = np.stack([outer - prior.mean[0], outer - inner - prior.mean[1]])
    values[0][np.abs(values[0]) > limits.max_outer_deviation_mm] = np.nan
    values[1][np.abs(values[1]) > limits.max_thickness_deviation_mm] = np.nan
    values = values[:, ::EVERY].ravel()
    leading = prior.modes[: settings.modes]
    modes = leading[:, :, ::EVERY].reshape(len(leading), -1).T  # (2 R', M)
    known = np.isfinite(values)
    modes, values = modes[known], values[known]
    weights = np.zeros(len(leading))
    for _ in range(6):
        misfit = values - modes @ weights
        robust = settings.ray_weight * (1 / (1 + (misfit / settings.cauchy_mm) ** 2))
        system = (modes.T * robust) @ modes + np.eye(len(leading))
        weights = np.linalg.solve(system, (modes.T * robust) @ values)
    expected = prior.mean + np.tensordot(weights, leading, 1)
    expected[1] = np.maximum(expected[1], settings.min_thickness_mm)
    return expected
