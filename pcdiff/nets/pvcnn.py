"""The blocks of PVCNN++ (Liu et al., Point-Voxel CNN, NeurIPS 2019), with geometry computed once for all layers.

Features are channels last, (B, N, C): selecting, averaging and interpolating rows are then all weighted sums of rows,
and a 1 x 1 convolution is a matrix product. A `Cloud` holds the positions of its points on each grid, `Neighbourhoods`
the neighbours of each centre.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from pcdiff.geometry.trilinear import trilinear_corners
from pcdiff.nets.ops import ball_query, three_nn_weights

GROUPS = 8


def rows_mixed(features: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """Weighted sums of rows: features (B, N, C), index and weight (B, M, k) -> (B, M, C)."""
    batch, n, channels = features.shape
    flat = (index + n * torch.arange(batch, device=index.device)[:, None, None]).flatten(0, 1)
    mixed = functional.embedding_bag(
        flat, features.reshape(-1, channels), mode="sum", per_sample_weights=weight.flatten(0, 1).to(features.dtype)
    )
    return mixed.unflatten(0, index.shape[:2])


@dataclass(frozen=True)
class OnGrid:
    """Where the points of a cloud lie on a grid of r^3 cells."""

    r: int
    order: Tensor  # (B N,) points sorted by cell
    starts: Tensor  # (B r^3,) position in `order` of each cell's first point
    index: Tensor  # (B, N, 8) the corners around each point
    weight: Tensor  # (B, N, 8) trilinear


@dataclass
class Cloud:
    """Points (B, N, 3), network units, and their positions on grids, computed when first needed."""

    points: Tensor
    grids: dict[int, OnGrid] = field(default_factory=dict)

    def on_grid(self, r: int) -> OnGrid:
        """Positions on a grid over the cube around the points' mean that just holds the furthest point's ball."""
        if r not in self.grids:
            centred = self.points - self.points.mean(1, keepdim=True)
            reach = 2 * centred.norm(dim=2).amax(1)[:, None, None]
            place = ((centred / reach + 0.5) * r).clamp(0, r - 1)
            cell = place.round().long()
            cell = (cell[..., 0] * r + cell[..., 1]) * r + cell[..., 2]
            cell += r**3 * torch.arange(len(cell), device=cell.device)[:, None]
            count = torch.bincount(cell.flatten(), minlength=len(cell) * r**3)
            order = cell.flatten().argsort(stable=True)
            corners = trilinear_corners(place, (r, r, r), periodic=False)
            self.grids[r] = OnGrid(r, order, count.cumsum(0) - count, *corners)
        return self.grids[r]

    def voxelise(self, features: Tensor, r: int) -> Tensor:
        """(B, N, C) -> (B, C, r, r, r) channels last in memory: the mean of each cell's points, 0 in an empty one."""
        grid = self.on_grid(r)
        means = functional.embedding_bag(grid.order, features.flatten(0, 1), grid.starts, mode="mean")
        return means.reshape(len(features), r, r, r, -1).permute(0, 4, 1, 2, 3)

    def devoxelise(self, grid: Tensor, r: int) -> Tensor:
        """(B, r^3, C) -> (B, N, C), trilinear."""
        found = self.on_grid(r)
        return rows_mixed(grid, found.index, found.weight)


@dataclass(frozen=True)
class Neighbourhoods:
    """The distinct neighbours of each centre within a radius.

    The original fills k slots by repeating the first neighbour. A maximum over neighbours does not change by that; an
    average (group norm) takes `count` into account. Most centres have fewer than ten neighbours for 128 slots.
    """

    centre: list[Tensor]  # of each sample (E,) index of the centre, ascending
    point: list[Tensor]  # (E,) index of the neighbour
    count: list[Tensor]  # (E,) number of the k slots that the neighbour fills

    @classmethod
    def within(cls, centres: Tensor, points: Tensor, radius: float, k: int) -> Neighbourhoods:
        """Centres (B, M, 3), points (B, N, 3), radius in their unit; the first k of each centre in index order."""
        found = ball_query(centres, points, radius, k)  # (B, M, k)
        new = found != found[..., :1]
        new[..., 0] = True
        count = torch.ones_like(found)
        count[..., 0] += (~new).sum(-1)
        samples = range(len(found))
        return cls(
            [new[b].nonzero()[:, 0] for b in samples],
            [found[b][new[b]] for b in samples],
            [count[b][new[b]] for b in samples],
        )


