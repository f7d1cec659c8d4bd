"""The statistical shape model fitted to a defective skull: where bone is absent, and where it should be."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage
from scipy.sparse import csr_array

from pcdiff.environment import one_blas_thread, side_by_side
from pcdiff.errors import InputError
from pcdiff.geometry.occupancy import Head, head_occupancy
from pcdiff.geometry.points import PointCloud
from pcdiff.geometry.volume import Volume
from pcdiff.prior.completed_surface import completed_surface
from pcdiff.prior.defects import (
    DefectChoice,
    DefectNumbers,
    Observation,
    check_reach,
    choose_defects,
    disc,
    doubtful_defects,
    open_rays,
    with_defects,
)
from pcdiff.prior.direction_map import MAP, PIXEL, Pose
from pcdiff.prior.gaussian_process import Posterior, regress
from pcdiff.prior.model import ShapePrior
from pcdiff.prior.observe import EDGE_MM, Observed, in_view, observe
from pcdiff.prior.orientation import Axes, place_head
from pcdiff.prior.pose import largest_piece
from pcdiff.prior.settings import CompletionSettings


@dataclass(frozen=True)
class LeftOpen:
    """Openings of a skull that a fit does not complete.

    observation: of all openings, those that are completed with the fit's labels, and these after them. numbers: of each
    among all defects, as `pcdiff info` lists them, None for a small opening. why: a few words for each. barred: (R,)
    bool, rays that no opening reaches.
    """

    observation: Observation
    numbers: tuple[int | None, ...]
    why: tuple[str, ...]
    barred: np.ndarray


@dataclass(frozen=True)
class PriorFit:
    """The vault as the shape model completes it, in model millimetres along rays, and the pose back to the patient.

    outer, thickness: (R,) mm, posterior mean over defects and band, the measured values elsewhere (NaN without).
    std: (2, R) mm of outer and thickness over defects and band, else 0.
    doubtful: labels of defects that may be natural openings.
    residual: mm, median distance of the posed outer table from the mean; large for a skull unlike those of the model.
    targets: (T,) rays over defects and band, ascending. notes: what the user should know, one line each.
    numbers: of each defect among all that were found, empty for those of a region. left_open: the openings that are not
    completed, None without.
    """

    prior: ShapePrior
    pose: Pose
    observation: Observation
    outer: np.ndarray
    thickness: np.ndarray
    std: np.ndarray
    residual: float
    targets: np.ndarray
    notes: tuple[str, ...] = ()
    doubtful: tuple[int, ...] = ()
    numbers: tuple[int, ...] = ()
    left_open: LeftOpen | None = None

    @property
    def defect(self) -> np.ndarray:
        """(R,) int: label of the defect that a ray passes through, 0 on bone."""
        return self.observation.defect

    def defect_at(self, points: np.ndarray) -> np.ndarray:
        """(N, 3) mm, LPS -> (N,) int: label of the defect that the ray through each point passes through, else 0."""
        return MAP.nearest(MAP.to_image(self.defect), self.pose.to_model(points))

    @property
    def defects(self) -> int:
        """The number of defects."""
        return int(self.defect.max(initial=0))

    def completed_surface(self, outer: np.ndarray | None = None, thickness: np.ndarray | None = None) -> PointCloud:
        """The completed bone over defects and band as a closed surface of points, about 0.75 mm apart, patient mm.

        outer, thickness: (R,) model mm; by default the posterior mean. The points' `std` is that of the posterior along
        the ray.
        """
        outer = self.outer if outer is None else outer
        thickness = np.maximum(self.thickness if thickness is None else thickness, 1.0)
        covered = self.observation.distance <= self.prior.settings.completion.band_mm
        table_radii = np.stack([outer, outer - thickness])
        return completed_surface(self.pose, table_radii, covered, self.defect, self.std)


def fit(prior: ShapePrior, skull: Volume, axes: Axes = "stated", defects: DefectChoice = "clear") -> PriorFit:
    """Fits the shape model to a defective skull; absent bone does not influence the pose.

    axes: what is known of the patient axes; `assumed` goes on with a head that is not upright, or of unusual size.
    defects: those to complete, by their numbers among all that are found; the fit numbers them anew. Or a mask, within
    all absent bone on whose rays is completed.

    Raises InputError when the skull is cut off at the vault, is not a head or not an upright one, has no defect,
    or none of those chosen.
    """
    return fit_head(prior, head_occupancy(skull), skull, axes, defects)


@one_blas_thread()
def fit_head(
    prior: ShapePrior,
    head: Head,
    field: Volume,
    axes: Axes = "assumed",
    defects: DefectChoice = "clear",
) -> PriorFit:
    """The same for a head at about 0.9 mm. field: a volume on the scan's grid, for its extent and what is loose."""
    settings = prior.settings
    occupancy = largest_piece(head.occupancy)
    placed = place_head(prior, occupancy, head.affine)
    pose, residual = placed.pose, placed.residual
    if residual > settings.pose.max_residual_mm:
        raise InputError(
            f"not a head that the shape model can describe: expected a vault within {settings.pose.max_residual_mm} mm "
            f"of the mean skull, got a median distance of {residual:.1f} mm; check that this is a head in patient axes"
        )
    notes = placed.check(axes)
    choice: DefectNumbers = "all" if isinstance(defects, Volume) else defects
    region = defects if isinstance(defects, Volume) else None
    observed = observe(prior, occupancy, head, pose, field, region)
    observation = observed.observation
    if observation.defect.max(initial=0) == 0:
        raise observed.closed.no_defect(settings.defects)
    numbers, left_out = choose_defects(int(observation.defect.max()), observed.doubtful, choice)
    observation = with_defects(observation, numbers)
    completed = complete_with_bevel(prior, pose, observation, residual, observed.left)
    missing = completed.defect > 0
    middle, outer = (
        missing & ~in_view(pose, field, completed.outer - depth) for depth in (completed.thickness / 2, EDGE_MM)
    )
    return replace(
        completed,
        notes=notes + left_out + observed.notes + check_reach(middle, outer),
        doubtful=tuple(new for new, old in enumerate(numbers, 1) if old in observed.doubtful),
        numbers=() if region is not None else tuple(numbers),
        left_open=_left_open(prior, observed, observation.defect, missing, region is not None),
    )


