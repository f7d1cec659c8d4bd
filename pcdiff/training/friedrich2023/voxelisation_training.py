"""Training of the point-to-volume network: implant points in, the Poisson field of the true surface out."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pcdiff.methods.friedrich2023.lattice import lattice_over
from pcdiff.methods.friedrich2023.voxelisation import VoxelisationNetwork
from pcdiff.reconstruct.dpsr import poisson_grid
from pcdiff.training.friedrich2023.data import Surfaces


def voxelisation_sample(
    surfaces: Surfaces,
    points: int,
    resolution: int,
    rng: np.random.Generator,
    spacing_mm: float,
    faithful: bool = False,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points (N, 3) to give the network, the true surface (M, 3) and its normals (M, 3) of one case, float32.

    All are in network units, in the frame in which `volume_from_points` uses the network with the same arguments.
    Raises InputError for an implant that does not fit into the cube.
    """
    shape = tuple(int(n) for n in surfaces.shape)
    lattice = lattice_over(shape, surfaces.affine, surfaces.implant, spacing_mm, resolution, faithful)
    surface = lattice.to_network(surfaces.implant)
    # Not unit: so transformed, normals carry each point's area also where the frame stretches one axis.
    normals = surfaces.normals @ lattice.affine[:3, :3] / spacing_mm
    chosen = surface[rng.integers(len(surface), size=points)]
    return chosen.astype(np.float32), surface.astype(np.float32), normals.astype(np.float32)


@torch.no_grad()
def target_field(surface: Tensor, normals: Tensor, resolution: int) -> Tensor:
    """The field that the network is trained towards: `poisson_grid` of surface and normals (B, M, 3) -> (B, r, r, r).

    Case by case: at full size the solve for one takes gigabytes.
    """
    cases = zip(surface.split(1), normals.split(1), strict=True)
    return torch.cat([poisson_grid(points, outward, resolution) for points, outward in cases])


def training_loss(network: VoxelisationNetwork, points: Tensor, truth: Tensor) -> Tensor:
    """Loss of a batch, points (B, N, 3) and truth (B, r, r, r): mean square difference of the fields' tanh."""
    oriented, normals = network(points)
    predicted = poisson_grid(oriented, normals, truth.shape[-1])
    return functional.mse_loss(predicted.tanh(), truth.tanh())
