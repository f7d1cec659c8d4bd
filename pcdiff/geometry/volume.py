"""A binary mask on the grid of its scan."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from pcdiff.errors import InputError
from pcdiff.geometry.grid import bounding_box, box_slices, nothing_like, voxels_per_mm

MAX_OFF_LATTICE = 0.02  # voxels, between places that are meant to be the same: headers round


@dataclass(frozen=True)
class Volume:
    """A binary mask on a regular, possibly oblique, possibly anisotropic grid.

    mask:   (I, J, K) bool, in the index order of the file; nothing is flipped.
    affine: (4, 4) float64, index (i, j, k) of a voxel's *centre* -> patient millimetres, LPS.
    header: the geometry as the file stores it, so that results are written onto exactly the same grid.
    loose:  (I, J, K) bool, what a CT shows as dense as bone beside the skull that is the mask; None for none.

    Raises InputError for another shape or type, and an affine that cannot be inverted.
    """

    mask: np.ndarray
    affine: np.ndarray
    header: dict[str, Any] | None = field(default=None, repr=False, compare=False)
    loose: np.ndarray | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name, value in (("mask", self.mask), ("affine", self.affine)):
            if not isinstance(value, np.ndarray):
                raise InputError(f"{name} must be a numpy array, got {type(value).__name__}; convert it")
        if self.mask.ndim != 3:
            raise InputError(f"mask must be 3D, got shape {self.mask.shape}")
        if self.mask.dtype != bool:
            raise InputError(f"mask must be bool, got {self.mask.dtype}; compare with a threshold")
        if self.affine.shape != (4, 4):
            raise InputError(f"affine must have shape (4, 4), got {self.affine.shape}")
        finite = np.isfinite(self.affine).all() and np.array_equal(self.affine[3], [0, 0, 0, 1])
        if not finite or np.linalg.det(self.affine[:3, :3]) == 0:
            raise InputError(
                f"affine must map voxel indices to mm, with last row 0 0 0 1, got {self.affine.tolist()}; build it "
                "from the scan's directions, spacing and origin"
            )

    @property
    def spacing(self) -> np.ndarray:
        """(3,) mm between voxel centres along each index axis: the column norms of the affine, not its diagonal."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    @property
    def voxels_per_mm(self) -> np.ndarray:
        """(3,) voxels that a step of 1 mm crosses at most along each index axis, see `grid.voxels_per_mm`."""
        return voxels_per_mm(self.affine[:3, :3])

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel in millilitres."""
        return float(abs(np.linalg.det(self.affine[:3, :3]))) / 1000.0

    @property
    def ml(self) -> float:
        """Volume of the mask in millilitres."""
        return float(np.count_nonzero(self.mask)) * self.voxel_ml

    def to_mm(self, index: np.ndarray) -> np.ndarray:
        """(..., 3) continuous voxel index -> (..., 3) mm."""
        return index @ self.affine[:3, :3].T + self.affine[:3, 3]

    def to_index(self, points: np.ndarray) -> np.ndarray:
        """(..., 3) mm -> (..., 3) continuous voxel index; the inverse of `to_mm`."""
        return (points - self.affine[:3, 3]) @ np.linalg.inv(self.affine[:3, :3]).T

    def with_mask(self, mask: np.ndarray) -> Volume:
        """Another mask on the same grid, without what is loose. Raises ValueError for another shape."""
        if mask.shape != self.mask.shape:
            raise ValueError(f"mask must have the grid's shape {self.mask.shape}, got {mask.shape}")
        return replace(self, mask=mask, loose=None)

    def with_voxels(self, index: np.ndarray) -> Volume:
        """The mask of some voxels, (N, 3) int index, on the same grid."""
        mask = nothing_like(self.mask)
        mask[tuple(index.T)] = True
        return self.with_mask(mask)

    def crop(self, low: np.ndarray, high: np.ndarray) -> Volume:
        """The sub-grid low <= index < high, clipped to the grid. Its mask is a view, and it has no header."""
        low = np.clip(np.asarray(low, int), 0, self.mask.shape)
        high = np.clip(np.asarray(high, int), low, self.mask.shape)
        affine = self.affine.copy()
        affine[:3, 3] = self.to_mm(low.astype(float))
        return Volume(self.mask[box_slices(low, high)], affine)

    def on_grid_of(self, other: Volume) -> Volume | None:
        """The mask on another grid whose voxel centres lie on the same lattice; None where they do not.

        One of the grids may be a part of the other, and their axes may be swapped or reversed. Raises InputError if the
        mask holds voxels beyond the other grid.
        """
        steps = np.linalg.inv(other.affine[:3, :3]) @ self.affine[:3, :3]
        turn, first = np.rint(steps).astype(int), np.rint(other.to_index(self.affine[:3, 3]))
        if not (np.abs(turn).sum(axis=0) == 1).all() or not (np.abs(turn).sum(axis=1) == 1).all():
            return None
        ends = np.array([[0, 0, 0], *np.diag(np.array(self.mask.shape) - 1)])
        places = first + ends @ turn.T  # of the first voxel, and of the last one along each axis
        if np.abs(other.to_index(self.to_mm(ends)) - places).max() > MAX_OFF_LATTICE:
            return None
        index = first.astype(int) + np.argwhere(self.mask) @ turn.T
        if ((index < 0) | (index >= other.mask.shape)).any():
            raise InputError("expected a mask inside the scan, got one that reaches beyond it; use the scan's own grid")
        return other.with_voxels(index)

    def unlike(self, other: Volume) -> str:
        """Why `on_grid_of` finds no place on another grid, in words: sizes of voxels, directions of axes, or places."""
        allowed = MAX_OFF_LATTICE / max(self.mask.shape)  # voxels a step
        own, others = (np.sort(volume.spacing) for volume in (self, other))
        if not np.allclose(own, others, rtol=allowed):
            sizes = [" x ".join(f"{mm:.6g}" for mm in volume.spacing) for volume in (self, other)]
            return f"voxels of {sizes[0]} mm beside {sizes[1]} mm"
        steps = np.linalg.inv(other.affine[:3, :3]) @ self.affine[:3, :3]
        if np.abs(steps - np.rint(steps)).max() > allowed:
            return "axes in other directions"
        place = other.to_index(self.affine[:3, 3])
        return f"voxels that lie {np.linalg.norm((place - np.rint(place)) * other.spacing):.2g} mm beside its own"

    def with_crop(self, crop: np.ndarray, low: np.ndarray) -> Volume:
        """The whole grid with (i, j, k) bool `crop` on the voxels from index `low` on, and nothing elsewhere."""
        mask = nothing_like(self.mask)
        first, last = bounding_box(crop)  # the rest of the crop, often in another memory order, takes longer to copy
        mask[box_slices(low + first, low + last)] = crop[box_slices(first, last)]
        return self.with_mask(mask)
