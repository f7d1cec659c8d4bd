"""What a network is told of the noise level."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class NoiseEmbedding(nn.Module):
    """Fourier features of c_noise (B,) -> (B, E)."""

    frequencies: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        # never without memory, on `meta`: there a power of two loads torch's compiler, which takes two seconds
        frequencies = 2.0 ** torch.linspace(-2, 4, width // 2, device="cpu")
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.layers = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())

    def forward(self, noise: Tensor) -> Tensor:
        """See the class."""
        angles = noise[:, None].float() * self.frequencies
        return self.layers(torch.cat([angles.sin(), angles.cos()], -1))
