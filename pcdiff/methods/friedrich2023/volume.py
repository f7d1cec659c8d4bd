"""Second stage of the published method: implant points -> the implant as a volume on the skull's grid."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage
from torch.nn import functional

from pcdiff.errors import InputError
from pcdiff.geometry.grid import box_slices, largest_components
from pcdiff.geometry.volume import Volume
from pcdiff.methods.friedrich2023.clean import ball, defects_of, piece_per_defect, smoothed, within_reach
from pcdiff.methods.friedrich2023.lattice import RESOLUTION, SPACING_MM, Lattice, lattice_over
from pcdiff.methods.friedrich2023.voxelisation import VoxelisationNetwork
from pcdiff.reconstruct.dpsr import poisson_region

CROSS = ndimage.generate_binary_structure(3, 1)
OUTSIDE = 0.5  # voxels from the bone's surface to the points
PADDING = 3  # voxels around a mask: wider than the windows of the clean-up


def volume_from_points(
    samples: np.ndarray | Sequence[np.ndarray],
    skull: Volume,
    network: VoxelisationNetwork,
    spacing_mm: float = SPACING_MM,
    resolution: int = RESOLUTION,
    faithful: bool = False,
) -> Volume:
    """The implant on the defective skull's grid, from one sample of implant points or the majority of several.

    By default the method is corrected: the true affine of the scan; points moved inwards by half a voxel, no dilation;
    voxels of the skull removed before and after the clean-up; one piece for each defect. Either way the Poisson problem
    is solved around the points, not in the whole cube.

    Args:
        samples: (N, 3) mm, LPS, or several of them.
        skull: the defective skull.
        network: in evaluation mode, on the device to compute on.
        spacing_mm: of the cube that the network was trained in; 0.4 for SkullBreak's weights.
        resolution: of that cube, voxels along a side.
        faithful: as in the original: its frame; one dilation; a difference of 0/1 masks, whose -1 counts as implant;
            the largest piece only.

    Raises:
        InputError: points of another shape, not finite or outside the cube, or points that enclose no solid.
    """
    clouds = [samples] if isinstance(samples, np.ndarray) and samples.ndim == 2 else list(samples)
    for cloud in clouds:
        if cloud.ndim != 2 or cloud.shape[1] != 3 or len(cloud) == 0 or not np.isfinite(cloud).all():
            raise InputError(f"expected finite implant points of shape (N, 3), N > 0, in mm, got {cloud.shape}")
    if not clouds:
        raise InputError("expected at least one sample of implant points, got none")
    points = np.concatenate(clouds)
    lattice = lattice_over(skull.mask.shape, skull.affine, points, spacing_mm, resolution, faithful)
    index = resolution * lattice.to_network(points)
    solid, low = _majority([solid_of(lattice.to_network(cloud), network, resolution, faithful) for cloud in clouds])
    if faithful:
        implant, low = _published(solid, low, index, skull, lattice)
        implant, low = _on_grid_of(skull, lattice, implant, low, order=0)
    else:
        defect = defects_of(points)  # strays, labelled 0, must neither widen the ball nor select a piece
        at = index - low
        implant = solid & ~_skull_on(lattice, skull, low, solid.shape) & within_reach(solid.shape, at[defect > 0])
        implant = smoothed(implant, lambda mask: piece_per_defect(mask, at, defect))
        implant, low = _on_grid_of(skull, lattice, implant, low, order=1)
        implant = piece_per_defect(
            implant & ~skull.crop(low, low + implant.shape).mask, skull.to_index(points) - low, defect
        )
    if not implant.any():
        raise InputError(
            "expected points that enclose a solid in the defect, got none; check that the weights are trained"
        )
    return skull.with_crop(implant, low)


@torch.no_grad()
def solid_of(
    units: np.ndarray, network: VoxelisationNetwork, resolution: int, faithful: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Points (N, 3) in network units -> (mask, low): phi <= 0 on the box around them, which starts at voxel `low`.

    The points of the published method lie half a voxel outside the bone (marching cubes at 0 of a 0/1 mask) and are
    moved back along the normals. faithful: they are not moved, and the mask is dilated by one more voxel.
    """
    parameter = next(network.parameters())
    oriented, normals = network(torch.as_tensor(units, dtype=parameter.dtype, device=parameter.device)[None])
    if not faithful:
        oriented = oriented - functional.normalize(normals, dim=-1) * (OUTSIDE / resolution)
    region = poisson_region(oriented[0], normals[0], resolution)
    mask = (region.values <= 0).cpu().numpy()
    return (ndimage.binary_dilation(mask, CROSS) if faithful else mask), region.low


def _majority(solids: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """(mask, low): voxels in more than half of the solids, on the common box with a margin around it."""
    low = np.min([low for _, low in solids], axis=0) - PADDING
    high = np.max([low + mask.shape for mask, low in solids], axis=0) + PADDING
    votes = np.zeros(tuple(high - low), np.uint8)
    for mask, start in solids:
        votes[box_slices(start - low, start - low + mask.shape)] += mask
    return votes > len(solids) / 2, low


def _published(
    solid: np.ndarray, low: np.ndarray, index: np.ndarray, skull: Volume, lattice: Lattice
) -> tuple[np.ndarray, np.ndarray]:
    """(mask, low) on the lattice by the original's steps, with its error: bone within the ball counts as implant."""
    centre, reach = ball(index)
    start = np.minimum(low, np.floor(centre - reach).astype(int) - PADDING)
    stop = np.maximum(low + solid.shape, np.ceil(centre + reach).astype(int) + 1 + PADDING)
    mask = np.pad(solid, list(zip(low - start, stop - low - solid.shape, strict=True)))
    difference = mask.astype(np.int8) - _skull_on(lattice, skull, start, mask.shape)
    mask = (difference != 0) & within_reach(mask.shape, index - start)
    return largest_components(smoothed(mask, largest_components)), start


def _skull_on(lattice: Lattice, skull: Volume, low: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The skull's nearest voxel for each lattice voxel low <= index < low + shape; air beyond the scan."""
    there = np.linalg.inv(lattice.from_index_of(skull))  # lattice index -> scan index
    return _resampled(skull.mask, there, low, shape, order=0) > 0


def _on_grid_of(
    skull: Volume, lattice: Lattice, mask: np.ndarray, low: np.ndarray, order: int
) -> tuple[np.ndarray, np.ndarray]:
    """A mask on a box of the lattice -> (mask, low) on a box of the skull's grid.

    order 0: the value of the nearest voxel. 1: whether the trilinear value exceeds a half.
    """
    there = lattice.from_index_of(skull)  # scan index -> lattice index
    back = np.linalg.inv(there)
    corners = low + np.array(list(np.ndindex(2, 2, 2))) * np.array(mask.shape)
    reached = corners @ back[:3, :3].T + back[:3, 3]
    start = np.clip(np.floor(reached.min(0)), 0, skull.mask.shape).astype(int)
    stop = np.clip(np.ceil(reached.max(0)) + 1, start, skull.mask.shape).astype(int)
    there[:3, 3] -= low
    return _resampled(mask, there, start, tuple(stop - start), order) > 0.5, start


def _resampled(mask: np.ndarray, there: np.ndarray, low: np.ndarray, shape: tuple[int, ...], order: int) -> np.ndarray:
    """Values of the mask at `there` (4, 4) applied to the indices low <= index < low + shape."""
    offset = there[:3, :3] @ low + there[:3, 3]
    values = mask.view(np.uint8) if order == 0 else mask.astype(np.float32)
    return ndimage.affine_transform(values, there[:3, :3], offset, shape, order=order, prefilter=False)
