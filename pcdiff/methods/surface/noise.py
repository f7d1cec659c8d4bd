"""Random smooth motions of space: the noise of the diffusion.

White noise would hide where each point is, but not where the surface is: the mean of a hundred noisy points shows it.
A motion that neighbouring points share hides the surface, so the network has to say where it is.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pcdiff.methods.surface.config import SurfaceDiffusionConfig

WAVES = 64  # of each length and direction; more make no visible difference


def normal_noise(
    positions: Tensor, normals: Tensor, config: SurfaceDiffusionConfig, generator: torch.Generator
) -> Tensor:
    """(B, N) of unit variance: Gaussian motions at positions (B, N, 3) mm, along normals (B, N, 3).

    Each motion is a sum of plane waves with random directions, phases and normal wave numbers (random Fourier features
    of the Gaussian kernel, Rahimi and Recht 2007), one set for each sample of the batch and each length.
    """
    total = torch.zeros_like(positions)
    for length, share in zip(config.lengths_mm, config.shares, strict=True):
        numbers, phases, amplitudes = _waves(len(positions), generator)
        angles = positions @ (numbers.to(positions) / length).mT + 2 * math.pi * phases.to(positions)[:, None]
        motion = torch.cos(angles) @ amplitudes.to(positions)
        total = total + motion * math.sqrt(share * 2 / WAVES)
    return (total * normals).sum(-1)


def _waves(batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """(B, W, 3) numbers, (B, W) phases, (B, W, 3) amplitudes.

    Drawn sample by sample, so that a larger ensemble begins with the members of a smaller one.
    """
    drawn = torch.stack([torch.randn(WAVES, 6, generator=generator) for _ in range(batch)])
    phases = torch.stack([torch.rand(WAVES, generator=generator) for _ in range(batch)])
    return drawn[..., :3], phases, drawn[..., 3:]
