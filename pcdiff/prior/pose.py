"""Pose of a head: the transform (rotation, shift, three scales) that brings it onto the mean skull."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from scipy import ndimage

from pcdiff.errors import InputError
from pcdiff.geometry.grid import dilated, largest_components
from pcdiff.prior.direction_map import MAP, RADIUS, Pose, crossing, outward_normals, profiles
from pcdiff.prior.settings import PoseSettings

EVERY = 3  # registration uses one ray in so many
FAR_STD_MM = 10.0  # standard deviation of a surface beyond the map


@dataclass(frozen=True)
class Surface:
    """A surface along the rays of the map, that points are brought onto, as images of the map.

    radius, std: (SIZE, SIZE) mm. normals: (3, SIZE, SIZE), outward.
    """

    radius: np.ndarray
    std: np.ndarray
    normals: np.ndarray

    @classmethod
    def of(cls, radius: np.ndarray, std: np.ndarray) -> Self:
        """Of radii and their standard deviations, (R,) mm each."""
        normals = np.ascontiguousarray(np.moveaxis(outward_normals(radius), -1, 0))
        return cls(MAP.to_image(radius), MAP.to_image(std, FAR_STD_MM), normals)


def largest_piece(occupancy: np.ndarray) -> np.ndarray:
    """The occupancy of the largest connected piece of bone; table, strap and head holder become 0."""
    largest = largest_components(occupancy >= 128)
    if not largest.any():
        raise InputError("no bone: expected a skull mask, got one without a voxel of bone at 1 mm; check the threshold")
    return np.asarray(occupancy * dilated(largest))


def bone_points(occupancy: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """(N, 3) mm of every second block of bone along each axis; arguments as in `fit_pose`."""
    return np.argwhere(occupancy[::2, ::2, ::2] >= 128) * 2 @ affine[:3, :3].T + affine[:3, 3]


def initial_pose(points: np.ndarray, vault_mm: float) -> Pose:
    """Unit scale, patient axes, centre in the middle of the vault's bounding box, `vault_mm` below the top.

    points: (N, 3) mm, of bone.
    """
    top = np.percentile(points[:, 2], 99.9)
    vault = points[points[:, 2] > top - vault_mm]
    low, high = np.percentile(vault, 0.1, 0), np.percentile(vault, 99.9, 0)
    return Pose(np.eye(3), np.array([(low[0] + high[0]) / 2, (low[1] + high[1]) / 2, top - vault_mm]))


def fit_pose(
    occupancy: np.ndarray,
    affine: np.ndarray,
    mean: np.ndarray,
    std: np.ndarray,
    settings: PoseSettings,
    rounds: int = 4,
    every: int = EVERY,
    start: Pose | None = None,
) -> tuple[Pose, float]:
    """Iteratively reweighted point-to-plane registration of the outer table to the mean outer surface.

    occupancy: (I, J, K) uint8, 255 = bone. affine: (4, 4) index -> mm. mean, std: (R,) mm over the rays of the map.
    every: it uses one ray in so many. start: by default the `initial_pose`. Returns the pose and the median absolute
    distance over the vault in mm, which is large for a skull unlike those of the model. A ray over a defect gives no
    point, or a distant one, which trimming and robust weights suppress.

    Raises:
        InputError: fewer than `settings.min_points` points of a vault.
    """
    pose = start or initial_pose(bone_points(occupancy, affine), settings.vault_mm)
    surface, directions = Surface.of(mean, std), MAP.directions[::every]
    residual = np.inf
    for round_ in range(rounds):
        profile = profiles(occupancy, affine, pose, directions)
        target = None if round_ == 0 else mean[::every]
        radius = crossing(profile, target, outward=True)
        points = pose.to_patient(directions * radius[:, None])[np.isfinite(radius)]
        pose, residual = register(points, surface, pose, settings)
    return pose, residual


def register(
    points: np.ndarray, surface: Surface, pose: Pose, settings: PoseSettings, steps: int = 8
) -> tuple[Pose, float]:
    """Gauss-Newton steps that bring points (N, 3) of an outer table, patient mm, onto a surface: see `fit_pose`."""
    residual = np.inf
    for _ in range(steps):
        pose, residual = _step(pose, points, surface, settings)
    return pose, residual


def _step(pose: Pose, points: np.ndarray, surface: Surface, settings: PoseSettings) -> tuple[Pose, float]:
    """One Gauss-Newton step over (rotation, shift, three scales), linearised in model space."""
    model = pose.to_model(points)
    radius = np.linalg.norm(model, axis=1)
    directions = model / radius[:, None]
    pixels = MAP.to_pixel(directions).T
    expected = ndimage.map_coordinates(surface.radius, pixels, order=1)
    known = expected > 30
    if np.count_nonzero(known) < settings.min_points:
        raise InputError(
            f"no vault: expected the vault of a head around the centre, got {np.count_nonzero(known)} points of it; "
            "is this a head, upright, in patient axes, with its true voxel spacing?"
        )
    model, directions, radius, expected = model[known], directions[known], radius[known], expected[known]
    pixels = pixels[:, known]
    normal = np.stack([ndimage.map_coordinates(image, pixels, order=1) for image in surface.normals], 1)
    error = (radius - expected) * np.einsum("ij,ij->i", directions, normal)
    std = ndimage.map_coordinates(surface.std, pixels, order=1, cval=FAR_STD_MM)
    deviation = np.maximum(std, settings.min_std_mm)
    weight = 1 / (1 + (error / settings.cauchy_mm) ** 2) / deviation**2
    weight[np.abs(error) > np.percentile(np.abs(error), settings.trim_percentile)] = 0
    # q' = (1 + W + diag(s)) q + t changes the distance of a point to its plane by n . (q' - q)
    jacobian = np.concatenate([np.cross(model, normal), normal, model * normal], 1)
    ridge = np.diag([1e-6] * 6 + [settings.scale_ridge * weight.sum() * RADIUS**2] * 3)
    log_scales = np.log(np.linalg.norm(pose.linear, axis=0))  # the ridge pulls the scales to 1, not to their last value
    system = jacobian.T @ (jacobian * weight[:, None]) + ridge
    right = -jacobian.T @ (weight * error)
    right[6:] += np.diag(ridge)[6:] * log_scales
    delta = np.linalg.solve(system, right)
    return _updated(pose, delta), float(np.median(np.abs(error)))


def _updated(pose: Pose, delta: np.ndarray) -> Pose:
    """The pose after an update (9,) in model space: points move by the update, so the pose takes its inverse."""
    scales = np.linalg.norm(pose.linear, axis=0)
    rotation = pose.linear / scales @ _rotation(delta[:3]).T
    return Pose(rotation * (scales / (1 + delta[6:])), pose.shift - pose.linear @ delta[3:6])


def _rotation(vector: np.ndarray) -> np.ndarray:
    """(3,) axis-angle -> (3, 3), Rodrigues' formula."""
    angle = np.linalg.norm(vector)
    x, y, z = vector / max(float(angle), 1e-12)
    skew = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * skew + (1 - np.cos(angle)) * skew @ skew
