"""Healthy heads -> the statistical shape model: read their tables, average, find the modes of variation."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial

import numpy as np

from pcdiff.geometry.occupancy import Head
from pcdiff.prior.direction_map import MAP, RADII, Pose, crossing, in_grid, profiles, ray_index
from pcdiff.prior.model import ShapePrior
from pcdiff.prior.pose import bone_points, fit_pose, initial_pose, largest_piece
from pcdiff.prior.settings import SETTINGS, PopulationSettings, PriorSettings


@dataclass(frozen=True)
class TableRadii:
    """Both tables of one head along the rays of the map, in its pose.

    outer, thickness: (R,) mm, NaN where no table was found. present: (R,) float, 1 with bone, 0 without, NaN outside
    the field of view.
    """

    outer: np.ndarray
    thickness: np.ndarray
    present: np.ndarray
    pose: Pose

    @property
    def both(self) -> np.ndarray:
        """(2, R) mm: outer radius and thickness."""
        return np.stack([self.outer, self.thickness])


def measure_tables(head: Head, mean: np.ndarray, std: np.ndarray, settings: PriorSettings = SETTINGS) -> TableRadii:
    """Poses a healthy head on the mean and reads its tables; mean, std: (2, R) mm of outer radius and thickness."""
    occupancy = largest_piece(head.occupancy)
    pose, _ = fit_pose(occupancy, head.affine, mean[0], std[0], settings.pose)
    return read_tables(occupancy, head.affine, pose, mean, settings.population)


def read_tables(
    occupancy: np.ndarray, affine: np.ndarray, pose: Pose, mean: np.ndarray, limits: PopulationSettings
) -> TableRadii:
    """The tables of a posed healthy head, the crossings nearest to the mean, (2, R) mm; occupancy as in `fit_pose`."""
    profile = profiles(occupancy, affine, pose, MAP.directions)
    in_view = in_grid(ray_index(affine, pose, MAP.directions), occupancy.shape)
    outer = crossing(profile, mean[0], outward=True)
    inner = crossing(profile, outer - mean[1], outward=False)
    near_mean = (mean[0] - mean[1] - 3)[:, None] <= RADII
    near_mean &= (mean[0] + 3)[:, None] >= RADII
    present = ((profile > 0.5) & near_mean).any(1).astype(np.float32)
    outer[np.abs(outer - mean[0]) > limits.max_outer_deviation_mm] = np.nan
    thickness = outer - inner
    thickness[(thickness <= 0) | (np.abs(thickness - mean[1]) > limits.max_thickness_deviation_mm)] = np.nan
    return TableRadii(outer, thickness, np.where((in_view | ~near_mean).all(1), present, np.nan), pose)


def outermost_bone(head: Head, settings: PriorSettings = SETTINGS) -> np.ndarray:
    """(R,) mm: the outermost bone along each ray from a rough centre; enough for an initial mean."""
    occupancy = largest_piece(head.occupancy)
    pose = initial_pose(bone_points(occupancy, head.affine), settings.pose.vault_mm)
    profile = profiles(occupancy, head.affine, pose, MAP.directions)
    return crossing(profile, None, outward=True)


def population_mean(
    heads: Sequence[Head], pool: Executor, rounds: int = 3, settings: PriorSettings = SETTINGS
) -> tuple[np.ndarray, np.ndarray]:
    """(2, R) mean and (2, R) std of heads and their mirror images, by posing and averaging in turn."""
    outer, outer_std = _average(np.array(list(pool.map(partial(outermost_bone, settings=settings), heads))), 15.0)
    mean = np.stack([outer, np.full_like(outer, settings.population.initial_thickness_mm)])
    std = np.stack([outer_std, np.full_like(outer, 2.0)])
    for _ in range(rounds):
        table_radii = list(pool.map(partial(measure_tables, mean=mean, std=std, settings=settings), heads))
        mean, std = average(table_radii, settings.population)
    return mean, std


def average(
    table_radii: Sequence[TableRadii], settings: PopulationSettings = SETTINGS.population
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation (2, R) mm of heads and their mirror images."""
    outer = _average(np.array([head.outer for head in table_radii]), settings.max_outer_deviation_mm)
    thickness = _average(np.array([head.thickness for head in table_radii]), settings.max_thickness_deviation_mm)
    return np.stack([outer[0], thickness[0]]), np.stack([outer[1], thickness[1]])