def _left_open(
    prior: ShapePrior, observed: Observed, chosen: np.ndarray, completed: np.ndarray, drawn: bool
) -> LeftOpen | None:
    """What is open and not completed.

    chosen: (R,) int labels of the defects to complete. completed: (R,) bool, what they have grown to. drawn: a region
    said what to complete.
    """
    rules = prior.settings.defects
    doubtful = doubtful_defects(observed.found, prior.present >= rules.min_presence)
    labels, first = chosen.copy(), int(chosen.max()) + 1
    numbers: list[int | None] = []
    why: list[str] = []
    for found, small in ((observed.found, False), (observed.small, True)):
        for number in range(1, int(found.max(initial=0)) + 1):
            rays, touched = found == number, completed & (found == number)
            if touched.any():  # without the strip that a region leaves along the edge of a defect
                rest = MAP.to_image(rays & ~completed, False)
                rays = ndimage.binary_opening(rest, disc(rules.opening_mm))[MAP.inside]
            if not rays.any():
                continue
            if small:
                reason = f"smaller than {rules.min_area_cm2:g} cm2"
            elif number in doubtful:
                reason = "may be natural, such as an orbit"
            elif touched.any():
                reason = "the part outside the region"
            else:
                reason = "outside the region" if drawn else "not chosen"
            labels[rays] = first + len(why)
            numbers.append(None if small else number)
            why.append(reason)
    if not why:
        return None
    observation = open_rays(observed.observation.outer, observed.observation.thickness, labels)
    strip = ((observed.found > 0) | (observed.small > 0)) & (labels == 0)
    return LeftOpen(observation, tuple(numbers), tuple(why), observed.closed.held | strip)


def complete_with_bevel(
    prior: ShapePrior, pose: Pose, observation: Observation, residual: float, barred: np.ndarray
) -> PriorFit:
    """`complete`, after `with_bevel`. barred: (R,) bool, rays that do not join a defect."""
    completion = prior.settings.completion
    band = np.flatnonzero((observation.defect == 0) & (observation.distance <= completion.band_mm))
    first, *_ = _tables(prior, observation, band, completion.initial_border_mm)
    return complete(prior, pose, with_bevel(observation, first, completion, barred), residual)


