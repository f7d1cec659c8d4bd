"""Completed tables and the correction of the U-Net, fused into one closed surface."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.ndimage import map_coordinates
from skimage.measure import marching_cubes

from pcdiff.geometry.directions import unit
from pcdiff.geometry.points import PointCloud
from pcdiff.methods.volumetric.config import FusionConfig
from pcdiff.methods.volumetric.lattice import Lattice, TableMaps, map_position, table_log_odds
from pcdiff.prior.direction_map import MAP
from pcdiff.prior.fit import PriorFit

FINER = 2  # steps of the surface's lattice per step of the correction's
SMOOTH = 0.7  # steps of the finer lattice, for the normals


@dataclass(frozen=True)
class FusedSurface:
    """A triangulated surface in model mm.

    points: (N, 3). normals: (N, 3) unit, out of the bone. faces: (M, 3) int, counter-clockwise seen from outside.
    border: (N,) mm inside the border of the defect. of_defect: (N,) bool, inside it or where the network made a
    correction.
    """

    points: np.ndarray
    normals: np.ndarray
    faces: np.ndarray
    border: np.ndarray
    of_defect: np.ndarray

    def in_patient(self, fit: PriorFit) -> PointCloud:
        """The points in patient mm, labelled as in `PriorFit.completed_surface`."""
        labels = map_coordinates(_nearest_defect(fit), map_position(self.points)[0], order=0, mode="nearest")
        normals = unit(self.normals @ np.linalg.inv(fit.pose.linear))  # normals transform by the inverse transpose
        return PointCloud(fit.pose.to_patient(self.points), normals, np.where(self.of_defect, labels, 0))


def fused_surface(maps: TableMaps, coarse: Lattice, correction: np.ndarray, fusion: FusionConfig) -> FusedSurface:
    """The surface where the log-odds of the completed tables and their correction are 0 together.

    correction: (I, J, K) log-odds on the lattice `coarse`.
    """
    lattice = coarse.finer(FINER)
    pixels, radius = map_position(lattice.points)
    finer = np.array(lattice.shape) / correction.shape
    added = ndimage.zoom(correction, finer, order=1)  # from first to last point, linearly
    top, bottom, border = maps.sample(pixels, "outer", "inner", "border")
    odds = table_log_odds(top - radius, radius - bottom, border, fusion) + added
    at, normals, faces = _zero_surface(odds, outside=-fusion.max_log_odds)
    inside = map_coordinates(border, at.T, order=1, mode="nearest")
    of_defect = (inside > 0) | (np.abs(map_coordinates(added, at.T, order=1, mode="nearest")) > 0)
    return FusedSurface(lattice.low + lattice.step * at, unit(normals), faces, inside, of_defect)


def _zero_surface(odds: np.ndarray, outside: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The level 0 of log-odds (I, J, K): vertices (N, 3) in lattice indices, normals (N, 3), not unit, and faces.

    Normals and faces look out of the bone.
    """
    padded = np.pad(odds, 1, constant_values=outside)
    vertices, faces, _, _ = marching_cubes(padded.astype(np.float32), 0.0)
    slope = np.stack(np.gradient(ndimage.gaussian_filter(padded, SMOOTH)), -1)
    normals = -np.stack([map_coordinates(slope[..., axis], vertices.T, order=1) for axis in range(3)], -1)
    return vertices - 1, normals, faces[:, ::-1]  # vertices without the padding; the library's faces look inwards


def _nearest_defect(fit: PriorFit) -> np.ndarray:
    """(SIZE, SIZE) int: label of the nearest defect."""
    defect = MAP.to_image(fit.defect)
    return defect[tuple(ndimage.distance_transform_edt(defect == 0, return_distances=False, return_indices=True))]
