"""Two tables over a region of directions -> a closed surface of oriented points in patient millimetres."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from pcdiff.geometry.points import PointCloud
from pcdiff.prior.direction_map import MAP, Pose

FINER = 2  # points per pixel of the map, along each side: 0.75 mm at the reference radius
LEVELS = 9  # points between the tables on the side


def completed_surface(
    pose: Pose,
    table_radii: np.ndarray,
    covered: np.ndarray,
    defect: np.ndarray,
    std: np.ndarray,
) -> PointCloud:
    """Both tables over the `covered` rays and the side that joins them, because Poisson needs a closed surface.

    table_radii: (2, R) model mm, outer and inner radius, NaN where unknown. covered: (R,) bool. defect: (R,) labels.
    std: (2, R) mm of outer radius and thickness.
    """
    region = MAP.to_image(covered, False)
    known = np.where(covered & np.isfinite(table_radii).all(0), table_radii, np.nan)
    images = [MAP.filled(radius) for radius in known]
    size = np.array(region.shape)
    fine = np.argwhere(ndimage.zoom(region.astype(float), FINER, order=1, grid_mode=False) >= 0.5)
    pixels = fine * ((size - 1) / (FINER * size - 1))  # (N, 2), at the positions where `zoom` samples

    tables = [_table_points(pose, image, pixels, sign) for image, sign in zip(images, (1.0, -1.0), strict=True)]
    side, side_normals = _side_points(pose, region, *images)
    labels = ndimage.map_coordinates(MAP.to_image(defect), pixels.T, order=0)
    along_rays = (std[0], np.hypot(std[0], std[1]))  # of outer and inner table
    stds = [ndimage.map_coordinates(MAP.to_image(values), pixels.T, order=1) for values in along_rays]
    return PointCloud(
        np.concatenate([tables[0][0], tables[1][0], side]),
        np.concatenate([tables[0][1], tables[1][1], side_normals]),
        np.concatenate([labels, labels, np.zeros(len(side), int)]),
        np.concatenate([*stds, np.zeros(len(side))]),
    )


def _table_points(pose: Pose, image: np.ndarray, pixels: np.ndarray, sign: float) -> tuple[np.ndarray, np.ndarray]:
    """Patient points and unit normals, outward times sign, of radii (SIZE, SIZE) mm at pixels (N, 2)."""

    def points_at(at: np.ndarray) -> np.ndarray:
        radius = ndimage.map_coordinates(image, at.T, order=1, mode="nearest")
        return pose.to_patient(radius[:, None] * MAP.from_pixel(at))

    along = [points_at(pixels + step) - points_at(pixels - step) for step in 0.75 * np.eye(2)]
    normal = np.cross(*along)
    outward = MAP.from_pixel(pixels) @ pose.linear.T
    return points_at(pixels), _unit(normal * (sign * np.sign((normal * outward).sum(1, keepdims=True))))


def _side_points(pose: Pose, region: np.ndarray, outer: np.ndarray, inner: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points between the tables along the region's border, and unit normals that point out of the region."""
    depth = ndimage.distance_transform_edt(np.pad(region, 1))[1:-1, 1:-1]
    border = np.argwhere(region & (depth < 1.5))
    away = -np.stack(np.gradient(ndimage.gaussian_filter(region.astype(float), 1.5)), -1)[tuple(border.T)]
    middle = MAP.from_pixel(border)
    tangent = MAP.from_pixel(border + 0.5 * _unit(away)) - middle
    tangent -= (tangent * middle).sum(1, keepdims=True) * middle  # at right angles to the ray, which lies in the side
    tangent = _unit(tangent @ np.linalg.inv(pose.linear))  # normals transform by the inverse transpose
    low, high = inner[tuple(border.T)], outer[tuple(border.T)]
    radius = low + np.linspace(0, 1, LEVELS)[:, None] * (high - low)
    points = pose.to_patient(radius[..., None] * middle)
    return points.reshape(-1, 3), np.broadcast_to(tangent, points.shape).reshape(-1, 3)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-9)