def with_bevel(
    observation: Observation, expected: np.ndarray, settings: CompletionSettings, left: np.ndarray | None = None
) -> Observation:
    """The defects grown by neighbouring rays that the craniotomy cut in part: there the tables are those of the cut.

    expected: (2, R) mm, outer table and thickness completed from bone far enough from the defect to be whole. A ray
    counts as cut where the bone lacks `bevel_loss_mm` of the expected table, outside or inside; it joins the defect
    when such rays connect them. left: (R,) bool, rays that do not join: over bone that is no part of the skull's
    largest piece, or outside of a region.
    """
    with np.errstate(invalid="ignore"):
        outer_lost = ~(observation.outer > expected[0] - settings.bevel_loss_mm)
        inner = observation.outer - observation.thickness
        inner_lost = ~(inner < expected[0] - expected[1] + settings.bevel_loss_mm)
    lost = (outer_lost | inner_lost) & (observation.distance <= settings.band_mm)
    if left is not None:
        lost &= ~left
    defect = MAP.to_image(observation.defect)
    grown = ndimage.binary_propagation(defect > 0, mask=(defect > 0) | MAP.to_image(lost, False))
    nearest = tuple(ndimage.distance_transform_edt(defect == 0, return_distances=False, return_indices=True))
    labels = np.where(grown, defect[nearest], 0)[MAP.inside]
    return open_rays(observation.outer, observation.thickness, labels)


def complete(
    prior: ShapePrior,
    pose: Pose,
    observation: Observation,
    residual: float,
    targets: np.ndarray | None = None,
    border_mm: float | None = None,
) -> PriorFit:
    """Gaussian-process regression of outer table and thickness from the bone around the defects.

    targets: (T,) rays to complete; by default those of defects and band, `min_rays` at least. border_mm: bone so near
    to a defect is not used; by default as the model's settings say.
    """
    settings = prior.settings.completion
    border_mm = settings.border_mm if border_mm is None else border_mm
    if targets is None:
        nearest = np.argsort(observation.distance, kind="stable")[: settings.min_rays]
        targets = np.union1d(np.flatnonzero(observation.distance <= settings.band_mm), nearest)
    mean, between, posteriors = _tables(prior, observation, targets, border_mm)
    std = np.zeros_like(mean)
    for axis, posterior in enumerate(posteriors):
        std[axis, targets] = between @ np.sqrt(posterior.variance)
    return PriorFit(prior, pose, observation, mean[0], mean[1], std, residual, targets)


def _tables(
    prior: ShapePrior, observation: Observation, targets: np.ndarray, border_mm: float
) -> tuple[np.ndarray, csr_array, tuple[Posterior, Posterior]]:
    """(2, R) mm, outer table and thickness: the posterior mean at the targets, else as measured.

    Deviations from the mean head bend little within 3 mm, so posteriors are worked out on every second row and column
    of the map. Also returned: weights (T, N) that interpolate from there, and the posteriors.
    """
    some, between = MAP.every_second(targets)
    outer, thickness = side_by_side(lambda axis: _regress_table(prior, observation, axis, some, border_mm), (0, 1))
    tables = np.stack([observation.outer, observation.thickness])
    tables[:, targets] = prior.mean[:, targets] + [between @ outer.mean, between @ thickness.mean]
    return tables, between, (outer, thickness)


def choose_sites(
    distance: np.ndarray, measured: np.ndarray, rings: tuple[tuple[float, float, float], ...]
) -> np.ndarray:
    """(S,) observed rays on bone, denser near the defects.

    About a thousand of them determine the completion as well as all thirty thousand. distance: (R,) mm to the nearest
    defect. measured: (R,) bool. rings: (from, to, spacing) in mm.
    """
    pixels = np.argwhere(MAP.inside)
    chosen = []
    for low, high, spacing in rings:
        ring = np.flatnonzero(measured & (distance >= low) & (distance < high))
        cell = (pixels[ring] * PIXEL // spacing).astype(int) @ np.array([1000, 1])
        chosen.append(ring[np.unique(cell, return_index=True)[1]])  # the first ray of each cell
    return np.concatenate(chosen)


def _regress_table(
    prior: ShapePrior, observation: Observation, axis: int, targets: np.ndarray, border_mm: float
) -> Posterior:
    """Posterior deviation from the mean at target rays (T,), of the outer table (axis 0) or the thickness (1)."""
    # each by itself: over a frontal sinus the outer table is known and the inner one is not
    values = (observation.outer, observation.thickness)[axis]
    clear = np.isfinite(values) & (observation.distance > border_mm)
    sites = choose_sites(observation.distance, clear, prior.settings.completion.rings)
    deviation = values - prior.mean[axis]
    if axis == 1:
        smoothing = prior.settings.population.thickness_smoothing_px
        deviation = MAP.smoothed(np.where(clear, deviation, 0), smoothing, clear)
    modes = prior.modes[:, axis]
    directions = MAP.directions.astype(np.float32)
    return regress(
        prior.settings.completion.kernels[axis],
        directions[sites],
        deviation[sites],
        directions[targets],
        (modes[:, sites], modes[:, targets]),
    )
