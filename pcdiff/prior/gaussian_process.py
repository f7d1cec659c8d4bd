"""Gaussian-process regression of a head's deviation from the mean, over directions (Rasmussen & Williams 2006)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Self

import numpy as np
from pydantic import Field, model_validator
from scipy.linalg import cho_factor, cho_solve, solve_triangular

from pcdiff.config import StrictConfig
from pcdiff.prior.direction_map import RADIUS

MIRROR = np.array([-1, 1, 1], np.float32)
BLOCK = 32_768  # elements of a covariance computed at a time: a core's cache holds a few arrays of this size


class Kernel(StrictConfig):
    """Covariance between directions a and b, with d their chord distance and d' that of a to the mirrored b, in mm.

    The covariance is

        (1 - learned) sum_i amplitude_i^2 (m(d / length_i) + mirrored m(d' / length_i))
            + learned exp(-d^2 / 2 taper^2) sum_m mode_m(a) mode_m(b)

    with m Matern's correlation, nu = 3/2. The taper removes spurious correlations across the head from the sample
    covariance of a few dozen heads.
    """

    amplitudes: tuple[float, ...] = Field(description="mm")
    lengths: tuple[Annotated[float, Field(gt=0)], ...] = Field(description="mm, at the reference radius")
    noise: float = Field(gt=0, description="standard deviation of one measured ray, mm")
    mirrored: float = Field(default=0.4, description="correlation with the mirrored direction")
    learned: float = Field(default=0.0, ge=0, le=1, description="share of the modes' covariance")
    taper: float = Field(default=60.0, gt=0, description="mm")

    @model_validator(mode="after")
    def _pairs(self) -> Self:
        if len(self.amplitudes) != len(self.lengths):
            raise ValueError(f"expected an amplitude for each length, got {self.amplitudes} and {self.lengths}")
        return self

    def __call__(self, a: np.ndarray, b: np.ndarray, modes_a: np.ndarray, modes_b: np.ndarray) -> np.ndarray:
        """A (A, 3), b (B, 3) unit vectors; modes_a (M, A), modes_b (M, B) mm -> (A, B) mm^2."""
        learned = (self.learned * modes_a.T) @ modes_b if self.learned else None
        value, mirrored = np.empty((len(a), len(b)), np.result_type(a, b)), b * MIRROR
        rows = max(1, BLOCK // max(1, len(b)))
        for first in range(0, len(a), rows):  # intermediate arrays of one block fit into the cache
            block = slice(first, first + rows)
            distances = chord(a[block], b), chord(a[block], mirrored)
            total = value[block]
            total[:] = 0
            for amplitude, length in zip(self.amplitudes, self.lengths, strict=True):
                variance = (1 - self.learned) * amplitude**2
                for weight, distance in zip((1.0, self.mirrored), distances, strict=True):
                    part = matern(distance, length)
                    part *= variance * weight
                    total += part
            if learned is not None:
                near = distances[0]
                near /= self.taper
                near *= near
                near *= -0.5
                np.exp(near, out=near)
                near *= learned[block]
                total += near
        return value

    def variance(self, a: np.ndarray, modes: np.ndarray) -> np.ndarray:
        """(A,) mm^2: the diagonal of the kernel."""
        own = chord_to_mirror(a)
        value = np.zeros_like(own)
        for amplitude, length in zip(self.amplitudes, self.lengths, strict=True):
            value += amplitude**2 * (1 + self.mirrored * matern(own, length))
        return (1 - self.learned) * value + self.learned * (modes**2).sum(0)


def chord(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(A, B) mm between unit vectors, at the reference radius."""
    square = a @ b.T
    square *= -2
    square += 2
    square = np.maximum(square, 0, dtype=np.float32)
    np.sqrt(square, out=square)
    square *= RADIUS
    return square


def chord_to_mirror(a: np.ndarray) -> np.ndarray:
    """(A,) mm from each direction to its mirror image."""
    return 2 * RADIUS * np.abs(a[:, 0])


def matern(distance: np.ndarray, length: float) -> np.ndarray:
    """Matern correlation, nu = 3/2 (Rasmussen & Williams 2006, eq. 4.17)."""
    scaled = distance * np.float32(np.sqrt(3) / length)
    decay = np.exp(-scaled)
    scaled += 1
    decay *= scaled
    return decay


@dataclass(frozen=True)
class Posterior:
    """The process at the targets, given the values at the sites.

    mean: (T,) mm. before: (T,) mm^2, the variance without the sites. factor: (S, S), lower Cholesky factor of the
    sites' covariance. across: (S, T) mm^2, covariance of sites and targets.
    """

    mean: np.ndarray
    before: np.ndarray
    factor: np.ndarray
    across: np.ndarray

    @property
    def variance(self) -> np.ndarray:
        """(T,) mm^2. It takes as long as all the rest, and is worked out when it is asked for."""
        half = solve_triangular(self.factor, self.across, lower=True, check_finite=False)  # (S, T)
        return np.maximum(self.before - np.square(half, out=half).sum(0), 0)


def regress(
    kernel: Kernel,
    sites: np.ndarray,
    values: np.ndarray,
    targets: np.ndarray,
    modes: tuple[np.ndarray, np.ndarray],
    passes: int = 3,
) -> Posterior:
    """Posterior at targets (T, 3) given values (S,) mm at sites (S, 3), both unit vectors; eq. 2.23 and 2.24.

    modes: (M, S) and (M, T) mm. passes: of robust reweighting. A site with a residual above about 2.5 noise standard
    deviations gets a smaller weight (Cauchy), because sutures, burr holes and streaks are no surface of the vault.
    """
    at_sites = kernel(sites, sites, modes[0], modes[0])
    at_targets = kernel(sites, targets, modes[0], modes[1])
    values = values.astype(np.float32)
    noise = np.full(len(sites), kernel.noise**2, np.float32)
    diagonal = np.diag_indices(len(sites))
    for _ in range(passes):
        covariance = at_sites.copy(order="F")
        covariance[diagonal] += noise
        factor = cho_factor(covariance, lower=True, overwrite_a=True, check_finite=False)
        solved = cho_solve(factor, values, check_finite=False)
        misfit = noise * solved
        noise = (kernel.noise**2 * (1 + (misfit / (2.5 * kernel.noise)) ** 2)).astype(np.float32)
    return Posterior(solved @ at_targets, kernel.variance(targets, modes[1]), factor[0], at_targets)
