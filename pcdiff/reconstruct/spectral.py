"""Spectral Poisson reconstruction: one FFT solve turns oriented points into an indicator on the scan's own grid."""

from __future__ import annotations

import numpy as np
import scipy.fft
from scipy.ndimage import map_coordinates

from pcdiff.geometry.grid import box_slices
from pcdiff.geometry.nearest import nearest, search_tree
from pcdiff.geometry.points import PointCloud
from pcdiff.geometry.trilinear import trilinear_corners
from pcdiff.geometry.volume import Volume

AREA_NEIGHBOURS = 16
SIGMA_IN_VOXELS = 0.8  # with less the trilinear splat shows as ripples on the surface
SIGMA_IN_SPACINGS = 0.8  # with less there are dimples between randomly placed points


def local_areas(points: PointCloud) -> np.ndarray:
    """(N,) mm^2 of surface that each point represents: pi d_k^2 / m, at any density.

    d_k is the distance to the k-th neighbour, m the number of these neighbours on the same sheet. The other table of a
    thin bone has opposite normals and does not count; a surface at a right angle does.
    """
    k = min(AREA_NEIGHBOURS, len(points) - 1)
    distance, index = nearest(search_tree(points.points), points.points, k=k + 1)
    cosine = np.einsum("nkc,nc->nk", points.normals[index[:, 1:]], points.normals)
    same_sheet = np.count_nonzero(cosine > -0.5, axis=1)
    return np.pi * distance[:, -1] ** 2 / np.maximum(same_sheet, 1)


def smoothing_sigma(areas: np.ndarray, spacing: np.ndarray) -> float:
    """Standard deviation of the Gaussian, mm: 0.8 of the longest voxel edge or of the points' spacing, if larger."""
    return float(max(SIGMA_IN_VOXELS * spacing.max(), SIGMA_IN_SPACINGS * np.sqrt(np.median(areas))))


def solve(
    points: PointCloud, skull: Volume, low: np.ndarray, high: np.ndarray, sigma: float | None = None
) -> np.ndarray:
    """Indicator of the solid that the points enclose: (high - low) float32, ~1 inside, ~0 outside, 0.5 at the surface.

    Solves laplace(chi) = -div(V), V = sum_i a_i n_i delta(x - x_i), in Fourier space (Peng et al., Shape As Points,
    NeurIPS 2021, eq. 4 to 6), in index coordinates u with x = A u + t and k_x = A^-T k_u:

        chi^(k) = i k_u . (A^-1 V)^ / (k_u . G k_u) * exp(-sigma^2 (k_u . G k_u) / 2),   G = A^-1 A^-T

    So oblique, anisotropic and even sheared grids need no resampling, and sigma is isotropic in mm.

    Args:
        points: A closed surface with outward normals; its density may vary.
        skull: Only its grid is used; the affine may be any.
        low: (3,) first index of the region on the skull's grid.
        high: (3,) index after the last of the region.
        sigma: Standard deviation of the smoothing, mm; by default that of `smoothing_sigma`.

    Raises:
        ValueError: Normals that point inward, or fewer than four points.
    """
    if len(points) < 4:
        raise ValueError(f"a closed surface needs at least 4 points, got {len(points)}")
    areas = local_areas(points)
    if sigma is None:
        sigma = smoothing_sigma(areas, skull.spacing)
    inverse = np.linalg.inv(skull.affine[:3, :3])
    index = skull.to_index(points.points)
    flux = (points.normals * areas[:, None]) @ inverse.T * abs(np.linalg.det(inverse))  # A^-1 V per unit index volume

    # The solver's box holds all points, also those outside the region or the scan, and padding since it is periodic.
    padding = 4.0 * sigma * skull.voxels_per_mm + 2.0
    start = np.floor(np.minimum(index.min(0), low) - padding).astype(int)
    stop = np.ceil(np.maximum(index.max(0), high) + padding).astype(int)
    shape = tuple(scipy.fft.next_fast_len(int(n), real=True) for n in stop - start)

    chi = _poisson(index - start, flux, shape, inverse @ inverse.T, sigma)
    at_points = np.median(map_coordinates(chi, (index - start).T, order=1))
    outside = np.median(np.concatenate([chi[0].ravel(), chi[:, 0].ravel(), chi[:, :, 0].ravel()]))
    if not at_points > outside:
        raise ValueError("normals must point out of the solid, got a surface that is denser outside; flip the normals")
    crop = chi[box_slices(low - start, high - start)]
    return (crop - outside) * np.float32(0.5 / (at_points - outside))


def _poisson(
    index: np.ndarray, flux: np.ndarray, shape: tuple[int, ...], metric: np.ndarray, sigma: float
) -> np.ndarray:
    """Chi up to a constant, float32 of the given shape. index, flux: (N, 3) in index coordinates; metric: G (3, 3)."""
    flat, weight = trilinear_corners(index, shape, periodic=True)  # (N, 8) both
    cells, corner = np.unique(flat, return_inverse=True)
    corner = corner.reshape(-1)
    k = [2 * np.pi * scipy.fft.fftfreq(n).astype(np.float32) for n in shape[:2]]
    k.append(2 * np.pi * scipy.fft.rfftfreq(shape[2]).astype(np.float32))
    k = list(np.meshgrid(*k, indexing="ij", sparse=True))

    spectrum = np.zeros((*shape[:2], shape[2] // 2 + 1), np.complex64)  # i k . V^
    for axis in range(3):
        grid = np.zeros(shape, np.float32)
        grid.ravel()[cells] = np.bincount(corner, (weight * flux[:, axis, None]).ravel(), len(cells))
        transformed = scipy.fft.rfftn(grid, workers=-1, overwrite_x=True)
        transformed *= 1j * k[axis]
        spectrum += transformed
        del grid, transformed

    square = np.zeros(spectrum.shape, np.float32)  # |k_x|^2
    for a in range(3):
        for b in range(a, 3):
            if metric[a, b] != 0:
                square += np.float32(metric[a, b] * (1 if a == b else 2)) * k[a] * k[b]
    square[0, 0, 0] = 1.0  # the mean is free: set by the calibration
    spectrum /= square
    square *= np.float32(-0.5 * sigma**2)
    spectrum *= np.exp(square, out=square)
    return scipy.fft.irfftn(spectrum, shape, workers=-1, overwrite_x=True)
