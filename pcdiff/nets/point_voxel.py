"""Point-voxel blocks: a point branch for detail, a voxel branch for context (Liu et al., PVCNN, NeurIPS 2019)."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from pcdiff.nets.ops import devoxelize_trilinear, voxelize_mean

EXTENT = 1.5  # network units from the frame's centre to the grid's border


def to_grid(positions: Tensor, cells: int) -> Tensor:
    """(B, N, 3) network units -> continuous voxel coordinates in [0, cells - 1], clamped to the grid."""
    return ((positions / EXTENT + 1) / 2 * (cells - 1)).clamp(0, cells - 1)


def group_norm(channels: int) -> nn.GroupNorm:
    """Eight groups, as in PVCNN."""
    return nn.GroupNorm(8, channels)


def zero_init(layer: nn.Conv1d) -> nn.Conv1d:
    """The layer with weights and biases set to zero, so that a residual branch starts as no change."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class PointNorm(nn.Module):
    """Layer norm over the channels of each point, (B, C, N). A group norm would remove what all points share."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, points: Tensor) -> Tensor:
        """See the class."""
        return self.norm(points.transpose(1, 2)).transpose(1, 2)


class Conv3dBlock(nn.Module):
    """Two 3 x 3 x 3 convolutions with a residual: (B, C, r, r, r) -> the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            group_norm(channels),
            nn.SiLU(),
            nn.Conv3d(channels, channels, 3, padding=1),
            group_norm(channels),
            nn.SiLU(),
            nn.Conv3d(channels, channels, 3, padding=1),
        )

    def forward(self, grid: Tensor) -> Tensor:
        """See the class."""
        return grid + self.layers(grid)


class CrossAttention(nn.Module):
    """Attention from points, (B, C, N), to tokens, (B, T, C) -> (B, C, N)."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = PointNorm(channels)
        self.query = nn.Conv1d(channels, channels, 1)
        self.key_value = nn.Linear(channels, 2 * channels)
        self.out = zero_init(nn.Conv1d(channels, channels, 1))

    def forward(self, points: Tensor, tokens: Tensor) -> Tensor:
        """See the class."""
        query = rearrange(self.query(self.norm(points)), "b (h c) n -> b h n c", h=self.heads)
        key, value = rearrange(self.key_value(tokens), "b t (two h c) -> two b h t c", two=2, h=self.heads)
        attended = functional.scaled_dot_product_attention(query, key, value)
        return self.out(rearrange(attended, "b h n c -> b (h c) n"))


class PointVoxelBlock(nn.Module):
    """Point branch (1 x 1 convolutions, modulated by the noise level) plus voxel branch (3D convolutions).

    points (B, C, N), coordinates (B, N, 3) on a grid of `cells`, modulation (B, E), gate (B, 1, 1) of the voxel branch
    -> (B, C, N).
    """

    def __init__(self, channels: int, cells: int, modulation: int, dropout: float) -> None:
        super().__init__()
        self.cells = cells
        half = channels // 2
        self.norm = PointNorm(channels)
        self.modulate = nn.Linear(modulation, 2 * channels)
        self.point = nn.Sequential(
            nn.Conv1d(channels, 2 * channels, 1), nn.SiLU(), nn.Dropout(dropout), nn.Conv1d(2 * channels, channels, 1)
        )
        self.squeeze = nn.Conv1d(channels, half, 1)
        self.voxel = Conv3dBlock(half)
        self.expand = zero_init(nn.Conv1d(half, channels, 1))
        nn.init.zeros_(self.modulate.weight)
        nn.init.zeros_(self.modulate.bias)

    def forward(self, points: Tensor, coordinates: Tensor, modulation: Tensor, gate: Tensor) -> Tensor:
        """See the class; residual."""
        scale, shift = rearrange(self.modulate(modulation), "b (two c) -> two b c 1", two=2)
        normed = self.norm(points) * (1 + scale) + shift
        grid = self.voxel(voxelize_mean(self.squeeze(normed), coordinates, self.cells))
        return points + self.point(normed) + gate * self.expand(devoxelize_trilinear(grid, coordinates))


class NoiseEmbedding(nn.Module):
    """Fourier features of c_noise (B,) -> (B, E)."""

    frequencies: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("frequencies", 2.0 ** torch.linspace(-2, 4, width // 2), persistent=False)
        self.layers = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())

    def forward(self, noise: Tensor) -> Tensor:
        """See the class."""
        angles = noise[:, None].float() * self.frequencies
        return self.layers(torch.cat([angles.sin(), angles.cos()], -1))
