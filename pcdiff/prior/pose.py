"""Where the head lies: the similarity (rotation, shift, three scales) that brings it onto the mean skull."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from pcdiff.errors import InputError
from pcdiff.geometry.grid import largest_components
from pcdiff.prior.direction_map import MAP, Pose, crossing, profiles

VAULT = 75.0  # mm from the top of the head to the cranial centre
EVERY = 3  # one ray in three is enough for a pose
FEWEST = 500  # points of a vault that a pose needs


def largest_piece(occupancy: np.ndarray) -> np.ndarray:
    """The occupancy with everything but the largest connected piece of bone set to zero (table, strap, holder)."""
    keep = largest_components(occupancy >= 128)
    if not keep.any():
        raise InputError("no bone: expected a skull mask, got one without a voxel of bone at 1 mm; check the threshold")
    return np.where(ndimage.binary_dilation(keep), occupancy, 0).astype(np.uint8)


def initial_pose(occupancy: np.ndarray, affine: np.ndarray) -> Pose:
    """Unit scale, patient axes, centre in the middle of the vault's bounding box."""
    points = np.argwhere(occupancy[::2, ::2, ::2] >= 128) * 2 @ affine[:3, :3].T + affine[:3, 3]
    top = np.percentile(points[:, 2], 99.9)
    vault = points[points[:, 2] > top - VAULT]
    low, high = np.percentile(vault, 0.1, 0), np.percentile(vault, 99.9, 0)
    return Pose(np.eye(3), np.array([(low[0] + high[0]) / 2, (low[1] + high[1]) / 2, top - VAULT]))


def fit_pose(
    occupancy: np.ndarray, affine: np.ndarray, mean: np.ndarray, std: np.ndarray, rounds: int = 4
) -> tuple[Pose, float]:
    """Iteratively reweighted point-to-plane registration of the outer table to the mean outer surface.

    mean, std: (R,) mm over the directions of the map. Returns the pose and the median absolute distance in mm that
    is left over the vault: large when the skull is unlike those the mean was made of.
    Absent bone gives no point, or a far one that the trimming (85 %) and the Cauchy weights (2 mm) silence.
    """
    pose = initial_pose(occupancy, affine)
    directions = MAP.directions[::EVERY]
    left = np.inf
    for round_ in range(rounds):
        profile, _ = profiles(occupancy, affine, pose, directions)
        target = None if round_ == 0 else mean[::EVERY]
        radius = crossing(profile, target, outward=True)
        points = pose.to_patient(directions * radius[:, None])[np.isfinite(radius)]
        pose, left = register(points, mean, std, pose)
    return pose, left


def register(points: np.ndarray, mean: np.ndarray, std: np.ndarray, pose: Pose, steps: int = 8) -> tuple[Pose, float]:
    """Gauss-Newton steps that bring points (N, 3) of an outer table, patient mm, onto the mean: see `fit_pose`."""
    image, spread, normals = MAP.to_image(mean), MAP.to_image(std, 10.0), _normals(mean)
    left = np.inf
    for _ in range(steps):
        pose, left = _step(pose, points, image, spread, normals)
    return pose, left


def _step(pose: Pose, points: np.ndarray, mean: np.ndarray, std: np.ndarray, normals: np.ndarray) -> tuple[Pose, float]:
    """One Gauss-Newton step over (rotation, shift, three scales), linearised in model space."""
    model = pose.to_model(points)
    radius = np.linalg.norm(model, axis=1)
    directions = model / radius[:, None]
    expected = MAP.sample(mean, directions, 0.0)
    known = expected > 30
    if np.count_nonzero(known) < FEWEST:
        raise InputError(
            f"no vault: expected a head's vault around the centre, got {np.count_nonzero(known)} points of it; "
            "is this a head, upright, in patient axes?"
        )
    model, directions, radius, expected = model[known], directions[known], radius[known], expected[known]
    normal = np.stack([MAP.sample(normals[..., axis], directions, 0.0) for axis in range(3)], 1)
    error = (radius - expected) * np.einsum("ij,ij->i", directions, normal)
    weight = 1 / (1 + (error / 2.0) ** 2) / np.maximum(MAP.sample(std, directions, 10.0), 1.5) ** 2
    weight[np.abs(error) > np.percentile(np.abs(error), 85)] = 0
    # q' = (1 + W + diag(s)) q + t moves the point's distance to the plane by n . (q' - q)
    jacobian = np.concatenate([np.cross(model, normal), normal, model * normal], 1)
    ridge = np.diag([1e-6] * 6 + [0.002 * weight.sum() * 85**2] * 3)
    size = np.log(np.linalg.norm(pose.linear, axis=0))  # the ridge pulls the scales to 1, not to where they stand
    system = jacobian.T @ (jacobian * weight[:, None]) + ridge
    right = -jacobian.T @ (weight * error)
    right[6:] += np.diag(ridge)[6:] * size
    delta = np.linalg.solve(system, right)
    rotation, scales = _parts(pose)
    # points move by the update in model space, so the pose takes its inverse
    rotation = rotation @ _rotation(delta[:3]).T
    shift = pose.shift - pose.linear @ delta[3:6]
    updated = Pose(rotation * (scales / (1 + delta[6:])), shift)
    return updated, float(np.median(np.abs(error)))


def _parts(pose: Pose) -> tuple[np.ndarray, np.ndarray]:
    scales = np.linalg.norm(pose.linear, axis=0)
    return pose.linear / scales, scales


def _rotation(vector: np.ndarray) -> np.ndarray:
    """(3,) axis-angle -> (3, 3), Rodrigues' formula."""
    angle = np.linalg.norm(vector)
    x, y, z = vector / max(float(angle), 1e-12)
    skew = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * skew + (1 - np.cos(angle)) * skew @ skew


def _normals(mean: np.ndarray) -> np.ndarray:
    """(SIZE, SIZE, 3) outward unit normals of the surface radius(direction) * direction."""
    surface = MAP.to_image(mean[:, None] * MAP.directions)
    normal = np.cross(np.gradient(surface, axis=0), np.gradient(surface, axis=1))
    directions = MAP.to_image(MAP.directions)
    normal *= np.sign((normal * directions).sum(-1, keepdims=True))
    length = np.linalg.norm(normal, axis=-1, keepdims=True)
    return np.where(length > 0, normal / np.maximum(length, 1e-9), directions)
