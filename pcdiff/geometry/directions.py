"""Unit vectors and axes at right angles to them."""

from __future__ import annotations

import numpy as np


def unit(vectors: np.ndarray) -> np.ndarray:
    """(N, 3) -> (N, 3) of length 1; a zero vector stays zero."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-30)


def orthonormal_pair(direction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(..., 3) unit vectors -> two unit vectors each, at right angles to them and to each other."""
    first = np.cross(direction, np.eye(3)[np.abs(direction).argmin(-1)])
    # Without an axis numpy sums the squares in another order: the last bit differs, and so would stored results.
    first /= np.linalg.norm(first) if first.ndim == 1 else np.linalg.norm(first, axis=-1, keepdims=True)
    return first, np.cross(direction, first)
