"""The anchored denoiser: the skull is encoded once, and each step processes only the points of the implant."""

from __future__ import annotations

from typing import NamedTuple

import torch
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.nn import functional

from pcdiff.diffusion.preconditioning import per_sample, scaling
from pcdiff.methods.anchored.config import FEATURE_NAMES, NetworkConfig
from pcdiff.nets.ops import devoxelize_trilinear, voxelize_mean
from pcdiff.nets.point_voxel import (
    Conv3dBlock,
    CrossAttention,
    NoiseEmbedding,
    PointNorm,
    PointVoxelBlock,
    to_grid,
    zero_init,
)


class Skull(NamedTuple):
    """An encoded skull, to which the denoiser is bound before sampling, for P anchors.

    positions: (B, P, 3) network units. features: (B, C, P) of the anchors, with those of the voxel grid added.
    tokens: (B, T, C). normals: (B, 3, P) of the completed surface. gate: (B, 1, 1), 0 removes the surroundings.
    mean: (B, P), the displacement predicted from each ray alone; the diffusion starts around it.
    """

    positions: Tensor
    features: Tensor
    tokens: Tensor
    normals: Tensor
    gate: Tensor
    mean: Tensor

    def repeated(self, times: int) -> Skull:
        """The batch with each skull repeated `times` in a row, for several noises each."""
        return Skull(*(repeat(value, "b ... -> (b k) ...", k=times) for value in self))


class Denoised(NamedTuple):
    """x0: (B, P) displacement in posterior standard deviations. normals: (B, 3, P) unit."""

    x0: Tensor
    normals: Tensor


class AnchoredDenoiser(nn.Module):
    """D(x; sigma) for displacements x in units of the posterior standard deviation, noised by its covariance.

    A small network on single rays (`guide`) predicts the mean mu of the displacement. If the displacements were spread
    around mu as the posterior says, D(x; sigma) = mu + (x - mu) / (1 + sigma^2) would be exact. This is
    mu + c_skip (x - mu) with sigma_data = 1 (Karras et al. 2022, table 1), so the rest of the network learns a
    correction. Zero output reproduces the shape model.

    The influence of voxels and tokens is initialised at zero and dropped for a share of the skulls in training
    (`context_dropout`), because with 59 heads this branch overfits.
    """

    def __init__(self, config: NetworkConfig, features: int = len(FEATURE_NAMES)) -> None:
        super().__init__()
        width, half = config.width, config.width // 2
        self.grid, self.step_grid = config.grid, config.step_grid
        self.context_dropout = config.context_dropout
        self.guide = nn.Sequential(
            *(nn.Conv1d(2 * features, 2 * width, 1), nn.SiLU(), nn.Dropout(config.dropout)),
            *(nn.Conv1d(2 * width, 2 * width, 1), nn.SiLU(), nn.Dropout(config.dropout)),
            *(nn.Conv1d(2 * width, 2 * width, 1), nn.SiLU(), zero_init(nn.Conv1d(2 * width, 2, 1))),
        )
        self.lift = nn.Sequential(nn.Conv1d(features, width, 1), nn.SiLU(), nn.Conv1d(width, width, 1))
        self.squeeze = nn.Conv1d(width + 3, half - 1, 1)
        self.fine = Conv3dBlock(half)
        self.down = nn.Sequential(nn.Conv3d(half, width, 2, stride=2), Conv3dBlock(width))
        self.bottom = nn.Sequential(nn.Conv3d(width, width, 2, stride=2), Conv3dBlock(width))
        self.place = nn.Parameter(0.02 * torch.randn((config.grid // 4) ** 3, width))
        self.context = zero_init(nn.Conv1d(half + 2 * width, width, 1))

        self.embed = NoiseEmbedding(width)
        self.enter = nn.Conv1d(width + 1, width, 1)
        self.blocks = nn.ModuleList(
            PointVoxelBlock(width, config.step_grid, width, config.dropout) for _ in range(config.blocks)
        )
        self.attend = nn.ModuleList(CrossAttention(width, config.heads) for _ in range(config.blocks))
        self.leave = nn.Sequential(PointNorm(width), nn.SiLU(), zero_init(nn.Conv1d(width, 4, 1)))

    def encode(
        self, anchors: Tensor, anchor_features: Tensor, bone: Tensor, bone_features: Tensor, normals: Tensor
    ) -> Skull:
        """Encodes skulls: positions (B, P, 3), (B, Q, 3), features (B, P, F), (B, Q, F), normals (B, P, 3)."""
        positions = torch.cat([anchors, bone], 1)
        lifted = self.lift(rearrange(torch.cat([anchor_features, bone_features], 1), "b n c -> b c n"))
        squeezed = self.squeeze(torch.cat([lifted, rearrange(positions, "b n xyz -> b xyz n")], 1))
        squeezed = torch.cat([squeezed, torch.ones_like(squeezed[:, :1])], 1)  # so that empty cells differ from bone
        fine = self.fine(voxelize_mean(squeezed, to_grid(positions, self.grid), self.grid))
        down = self.down(fine)
        bottom = self.bottom(down)
        tokens = rearrange(bottom, "b c i j k -> b (i j k) c") + self.place
        levels = [devoxelize_trilinear(level, to_grid(anchors, level.shape[-1])) for level in (fine, down, bottom)]
        gate = torch.ones(len(anchors), 1, 1, device=anchors.device)
        if self.training:
            gate = (torch.rand_like(gate) >= self.context_dropout).to(gate)
        features = lifted[..., : anchors.shape[1]] + gate * self.context(torch.cat(levels, 1))
        mean = self.predict_mean(anchor_features)
        return Skull(anchors, features, tokens, rearrange(normals, "b n xyz -> b xyz n"), gate, mean)

    def predict_mean(self, anchor_features: Tensor) -> Tensor:
        """(B, P, F) -> (B, P) float32: mean displacement of both points of each ray, from the features of that ray."""
        rays = rearrange(anchor_features, "b (table ray) c -> b (table c) ray", table=2)
        return rearrange(self.guide(rays), "b table ray -> b (table ray)").float()

    def forward(self, x: Tensor, sigma: Tensor, skull: Skull) -> Denoised:
        """Noisy displacements x (B, P) at sigma, scalar or (B,), -> denoised displacements and normals."""
        c_skip, c_out, c_in, c_noise = scaling(per_sample(sigma, x), 1.0)
        modulation = self.embed(c_noise.flatten())
        mean = skull.mean.detach()  # `guide` has its own loss
        away = x - mean
        points = self.enter(torch.cat([skull.features, (c_in * away)[:, None]], 1))
        for block, attend in zip(self.blocks, self.attend, strict=True):
            points = block(points, to_grid(skull.positions, self.step_grid), modulation, skull.gate)
            points = points + skull.gate * attend(points, skull.tokens)
        out = self.leave(points).float()
        normals = functional.normalize(skull.normals.float() + out[:, 1:], dim=1)
        return Denoised(mean + c_skip * away + c_out * out[:, 0], normals)
