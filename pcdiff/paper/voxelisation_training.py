"""Training of the point-to-volume network: implant points in, the Poisson field of the true surface out."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pcdiff.data import LoadedCase
from pcdiff.errors import InputError
from pcdiff.mesh import Mesh
from pcdiff.nets.voxelisation import VoxelisationNetwork
from pcdiff.paper.lattice import RESOLUTION, SPACING_MM, lattice_over
from pcdiff.reconstruct.dpsr import poisson_grid
from pcdiff.surface import sample_surface, volume_to_mesh
from pcdiff.volume import Volume

BATCH = 2
RATE = 5e-4  # Adam
POINTS = 3072
TRUE_POINTS = 100_000  # oriented points of the true surface: over one for each voxel face of an implant


class Pair(NamedTuple):
    """points: (N, 3) float32 in network units. field: (r, r, r) float32, `poisson_grid` of the true surface."""

    points: Tensor
    field: Tensor


def make_pair(
    case: LoadedCase,
    rng: np.random.Generator,
    spacing_mm: float = SPACING_MM,
    resolution: int = RESOLUTION,
    points: int = POINTS,
    faithful: bool = False,
) -> Pair:
    """A case as the network is trained on it, in the frame in which `volume_from_points` uses it.

    faithful: the implant's surface half a voxel outside of it, and the original's frame.

    InputError: an empty implant, or one that does not fit into the cube.
    """
    mesh = outer_surface(case.implant) if faithful else volume_to_mesh(case.implant)
    lattice = lattice_over(case.defective_skull, mesh.vertices, spacing_mm, resolution, faithful)
    # Sampled in the cube, so that density and normals are right there whatever the frame does to millimetres.
    inside = _outward(Mesh(lattice.to_network(mesh.vertices) * resolution, mesh.faces))
    few, many = sample_surface(inside, points, rng), sample_surface(inside, TRUE_POINTS, rng)
    place, normals = (torch.as_tensor(value, dtype=torch.float32)[None] for value in (many.points, many.normals))
    field = poisson_grid(place / resolution, normals, resolution)[0]
    return Pair(torch.as_tensor(few.points / resolution, dtype=torch.float32), field)


def training_step(network: VoxelisationNetwork, batch: Pair) -> Tensor:
    """Loss of a batch, points (B, N, 3) and field (B, r, r, r): mean square difference of tanh of the fields."""
    oriented, normals = network(batch.points)
    predicted = poisson_grid(oriented, normals, batch.field.shape[-1])
    return functional.mse_loss(predicted.tanh(), batch.field.tanh())


def outer_surface(volume: Volume) -> Mesh:
    """The original's surface of a mask: through the centres of the voxels around it, stairs and all; mm, LPS."""
    from skimage.measure import marching_cubes

    if not volume.mask.any():
        raise InputError("expected an implant to make a surface of, got an empty mask")
    spans = [np.flatnonzero(volume.mask.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    low = np.array([span[0] for span in spans])
    values = np.pad(volume.crop(low, np.array([span[-1] + 1 for span in spans])).mask, 2).astype(np.float32)
    # Exactly 0 would make the vertices of a cell fall together.
    vertices, faces, _, _ = marching_cubes(values, 1e-3, allow_degenerate=False)
    return _outward(Mesh(volume.to_mm(vertices.astype(np.float64) + low - 2), faces))


def _outward(mesh: Mesh) -> Mesh:
    return mesh if mesh.volume_ml > 0 else Mesh(mesh.vertices, mesh.faces[:, ::-1])
