"""Differentiable Poisson surface reconstruction in the unit cube, or only in a box around the solid.

Peng et al., Shape As Points (NeurIPS 2021), eq. 4 to 8, with the constants of Friedrich et al. (MICCAI 2023). Unlike in
`pcdiff.reconstruct.spectral`, the area of a point is the length of its normal, and the field is periodic.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.fft
import torch
from torch import Tensor
from torch.nn import functional

from pcdiff.geometry.trilinear import trilinear_corners

SIGMA = 2.0  # of the Gaussian, in cells of a grid of the given resolution
COARSENING = 4  # cells of the full grid along each side of a coarse cell, see `poisson_region`
BOX_MARGIN = 16  # cells around the points: four coarse cells, so that periodic images of the box are eight apart
EPSILON = 1e-6  # added to -|w|^2


@dataclass(frozen=True)
class Region:
    """Part of a Poisson grid: values (i, j, k) of the cells low <= index < low + shape; 0 at the surface."""

    values: Tensor
    low: np.ndarray


def poisson_grid(points: Tensor, normals: Tensor, resolution: int, sigma: float = SIGMA) -> Tensor:
    """Indicator field (B, r, r, r), axes (x, y, z), of each batch of points: negative inside, 0 at the surface.

    points: (B, N, 3) in [0, 1), where cell i is at i / r. normals: (B, N, 3) outward, of any length. Differentiable in
    both; float32 or float64, on the points' device.

    With w = 2 pi k and the splatted normals V: phi^ = i w . V^ g / (|w|^2 - 1e-6), g = exp(-(2 sigma |k| / r)^2 / 2).
    Then the mean at the points is subtracted, and the field is scaled so that cell (0, 0, 0), which is outside, is 0.5.
    """
    cells = points * resolution
    fields = []
    for index, normal in zip(cells, normals, strict=True):
        field = _potential(index, normal, (resolution,) * 3, resolution, sigma)
        field = field - _interpolate(field, index).mean()
        fields.append(-0.5 * field / field[0, 0, 0].abs())
    return torch.stack(fields)


@torch.no_grad()
def poisson_region(points: Tensor, normals: Tensor, resolution: int, sigma: float = SIGMA) -> Region:
    """`poisson_grid` of one cloud, points (N, 3) and normals (N, 3), on a box around the points only.

    The box has the cells of the full grid and is solved as if it were periodic. The error of this is harmonic around
    the points and therefore smooth. It is the difference of two solves on a grid four times coarser, full cube minus
    box. Adding it also restores the constant and the far field, which the scale needs.

    Raises ValueError for a resolution that is no multiple of 4.
    """
    if resolution % COARSENING:
        raise ValueError(f"resolution must be a multiple of {COARSENING}, got {resolution}")
    cells = points * resolution
    low, shape = _box(cells, resolution)
    coarse = resolution // COARSENING
    few = shape // COARSENING
    field = _potential(cells - cells.new_tensor(low), normals, tuple(shape), resolution, sigma)
    # In the coarse solves the normals are spread over larger cells.
    unit = COARSENING**-3
    corner = low // COARSENING
    cube = unit * _potential(cells / COARSENING, normals, (coarse,) * 3, coarse, sigma)
    box = unit * _potential(cells / COARSENING - cells.new_tensor(corner), normals, tuple(few), coarse, sigma)
    nodes = [torch.arange(n + 1, device=points.device) for n in few.tolist()]
    there = torch.meshgrid(*[(k + c) % coarse for k, c in zip(nodes, corner.tolist(), strict=True)], indexing="ij")
    here = torch.meshgrid(*[k % n for k, n in zip(nodes, few.tolist(), strict=True)], indexing="ij")
    missing = cube[there] - box[here]
    size = [int(n) + 1 for n in shape]
    field += functional.interpolate(missing[None, None], size, mode="trilinear", align_corners=True)[
        0, 0, :-1, :-1, :-1
    ]
    level = _interpolate(field, cells - cells.new_tensor(low)).mean()
    return Region((level - field) * (0.5 / (cube[0, 0, 0] - level).abs()), low)


def _box(cells: Tensor, resolution: int) -> tuple[np.ndarray, np.ndarray]:
    """(low, shape) of the box in cells: multiples of `COARSENING`, no longer than the cube. cells: (N, 3)."""
    low = (cells.amin(0).cpu().numpy() - BOX_MARGIN) // COARSENING * COARSENING
    size = cells.amax(0).cpu().numpy() + BOX_MARGIN + 1 - low
    few = [scipy.fft.next_fast_len(int(np.ceil(n / COARSENING)), real=True) for n in size]
    shape = np.minimum(np.array(few) * COARSENING, resolution)
    return np.where(shape == resolution, 0, low).astype(int), shape


def _potential(index: Tensor, normals: Tensor, shape: tuple[int, ...], resolution: int, sigma: float) -> Tensor:
    """Phi up to sign, constant and scale, on a periodic box of the given shape with cells of 1 / resolution.

    index: (N, 3) in cells from the corner of the box. normals: (N, 3).
    """
    flat, weight = trilinear_corners(index, shape, periodic=True)  # (N, 8) both
    frequency = [torch.fft.fftfreq(n, 1 / resolution, dtype=index.dtype, device=index.device) for n in shape[:2]]
    frequency.append(torch.fft.rfftfreq(shape[2], 1 / resolution, dtype=index.dtype, device=index.device))
    k = (frequency[0][:, None, None], frequency[1][:, None], frequency[2])
    w = [2 * torch.pi * f for f in k]
    blur = torch.exp(-0.5 * (2 * sigma * (k[0] ** 2 + k[1] ** 2 + k[2] ** 2).sqrt() / resolution) ** 2)
    divergence: Tensor | None = (
        None  # sum over the axes of w V^ g, in the original's order, since rounding is amplified
    )
    for axis in range(3):
        splat = index.new_zeros(shape).view(-1).index_add_(0, flat.view(-1), (weight * normals[:, None, axis]).view(-1))
        term = torch.fft.rfftn(splat.view(shape)).mul_(blur).mul_(w[axis])
        divergence = term if divergence is None else divergence.add_(term)
        del splat, term
    assert divergence is not None
    spectrum = divergence.mul_(-1j).div_(EPSILON - (w[0] ** 2 + w[1] ** 2 + w[2] ** 2))
    spectrum[0, 0, 0] = 0
    return torch.fft.irfftn(spectrum, s=shape)


def _interpolate(field: Tensor, index: Tensor) -> Tensor:
    """(N,) values of the periodic field at the points."""
    flat, weight = trilinear_corners(index, tuple(field.shape), periodic=True)  # (N, 8) both
    return (field.reshape(-1)[flat] * weight).sum(1)
