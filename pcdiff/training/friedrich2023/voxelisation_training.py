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
) -> tuple[np.ndarray, np.ndarray]:
    """(points (N, 3) in network units, `poisson_grid` (r, r, r) of the true surface), float32, for one case.

    The frame is the one in which `volume_from_points` uses the network with the same arguments.

    InputError: an implant that does not fit into the cube.
    """
    shape = tuple(int(n) for n in surfaces.shape)
    lattice = lattice_over(shape, surfaces.affine, surfaces.implant, spacing_mm, resolution, faithful)
    place = lattice.to_network(surfaces.implant)
    # Not unit: so transformed, normals carry each point's area also where the frame stretches one axis.
    normals = surfaces.normals @ lattice.affine[:3, :3] / spacing_mm
    cloud, outward = (torch.as_tensor(value, dtype=torch.float32)[None] for value in (place, normals))
    field = poisson_grid(cloud, outward, resolution)[0]
    return place[rng.integers(len(place), size=points)].astype(np.float32), field.numpy()


def training_loss(network: VoxelisationNetwork, points: Tensor, truth: Tensor) -> Tensor:
    """Loss of a batch, points (B, N, 3) and truth (B, r, r, r): mean square difference of the fields' tanh."""
    oriented, normals = network(points)
    predicted = poisson_grid(oriented, normals, truth.shape[-1])
    return functional.mse_loss(predicted.tanh(), truth.tanh())
