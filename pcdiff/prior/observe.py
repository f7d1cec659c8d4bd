"""Both tables of a posed defective skull along the rays of the map, and the defects between them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pcdiff.geometry.occupancy import Head, head_occupancy
from pcdiff.geometry.volume import Volume
from pcdiff.prior.closed import Closed, find_closed
from pcdiff.prior.defects import (
    VAULT,
    Observation,
    check_cut,
    check_view,
    defects_within,
    doubtful_defects,
    find_defects,
    open_rays,
    rays_through,
    small_openings,
)
from pcdiff.prior.direction_map import MAP, RADII, Pose, crossing, inner_table, profiles
from pcdiff.prior.model import ShapePrior

EVERY = 7  # the robust fit of the modes uses one ray in seven
EDGE_MM = 1.5  # below the expected outer table, from which bone is cut where the scan ends

STEP = float(RADII[1] - RADII[0])  # mm between the samples along a ray


@dataclass(frozen=True)
class Observed:
    """Both tables and the defects, what closes a defect, and warnings.

    doubtful: labels, see `doubtful_defects`. left: (R,) bool, rays that no defect may grow into. found, small: (R,) int
    labels of all defects, as without a region, and of smaller openings.
    """

    observation: Observation
    closed: Closed
    notes: tuple[str, ...]
    doubtful: tuple[int, ...]
    left: np.ndarray
    found: np.ndarray
    small: np.ndarray


def observe(
    prior: ShapePrior, occupancy: np.ndarray, head: Head, pose: Pose, field: Volume, region: Volume | None = None
) -> Observed:
    """Reads both tables along every ray, and finds the defects within the field of view.

    occupancy: (I, J, K) uint8, 255 = bone, the largest piece of `head`. field: a volume on the scan's grid; its extent
    is used, and what is loose in it. region: a mask; only what is absent within it is a defect, and all of that. Raises
    InputError where the scan ends below the top of the head or in a defect.
    """
    settings, rules = prior.settings.tables, prior.settings.defects
    profile = profiles(occupancy, head.affine, pose, MAP.directions)
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
    bone = (profile >= 0.5) & near_tables
    # On the vault any of the bone's thickness is enough to see whether there is bone: heads end close under the scan's
    # top, and over a large defect the expected tables may be off by as much; `check_reach` looks again. Farther down
    # the outer table has to be in view, because the face often is not.
    within = in_view(pose, field, expected[0] - np.where(VAULT, expected[1], 0))
    cut = _cut(head, pose, bone, expected[0])
    check_view(cut, ~within & ~bone.any(1))
    absent = ~bone.any(1) & within
    usually_bone = prior.present >= rules.min_presence
    loose = _loose_mm(head, occupancy, pose, field, absent, near_tables)
    bone_mm = (profile * near_tables).sum(1) * STEP + loose
    offset = outer - expected[0]
    voxel_mm = float(field.spacing.min())
    closed = find_closed(absent, loose, bone_mm, expected[1], offset, usually_bone, rules.opening_mm, voxel_mm)
    open_ = absent & ~closed.held
    found, small = (find(open_, within, usually_bone, rules) for find in (find_defects, small_openings))
    if region is None:
        left, defect = closed.held, found
        doubtful = doubtful_defects(defect, usually_bone)
    else:
        drawn = rays_through(region, pose)
        left, defect = closed.held | ~drawn, defects_within(drawn, open_, rules.opening_mm)
        doubtful = ()
    notes = check_cut(cut, defect) + closed.notes(defect, rules)
    return Observed(open_rays(outer, thickness, defect), closed, notes, doubtful, left, found, small)


def in_view(pose: Pose, field: Volume, radius: np.ndarray) -> np.ndarray:
    """(R,) bool: whether the field of view holds the point of each ray at a radius, (R,) mm."""
    index = field.to_index(pose.to_patient(MAP.directions * radius[:, None]))
    return np.asarray(((index > -0.5) & (index < np.array(field.mask.shape) - 0.5)).all(1))


def _cut(head: Head, pose: Pose, bone: np.ndarray, outer: np.ndarray) -> np.ndarray:
    """(R,) bool: rays of the vault on which bone ends with the scan, and not with an outer table near the expected one.

    bone: (R, S) bool along the rays. outer: (R,) mm, expected.
    """
    rays = np.flatnonzero(VAULT & bone.any(1))
    outermost = RADII[bone.shape[1] - 1 - bone[rays, ::-1].argmax(1)]
    points = pose.to_patient(MAP.directions[rays] * (outermost + STEP)[:, None])
    index = (points - head.affine[:3, 3]) @ np.linalg.inv(head.affine[:3, :3]).T
    beyond = ~((index >= 0) & (index <= np.array(head.occupancy.shape) - 1)).all(1)  # around bone in view there is air
    cut = np.zeros(len(VAULT), bool)
    cut[rays] = beyond & (outer[rays] - outermost > EDGE_MM)
    return cut


def _loose_mm(
    head: Head, occupancy: np.ndarray, pose: Pose, field: Volume, rays: np.ndarray, near_tables: np.ndarray
) -> np.ndarray:
    """(R,) mm along some rays, (R,) bool, of bone near the tables that is no part of the largest piece; else 0."""
    loose_mm = np.zeros(len(rays))
    pieces = [Head(head.occupancy - occupancy, head.affine, head.name)]
    if field.loose is not None and field.loose.any():
        pieces.append(head_occupancy(Volume(field.loose, field.affine)))
    for piece in pieces:
        profile = profiles(piece.occupancy, piece.affine, pose, MAP.directions[rays])
        loose_mm[rays] += (profile * near_tables[rays]).sum(1) * STEP
    return loose_mm


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
