"""Nearest points of a tree, on all cores."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
from scipy.spatial import cKDTree

from pcdiff.environment import cpu_count

FEW = 10_000  # points for which threads are not worth while


def nearest(tree: cKDTree, points: np.ndarray, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """Distances and indices as `tree.query(points, **options)` has them; points: (N, 3).

    Not by its `workers`: a signal that ends the call, such as Ctrl-C, frees the arrays into which those threads still
    write, and the process crashes. Here they are waited for.
    """
    parts = np.array_split(points, 1 if len(points) < FEW else cpu_count() or 1)
    with ThreadPoolExecutor(len(parts)) as pool:
        distances, indices = zip(*pool.map(partial(tree.query, **options), parts), strict=True)
    return np.concatenate(distances), np.concatenate(indices)
