"""Anyone's implant on the grid of its skull: a mask on the same lattice, or the inside of a mesh."""

from __future__ import annotations

import numpy as np

from pcdiff.errors import InputError
from pcdiff.geometry.grid import box_slices
from pcdiff.geometry.mesh import Mesh, mesh_to_mask
from pcdiff.geometry.volume import Volume

MAX_INDEX = 2**12  # see `mesh_to_mask`


def on_skull_grid(name: str, implant: Volume, skull: Volume) -> Volume:
    """The mask on the skull's own grid. Raises InputError, which calls it `name`, for a mask on another lattice."""
    try:
        placed = implant.on_grid_of(skull)
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    if placed is None:
        raise InputError(
            f"{name}: expected a mask on the skull's own grid or a part of it, got shape {implant.mask.shape} "
            f"beside {skull.mask.shape}, or other directions or origin; resample it to that grid, or give its STL"
        )
    return placed


def inside_mesh(mesh: Mesh, skull: Volume) -> Volume:
    """The voxels whose centre is inside a mesh, on the skull's grid; none for a mesh that is open or lies outside."""
    index = skull.to_index(mesh.vertices)
    low, high = np.floor(index.min(0)).astype(int), np.ceil(index.max(0)).astype(int) + 1
    mask = np.zeros_like(skull.mask)
    far = np.abs(index).max() >= MAX_INDEX
    if mesh.is_watertight and not far and (low < skull.mask.shape).all() and (high > 0).all():
        low, high = np.clip(low, 0, skull.mask.shape), np.clip(high, 0, skull.mask.shape)
        mask[box_slices(low, high)] = mesh_to_mask(mesh, skull.crop(low, high))
    return skull.with_mask(mask)
