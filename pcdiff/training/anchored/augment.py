"""Synthetic heads along the rays of the map: moved features, smooth deformations, poses found without the defect."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from pcdiff.prior.direction_map import MAP, PIXEL, RADIUS, SIZE, Pose
from pcdiff.prior.gaussian_process import chord, matern
from pcdiff.prior.model import ShapePrior
from pcdiff.prior.pose import EVERY, register

KNOTS = 160  # directions that a smooth random field is drawn at
COARSE = 4  # pixels; a smooth field is evaluated at every fourth and interpolated
ORIGIN = Pose(np.eye(3), np.zeros(3))
POSE_STEPS = 16  # from the pose of the whole head; further steps move it by less than 0.1 mm


def pose_without(prior: ShapePrior, table_radii: np.ndarray, defect: np.ndarray) -> Pose:
    """The pose on the mean of a head with (2, R) tables, registered without the rays of `defect` (R,).

    It is often millimetres from the pose of the whole head, which would reveal the missing bone to the network.
    """
    seen = np.flatnonzero(np.isfinite(table_radii[0]) & (defect == 0))[::EVERY]
    points = table_radii[0, seen, None] * MAP.directions[seen]
    return register(points, prior.mean[0], prior.std[0], ORIGIN, prior.settings.pose, POSE_STEPS)[0]


def jittered(pose: Pose, mm: float, rng: np.random.Generator) -> Pose:
    """The pose with its twelve numbers perturbed by N(0, mm) each, measured at the reference radius."""
    return Pose(pose.linear + rng.normal(0, mm / RADIUS, (3, 3)), pose.shift + rng.normal(0, mm, 3))


def seen_in(pose: Pose, table_radii: np.ndarray, defect: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Tables (2, R) and labels (R,) of a head in another pose, model mm; NaN beyond the edge of the map."""
    radii = []
    for table in (table_radii[0], table_radii[0] - table_radii[1]):
        image = MAP.filled(table).astype(float)
        spline, radius = ndimage.spline_filter(image), image[MAP.inside]
        for _ in range(4):  # fixed-point iteration: a point of the ray is scaled towards the surface
            point = pose.to_patient(radius[:, None] * MAP.directions)
            length = np.linalg.norm(point, axis=1)
            pixels = MAP.to_pixel(point / length[:, None]).T
            radius = radius * ndimage.map_coordinates(spline, pixels, order=3, prefilter=False, mode="nearest") / length
        radii.append(np.where(_known(table, pixels), radius, np.nan))
        labels = ndimage.map_coordinates(MAP.to_image(defect), pixels, order=0)
    return np.stack([radii[0], radii[0] - radii[1]]), labels


def warped(table_radii: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Tables (2, R) with every feature moved along the map by shift (2, R) mm: a head with landmarks elsewhere."""
    pixels = np.argwhere(MAP.inside).T + shift / PIXEL
    moved = [
        ndimage.map_coordinates(MAP.filled(table).astype(float), pixels, order=3, mode="nearest")
        for table in table_radii
    ]
    return np.where([_known(table, pixels) for table in table_radii], moved, np.nan)


def _known(table: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """(R,) bool: whether the table (R,) is measured on the ray nearest to each of the pixels (2, R)."""
    return ndimage.map_coordinates(MAP.to_image(np.isfinite(table)).astype(np.uint8), pixels, order=0) > 0


def smooth_field(rng: np.random.Generator) -> np.ndarray:
    """(R,) a smooth random field of unit variance, Matern correlation over 30 to 70 mm."""
    knots = MAP.directions[rng.choice(len(MAP.directions), KNOTS, replace=False)].astype(np.float32)
    length = rng.uniform(30, 70)
    correlation = matern(chord(knots, knots), length) + 1e-3 * np.eye(KNOTS, dtype=np.float32)
    weights = np.linalg.solve(correlation, np.linalg.cholesky(correlation) @ rng.standard_normal(KNOTS))
    count = SIZE // COARSE + 2
    pixels = COARSE * np.stack(np.meshgrid(np.arange(count), np.arange(count), indexing="ij"), -1)
    coarse = matern(chord(MAP.from_pixel(pixels).reshape(-1, 3).astype(np.float32), knots), length) @ weights
    inside = np.argwhere(MAP.inside).T / COARSE
    return ndimage.map_coordinates(coarse.reshape(count, count), inside, order=1)
