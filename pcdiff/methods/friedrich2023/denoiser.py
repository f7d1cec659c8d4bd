"""The noise network of Friedrich et al. (MICCAI 2023): PVCNN++ over skull and noisy implant points together."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from pcdiff.methods.friedrich2023.config import PaperNetworkConfig
from pcdiff.nets.ops import furthest_point_sample
from pcdiff.nets.pvcnn import Attention, Cloud, Nearest, Neighbourhoods, PointLayers, PVConv, rows_mixed

TIME = 64  # channels of the time embedding
# of each stage, at width 1: channels of the PVConvs, number of them, cells along a grid's side, layers after grouping
DOWN = ((32, 2, 32, (32, 64)), (64, 1, 16, (64, 128)), (128, 1, 8, (128, 256)), (0, 0, 0, (256, 256, 512)))
# of each stage: layers after interpolation, number of PVConvs of the last layer's width, cells along a grid's side
UP = (((256, 256), 3, 8), ((256, 256), 3, 8), ((256, 128), 2, 16), ((128, 128, 64), 2, 32))
ATTENTION = 1  # the stage whose PVConvs attend


@dataclass(frozen=True)
class Geometry:
    """What depends on the positions of the points only, and is therefore computed once for all layers.

    clouds: all points, then the centres of each stage. around: the neighbours of each stage's centres. nearest: for the
    points of each stage, the three nearest of its centres.
    """

    clouds: list[Cloud]
    around: list[Neighbourhoods]
    nearest: list[Nearest]

    @classmethod
    def of(cls, points: Tensor, config: PaperNetworkConfig) -> Geometry:
        """Of points (B, N, 3). Sampling is greedy, so the centres of later stages are the first ones of stage one."""
        samples = torch.arange(len(points), device=points.device)[:, None]
        centres = points[samples, _furthest(points, config.centres[0])]
        clouds = [Cloud(points), *(Cloud(centres[:, :m].contiguous()) for m in config.centres)]
        around = [
            Neighbourhoods.within(fine.points, coarse.points, radius, config.neighbours)
            for coarse, fine, radius in zip(clouds, clouds[1:], config.radii, strict=False)
        ]
        nearest = [Nearest.of(fine.points, coarse.points) for fine, coarse in itertools.pairwise(clouds)]
        return cls(clouds, around, nearest)


class SetAbstraction(nn.Module):
    """PVConvs, then each centre pools the features of its neighbours (Qi et al. 2017, PointNet++, section 3.2)."""

    def __init__(self, channels: int, convs: Sequence[PVConv], widths: tuple[int, ...]) -> None:
        super().__init__()
        self.convs = nn.ModuleList(convs)
        self.point = PointLayers(3 + channels, widths)

    def forward(self, features: Tensor, cloud: Cloud, centres: Cloud, around: Neighbourhoods) -> Tensor:
        """Features (B, N, C) of the cloud -> (B, M, C') of the centres."""
        for conv in self.convs:
            features = conv(features, cloud)
        first = self.point.first
        of_position, of_features = first.weight[:, :3], first.weight[:, 3:]
        # the first product, of [neighbour - centre, features], computed once a point and not once a pair
        of_points = cloud.points @ of_position.T + functional.linear(features, of_features, first.bias)
        of_centres = centres.points @ of_position.T
        pooled = []
        for b, (centre, point, count) in enumerate(zip(around.centre, around.point, around.count, strict=True)):
            pairs = of_points[b].index_select(0, point) - of_centres[b].index_select(0, centre)
            pairs = self.point.after_first(pairs[None], count)[0]  # (E, C')
            pooled.append(_maximum(pairs, centre, centres.points.shape[1]))
        return torch.stack(pooled)


class FeaturePropagation(nn.Module):
    """Features of the centres, interpolated to the points and joined by the points' own features, then PVConvs."""

    def __init__(self, coarse: int, skipped: int, widths: tuple[int, ...], convs: Sequence[PVConv]) -> None:
        super().__init__()
        self.coarse = coarse
        self.point = PointLayers(coarse + skipped, widths)
        self.convs = nn.ModuleList(convs)

    def forward(self, features: Tensor, skipped: Tensor | None, cloud: Cloud, nearest: Nearest) -> Tensor:
        """Features (B, M, C) of the centres, skipped (B, N, S) of the points -> (B, N, C')."""
        first = self.point.first
        x = rows_mixed(functional.linear(features, first.weight[:, : self.coarse]), nearest.index, nearest.weight)
        if skipped is not None:
            x = x + functional.linear(skipped, first.weight[:, self.coarse :])
        x = self.point.after_first(x + first.bias)
        for conv in self.convs:
            x = conv(x, cloud)
        return x


class PaperDenoiser(nn.Module):
    """Predicts the noise of implant points: PVCNN++ over skull and implant points together.

    Points (B, N, 3), skull first and noisy implant last, and the step t (B,) in 0..999 -> (B, implant_points, 3). The
    order of the points matters: furthest point sampling starts at the first, and neighbourhoods take the first k.
    """

    frequencies: Tensor

    def __init__(self, config: PaperNetworkConfig) -> None:
        super().__init__()
        self.config = config

        def scaled(*widths: int) -> tuple[int, ...]:
            return tuple(int(width * config.width) for width in widths)

        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        channels, skips = 3, []
        for stage, (width, convs, r, after) in enumerate(DOWN):
            skips.append(0 if stage == 0 else channels)
            channels += 0 if stage == 0 else TIME
            blocks = []
            for _ in range(convs):
                (own,) = scaled(width)
                blocks.append(PVConv(channels, own, r, stage == ATTENTION, config.dropout))
                channels = own
            self.down.append(SetAbstraction(channels, blocks, scaled(*after)))
            channels = scaled(*after)[-1]
        self.attention = Attention(channels)
        for (widths, convs, r), skipped in zip(UP, reversed(skips), strict=True):
            own = scaled(*widths)[-1]
            blocks = [PVConv(own, own, r, False, config.dropout) for _ in range(convs)]
            self.up.append(FeaturePropagation(channels + TIME, skipped, scaled(*widths), blocks))
            channels = own
        self.head = PointLayers(channels, scaled(128))
        self.head_dropout = nn.Dropout(0.5)
        self.out = nn.Linear(scaled(128)[0], 3)
        self.time_1, self.time_2 = nn.Linear(TIME, TIME), nn.Linear(TIME, TIME)
        half = TIME // 2
        steps = torch.arange(half, dtype=torch.float64)
        self.register_buffer("frequencies", (-steps * math.log(10_000) / (half - 1)).exp().float(), persistent=False)

    def embed(self, t: Tensor) -> Tensor:
        """(B,) -> (B, TIME), before the layers that follow (Vaswani et al. 2017, section 3.5)."""
        angles = t.to(self.frequencies)[:, None] * self.frequencies
        return torch.cat([angles.sin(), angles.cos()], 1)

    def forward(self, points: Tensor, t: Tensor) -> Tensor:
        """See the class. Raises ValueError for another number of points than the configuration's."""
        if points.shape[1] != self.config.points:
            raise ValueError(f"points must be {self.config.points} a sample, got {points.shape[1]}")
        geometry = Geometry.of(points, self.config)
        time = self.time_2(functional.leaky_relu(self.time_1(self.embed(t)), 0.1))[:, None]

        def with_time(features: Tensor) -> Tensor:
            return torch.cat([features, time.to(features).expand(-1, features.shape[1], -1)], 2)

        clouds, features, skips = geometry.clouds, points, []
        for stage, block in enumerate(self.down):
            skips.append(None if stage == 0 else features)
            entering = features if stage == 0 else with_time(features)
            features = block(entering, clouds[stage], clouds[stage + 1], geometry.around[stage])
        features = self.attention(features)
        for stage, block in zip(reversed(range(len(self.down))), self.up, strict=True):
            features = block(with_time(features), skips[stage], clouds[stage], geometry.nearest[stage])
        implant = self.config.implant_points
        return self.out(self.head_dropout(self.head(features)))[:, -implant:]


def _furthest(points: Tensor, m: int) -> Tensor:
    """(B, m) indices. Ties go to the lowest k mod 512, then to the lowest k, as in the original's CUDA kernel."""
    k = torch.arange(points.shape[1], device=points.device)
    order = ((k % 512) * points.shape[1] + k).argsort()
    return order[furthest_point_sample(points[:, order], m)]


def _maximum(rows: Tensor, owner: Tensor, owners: int) -> Tensor:
    """The maximum over the rows (E, C) of each owner, owner (E,) ascending -> (owners, C). Each owner has a row."""
    lengths = torch.bincount(owner, minlength=owners)
    return torch.segment_reduce(rows, "max", lengths=lengths, axis=0)
