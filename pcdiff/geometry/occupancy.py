"""A skull reduced to about 1 mm: the share of bone in each block of voxels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pcdiff.errors import InputError
from pcdiff.geometry.grid import bounding_box, box_slices
from pcdiff.geometry.volume import Volume

HEAD_SPACING_MM = 0.9  # the block size aimed at; half a millimetre of bone still shows in the mean of a block
HEAD_MARGIN = 2  # blocks of air around the bone


@dataclass(frozen=True)
class Head:
    """A skull at about 0.9 mm, cropped to its bone.

    occupancy: (I, J, K) uint8, 255 times the share of bone in each block of voxels.
    affine:    (4, 4) float64, block index -> mm of the block's centre, LPS.

    There is air around the bone, except where the scan ends: bone in the array's first or last layer reaches beyond the
    field of view. Raises ValueError for another shape or type.
    """

    occupancy: np.ndarray
    affine: np.ndarray
    name: str

    def __post_init__(self) -> None:
        if self.occupancy.ndim != 3 or self.occupancy.dtype != np.uint8:
            raise ValueError(f"occupancy must be 3D uint8, got {self.occupancy.ndim}D {self.occupancy.dtype}")
        if self.affine.shape != (4, 4):
            raise ValueError(f"affine must have shape (4, 4), got {self.affine.shape}")


def head_occupancy(volume: Volume, name: str = "") -> Head:
    """The mean of the mask over blocks of about 0.9 mm, cropped to the bone and two blocks around it.

    An axis of 0.45 mm is averaged in twos, one of 0.7 mm or more is kept. Where the last block reaches beyond the grid,
    air is assumed. Loose pieces of bone stay. Raises InputError for an empty mask.
    """
    factor = np.maximum(1, np.round(HEAD_SPACING_MM / volume.spacing)).astype(int)  # (3,)
    low, high = bounding_box(volume.mask)
    if not (high > low).all():
        raise InputError(f"{name or 'skull'}: expected a mask of bone, got an empty one; check the file")
    low = np.maximum(low - HEAD_MARGIN * factor, 0)
    high = high + HEAD_MARGIN * factor
    bone = volume.mask[box_slices(low, high)]

    block = math.prod(factor.tolist())
    counts = bone.view(np.uint8) if block <= 255 else bone.astype(np.uint16)
    # The slowest axis first: it adds whole rows in memory and leaves less for the strided sums along the others.
    for axis in np.argsort(counts.strides)[::-1]:
        counts = _block_sums(counts, int(axis), int(factor[axis]))
    share = np.round(np.arange(block + 1) * (255 / block)).astype(np.uint8)

    affine = volume.affine.astype(np.float64)
    affine[:3, :3] *= factor
    # The centre of a block of n voxels lies (n - 1) / 2 voxels beyond the centre of its first.
    affine[:3, 3] = volume.to_mm(low + (factor - 1) / 2)
    return Head(np.ascontiguousarray(share[counts]), affine, name)


def _block_sums(counts: np.ndarray, axis: int, factor: int) -> np.ndarray:
    """Sums over blocks of `factor` along an axis; the last block may be shorter. Memory order is kept."""
    if factor == 1:
        return counts
    along = np.moveaxis(counts, axis, 0)
    sums = along[::factor].copy(order="K")
    for offset in range(1, factor):
        rest = along[offset::factor]
        sums[: len(rest)] += rest
    return np.moveaxis(sums, 0, axis)
