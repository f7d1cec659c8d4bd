"""From implant points to oriented surface points: the point-to-volume network of Friedrich et al. (MICCAI 2023).

It is the learned part of Shape As Points (Peng et al., NeurIPS 2021): a PointNet with local pooling, a 3D U-Net over
its cells, and two decoders that read the grid at the points. `pcdiff.reconstruct.dpsr` makes the solid.

Positions are in network units: the unit cube, one unit = 512 voxels.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

OFFSET_SCALE = 0.001  # network units per unit of the offset decoder's output
MAX_COORDINATE = 0.99  # coordinates are clamped to it, so that no point is splatted across the cube's far side


@dataclass(frozen=True)
class VoxelisationConfig:
    """Size of the network; the defaults are the paper's (1.09 M parameters).

    width: channels of points, grid and decoders. cells: along each side of the grid, divisible by 2^(levels - 1).
    blocks: ResNet blocks of encoder and decoders. levels: of the U-Net, each doubles the channels. copies: output
    points per input point.
    """

    width: int = 32
    cells: int = 32
    blocks: int = 5
    levels: int = 3
    copies: int = 7

    def __post_init__(self) -> None:
        if self.cells % 2 ** (self.levels - 1):
            raise ValueError(f"cells must be divisible by {2 ** (self.levels - 1)}, got {self.cells}")


class VoxelisationNetwork(nn.Module):
    """Unoriented points (B, N, 3) in [0, 1) -> points (B, N copies, 3) in [0, 0.99] and normals of the same shape.

    Normals point inwards or outwards, as the weights have learned. Their length is free: the Poisson solve takes it for
    the area of a point. Copies of one point are consecutive.
    """

    def __init__(self, config: VoxelisationConfig | None = None) -> None:
        super().__init__()
        self.config = config = VoxelisationConfig() if config is None else config
        self.encoder = PointGridEncoder(config)
        self.offsets = GridDecoder(config, 3 * config.copies, local=True)
        self.normals = GridDecoder(config, 3, local=False)

    def forward(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        grid = self.encoder(points)
        offsets = self.offsets(points, grid).unflatten(-1, (self.config.copies, 3))
        moved = (points[:, :, None] + OFFSET_SCALE * offsets).flatten(1, 2)  # (B, N copies, 3)
        return moved.clamp(0, MAX_COORDINATE), self.normals(moved, grid)


class PointGridEncoder(nn.Module):
    """Points (B, N, 3) -> features (B, C, z, y, x) of the grid's cells; empty cells are 0 before the U-Net."""

    def __init__(self, config: VoxelisationConfig) -> None:
        super().__init__()
        width = config.width
        self.cells = config.cells
        self.enter = nn.Linear(3, 2 * width)
        self.blocks = nn.ModuleList(ResidualBlock(2 * width, width) for _ in range(config.blocks))
        self.leave = nn.Linear(width, width)
        self.unet = UNet(width, config.levels)

    def forward(self, points: Tensor) -> Tensor:
        """See the class."""
        cell = (points * self.cells).long().clamp(0, self.cells - 1)
        index = cell[..., 0] + self.cells * (cell[..., 1] + self.cells * cell[..., 2])  # (B, N)
        first, *others = self.blocks
        features = first(self.enter(within_cell(points, self.cells)))
        for block in others:
            features = block(torch.cat([features, self._largest_in_cell(features, index)], -1))
        return self.unet(self._mean_in_cell(self.leave(features), index))

    def _largest_in_cell(self, features: Tensor, index: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C): for each point the maximum over all points in its cell."""
        where = index[..., None].expand_as(features)
        cells = features.new_zeros(len(features), self.cells**3, features.shape[-1])
        return cells.scatter_reduce(1, where, features, "amax", include_self=False).gather(1, where)

    def _mean_in_cell(self, features: Tensor, index: Tensor) -> Tensor:
        """(B, N, C) -> (B, C, z, y, x)."""
        where = index[..., None].expand_as(features)
        cells = features.new_zeros(len(features), self.cells**3, features.shape[-1])
        mean = cells.scatter_reduce(1, where, features, "mean", include_self=False)
        return mean.transpose(1, 2).unflatten(2, (self.cells,) * 3)


class GridDecoder(nn.Module):
    """Points (B, N, 3) and grid (B, C, z, y, x) -> (B, N, out): a ResNet that adds grid features before every block.

    local: its input is the position of a point within its cell instead of its position in the cube.
    """

    def __init__(self, config: VoxelisationConfig, out: int, local: bool) -> None:
        super().__init__()
        width = config.width
        self.cells, self.local = config.cells, local
        self.enter = nn.Linear(3, width)
        self.read = nn.ModuleList(nn.Linear(width, width) for _ in range(config.blocks))
        self.blocks = nn.ModuleList(ResidualBlock(width, width) for _ in range(config.blocks))
        self.leave = nn.Linear(width, out)

    def forward(self, points: Tensor, grid: Tensor) -> Tensor:
        """See the class."""
        place = (2 * points - 1)[:, :, None, None]  # x is the grid's last axis, as grid_sample wants it
        seen = functional.grid_sample(grid, place, padding_mode="border", align_corners=True)[..., 0, 0].transpose(1, 2)
        features = self.enter(within_cell(points, self.cells) if self.local else points)
        for read, block in zip(self.read, self.blocks, strict=True):
            features = block(features + read(seen))
        return self.leave(functional.relu(features))


def within_cell(points: Tensor, cells: int) -> Tensor:
    """Position in [0, 1) of each point within its cell."""
    return torch.remainder(points, 1 / cells) * cells


class ResidualBlock(nn.Module):
    """Two linear layers, each after a ReLU, beside a shortcut that is linear where the widths differ."""

    def __init__(self, enter: int, leave: int) -> None:
        super().__init__()
        self.first = nn.Linear(enter, leave)
        self.second = nn.Linear(leave, leave)
        self.shortcut = nn.Identity() if enter == leave else nn.Linear(enter, leave, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """(..., enter) -> (..., leave)."""
        inner = self.first(functional.relu(features))
        return self.shortcut(features) + self.second(functional.relu(inner))


class UNet(nn.Module):
    """3D U-Net (Cicek et al., MICCAI 2016), same width in and out: max pooling down, nearest neighbours up."""

    def __init__(self, width: int, levels: int) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(levels)]
        first = ConvPair(width, width, width)
        downs = [ConvPair(a, max(b // 2, a), b) for a, b in pairwise(widths)]
        self.down = nn.ModuleList([first, *downs])
        self.up = nn.ModuleList(ConvPair(a + b, a, a) for b, a in pairwise(reversed(widths)))
        self.leave = nn.Conv3d(width, width, 1)

    def forward(self, grid: Tensor) -> Tensor:
        """(B, C, r, r, r) -> the same."""
        first, *others = self.down
        skips = [first(grid)]
        for down in others:
            skips.append(down(functional.max_pool3d(skips[-1], 2)))
        grid = skips.pop()
        for up in self.up:
            skip = skips.pop()
            grid = up(torch.cat([skip, functional.interpolate(grid, size=skip.shape[2:])], 1))
        return self.leave(grid)


class ConvPair(nn.Sequential):
    """Twice group norm, 3 x 3 x 3 convolution, ReLU: (B, enter, ...) -> (B, middle, ...) -> (B, leave, ...)."""

    def __init__(self, enter: int, middle: int, leave: int) -> None:
        super().__init__(*_norm_conv(enter, middle), *_norm_conv(middle, leave))


def _norm_conv(enter: int, leave: int) -> tuple[nn.Module, nn.Module, nn.Module]:
    return nn.GroupNorm(8, enter), nn.Conv3d(enter, leave, 3, padding=1, bias=False), nn.ReLU()
