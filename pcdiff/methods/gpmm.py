"""Gaussian-process morphable model with outlier labels (Madsen et al. 2019, Rahbani et al. 2022), along rays.

A head is the mean plus a Gaussian process, in a basis of low rank. EM alternates between labels (is the bone that lies
next to a point of the model part of this head, or is there none?) and the most probable head given the labels. A chain
of Metropolis and Hastings draws heads from the posterior.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_solve, solve_triangular
from scipy.ndimage import maximum_filter, minimum_filter
from scipy.spatial import cKDTree

from pcdiff.geometry.occupancy import head_occupancy
from pcdiff.geometry.volume import Volume
from pcdiff.methods.base import Proposal
from pcdiff.methods.candidates import OrientedPoints
from pcdiff.methods.registry import WeightsFiles
from pcdiff.prior.defects import find_defects, open_rays
from pcdiff.prior.direction_map import MAP, PIXEL, Pose, crossing, inner_table, outward_normals, profiles
from pcdiff.prior.fit import PriorFit
from pcdiff.prior.gaussian_process import Kernel
from pcdiff.prior.model import ShapePrior
from pcdiff.prior.pose import largest_piece

STAGES = ((120, 6), (300, 4))  # rank and rounds of EM: over the whole head, then finer near the outliers
BACK_MM = 0.6 * PIXEL  # a match leads back to within it, so to the same ray: both surfaces are read on the same rays
START_MM, LEAST_MM = 3.0, 0.9  # standard deviation of an inlier's distance: in the first round, and at least
FLAT_MM = 20.0  # an outlier's distance is as probable as any up to it
FINE_MM = 20.0  # distance from the outliers over which the second basis gets coarser by e
TRUST_MM = 6.0  # bone counts fully up to about it from the outliers; beyond, neighbouring rays err together
STEPS = 8  # of the chain between two samples


@dataclass(frozen=True)
class LowRank:
    """A Gaussian process over rays: mean (R,) mm + basis (R, K) mm times K independent standard normal weights."""

    mean: np.ndarray
    basis: np.ndarray

    @classmethod
    def of(cls, prior: ShapePrior, axis: int, importance: np.ndarray, rank: int) -> LowRank:
        """The prior's process of outer table (axis 0) or thickness (1), by pivoted Cholesky decomposition.

        importance: (R,) weight of the variance that is left at a ray when the next pivot is chosen.
        """
        kernel: Kernel = prior.settings.completion.kernels[axis]
        modes, directions = prior.modes[:, axis], MAP.directions.astype(np.float32)
        left = kernel.variance(directions, modes)
        basis = np.zeros((len(directions), rank), np.float32)
        for k in range(rank):
            pivot = np.argmax(left * importance)
            column = kernel(directions, directions[[pivot]], modes, modes[:, [pivot]])[:, 0]
            column -= basis[:, :k] @ basis[pivot, :k]
            basis[:, k] = column / np.sqrt(column[pivot])
            left = np.maximum(left - basis[:, k] ** 2, 0)
        return cls(prior.mean[axis], basis)

    def at(self, weights: np.ndarray) -> np.ndarray:
        """(K,) -> (R,) mm."""
        return np.asarray(self.mean + self.basis @ weights.astype(np.float32))


@dataclass(frozen=True)
class Posterior:
    """Weights a of a process given values on rays: N(mean, H^-1) with H = basis^T W basis + I = factor factor^T.

    rays: (S,) those used. precision: (S,) mm^-2, the diagonal of W.
    """

    process: LowRank
    rays: np.ndarray
    precision: np.ndarray
    factor: np.ndarray

    @classmethod
    def of(cls, process: LowRank, precision: np.ndarray) -> Posterior:
        """precision: (R,) mm^-2 of the value on each ray."""
        rays = np.flatnonzero(precision > 1e-3 * precision.max())
        basis, weight = process.basis[rays], precision[rays].astype(np.float32)
        system = ((basis.T * weight) @ basis).astype(float) + np.eye(basis.shape[1])
        return cls(process, rays, weight, np.linalg.cholesky(system))

    def mean(self, values: np.ndarray) -> np.ndarray:
        """(K,) given values (R,) mm."""
        deviation = (values - self.process.mean)[self.rays].astype(np.float32)
        solved = cho_solve((self.factor, True), self.process.basis[self.rays].T @ (self.precision * deviation))
        return np.asarray(solved)

    def around(self, mean: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """(K,) a sample around a mean (K,)."""
        noise = solve_triangular(self.factor, rng.standard_normal(len(mean)), lower=True, trans="T")
        return np.asarray(mean + noise)

    def distance(self, weights: np.ndarray, mean: np.ndarray) -> float:
        """Squared Mahalanobis distance of weights from a mean, (K,) each."""
        return float(((self.factor.T @ (weights - mean)) ** 2).sum())

    def energy(self, weights: np.ndarray, values: np.ndarray) -> float:
        """Minus twice the log probability of weights (K,) and of values (R,) mm given them, but for a constant."""
        misfit = (self.process.at(weights) - values)[self.rays]
        return float(weights @ weights + (self.precision * misfit**2).sum())


@dataclass(frozen=True)
class Bone:
    """A surface of the patient: where the bone lies that is nearest to each ray of a model's surface."""

    points: np.ndarray
    tree: cKDTree

    @classmethod
    def of(cls, radius: np.ndarray) -> Bone:
        """radius: (R,) model mm, NaN on a ray without bone."""
        points = (MAP.directions * radius[:, None])[np.isfinite(radius)]
        return cls(points, cKDTree(points))

    def match(self, model: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For a surface (R,) mm: the distance of the nearest bone, and the radius at which its tangent plane is met.

        The distance is infinite where the bone's own nearest model point lies elsewhere. (R,) mm each.
        """
        points = MAP.directions * model[:, None]
        distance, nearest = self.tree.query(points)
        _, back = cKDTree(points).query(self.points[nearest])
        returned = np.linalg.norm(points[back] - points, axis=1) <= BACK_MM
        normals = outward_normals(model)[MAP.inside]
        height = ((self.points[nearest] - points) * normals).sum(1)
        slope = np.maximum((normals * MAP.directions).sum(1), 0.5)
        return np.where(returned, distance, np.inf), model + height / slope


@dataclass(frozen=True)
class Labels:
    """The E-step: how probably the nearest bone belongs to the model's surface.

    inlier: (2, R) probability for outer and inner table. std: (2,) mm of an inlier's distance. share: of inliers.
    """

    inlier: np.ndarray
    std: np.ndarray
    share: float

    @classmethod
    def start(cls, usual: np.ndarray) -> Labels:
        """Before the first round; usual: (R,) bool, heads have bone there."""
        return cls(np.ones((2, len(usual))), np.full(2, START_MM), 0.8)

    def updated(self, distance: np.ndarray, usual: np.ndarray) -> Labels:
        """Labels from distances (2, R) mm, inf without a match; then the rest from the labels where bone is usual.

        An inlier's distance is half-normal, an outlier's uniform up to `FLAT_MM`. Outliers come in regions: single
        ones are none, and a region grows by a ray, because the cut is seldom at right angles to the bone.
        """
        std = self.std[:, None]
        inlier = self.share * np.sqrt(2 / np.pi) / std * np.exp(-0.5 * (distance / std) ** 2)
        inlier /= inlier + (1 - self.share) / FLAT_MM
        known = inlier * usual
        squared = (known * np.where(np.isfinite(distance), distance, 0) ** 2).sum(1) / np.maximum(known.sum(1), 1e-9)
        share = float(np.clip(inlier[0, usual].mean(), 0.05, 0.99))
        return Labels(_regions(inlier), np.maximum(np.sqrt(squared), LEAST_MM), share)


def _regions(inlier: np.ndarray) -> np.ndarray:
    """(2, R) -> (2, R): probabilities as the map's neighbours have them."""
    image = MAP.to_image(inlier.T, 1.0)
    return np.asarray(minimum_filter(maximum_filter(image, (3, 3, 1)), (5, 5, 1))[MAP.inside].T)


@dataclass(frozen=True)
class Registration:
    """The model registered to a skull.

    outlier: (R,) bool, no bone of the outer table belongs to the model's. posteriors: of outer table and thickness.
    bones: of the patient, outer and inner. weights: the most probable ones of each process.
    """

    outlier: np.ndarray
    posteriors: tuple[Posterior, Posterior]
    bones: tuple[Bone, Bone]
    weights: tuple[np.ndarray, np.ndarray]

    def tables(self, weights: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Outer radius and thickness, (R,) mm each, of weights of each process."""
        outer, thickness = (posterior.process.at(a) for posterior, a in zip(self.posteriors, weights, strict=True))
        return outer, thickness

    def samples(self, count: int, rng: np.random.Generator) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Tables drawn from the posterior by Metropolis and Hastings, given the labels.

        A proposal leads towards a sample of the analytic posterior given the bone that is nearest now (Madsen et al.).
        It keeps that posterior's spread at any number of weights (preconditioned Crank-Nicolson).
        """
        now = self._state(self.weights)
        for number in range(1, STEPS * (count + 1) + 1):
            size = rng.uniform(0.1, 1.0)
            there = now.towards(size)
            proposed = self._state(
                [
                    mean + size * (posterior.around(mean, rng) - mean)
                    for posterior, mean in zip(self.posteriors, there, strict=True)
                ]
            )
            forth = self._distance(proposed.weights, there) / size**2
            back = self._distance(now.weights, proposed.towards(size)) / size**2
            if np.log(rng.uniform()) < (now.energy - proposed.energy + forth - back) / 2:
                now = proposed
            if number > STEPS and number % STEPS == 0:
                yield self.tables(now.weights)

    def _state(self, weights: Sequence[np.ndarray]) -> _State:
        """The chain at these weights: the bone that is nearest to their surface, and what follows from it."""
        outer, thickness = self.tables(weights)
        _, outer_bone = self.bones[0].match(outer)
        _, inner_bone = self.bones[1].match(outer - thickness)
        both = list(zip(self.posteriors, weights, (outer_bone, outer_bone - inner_bone), strict=True))
        means = [posterior.mean(values) for posterior, _, values in both]
        return _State(tuple(weights), means, sum(posterior.energy(a, values) for posterior, a, values in both))

    def _distance(self, weights: Sequence[np.ndarray], means: Sequence[np.ndarray]) -> float:
        """The sum over the processes."""
        return sum(p.distance(a, mean) for p, a, mean in zip(self.posteriors, weights, means, strict=True))


@dataclass(frozen=True)
class _State:
    """Of the chain: weights of each process, their mean given the nearest bone, and minus twice the log posterior."""

    weights: Sequence[np.ndarray]
    means: Sequence[np.ndarray]
    energy: float

    def towards(self, size: float) -> list[np.ndarray]:
        """The centre of a proposal."""
        kept = np.sqrt(1 - size**2)
        return [mean + kept * (a - mean) for a, mean in zip(self.weights, self.means, strict=True)]


@dataclass(frozen=True)
class GpmmMethod:
    """The most probable head of the model, or samples of its posterior as the ensemble."""

    prior: ShapePrior

    def __call__(
        self, skull: Volume, fit: PriorFit, *, ensemble: int = 1, seed: int = 0, device: str = "cpu"
    ) -> Proposal:
        """See `PriorBasedMethod`."""
        found = self.register(skull, fit.pose)
        drawn = [found.tables(found.weights)]
        if ensemble > 1:
            drawn = list(found.samples(ensemble, np.random.default_rng(seed)))
        return Proposal([OrientedPoints(fit.completed_surface(*tables)) for tables in drawn])

    def register(self, skull: Volume, pose: Pose) -> Registration:
        """Expectation maximisation over labels and shape. It gets the pose only, and no outline of a defect."""
        prior, settings = self.prior, self.prior.settings
        head = head_occupancy(skull)
        profile = profiles(largest_piece(head.occupancy), head.affine, pose, MAP.directions)
        usual = prior.present >= settings.defects.min_presence
        outer, thickness = prior.mean
        labels = Labels.start(usual)
        importance: np.ndarray = np.ones(len(usual))
        trust = importance
        for rank, rounds in STAGES:
            processes = [LowRank.of(prior, axis, importance, rank) for axis in (0, 1)]
            for _ in range(rounds):
                inner = outer - thickness
                bones = (
                    Bone.of(crossing(profile, outer, outward=True)),
                    Bone.of(inner_table(profile, inner, settings.tables.inner_reach_mm)),
                )
                (outer_distance, outer_bone), (inner_distance, inner_bone) = (
                    bone.match(radius) for bone, radius in zip(bones, (outer, inner), strict=True)
                )
                labels = labels.updated(np.stack([outer_distance, inner_distance]), usual)
                noise = [trust / kernel.noise**2 for kernel in settings.completion.kernels]
                posteriors = (
                    Posterior.of(processes[0], labels.inlier[0] * noise[0]),
                    Posterior.of(processes[1], labels.inlier.prod(0) * noise[1]),
                )
                weights = (posteriors[0].mean(outer_bone), posteriors[1].mean(outer_bone - inner_bone))
                outer, thickness = (process.at(a) for process, a in zip(processes, weights, strict=True))
            outlier = labels.inlier[0] < 0.5
            distance = open_rays(outer, thickness, self.defects(outlier)).distance
            importance = np.exp(-distance / FINE_MM) + 0.01
            trust = 1 / (1 + (distance / TRUST_MM) ** 2)
        return Registration(outlier, posteriors, bones, weights)

    def defects(self, outlier: np.ndarray) -> np.ndarray:
        """(R,) int labels of the outliers (R,) that are defects, by the rules of the shape model."""
        rules = self.prior.settings.defects
        return find_defects(outlier, np.ones_like(outlier), self.prior.present >= rules.min_presence, rules)


def load(files: WeightsFiles) -> GpmmMethod:
    """The method on the files' shape model. Raises InputError for a file of another kind."""
    return GpmmMethod(ShapePrior.load(files.prior))
