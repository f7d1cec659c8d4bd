"""How far a difference between methods can be trusted: intervals, paired tests and the stability of a ranking.

After Maier-Hein et al., "Why rankings of biomedical image analysis competitions should be interpreted with care",
Nature Communications 2018, and Wiesenfarth et al., "Methods and open-source toolkit for analyzing and visualizing
challenge results", Scientific Reports 2021. Heads are resampled, because cases of one head are not independent.
"""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata

RESAMPLES = 10_000
CONFIDENCE = 95  # per cent


def resampled_means(values: np.ndarray, seed: int = 0) -> np.ndarray:
    """(H, M) one value per head and method -> (RESAMPLES, M) means over H heads drawn with replacement.

    All methods get the same heads, so that their means can be compared draw by draw.
    """
    chosen = np.random.default_rng(seed).integers(0, len(values), (RESAMPLES, len(values)))
    return np.stack([column[chosen].mean(axis=1) for column in values.T], axis=1)


def interval(means: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(RESAMPLES, ...) -> the ends of the percentile interval, (...) each; infinite where too many of them are."""
    tail = (100 - CONFIDENCE) / 2
    # One of the values, since between two infinite ones there is none.
    low, high = np.percentile(means, [tail, 100 - tail], axis=0, method="inverted_cdf")
    return low, high


def paired_p(differences: np.ndarray) -> float:
    """(H,) differences of two methods on the same heads -> two-sided p of Wilcoxon's signed-rank test.

    Heads without a difference are left out; 1 if no head differs. An infinite difference has the highest rank. p is
    exact, also with ties and for any number of heads, where SciPy permutes signs for seconds, or takes a normal
    distribution: each rank counts or not with a chance of one half, so chances of their sum are a convolution.
    """
    differences = differences[differences != 0]
    doubled = np.rint(2 * rankdata(np.abs(differences))).astype(int)  # whole numbers, also with ties
    chance = np.ones(1)
    for rank in doubled:
        chance = (np.pad(chance, (0, rank)) + np.pad(chance, (rank, 0))) / 2
    found = doubled[differences > 0].sum()
    return min(1.0, 2 * float(min(chance[: found + 1].sum(), chance[found:].sum())))


def holm(p: np.ndarray) -> np.ndarray:
    """(T,) p of one family of tests -> (T,) adjusted after Holm, "A simple sequentially rejective procedure", 1979."""
    order = np.argsort(p)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(np.maximum.accumulate((len(p) - np.arange(len(p))) * p[order]), 1)
    return adjusted


def ranks(means: np.ndarray, higher_is_better: bool) -> np.ndarray:
    """(..., M) -> (..., M) int: 1 is the best; methods that are equal share the better rank."""
    return rankdata(-means if higher_is_better else means, method="min", axis=-1).astype(int)
