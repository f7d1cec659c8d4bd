"""The losses of one training step of the published model's two networks."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from pcdiff.diffusion.schedule import linear_sigmas
from pcdiff.methods.friedrich2023.config import PaperConfig
from pcdiff.methods.friedrich2023.denoiser import PaperDenoiser
from pcdiff.methods.friedrich2023.sampling import LEVELS
from pcdiff.methods.friedrich2023.voxelisation import VoxelisationNetwork
from pcdiff.training.friedrich2023.voxelisation_training import target_field, training_loss


class DenoiserStep(nn.Module):
    """Squared error of the predicted noise of the implant points (Ho et al. 2020, Equation 14)."""

    def __init__(self, config: PaperConfig) -> None:
        super().__init__()
        self.network = PaperDenoiser(config.network)
        self.sigmas = linear_sigmas(LEVELS)

    def forward(self, skull: Tensor, implant: Tensor, seed: Tensor) -> Tensor:
        """Skull (B, S, 3), implant (B, P, 3), network units; seed (B,) on the CPU -> scalar."""
        generator = torch.Generator().manual_seed(int(seed[0]))
        t = torch.randint(LEVELS, (len(skull),), generator=generator)
        noise = torch.randn(implant.shape, generator=generator).to(implant)
        sigma = self.sigmas[t].to(implant)[:, None, None]
        noisy = (implant + sigma * noise) * (1 + sigma**2).rsqrt()
        predicted = self.network(torch.cat([skull, noisy], 1), t.to(skull.device))
        return functional.mse_loss(predicted, noise)


class VoxelisationStep(nn.Module):
    """Difference between the field of the network's oriented points and that of the true surface."""

    def __init__(self, resolution: int) -> None:
        super().__init__()
        self.network = VoxelisationNetwork()
        self.resolution = resolution

    def forward(self, points: Tensor, surface: Tensor, normals: Tensor, seed: Tensor) -> Tensor:
        """Points (B, N, 3), true surface and normals (B, M, 3), network units -> scalar. The seed is not used."""
        return training_loss(self.network, points, target_field(surface, normals, self.resolution))
