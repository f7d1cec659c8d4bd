"""Linear interpolation in a volume that is mostly empty, as a skull is: only where there is something near."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import map_coordinates


class Interpolator:
    """The values of a volume between its points, exactly as `map_coordinates` of order 1 has them; 0 beyond its grid.

    values: (I, J, K) of any type, not negative. A look-up finds the places where all eight points around are 0, which
    takes a fifth of the time that the interpolation there would.
    """

    def __init__(self, values: np.ndarray) -> None:
        self._values = values
        near = values > 0
        for axis in range(3):
            along = np.moveaxis(near, axis, 0)
            along[:-1] |= along[1:]
        self._near = near.ravel()  # in C order, whatever that of the values

    def __call__(self, index: np.ndarray) -> np.ndarray:
        """(3, ...) float continuous index -> (...) float32."""
        shape = self._values.shape
        last = np.reshape(shape, (3, *[1] * (index.ndim - 1))).astype(index.dtype) - 1
        i, j, k = np.clip(index, 0, last).astype(np.int32)
        near = self._near[(i * np.int32(shape[1]) + j) * np.int32(shape[2]) + k]
        found = np.zeros(near.shape, np.float32)
        found[near] = map_coordinates(self._values, index[:, near], order=1, output=np.float32)
        return found