def build(
    table_radii: Sequence[TableRadii], mean: np.ndarray, std: np.ndarray, settings: PriorSettings = SETTINGS
) -> ShapePrior:
    """Mean and modes of the tables of heads, which are posed on about this mean, and of their mirror images."""
    options = settings.population
    flat = filled_deviations(table_radii, mean, options)
    _, values, modes = np.linalg.svd(flat, full_matrices=False)
    scaled = modes[: options.modes] * (values[: options.modes] / np.sqrt(len(flat)))[:, None]
    with np.errstate(invalid="ignore"):
        present = np.array([head.present for head in table_radii])
        present = np.concatenate([present, present[:, MAP.mirror]])
        share = np.nansum(present, 0) / np.maximum(np.isfinite(present).sum(0), 1)
    return ShapePrior(mean, std, scaled.reshape(-1, 2, mean.shape[1]), share, len(table_radii), settings)


def filled_deviations(table_radii: Sequence[TableRadii], mean: np.ndarray, options: PopulationSettings) -> np.ndarray:
    """(2 H, 2 R) float32 mm: deviations from the mean of heads, then of their mirror images, without gaps."""
    flat, gaps = _deviations(table_radii, mean, options.thickness_smoothing_px)
    for _ in range(6):  # EM: the gaps of a head take the values that the leading modes predict there
        weights, values, modes = np.linalg.svd(flat, full_matrices=False)
        filled = (weights[:, : options.gap_modes] * values[: options.gap_modes]) @ modes[: options.gap_modes]
        flat = np.where(gaps, filled, flat)
    return flat


def _deviations(table_radii: Sequence[TableRadii], mean: np.ndarray, smoothing: float) -> tuple[np.ndarray, np.ndarray]:
    """Deviations from the mean of heads and their mirror images, (2 H, 2 R) float32, 0 in gaps; and gaps as bool."""
    residual = np.stack([head.both for head in table_radii]) - mean  # (H, 2, R)
    known = np.isfinite(residual)
    residual = np.where(known, residual, 0)
    thickness = zip(residual[:, 1], known[:, 1], strict=True)
    residual[:, 1] = np.stack([MAP.smoothed(values, smoothing, measured) for values, measured in thickness])
    flat = np.concatenate([residual, residual[..., MAP.mirror]]).reshape(2 * len(table_radii), -1).astype(np.float32)
    return flat, ~np.concatenate([known, known[..., MAP.mirror]]).reshape(flat.shape)


def _average(values: np.ndarray, max_deviation: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean and std, (R,) each, of (H, R) heads and their mirror images.

    Values farther than `max_deviation` from the median do not count. A ray that few heads know takes the values of the
    nearest other ray.
    """
    both = np.concatenate([values, values[:, MAP.mirror]])
    median = np.nanmedian(np.where(np.isfinite(both).any(0), both, 0), axis=0)
    good = np.isfinite(both) & (np.abs(both - median) < max_deviation)
    count = good.sum(0)
    mean = np.where(good, both, 0).sum(0) / np.maximum(count, 1)
    std = np.sqrt((np.where(good, both - mean, 0) ** 2).sum(0) / np.maximum(count, 1))
    rare = count < 0.3 * len(both)
    mean, std = (MAP.filled(np.where(rare, np.nan, v))[MAP.inside] for v in (mean, std))
    return mean, np.where(rare, np.maximum(std, max_deviation / 2), np.maximum(std, 0.3))
