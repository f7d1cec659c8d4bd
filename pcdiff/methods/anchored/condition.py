"""What the network is told of a skull: points of the bone around the defect, and anchors on the prior's missing
surface.

Everything is in the prior's model space, in a local frame around the defect; the network moves each anchor along its
ray.
Along a ray there are two points, on the outer and on the inner table: index 0 and 1 of the axis `wall`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pcdiff.geometry.points import Frame, surface_normals
from pcdiff.prior.defects import Observation
from pcdiff.prior.direction_map import MAP
from pcdiff.prior.fit import ANCHORS, RIM, PriorFit

BONE = 640  # rays of the surrounding bone; two points each
FRAME_SCALE = 80.0  # mm per network unit: a defect of 150 ml and the bone around it lie within [-1.5, 1.5]
REACH = 45.0  # mm of bone around the defect that the network is shown
FEATURES = 20
NORMAL_X, DIRECTION_X = 3, 16  # columns of the features that change sign when a head is mirrored
RELATIVE_JITTER = 1e-3  # of the variance, so that a covariance of close rays can be factored in float32


@dataclass(frozen=True)
class Condition:
    """One skull for the network. P = 2 ANCHORS (wall, ray), Q = 2 BONE.

    anchors, bone: (P, 3), (Q, 3) positions in network units.
    anchor_features, bone_features: (P, FEATURES), (Q, FEATURES).
    unit: (P,) mm, the prior's standard deviation of each anchor along its ray: the unit of the diffused state.
    factors: (2, ANCHORS, ANCHORS) lower Cholesky factors in mm of the prior's posterior covariance, of outer table
    and thickness: the noise of this diffusion is the prior's own uncertainty.
    normals: (P, 3) unit, network axes, outward: the completed surface's, which the network corrects.
    """

    anchors: np.ndarray
    anchor_features: np.ndarray
    bone: np.ndarray
    bone_features: np.ndarray
    unit: np.ndarray
    factors: np.ndarray
    normals: np.ndarray


def choose_rays(observation: Observation) -> tuple[np.ndarray, np.ndarray]:
    """(ANCHORS,) rays spread over the defects, (BONE,) over the measured bone around them.

    A defect with fewer rays is filled up with those next to it.
    """
    distance = observation.distance
    order = np.argsort(distance, kind="stable")
    inside = int(np.count_nonzero(distance <= 1.5))
    anchors = _spread(order[: max(inside, ANCHORS)], ANCHORS)
    measured = np.isfinite(observation.outer) & np.isfinite(observation.thickness) & (distance > 0)
    around = order[measured[order]]
    near = int(np.count_nonzero(distance[around] <= REACH))
    return anchors, _spread(around[: max(near, BONE)], BONE)


def make_frame(anchors: np.ndarray) -> Frame:
    """Local frame in model space around rays (A,): z outwards, y towards the head's top (or back, at the top)."""
    directions = MAP.directions[anchors]
    out = directions.mean(0) / np.linalg.norm(directions.mean(0))
    up = np.array([0.0, 0.0, 1.0]) if abs(out[2]) < 0.9 else np.array([0.0, 1.0, 0.0])
    side = np.cross(up, out) / np.linalg.norm(np.cross(up, out))
    return Frame(80.0 * out, np.stack([side, np.cross(out, side), out]), FRAME_SCALE)


def make_condition(fit: PriorFit, anchors: np.ndarray, bone: np.ndarray) -> Condition:
    """The network's view of a fitted skull, from what inference knows and nothing else."""
    frame = make_frame(anchors)
    rows = np.searchsorted(fit.targets, anchors)
    factors = np.stack([_factor(posterior.covariance(rows, rows)) for posterior in fit.posteriors]).astype(np.float32)
    outer_std, thickness_std = np.sqrt((factors**2).sum(-1))
    unit = np.concatenate([outer_std, np.hypot(outer_std, thickness_std)])
    normals = table_normals(fit.prior.mean)
    guess = np.stack([fit.outer, fit.thickness])
    measured = np.stack([fit.observation.outer, fit.observation.thickness])
    # bone is shown as measured, but not along the rim, where the saw's bevel is no wall
    trusted = np.isfinite(measured).all(0) & (fit.observation.distance > RIM)
    shown = np.where(trusted, measured, guess)
    at, anchor_features = _points(fit, guess, frame, anchors, unit, normals)
    around, bone_features = _points(fit, shown, frame, bone, np.zeros(2 * len(bone), np.float32), normals)
    return Condition(
        at,
        anchor_features,
        around,
        bone_features,
        unit,
        factors,
        completed_normals(at, around, frame.rotate_to_network(normals[:, anchors])),
    )


