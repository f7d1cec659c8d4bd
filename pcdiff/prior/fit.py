"""The shape prior fitted to a defective skull: which bone is absent, and where it should be."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from pcdiff.errors import InputError
from pcdiff.geometry.occupancy import Head, head_occupancy
from pcdiff.geometry.points import PointCloud
from pcdiff.geometry.volume import Volume
from pcdiff.prior.completed_surface import completed_surface
from pcdiff.prior.defects import MIN_DEFECT_CM2, Observation, _check_view, _defects, open_rays
from pcdiff.prior.direction_map import INNER_REACH, MAP, PIXEL, RADII, Pose, crossing, inner_table, profiles
from pcdiff.prior.gaussian_process import OUTER, THICKNESS, Posterior, regress
from pcdiff.prior.model import GROSS_OUTER, GROSS_THICKNESS, SMOOTH, ShapePrior
from pcdiff.prior.pose import fit_pose, largest_piece

SCREEN_MODES = 20  # modes of the robust first fit that says where each wall is to be expected
ABSENT_SLACK = 3.0  # mm beyond the expected wall in which bone still counts as the wall
MIN_PRESENCE = 0.9  # share of healthy heads that have bone here, for its absence to mean a defect
BAND = 12.0  # mm of bone around a defect that the completed surface covers
ANCHORS = 512  # rays that a completion tells of at least: those that the network moves; two points each
RIM = 1.6  # mm from a defect within which bone is no evidence: the rays next to it are often cut partly
BEVEL = 9.0  # mm, the same before it is known how far the saw's slanting cut reaches beneath the bone
BEVEL_LOSS_MM = 1.2  # mm of wall missing at its outer or inner face, for a ray beside the defect to count as cut
WARN_POSE_RESIDUAL_MM = 1.2  # mm, more than the misfit of any head that the prior was built from: worth a second look
MAX_POSE_RESIDUAL_MM = 2.0  # mm, median misfit of the pose beyond which a skull is outside what the prior knows
RINGS = (
    (0.0, 8.0, 1.5),
    (8.0, 10.0, 3.0),
    (10.0, 25.0, 6.0),
    (25.0, 60.0, 12.0),
    (60.0, 400.0, 24.0),
)  # mm: from, to, site spacing


@dataclass(frozen=True)
class PriorFit:
    """The completed vault according to the prior, in model millimetres along rays, and how to get back to the patient.

    outer, thickness: (R,) mm, posterior mean over defects and band, the measured values elsewhere (NaN without).
    std: (2, R) mm of outer and thickness over defects and band, else 0.
    residual: mm, median misfit of the pose; above `MAX_POSE_RESIDUAL_MM` the skull is unlike what the prior was built
    from.
    targets: (T,) rays over defects and band, ascending. posteriors: of outer and thickness there, for covariances.
    """

    prior: ShapePrior
    pose: Pose
    observation: Observation
    outer: np.ndarray
    thickness: np.ndarray
    std: np.ndarray
    residual: float
    targets: np.ndarray
    posteriors: tuple[Posterior, Posterior]

    @property
    def defect(self) -> np.ndarray:
        """(R,) int: label of the defect that a ray passes through, 0 where bone stands."""
        return self.observation.defect

    @property
    def defects(self) -> int:
        """How many defects there are."""
        return int(self.defect.max(initial=0))

    def completed_surface(
        self,
        outer: np.ndarray | None = None,
        thickness: np.ndarray | None = None,
        normals: np.ndarray | None = None,
    ) -> PointCloud:
        """The completed bone over defects and band as a closed surface of points, about 0.75 mm apart, in patient mm.

        outer, thickness: (R,) model mm; by default the prior's own. `std` is the prior's, along the ray.
        normals: (2, R, 3) unit, model axes, of both tables, NaN where unknown: there they come from the surface.
        """
        outer = self.outer if outer is None else outer
        thickness = np.maximum(self.thickness if thickness is None else thickness, 1.0)
        inside = self.observation.distance <= BAND
        return completed_surface(
            self.pose, np.stack([outer, outer - thickness]), inside, self.defect, self.std, normals
        )


def fit(prior: ShapePrior, skull: Volume) -> PriorFit:
    """Fits the prior to a defective skull; absent bone does not pull.

    Raises InputError when the skull is cut off at the vault, is not a head, or has no defect.
    """
    return fit_head(prior, head_occupancy(skull), skull)


def fit_head(prior: ShapePrior, head: Head, field: Volume) -> PriorFit:
    """The same for a skull at about 0.9 mm; only the grid of `field` is used: what of the place the scan shows."""
    occupancy = largest_piece(head.occupancy)
    pose, residual = fit_pose(occupancy, head.affine, prior.mean[0], prior.std[0])
    if residual > MAX_POSE_RESIDUAL_MM:
        raise InputError(
            f"not a head the prior knows: expected a vault within {MAX_POSE_RESIDUAL_MM} mm of the mean skull, "
            f"got a median misfit "
            f"of {residual:.1f} mm; check that this is a head in patient axes"
        )
    observation = observe(prior, occupancy, head.affine, pose, field)
    if observation.defect.max(initial=0) == 0:
        raise InputError(
            f"no defect found: expected bone to be absent over at least {MIN_DEFECT_CM2:g} cm2 of the vault, got none; "
            "is this the defective skull, not the complete one?"
        )
    around = np.flatnonzero(observation.distance <= BAND)
    first = complete(prior, pose, observation, residual, around, BEVEL)
    return complete(prior, pose, with_bevel(observation, first), residual)


def with_bevel(observation: Observation, first: PriorFit) -> Observation:
    """The defects grown by the rays around them that the saw cut partly: there the tables measured are the cut's.

    first: a completion from bone far enough from the defect to be whole. A cut ray lacks `BEVEL_LOSS_MM` mm of the
    wall that it
    expects, at either face, and is joined to the defect by such rays.
    """
    with np.errstate(invalid="ignore"):
        outer_lost = ~(observation.outer > first.outer - BEVEL_LOSS_MM)
        inner_lost = ~(observation.outer - observation.thickness < first.outer - first.thickness + BEVEL_LOSS_MM)
    lost = (outer_lost | inner_lost) & (observation.distance <= BAND)
    defect = MAP.to_image(observation.defect)
    grown = ndimage.binary_propagation(defect > 0, mask=(defect > 0) | MAP.to_image(lost, False))
    nearest = tuple(ndimage.distance_transform_edt(defect == 0, return_distances=False, return_indices=True))
    labels = np.where(grown, defect[nearest], 0)[MAP.inside]
    return open_rays(observation.outer, observation.thickness, labels)


def observe(prior: ShapePrior, occupancy: np.ndarray, affine: np.ndarray, pose: Pose, field: Volume) -> Observation:
    """Reads both tables along every ray, and where they are absent although the scan `field` shows the place."""
    profile, _ = profiles(occupancy, affine, pose, MAP.directions)
    outer = crossing(profile, prior.mean[0], outward=True)
    expected = _screen(prior, outer, inner_table(profile, outer - prior.mean[1], INNER_REACH))
    for _ in range(2):
        outer = crossing(profile, expected[0], outward=True)
        inner = inner_table(profile, expected[0] - expected[1], INNER_REACH)
        expected = _screen(prior, outer, inner)
    outer[np.abs(outer - expected[0]) > 5] = np.nan
    thickness = outer - inner
    thickness[(thickness <= 0) | (np.abs(thickness - expected[1]) > 5)] = np.nan

    wall = (expected[0] - expected[1] - ABSENT_SLACK)[:, None] <= RADII
    wall &= (expected[0] + ABSENT_SLACK)[:, None] >= RADII
    index = field.to_index(pose.to_patient(MAP.directions * expected[0][:, None]))
    in_view = np.asarray(((index > -0.5) & (index < np.array(field.mask.shape) - 0.5)).all(1))
    _check_view(in_view)
    absent = ~((profile >= 0.5) & wall).any(1) & in_view
    defect = _defects(absent, in_view, prior.present >= MIN_PRESENCE)
    return open_rays(outer, thickness, defect)


def complete(
    prior: ShapePrior,
    pose: Pose,
    observation: Observation,
    residual: float,
    targets: np.ndarray | None = None,
    rim: float = RIM,
) -> PriorFit:
    """Gaussian-process regression of outer table and thickness from the bone around the defects.

    targets: (T,) rays to complete; by default all of defects and band, `ANCHORS` at least. rim: mm from a defect
    where bone
    is no evidence.
    """
    if targets is None:
        nearest = np.argsort(observation.distance, kind="stable")[:ANCHORS]
        targets = np.union1d(np.flatnonzero(observation.distance <= BAND), nearest)
    posteriors = (process(prior, observation, 0, targets, rim), process(prior, observation, 1, targets, rim))
    mean = np.stack([observation.outer, observation.thickness])
    std = np.zeros_like(mean)
    for axis, posterior in enumerate(posteriors):
        mean[axis, targets] = prior.mean[axis, targets] + posterior.mean
        std[axis, targets] = np.sqrt(posterior.variance)
    return PriorFit(prior, pose, observation, mean[0], mean[1], std, residual, targets, posteriors)


def process(prior: ShapePrior, observation: Observation, axis: int, targets: np.ndarray, rim: float = RIM) -> Posterior:
    """Posterior deviation from the mean at target rays (T,), of the outer table (axis 0) or the thickness (1)."""
    # over a frontal sinus the inner table is not found, and yet the outer says where the forehead goes on
    measured = np.isfinite(observation.outer if axis == 0 else observation.thickness)
    clear = measured & (observation.distance > rim)
    sites = choose_sites(observation.distance, clear)
    values = (observation.outer, observation.thickness)[axis] - prior.mean[axis]
    if axis == 1:
        values = MAP.smoothed(np.where(clear, values, 0), SMOOTH, clear)
    modes = prior.modes[:, axis]
    directions = MAP.directions.astype(np.float32)
    return regress(
        (OUTER, THICKNESS)[axis],
        directions[sites],
        values[sites],
        directions[targets],
        (modes[:, sites], modes[:, targets]),
    )


def choose_sites(distance: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """(S,) rays on bone, denser near the defects (`RINGS`): about a thousand say as much as all thirty thousand."""
    pixels = np.argwhere(MAP.inside)
    chosen = []
    for low, high, spacing in RINGS:
        ring = np.flatnonzero(measured & (distance >= low) & (distance < high))
        cell = (pixels[ring] * PIXEL // spacing).astype(int) @ np.array([1000, 1])
        # the cell's middle-most ray would do as well; the first is deterministic
        chosen.append(ring[np.unique(cell, return_index=True)[1]])
    return np.concatenate(chosen)


def _screen(prior: ShapePrior, outer: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """(2, R) expected outer and thickness: a robust fit of a few modes to what was read, outliers silenced."""
    every = slice(None, None, 7)
    values = np.stack([outer - prior.mean[0], outer - inner - prior.mean[1]])
    values[0][np.abs(values[0]) > GROSS_OUTER] = np.nan
    values[1][np.abs(values[1]) > GROSS_THICKNESS] = np.nan
    values = values[:, every].ravel()
    modes = prior.modes[:SCREEN_MODES][:, :, every].reshape(SCREEN_MODES, -1).T  # (2 R', M)
    known = np.isfinite(values)
    modes, values = modes[known], values[known]
    weights = np.zeros(SCREEN_MODES)
    for _ in range(6):
        misfit = values - modes @ weights
        trust = 1 / (1 + (misfit / 1.5) ** 2)
        # neighbouring rays agree, so each counts as a tenth of an observation of 1 mm
        system = (modes.T * (0.1 * trust)) @ modes + np.eye(SCREEN_MODES)
        weights = np.linalg.solve(system, (modes.T * (0.1 * trust)) @ values)
    expected = prior.mean + np.tensordot(weights, prior.modes[:SCREEN_MODES], 1)
    expected[1] = np.maximum(expected[1], 1.5)
    return expected
