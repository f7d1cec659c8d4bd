"""Linear interpolation in a volume that is mostly empty, as a skull is: only where there is something near."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import map_coordinates

AT_A_TIME = 2**17  # places: a core's cache holds their coordinates


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
        _, rows, columns = (np.int32(n) for n in self._values.shape)
        places = index.reshape(3, -1)
        last = np.array(self._values.shape, index.dtype)[:, None] - 1
        found = np.zeros(places.shape[1], np.float32)
        for first in range(0, len(found), AT_A_TIME):
            some = places[:, first : first + AT_A_TIME]
            i, j, k = np.clip(some, 0, last).astype(np.int32)
            near = np.flatnonzero(self._near[(i * rows + j) * columns + k])
            found[first + near] = map_coordinates(self._values, some[:, near], order=1, output=np.float32)
        return found.reshape(index.shape[1:])
