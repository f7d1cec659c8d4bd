"""Inputs of the network for one skull: points of the bone around the defect, and anchors on the completed surface.

All positions are in the shape model's space, in a local frame around the defect. The network moves each anchor along
its ray. A ray has two points, on the outer and on the inner table: index 0 and 1 of the axis `table`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pcdiff.geometry.points import Frame, surface_normals
from pcdiff.methods.anchored.config import LAYOUT
from pcdiff.prior.defects import Observation
from pcdiff.prior.direction_map import MAP, PIXEL, outward_normals
from pcdiff.prior.fit import PriorFit

ANCHORS, BONE, FEATURES = LAYOUT.anchors, LAYOUT.bone, len(LAYOUT.features)
# columns that change sign when a head is mirrored
NORMAL_X, DIRECTION_X = LAYOUT.features.index("normal_x"), LAYOUT.features.index("direction_x")
RELATIVE_JITTER = 1e-3  # of the variance, so that a covariance of close rays can be factored in float32


@dataclass(frozen=True)
class Condition:
    """One skull for the network. P = 2 ANCHORS (table, ray), Q = 2 BONE.

    anchors, bone: (P, 3), (Q, 3) positions in network units.
    anchor_features, bone_features: (P, FEATURES), (Q, FEATURES).
    prior_std_mm: (P,) posterior standard deviation of each anchor along its ray: the unit of the diffused state.
    cholesky: (2, ANCHORS, ANCHORS) lower Cholesky factors, mm, of the posterior covariance of outer table and
    thickness: the noise of this diffusion is drawn from the posterior.
    normals: (P, 3) unit, network axes, out of the bone: those of the completed surface, which the network corrects.
    """

    anchors: np.ndarray
    anchor_features: np.ndarray
    bone: np.ndarray
    bone_features: np.ndarray
    prior_std_mm: np.ndarray
    cholesky: np.ndarray
    normals: np.ndarray


def choose_rays(observation: Observation) -> tuple[np.ndarray, np.ndarray]:
    """(ANCHORS,) rays spread over the defects, and (BONE,) rays spread over the measured bone around them.

    A defect with fewer rays than ANCHORS takes in the rays next to it. Raises ValueError with less bone than BONE.
    """
    distance = observation.distance
    order = np.argsort(distance, kind="stable")
    inside = int(np.count_nonzero(distance <= PIXEL))
    anchors = _spread_rays(order[: max(inside, ANCHORS)], ANCHORS)
    measured = np.isfinite(observation.outer) & np.isfinite(observation.thickness) & (distance > 0)
    around = order[measured[order]]
    near = int(np.count_nonzero(distance[around] <= LAYOUT.reach_mm))
    return anchors, _spread_rays(around[: max(near, BONE)], BONE)


def make_frame(anchors: np.ndarray) -> Frame:
    """Local frame in model space around rays (A,): z outwards, y towards the vertex (or back, near the vertex)."""
    directions = MAP.directions[anchors]
    out = directions.mean(0) / np.linalg.norm(directions.mean(0))
    up = np.array([0.0, 0.0, 1.0]) if abs(out[2]) < 0.9 else np.array([0.0, 1.0, 0.0])
    side = np.cross(up, out) / np.linalg.norm(np.cross(up, out))
    rotation = np.stack([side, np.cross(out, side), out])
    return Frame(LAYOUT.frame_centre_mm * out, rotation, LAYOUT.frame_scale_mm)


def make_condition(fit: PriorFit, anchors: np.ndarray, bone: np.ndarray) -> Condition:
    """The network's inputs for a fitted skull, computed only from what is known at inference."""
    frame = make_frame(anchors)
    rows = np.searchsorted(fit.targets, anchors)
    factors = [jittered_cholesky(posterior.covariance(rows, rows)) for posterior in fit.posteriors]
    cholesky = np.stack(factors).astype(np.float32)
    outer_std, thickness_std = np.sqrt((cholesky**2).sum(-1))
    prior_std_mm = np.concatenate([outer_std, np.hypot(outer_std, thickness_std)])
    normals = table_normals(fit.prior.mean)
    completed = np.stack([fit.outer, fit.thickness])
    measured = np.stack([fit.observation.outer, fit.observation.thickness])
    # bone is given as measured, except along the defect's border, where the bevel of the cut is no table
    whole = np.isfinite(measured).all(0) & (fit.observation.distance > LAYOUT.border_mm)
    visible = np.where(whole, measured, completed)
    anchor_points, anchor_features = _points_and_features(fit, completed, frame, anchors, prior_std_mm, normals)
    no_std = np.zeros(2 * len(bone), np.float32)
    bone_points, bone_features = _points_and_features(fit, visible, frame, bone, no_std, normals)
    towards = frame.rotate_to_network(normals[:, anchors])
    corrected = completed_normals(anchor_points, bone_points, towards)
    return Condition(anchor_points, anchor_features, bone_points, bone_features, prior_std_mm, cholesky, corrected)


