"""Features of the occupancy network: local patches of bone, mirrored bone, mean head and tables at query points.

The shape model describes bone by two radii per direction. At the forehead that excludes the orbital roof and rim;
there the network decides at each point of a lattice in model space whether bone is missing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.ndimage import map_coordinates

from pcdiff.geometry.occupancy import Head
from pcdiff.methods.occupancy.config import OccupancySettings
from pcdiff.methods.occupancy.lattice import (
    Lattice,
    TableMaps,
    lattice_around,
    map_position,
    missing_table_points,
    table_log_odds,
)
from pcdiff.prior.direction_map import Pose
from pcdiff.prior.fit import PriorFit

MIRROR = np.array([-1.0, 1, 1])


@dataclass(frozen=True)
class OccupancyQueries:
    """A lattice around the defects, and the query points among its points.

    table_log_odds: (I, J, K) float32 of bone, by the completed tables. bone: (I, J, K) float32 in [0, 1], the bone that
    is present. index: (N, 3) int, the query points; `features` computes theirs, because all at once take much memory.
    """

    lattice: Lattice
    table_log_odds: np.ndarray
    bone: np.ndarray
    index: np.ndarray
    settings: OccupancySettings
    _point_features: np.ndarray
    _maps: dict[str, np.ndarray]

    def features(self, some: slice | np.ndarray = slice(None)) -> np.ndarray:
        """(n, F) float16 of some of the query points."""
        index = self.index[some]
        parts = [self._point_features[tuple(index.T)]]
        for name, side, step in self.settings.patches:
            along = (np.arange(side) - side // 2) * step
            cube = np.stack(np.meshgrid(along, along, along, indexing="ij"), -1).reshape(-1, 3)
            at = index[:, None] + cube + self.settings.padding
            parts.append(self._maps[name][at[..., 0], at[..., 1], at[..., 2]])
        return np.concatenate(parts, 1).astype(np.float16)

    def mirrored(self) -> OccupancyQueries:
        """The queries of the mirrored head; the mean head is symmetric."""
        low = self.lattice.low * MIRROR - [(self.lattice.shape[0] - 1) * self.lattice.step, 0, 0]
        point_features = self._point_features[::-1].copy()
        point_features[..., self.settings.point_features.index("x")] *= -1
        return OccupancyQueries(
            Lattice(low, self.lattice.shape, self.lattice.step),
            self.table_log_odds[::-1],
            self.bone[::-1],
            [self.lattice.shape[0] - 1, 0, 0] + self.index * MIRROR.astype(int),
            self.settings,
            point_features,
            {name: values[::-1] for name, values in self._maps.items()},
        )


@dataclass(frozen=True)
class _Surroundings:
    """What features are computed from, at each lattice point, (I, J, K): shares of bone, and distances in mm."""

    bone: np.ndarray
    mirrored: np.ndarray
    mean: np.ndarray
    below_outer: np.ndarray
    above_inner: np.ndarray
    border: np.ndarray
    outer_std: np.ndarray
    thickness_std: np.ndarray


def build_occupancy_features(
    fit: PriorFit,
    head: Head,
    mean: np.ndarray,
    settings: OccupancySettings,
    lattice: Lattice | None = None,
    displacement: np.ndarray | float = 0.0,
) -> OccupancyQueries:
    """The query points around the defects of a fitted skull, and their features.

    head: the skull's. mean: `mean_shape` uint8, occupancy of the mean head. displacement: (2, I, J, K, 3) mm, a
    deformation of the head: the offset at which each lattice point and each mirrored point is read. Training draws it.
    """
    lattice = lattice_around(fit, settings) if lattice is None else lattice
    around = _read_surroundings(fit, head, mean, settings, lattice, displacement)
    odds = table_log_odds(around.below_outer, around.above_inner, around.border, settings)
    return OccupancyQueries(
        lattice,
        odds.astype(np.float32),
        around.bone,
        np.argwhere(_query_points(fit, around, settings, lattice)),
        settings,
        _point_features(around, odds, settings, lattice),
        _padded_maps(around, settings),
    )


def occupancy_at(head: Head, pose: Pose, points: np.ndarray) -> np.ndarray:
    """Share of bone (...) float32 at points (..., 3) model mm of a posed head; 0 outside its grid."""
    to_index = np.linalg.inv(head.affine)
    index = pose.to_patient(points) @ to_index[:3, :3].T + to_index[:3, 3]
    values = map_coordinates(head.occupancy, index.reshape(-1, 3).T, order=1, output=np.float32)
    return values.reshape(points.shape[:-1]) / 255


def _read_surroundings(
    fit: PriorFit,
    head: Head,
    mean: np.ndarray,
    settings: OccupancySettings,
    lattice: Lattice,
    displacement: np.ndarray | float,
) -> _Surroundings:
    points = lattice.points
    here, there = np.broadcast_to(displacement, (2, *points.shape))
    there = points * MIRROR + there
    here = points + here
    bone, mirrored = occupancy_at(head, fit.pose, here), occupancy_at(head, fit.pose, there)
    index = ((points - np.array(settings.mean_low_mm)) / settings.step_mm).reshape(-1, 3).T
    usual = map_coordinates(mean, index, order=1, output=np.float32).reshape(lattice.shape) / 255
    pixels, radius = map_position(here)
    outer, inner, outer_std, thickness_std, border = TableMaps.of(fit).sample(
        pixels, "outer", "inner", "outer_std", "thickness_std", "border"
    )
    limit = settings.table_clip_mm
    below_outer, above_inner = np.clip(outer - radius, -limit, limit), np.clip(radius - inner, -limit, limit)
    border = np.clip(border, -settings.border_clip_mm, settings.border_clip_mm)
    return _Surroundings(bone, mirrored, usual, below_outer, above_inner, border, outer_std, thickness_std)


def _query_points(fit: PriorFit, around: _Surroundings, settings: OccupancySettings, lattice: Lattice) -> np.ndarray:
    """(I, J, K) bool: free of bone, near the missing tables, and not implausible for missing bone."""
    index = np.round((missing_table_points(fit) - lattice.low) / lattice.step).astype(int)
    missing = np.zeros(lattice.shape, bool)
    missing[tuple(index[((index >= 0) & (index < lattice.shape)).all(1)].T)] = True
    # not the whole lattice: with two defects it can be as wide as a head
    near_missing = ndimage.distance_transform_edt(~missing) * lattice.step < settings.margin_mm
    depth = np.minimum(np.minimum(around.below_outer, around.above_inner), around.border + settings.extension_mm)
    plausible = (depth > -settings.near_mm) | (around.mirrored > settings.min_mirrored)
    plausible |= around.mean > settings.min_mean
    return (around.bone < 0.5) & near_missing & plausible


def _point_features(
    around: _Surroundings, odds: np.ndarray, settings: OccupancySettings, lattice: Lattice
) -> np.ndarray:
    """(I, J, K, 14) float16, as named in `config.POINT_FEATURES`."""
    x, y, z = np.moveaxis(lattice.points / settings.coordinate_scale_mm, -1, 0)
    depth = np.minimum(np.minimum(around.below_outer, around.above_inner), around.border + settings.extension_mm)
    features = np.stack(
        [
            *(around.below_outer / 4, around.above_inner / 4, around.outer_std, around.thickness_std),
            *(around.border / 8, np.tanh(around.border / 4), np.tanh(depth), odds / settings.max_log_odds),
            *(x, np.abs(x), y, z),
            _bone_distance(around.bone, settings.bone_clip_mm / settings.step_mm) / 5,
            _bone_distance(around.mirrored, settings.mirrored_clip_mm / settings.step_mm) / 4,
        ],
        -1,
    )
    return np.clip(features, -4, 4).astype(np.float16)


def _bone_distance(bone: np.ndarray, limit: float) -> np.ndarray:
    """(I, J, K) lattice steps to the nearest bone, `limit` at most."""
    if not (bone > 0.5).any():
        return 0 * bone + limit
    return np.minimum(ndimage.distance_transform_edt(bone < 0.5), limit)


def _padded_maps(around: _Surroundings, settings: OccupancySettings) -> dict[str, np.ndarray]:
    """The images that patches are cut from, float16, as named in `config.MAPS`."""

    def smooth(values: np.ndarray, mm: float) -> np.ndarray:
        return ndimage.gaussian_filter(values, mm / settings.step_mm, mode="constant")

    maps = {
        "bone": around.bone,
        "mirrored": around.mirrored,
        "mean": around.mean,
        "bone, 2 mm": smooth(around.bone, 2),
        "mirrored, 2 mm": smooth(around.mirrored, 2),
        "bone, 4 mm": 2 * smooth(around.bone, 4),
        "mirrored, 4 mm": 2 * smooth(around.mirrored, 4),
        "bone, 7 mm": 3 * smooth(around.bone, 7),
        "mirrored, 7 mm": 3 * smooth(around.mirrored, 7),
        "mean, 2 mm": smooth(around.mean, 2),
    }
    padded = {name: np.pad(values, settings.padding).astype(np.float16) for name, values in maps.items()}
    for name, values in (("outer", around.below_outer), ("inner", around.above_inner)):
        padded[name] = np.pad(np.clip(values / 4, -2, 2), settings.padding, mode="edge").astype(np.float16)
    return padded
