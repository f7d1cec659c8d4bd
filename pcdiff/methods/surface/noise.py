"""Random smooth motions of space: the noise of the diffusion.

White noise would hide where each point is, but not where the surface is: the mean of a hundred noisy points shows it.
A motion that neighbouring points share hides the surface, so the network has to say where it is.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pcdiff.methods.surface.config import SurfaceDiffusionConfig

WAVES = 64  # of each length; more make no visible difference
PHASE = 20.0  # standard deviation of the phases, many turns: as good as uniform


def normal_noise(
    positions: Tensor, normals: Tensor, config: SurfaceDiffusionConfig, generator: torch.Generator
) -> Tensor:
    """(B, N) of unit variance: Gaussian motions at positions (B, N, 3) mm, along normals (B, N, 3).

    Each motion is a sum of plane waves with random directions, phases and normal wave numbers (random Fourier features
    of the Gaussian kernel, Rahimi and Recht 2007), one set for each sample of the batch and each length.
    """
    # drawn sample by sample, so that a larger ensemble begins with the members of a smaller one
    drawn = torch.stack([torch.randn(len(config.lengths_mm), WAVES, 7, generator=generator) for _ in positions])
    total = torch.zeros_like(positions)
    for level, (length, share) in enumerate(zip(config.lengths_mm, config.shares, strict=True)):
        numbers, phases, amplitudes = drawn[:, level].to(positions).split([3, 1, 3], -1)
        angles = positions @ (numbers / length).mT + PHASE * phases.mT
        total = total + torch.cos(angles) @ amplitudes * math.sqrt(share * 2 / WAVES)
    return (total * normals).sum(-1)
