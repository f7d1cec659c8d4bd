"""Trilinear interpolation weights on a regular grid, for numpy arrays and torch tensors alike."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    Array = TypeVar("Array", np.ndarray, Tensor)


def trilinear_corners(index: Array, shape: Sequence[int], periodic: bool) -> tuple[Array, Array]:
    """The eight cells around each point of a grid, and the weights of their values.

    index: (..., 3) continuous cell coordinates. shape: (3,) cells of the grid. periodic: what lies beyond the grid is
    its other end; otherwise it is the outermost cell.

    Returns the flat index of each cell in C order, (..., 8) int64, and its weight, (..., 8) like `index`. Weights of
    tensors are differentiable in `index`.
    """
    xp: Any = np if isinstance(index, np.ndarray) else import_module("torch")
    low = xp.floor(index)
    fraction = index - low
    cell = low.astype(np.int64) if xp is np else low.long()
    x, y, z = (_pair(xp, cell[..., axis], shape[axis], periodic) for axis in range(3))  # (..., 2)
    flat = (x[..., :, None, None] * shape[1] + y[..., None, :, None]) * shape[2] + z[..., None, None, :]
    u, v, w = (xp.stack([1 - fraction[..., axis], fraction[..., axis]], -1) for axis in range(3))
    weight = u[..., :, None, None] * v[..., None, :, None] * w[..., None, None, :]
    eight = (*index.shape[:-1], 8)
    return flat.reshape(eight), weight.reshape(eight)


def _pair(xp: Any, cell: Any, count: int, periodic: bool) -> Any:
    """(...) int -> (..., 2): the cell below each coordinate and the one above it."""
    both = xp.stack([cell, cell + 1], -1)
    return xp.remainder(both, count) if periodic else xp.clip(both, 0, count - 1)
