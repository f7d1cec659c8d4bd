"""The surface denoiser: the surface is encoded once; each step reads the skull where the points are then."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.nn import functional

from pcdiff.diffusion.preconditioning import per_sample, scaling
from pcdiff.methods.surface.config import LAYOUT, SurfaceNetworkConfig
from pcdiff.nets.noise_embedding import NoiseEmbedding

REACH_MM = (5.0, 15.0, 40.0, 200.0)  # how far the heads look at first, by turns


class Surface(NamedTuple):
    """Encoded surfaces of N points, to which the denoiser is bound before sampling.

    tokens: (B, N, W). profile: (B, N, T, C). distance: (B, N, N) mm.
    """

    tokens: Tensor
    profile: Tensor
    distance: Tensor

    def repeated(self, times: int) -> Surface:
        """The batch with each surface repeated `times` in a row, for several noises each."""
        return Surface(*(repeat(value, "b ... -> (b k) ...", k=times) for value in self))


class SurfaceDenoiser(nn.Module):
    """D(x; sigma) for displacements x (B, N) mm of points along the normals of a surface.

    D = c_skip x + c_out F (Karras et al. 2022, table 1). F sees each point's own surroundings, all along its normal
    (`encode`) and at its present place, and attends to the other points; queries and keys are normalised, so that no
    part of the input can drown the others.
    """

    offsets: Tensor

    def __init__(self, config: SurfaceNetworkConfig, sigma_data: float) -> None:
        super().__init__()
        width = config.width
        self.sigma_data = sigma_data
        self.register_buffer("offsets", torch.tensor(LAYOUT.offsets_mm), persistent=False)
        inputs = len(LAYOUT.static) + len(LAYOUT.offsets_mm) * LAYOUT.channels
        self.encoder = nn.Sequential(
            nn.Linear(inputs, 2 * width),
            nn.SiLU(),
            nn.Dropout(config.dropout),
            nn.Linear(2 * width, width),
            nn.RMSNorm(width),
        )
        self.embed = NoiseEmbedding(width)
        self.place = nn.Sequential(nn.Linear(LAYOUT.channels + 2, width), nn.SiLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList(PointBlock(width, config.heads, config.dropout) for _ in range(config.blocks))
        self.norm = nn.RMSNorm(width)
        self.leave = nn.Linear(width, 1)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def encode(self, positions: Tensor, static: Tensor, profile: Tensor) -> Surface:
        """Positions (B, N, 3) mm, static (B, N, S) and profile (B, N, T, C), see `Anchors`."""
        tokens = self.encoder(torch.cat([static, profile.flatten(2)], -1))
        return Surface(tokens, profile, torch.cdist(positions, positions))

    def forward(self, x: Tensor, sigma: Tensor, surface: Surface) -> Tensor:
        """Noisy displacements (B, N) mm at sigma, scalar or (B,), -> denoised ones, float32."""
        c_skip, c_out, c_in, c_noise = scaling(per_sample(sigma, x), self.sigma_data)
        return c_skip * x + c_out * self.raw(x, c_in, c_noise, surface).float()

    def raw(self, x: Tensor, c_in: Tensor, c_noise: Tensor, surface: Surface) -> Tensor:
        """(B, N): F, the network itself."""
        here = read_profile(surface.profile, self.offsets, x)
        at = torch.stack([c_in * x, x / 4], -1)
        points = surface.tokens + self.place(torch.cat([here, at], -1))
        modulation = self.embed(c_noise.flatten())
        for block in self.blocks:
            points = block(points, surface.distance, modulation)
        return self.leave(functional.silu(self.norm(points)))[..., 0]


class PointBlock(nn.Module):
    """Attention among points, (B, N, W) at distances (B, N, N) mm, and a perceptron, both modulated by the noise level.

    Each head prefers near points: its scores fall by distance over a reach that it learns.
    """

    reach: Tensor

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList([nn.RMSNorm(width, elementwise_affine=False) for _ in range(2)])
        self.modulate = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.modulate.weight)
        nn.init.zeros_(self.modulate.bias)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.head_norms = nn.ModuleList([nn.RMSNorm(width // heads) for _ in range(2)])
        self.log_reach = nn.Parameter(torch.tensor([math.log(REACH_MM[k % len(REACH_MM)]) for k in range(heads)]))
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 3 * width), nn.SiLU(), nn.Dropout(dropout), nn.Linear(3 * width, width)
        )

    def forward(self, points: Tensor, distance: Tensor, modulation: Tensor) -> Tensor:
        """See the class; residual."""
        scale1, shift1, gate1, scale2, shift2, gate2 = self.modulate(modulation)[:, None].chunk(6, -1)
        attended = self._attend(self.norms[0](points) * (1 + scale1) + shift1, distance)
        points = points + (1 + gate1) * attended
        return points + (1 + gate2) * self.mlp(self.norms[1](points) * (1 + scale2) + shift2)

    def _attend(self, points: Tensor, distance: Tensor) -> Tensor:
        query, key, value = rearrange(self.query_key_value(points), "b n (t h c) -> t b h n c", t=3, h=self.heads)
        query, key = self.head_norms[0](query), self.head_norms[1](key)
        bias = -distance[:, None] / self.log_reach.exp()[:, None, None]
        attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias.to(query.dtype))
        return self.out(rearrange(attended, "b h n c -> b n (h c)"))


def read_profile(profile: Tensor, offsets: Tensor, x: Tensor) -> Tensor:
    """Profiles (B, N, T, C) at offsets (T,) mm, ascending, read at x (B, N) mm, linearly, the last value beyond.

    -> (B, N, C).
    """
    weight = 1 - (x.detach()[..., None].clamp(offsets[0], offsets[-1]) - offsets).abs() / _gaps(offsets, x)
    weight = weight.clamp(min=0)
    return torch.einsum("bnt,bntc->bnc", weight.to(profile), profile)


def _gaps(offsets: Tensor, x: Tensor) -> Tensor:
    """(B, N, T) mm: the distance from each offset to its neighbour on the side of x."""
    gap = offsets.diff()
    right, left = torch.cat([gap, gap[-1:]]), torch.cat([gap[:1], gap])
    return torch.where(x.detach()[..., None] > offsets, right, left)
