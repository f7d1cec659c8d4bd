"""Anyone's implant on the grid of its skull: a mask on the same lattice, or the inside of a mesh."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np

from pcdiff.errors import InputError
from pcdiff.geometry.grid import box_slices
from pcdiff.geometry.mesh import Mesh, mesh_to_mask
from pcdiff.geometry.mesh_reading import is_mesh, read_mesh
from pcdiff.geometry.volume import Volume
from pcdiff.imaging.volumes import EmptyMask, FullMask, NotAMask, read_label, read_volume

MAX_INDEX = 2**12  # see `mesh_to_mask`
SAMPLES = 20_000  # vertices of a skull's surface that show its axes
DRAW = "draw it in a segment editor (3D Slicer, ITK-SNAP) and save that segment alone, as zeros and ones"
OTHER_AXES = "--mesh-space ras, or mesh_space: in a data set's YAML, reads the other axes"
ON_BONE = 0.8  # share of them beside bone: 0.98 for three SkullFix heads; 0.27 in wrong axes, 0.50 off by 2 mm


def read_implant(
    path: Path,
    skull: Volume,
    space: str | None = None,
    label: str | None = None,
    skull_mesh: Path | None = None,
    other_axes: str = OTHER_AXES,
) -> Volume:
    """A mask or a mesh as a mask on the skull's own grid.

    Args:
        path: The file; its suffix tells a mesh.
        skull: On whose grid.
        space: Of a mesh, `lps` or `ras`; None takes what the file says, else LPS.
        label: Of a mask with several labels.
        skull_mesh: The surface of `skull` in the mesh's own axes. The axes in which it lies on the bone are taken.
        other_axes: What an error advises for a mesh in other axes than LPS.

    Raises:
        InputError: A file that cannot be read, a mask on another lattice, an open mesh, one outside of the scan, and a
            surface of the skull that lies on its bone in no axes.
    """
    if not is_mesh(path):
        chosen = None if label is None else read_label(path, label)
        mask = read_other_mask(path, "an implant") if chosen is None else Volume(chosen[0], chosen[1].affine)
        return on_skull_grid(str(path), mask, skull, ", or give its STL")
    mesh = read_mesh(path, "lps" if skull_mesh else space)
    if not mesh.is_watertight:
        raise InputError(f"{path}: expected a closed surface, got one with open edges, which has no inside; close it")
    if skull_mesh is not None:
        if not skull_mesh.exists():
            raise InputError(
                f"{skull_mesh}: expected the surface of the skull, which shows the axes of {path.name}, found none; "
                "copy it there, or describe the data set by a YAML file with mesh_space: lps or ras"
            )
        to_index = _axes_of(skull_mesh, skull)
        mesh = Mesh(skull.to_mm(to_index(mesh.vertices)), mesh.faces)
    implant = inside_mesh(mesh, skull)
    if not implant.mask.any():
        raise InputError(
            f"{path}: expected an implant inside the scan, got one that holds none of its voxels; is it in LPS "
            f"millimetres? {other_axes}"
        )
    return implant


def read_region(path: Path, skull: Volume) -> Volume:
    """The mask of a region on the skull's own grid. Raises InputError for another file, lattice, or an empty mask."""
    return on_skull_grid(str(path), read_other_mask(path, "the region to be closed"), skull)


def read_other_mask(path: Path, what: str) -> Volume:
    """A mask of something else than bone, which the errors call `what`. Errors as `read_volume`."""
    try:
        return read_volume(path)
    except EmptyMask as error:
        raise EmptyMask(
            f"{path}: expected a mask of {what}, got one whose voxels are all 0; was another segment saved?"
        ) from error
    except FullMask as error:
        raise FullMask(
            f"{path}: expected a mask of {what}, 0 outside, got one without any voxel of 0: it covers its whole image; "
            f"{DRAW}"
        ) from error
    except NotAMask as error:
        raise NotAMask(
            path,
            f"a mask of {what}, 0 outside and one other value inside",
            error.got,
            DRAW,
        ) from error


def _axes_of(path: Path, skull: Volume) -> Callable[[np.ndarray], np.ndarray]:
    """Coordinates of a skull's own surface -> voxel index, (N, 3) each, in the axes in which it lies on the bone."""
    axes: list[Callable[[np.ndarray], np.ndarray]] = [
        skull.to_index,  # LPS
        lambda points: skull.to_index(points * [-1, -1, 1]),  # RAS
        lambda points: points / skull.spacing,  # mm from the first voxel, along the axes of the grid
        lambda points: points,  # voxels
    ]
    vertices = read_mesh(path, "lps").vertices
    vertices = vertices[:: len(vertices) // SAMPLES + 1]
    shares = [_share_on_bone(to_index(vertices), skull.mask) for to_index in axes]
    best = int(np.argmax(shares))
    if shares[best] < ON_BONE:
        raise InputError(
            f"{path}: expected the surface of the skull beside it, got one of whose vertices {shares[best]:.0%} lie on "
            "its bone at most, in LPS, RAS, or millimetres or voxels of the grid; is it another skull's?"
        )
    return axes[best]


def _share_on_bone(index: np.ndarray, mask: np.ndarray) -> float:
    """The share of points (N, 3), as voxel indices, that have both bone and no bone among their 27 nearest voxels."""
    nearest = np.rint(index).astype(int)
    inside = ((nearest > 0) & (nearest < np.array(mask.shape) - 1)).all(axis=1)
    near = [mask[tuple((nearest[inside] + step).T)] for step in product((-1, 0, 1), repeat=3)]
    return float((np.any(near, axis=0) & ~np.all(near, axis=0)).sum() / len(index))


def on_skull_grid(name: str, implant: Volume, skull: Volume, otherwise: str = "") -> Volume:
    """The mask on the skull's own grid.

    Raises InputError for a mask on another lattice; it calls it `name`, and ends with what to do `otherwise`.
    """
    try:
        placed = implant.on_grid_of(skull)
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    if placed is None:
        raise InputError(
            f"{name}: expected a mask on the skull's own grid or a part of it, got {implant.unlike(skull)}; "
            f"resample it to that grid{otherwise}"
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