@dataclass(frozen=True)
class Nearest:
    """The three nearest centres of each point, weighted by 1 / d^2 (Qi et al. 2017, PointNet++, eq. 2)."""

    index: Tensor  # (B, N, 3)
    weight: Tensor  # (B, N, 3)

    @classmethod
    def of(cls, points: Tensor, centres: Tensor) -> Nearest:
        """Points (B, N, 3), centres (B, M, 3), M >= 3."""
        return cls(*three_nn_weights(points, centres))


class Norm(nn.Module):
    """Group norm over (B, N, C), followed by Swish if `active`; rows may be counted more than once."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, count: Tensor | None = None, active: bool = True) -> Tensor:
        """X (B, N, C) -> the same. count (N,): multiplicity of each row, None for 1."""
        wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        share = None if count is None else count.to(wide) / count.sum()
        mean = wide.mean(1) if share is None else share @ wide  # (B, C)
        centre = mean.unflatten(1, (GROUPS, -1)).mean(2)  # (B, G)
        each = centre.repeat_interleave(x.shape[2] // GROUPS, 1)[:, None]
        square = (wide - each).square()
        spread = square.mean(1) if share is None else share @ square
        scale = (spread.unflatten(1, (GROUPS, -1)).mean(2) + 1e-5).rsqrt()
        scale = scale.repeat_interleave(x.shape[2] // GROUPS, 1)[:, None] * self.weight
        out = torch.addcmul(self.bias - each * scale, wide, scale).to(x.dtype)
        return functional.silu(out) if active else out


class PointLayers(nn.Module):
    """1 x 1 convolutions, each with group norm and Swish: (B, N, C) -> (B, N, C')."""

    def __init__(self, channels: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.linears = nn.ModuleList()
        self.norms = nn.ModuleList()
        for width in widths:
            self.linears.append(nn.Linear(channels, width))
            self.norms.append(Norm(width))
            channels = width

    @property
    def first(self) -> nn.Linear:
        """The first product."""
        layer = self.linears[0]
        assert isinstance(layer, nn.Linear)
        return layer

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return self.after_first(self.first(x))

    def after_first(self, x: Tensor, count: Tensor | None = None) -> Tensor:
        """The layers after the first product, which callers may apply to fewer rows before a weighted sum of rows."""
        x = self.norms[0](x, count)
        for linear, norm in zip(self.linears[1:], self.norms[1:], strict=True):
            x = norm(linear(x), count)
        return x


class Attention(nn.Module):
    """Self-attention with one head and unscaled products, then residual, group norm, Swish: (B, N, C) -> the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(channels, channels) for _ in range(4))
        self.norm = Norm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        query, key, value = (layer(x)[:, None] for layer in (self.query, self.key, self.value))
        attended = functional.scaled_dot_product_attention(query, key, value, scale=1.0)[:, 0]
        return self.norm(x + self.out(attended))


class SqueezeExcitation(nn.Module):
    """Channels weighted by a function of their means (Hu et al. 2018): (B, N, C) -> the same."""

    def __init__(self, channels: int, reduction: int = 8) -> None:
        super().__init__()
        self.squeeze = nn.Linear(channels, channels // reduction, bias=False)
        self.excite = nn.Linear(channels // reduction, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return x * self.excite(functional.relu(self.squeeze(x.mean(1)))).sigmoid()[:, None]


class PVConv(nn.Module):
    """A voxel branch for context plus a point branch for detail: (B, N, C) -> (B, N, C')."""

    def __init__(self, channels: int, width: int, r: int, attention: bool = False, dropout: float = 0.1) -> None:
        super().__init__()
        self.r = r
        self.conv_1 = nn.Conv3d(channels, width, 3, padding=1)
        self.norm_1 = Norm(width)
        self.dropout = nn.Dropout(dropout)
        self.conv_2 = nn.Conv3d(width, width, 3, padding=1)
        self.norm_2 = Norm(width)
        self.attention = Attention(width) if attention else None
        self.gate = None if attention else SqueezeExcitation(width)
        self.point = PointLayers(channels, (width,))

    def forward(self, features: Tensor, cloud: Cloud) -> Tensor:
        """See the class."""
        x = self.dropout(self.norm_1(_rows(self.conv_1(cloud.voxelise(features, self.r)))))
        grid = x.unflatten(1, (self.r,) * 3).permute(0, 4, 1, 2, 3)
        x = _rows(self.conv_2(grid))
        if self.attention is not None:
            x = self.attention(self.norm_2(x, active=False))
        if self.gate is not None:
            x = self.gate(self.norm_2(x))
        return cloud.devoxelise(x, self.r) + self.point(features)


def _rows(grid: Tensor) -> Tensor:
    """(B, C, r, r, r) -> (B, r^3, C), without a copy if the channels are last in memory."""
    return grid.permute(0, 2, 3, 4, 1).flatten(1, 3)
