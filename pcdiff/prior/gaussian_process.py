"""Gaussian-process regression of what a head deviates from the mean, over directions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_factor, cho_solve, solve_triangular

from pcdiff.prior.direction_map import RADIUS

FLIP = np.array([-1, 1, 1], np.float32)
BLOCK = 32_768  # elements of a covariance made at a time: a core's cache holds a few arrays of them


@dataclass(frozen=True)
class Kernel:
    """Covariance between directions a and b, chord distance d in mm at the reference radius, d' to the mirrored b:

        (1 - learned) sum_i amplitude_i^2 (m(d / length_i) + mirrored m(d' / length_i))
            + learned exp(-d^2 / 2 taper^2) sum_m mode_m(a) mode_m(b)

    m is Matern's with nu = 3/2. The taper keeps the sample covariance of a few dozen heads from inventing relations
    across the head. noise: mm, of a single measured ray.
    """

    amplitudes: tuple[float, ...]
    lengths: tuple[float, ...]
    noise: float
    mirrored: float = 0.4
    learned: float = 0.0
    taper: float = 60.0

    def __call__(self, a: np.ndarray, b: np.ndarray, modes_a: np.ndarray, modes_b: np.ndarray) -> np.ndarray:
        """A (A, 3), b (B, 3) unit vectors; modes_a (M, A), modes_b (M, B) mm -> (A, B) mm^2."""
        learned = (self.learned * modes_a.T) @ modes_b if self.learned else None
        value = np.empty((len(a), len(b)), np.result_type(a, b))
        rows = max(1, BLOCK // max(1, len(b)))
        for first in range(0, len(a), rows):  # block by block, so that what is in between stays in the cache
            block = slice(first, first + rows)
            distance, mirrored = chord(a[block], b), chord(a[block], b * FLIP)
            total = np.zeros_like(distance)
            for amplitude, length in zip(self.amplitudes, self.lengths, strict=True):
                variance = (1 - self.learned) * amplitude**2
                total += variance * matern(distance, length)
                total += variance * self.mirrored * matern(mirrored, length)
            if learned is not None:
                total += learned[block] * np.exp(-0.5 * (distance / self.taper) ** 2)
            value[block] = total
        return value

    def variance(self, a: np.ndarray, modes: np.ndarray) -> np.ndarray:
        """(A,) mm^2: the diagonal of the kernel."""
        own = chord_to_mirror(a)
        value = np.zeros_like(own)
        for amplitude, length in zip(self.amplitudes, self.lengths, strict=True):
            value += amplitude**2 * (1 + self.mirrored * matern(own, length))
        return (1 - self.learned) * value + self.learned * (modes**2).sum(0)


OUTER = Kernel((2.5, 0.5), (70.0, 20.0), noise=0.15, learned=0.15)
THICKNESS = Kernel((1.2, 0.4), (80.0, 15.0), noise=0.3, learned=0.3)


def chord(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(A, B) mm between unit vectors, at the reference radius."""
    return RADIUS * np.sqrt(np.maximum(2 - 2 * (a @ b.T), 0, dtype=np.float32))


def chord_to_mirror(a: np.ndarray) -> np.ndarray:
    """(A,) mm from each direction to its mirror image."""
    return 2 * RADIUS * np.abs(a[:, 0])


def matern(distance: np.ndarray, length: float) -> np.ndarray:
    """Matern correlation, nu = 3/2 (Rasmussen & Williams 2006, eq. 4.17)."""
    scaled = distance * np.float32(np.sqrt(3) / length)
    return (1 + scaled) * np.exp(-scaled)


@dataclass(frozen=True)
class Posterior:
    """What the sites say of the targets. mean, variance: (T,) mm, mm^2."""

    mean: np.ndarray
    variance: np.ndarray
    _kernel: Kernel
    _targets: np.ndarray
    _modes: np.ndarray
    _half: np.ndarray

    def covariance(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """(A, B) mm^2 between the targets `rows` (A,) and `columns` (B,); all against all would take a gigabyte."""
        prior = self._kernel(self._targets[rows], self._targets[columns], self._modes[:, rows], self._modes[:, columns])
        return prior - self._half[:, rows].T @ self._half[:, columns]


def regress(
    kernel: Kernel,
    sites: np.ndarray,
    values: np.ndarray,
    targets: np.ndarray,
    modes: tuple[np.ndarray, np.ndarray],
    passes: int = 3,
) -> Posterior:
    """Posterior at targets (T, 3) given values (S,) mm at sites (S, 3), both unit vectors.

    modes: (M, S) and (M, T) mm. Robust: a site whose residual exceeds about 2.5 noise is reweighted (Cauchy), so that
    sutures, burr holes and streaks do not pull.
    """
    at_sites = kernel(sites, sites, modes[0], modes[0])
    at_targets = kernel(sites, targets, modes[0], modes[1])
    values = values.astype(np.float32)
    noise = np.full(len(sites), kernel.noise**2, np.float32)
    for _ in range(passes):
        factor = cho_factor(at_sites + np.diag(noise), lower=True, check_finite=False)
        solved = cho_solve(factor, values, check_finite=False)
        misfit = noise * solved
        noise = (kernel.noise**2 * (1 + (misfit / (2.5 * kernel.noise)) ** 2)).astype(np.float32)
    half = solve_triangular(factor[0], at_targets, lower=True, check_finite=False)  # (S, T)
    variance = np.maximum(kernel.variance(targets, modes[1]) - (half**2).sum(0), 0)
    return Posterior(solved @ at_targets, variance, kernel, targets, modes[1], half)