def completed_normals(anchors: np.ndarray, bone: np.ndarray, towards: np.ndarray) -> np.ndarray:
    """Anchors (P, 3), bone (Q, 3), rough normals (2, ANCHORS, 3) -> (P, 3) float32 normals of each table's points."""
    tables = zip(np.split(anchors, 2), np.split(bone, 2), towards, strict=True)
    normals = [surface_normals(np.concatenate([at, around]), at, rough) for at, around, rough in tables]
    return np.concatenate(normals).astype(np.float32)


def table_normals(table_radii: np.ndarray) -> np.ndarray:
    """(2, R) outer radius and thickness, mm -> (2, R, 3) float32 unit normals out of the bone, model axes."""
    outer, thickness = table_radii
    outer_normals = outward_normals(outer, np.float32)[MAP.inside]
    inner_normals = -outward_normals(outer - thickness, np.float32)[MAP.inside]
    return np.stack([outer_normals, inner_normals])


def _points_and_features(
    fit: PriorFit,
    table_radii: np.ndarray,
    frame: Frame,
    rays: np.ndarray,
    prior_std_mm: np.ndarray,
    normals: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Positions (2 N, 3) in network units and features (2 N, FEATURES) of the points of both tables on rays (N,).

    table_radii: (2, R) mm, outer radius and thickness.
    """
    radius = np.stack([table_radii[0, rays], table_radii[0, rays] - table_radii[1, rays]])  # (2, N)
    positions = frame.to_network(radius[..., None] * MAP.directions[rays])
    table = np.repeat([1.0, -1.0], len(rays))
    features = np.concatenate(
        [
            table[:, None],
            prior_std_mm[:, None],
            (prior_std_mm[:, None] > 0),
            frame.rotate_to_network(normals[:, rays]).reshape(-1, 3),
            np.tile(_ray_features(fit, table_radii, rays), (2, 1)),
            np.ones((2 * len(rays), 1)),
        ],
        -1,
    )
    return positions.reshape(-1, 3).astype(np.float32), features.astype(np.float32)


def _ray_features(fit: PriorFit, table_radii: np.ndarray, rays: np.ndarray) -> np.ndarray:
    """(N, 13) features that both points of a ray share, from "outer_deviation" to "direction_z"."""
    prior, observation = fit.prior, fit.observation
    deviation = table_radii - prior.mean  # (2, R)
    mirrored = (np.stack([observation.outer, observation.thickness]) - prior.mean)[:, MAP.mirror[rays]]
    known = np.isfinite(mirrored).all(0)
    unit, clip = LAYOUT.deviation_scale_mm, LAYOUT.clip
    return np.stack(
        [
            *np.clip(deviation[:, rays] / unit, -clip, clip),
            *np.clip(np.where(known, mirrored, 0) / unit, -clip, clip),
            known,
            prior.mean[1, rays] / LAYOUT.thickness_scale_mm,
            *(prior.std[:, rays] / unit),
            (observation.distance[rays] - observation.depth[rays]) / LAYOUT.distance_scale_mm,
            prior.present[rays],
            *MAP.directions[rays].T,
        ],
        -1,
    )


def jittered_cholesky(covariance: np.ndarray) -> np.ndarray:
    """Lower Cholesky factor of a covariance plus a jitter, which grows until the factorisation succeeds.

    Raises LinAlgError where a jitter as large as the variance does not suffice.
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


def _spread_rays(rays: np.ndarray, count: int) -> np.ndarray:
    """(count,) of the rays (N,), sorted, evenly spread: furthest-point sampling from the first."""
    if len(rays) < count:
        raise ValueError(f"expected at least {count} rays to choose from, got {len(rays)}")
    points = np.ascontiguousarray(MAP.directions[rays].T, np.float32)
    closest = np.full(len(rays), -2, np.float32)  # largest cosine to the chosen rays
    chosen = np.zeros(count, int)
    for step in range(1, count):
        np.maximum(closest, points[:, chosen[step - 1]] @ points, out=closest)
        chosen[step] = closest.argmin()
    return np.sort(rays[chosen])
