"""Between points and a cubic grid: average voxelisation and trilinear devoxelisation (Liu et al. 2019, PVCNN).

Voxel coordinates are continuous, [0, r - 1] along x, y, z; a cell's value sits at its integer coordinate, and grid
axes are (x, y, z). Coordinates outside are clamped to the grid by both functions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def voxelize_mean(features: Tensor, coords: Tensor, r: int) -> Tensor:
    """Average of the points nearest to each cell; empty cells are 0.

    features (B, C, N), coords (B, N, 3) voxel coordinates -> (B, C, r, r, r) of the features' dtype. Halves round to
    the even cell. Differentiable in the features; the coordinates only choose the cell and get no gradient.
    """
    cell = coords.detach().round().clamp(0, r - 1).long()
    index = (cell[..., 0] * r + cell[..., 1]) * r + cell[..., 2]  # (B, N)
    # Half precision stops counting at 256 (bf16) and scatter demands equal dtypes: sum in float32 at least.
    wide = features.to(torch.promote_types(features.dtype, torch.float32))
    batch, channels, _ = features.shape
    total = wide.new_zeros(batch, channels, r**3).scatter_add(2, index[:, None].expand(-1, channels, -1), wide)
    count = wide.new_zeros(batch, r**3).scatter_add(1, index, torch.ones_like(index, dtype=wide.dtype))
    mean = total / count.clamp(min=1)[:, None]  # (B, C, r^3)
    return mean.to(features.dtype).unflatten(2, (r, r, r))


def devoxelize_trilinear(grid: Tensor, coords: Tensor) -> Tensor:
    """Trilinear interpolation of the eight cells around each point.

    grid (B, C, r, r, r), coords (B, N, 3) voxel coordinates -> (B, C, N) of the grid's dtype. Differentiable in both.
    """
    # Coordinates in half precision would be off by a large part of a cell: interpolate in float32 at least.
    dtype = torch.promote_types(torch.promote_types(grid.dtype, coords.dtype), torch.float32)
    r = grid.shape[-1]
    place = coords.to(dtype).flip(-1) * (2 / max(r - 1, 1)) - 1  # grid_sample wants the last axis first, in [-1, 1]
    values = F.grid_sample(
        grid.to(dtype), place[:, :, None, None], mode="bilinear", padding_mode="border", align_corners=True
    )  # (B, C, N, 1, 1)
    return values[..., 0, 0].to(grid.dtype)