def completed_normals(anchors: np.ndarray, bone: np.ndarray, towards: np.ndarray) -> np.ndarray:
    """Anchors (P, 3), bone (Q, 3), rough normals (2, ANCHORS, 3) -> (P, 3) float32 normals of each wall's points."""
    table_radii = zip(np.split(anchors, 2), np.split(bone, 2), towards, strict=True)
    normals = [surface_normals(np.concatenate([at, around]), at, rough) for at, around, rough in table_radii]
    return np.concatenate(normals).astype(np.float32)


def table_normals(table_radii: np.ndarray) -> np.ndarray:
    """(2, R) outer radius and thickness, mm -> (2, R, 3) unit normals out of the bone, model axes."""
    normals = []
    for sign, radius in ((1, table_radii[0]), (-1, table_radii[0] - table_radii[1])):
        surface = MAP.to_image((radius[:, None] * MAP.directions).astype(np.float32))
        normal = np.cross(np.gradient(surface, axis=0), np.gradient(surface, axis=1))[MAP.inside]
        normal *= sign * np.sign((normal * MAP.directions).sum(1, keepdims=True))
        normals.append(normal / np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-9))
    return np.stack(normals)


def _points(
    fit: PriorFit, table_radii: np.ndarray, frame: Frame, rays: np.ndarray, unit: np.ndarray, normals: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Positions (2 N, 3) in network units and features (2 N, FEATURES) of the points of both tables on rays (N,).

    table_radii: (2, R) mm, outer radius and thickness.
    """
    prior, seen = fit.prior, fit.observation
    deviation = table_radii - prior.mean  # (2, R)
    mirrored = (np.stack([seen.outer, seen.thickness]) - prior.mean)[:, MAP.mirror[rays]]
    known = np.isfinite(mirrored).all(0)
    per_ray = np.stack(
        [
            *np.clip(deviation[:, rays] / 2, -4, 4),
            *np.clip(np.where(known, mirrored, 0) / 2, -4, 4),
            known,
            prior.mean[1, rays] / 8,
            *(prior.std[:, rays] / 2),
            (seen.distance[rays] - seen.depth[rays]) / 20,
            prior.present[rays],
            *MAP.directions[rays].T,
        ],
        -1,
    )  # (N, 13)
    radius = np.stack([table_radii[0, rays], table_radii[0, rays] - table_radii[1, rays]])  # (2, N)
    positions = frame.to_network(radius[..., None] * MAP.directions[rays])
    wall = np.repeat([1.0, -1.0], len(rays))
    features = np.concatenate(
        [
            wall[:, None],
            unit[:, None],
            (unit[:, None] > 0),
            frame.rotate_to_network(normals[:, rays]).reshape(-1, 3),
            np.tile(per_ray, (2, 1)),
            np.ones((2 * len(rays), 1)),
        ],
        -1,
    )
    return positions.reshape(-1, 3).astype(np.float32), features.astype(np.float32)


def _factor(covariance: np.ndarray) -> np.ndarray:
    """Lower Cholesky factor, with a jitter that keeps it one; over a small defect rounding may ask for more of it.

    Raises LinAlgError for what is no covariance: jitter as large as the variance does not help either.
    """
    covariance = covariance.astype(np.float64)
    variance = np.diag(covariance).mean()
    jitter = RELATIVE_JITTER * variance + 1e-6
    while True:
        try:
            return np.linalg.cholesky((covariance + covariance.T) / 2 + jitter * np.eye(len(covariance)))
        except np.linalg.LinAlgError:
            if jitter >= variance:
                raise
            jitter *= 3


def _spread(rays: np.ndarray, count: int) -> np.ndarray:
    """(count,) of the rays (N,), sorted, evenly spread: furthest-point sampling from the first."""
    if len(rays) < count:
        raise ValueError(f"expected at least {count} rays to choose from, got {len(rays)}")
    points = np.ascontiguousarray(MAP.directions[rays].T, np.float32)
    closest = np.full(len(rays), -2, np.float32)  # largest cosine to the chosen
    chosen = np.zeros(count, int)
    for step in range(1, count):
        np.maximum(closest, points[:, chosen[step - 1]] @ points, out=closest)
        chosen[step] = closest.argmin()
    return np.sort(rays[chosen])
