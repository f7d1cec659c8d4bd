"""Sparse convolutions on occupied points (Li 2021, Kroviakov 2021): memory grows with surfaces, not with volumes.

Layers gather the features at the neighbours of each point, multiply them, and add them up, one place of the kernel
after another. They need no library and run wherever torch does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise, product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pcdiff.methods.networks.base import Answer, BoneNetwork, start_at_little_bone
from pcdiff.methods.volumetric.config import LAYOUT

NEIGHBOURS = list(product((-1, 0, 1), repeat=3))
CHILDREN = list(product((0, 1), repeat=3))
OCCUPIED = 0.1  # share of bone of a point that is kept
NOT_VISITED = -10.0  # log-odds of points that were left out
REFINED = -4.0  # least log-odds of a point without bone that is divided further: what is left out is lost


@dataclass(frozen=True)
class Points:
    """Occupied points of a grid with features.

    places: (N, 4) int, head and index. features: (N, C). shape: of the grid, (heads, I, J, K).
    """

    places: Tensor
    features: Tensor
    shape: tuple[int, int, int, int]

    @cached_property
    def numbers(self) -> Tensor:
        """(heads (I + 2) (J + 2) (K + 2),) int: number of the point at each place, -1 where there is none."""
        heads, *sides = self.shape
        grid = torch.full((heads * math.prod(side + 2 for side in sides),), -1, device=self.places.device)
        grid[self.at(self.places)] = torch.arange(len(self.places), device=self.places.device)
        return grid

    @cached_property
    def neighbours(self) -> Tensor:
        """(27, N) int: number of the point at each of `NEIGHBOURS`; N where there is none."""
        shifts = torch.tensor(NEIGHBOURS, device=self.places.device) @ self.places.new_tensor(self._strides[1:])
        numbers = self.numbers[self.at(self.places) + shifts[:, None]]
        return torch.where(numbers < 0, len(self.places), numbers)

    @property
    def _strides(self) -> tuple[int, int, int, int]:
        _, i, j, k = self.shape
        return (i + 2) * (j + 2) * (k + 2), (j + 2) * (k + 2), k + 2, 1

    def at(self, places: Tensor) -> Tensor:
        """(M,) int: where places (M, 4) of the grid, which has a margin of one, stand in `numbers`."""
        strides = self._strides
        return (places * places.new_tensor(strides)).sum(1) + sum(strides[1:])

    def found(self, places: Tensor) -> Tensor:
        """(M,) int: numbers of the points at places (M, 4), -1 where there is none."""
        return self.numbers[self.at(places)]

    def with_features(self, features: Tensor) -> Points:
        """The same points with other features."""
        other = Points(self.places, features, self.shape)
        other.__dict__.update(neighbours=self.neighbours, numbers=self.numbers)  # not made again
        return other

    def kept(self, chosen: Tensor) -> Points:
        """Some of the points; chosen: (N,) bool."""
        return Points(self.places[chosen], self.features[chosen], self.shape)


class SparseConvolution(nn.Module):
    """3 x 3 x 3, at the occupied points alone (submanifold)."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.weight = _weights(27, width_in, width_out)
        self.bias = nn.Parameter(torch.zeros(width_out))

    def forward(self, points: Points) -> Points:
        """The same points with width_out features."""
        device = points.features.device.type
        fast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else points.features.dtype
        found = _Convolution.apply(points.features.to(fast), self.weight.to(fast), points.neighbours)
        return points.with_features(found + self.bias)


class _Convolution(torch.autograd.Function):
    """Sum over the neighbours k of features[k] @ weight[k], in float32.

    Neighbour k of a point has the point as neighbour 26 - k. So the gradient is a convolution, too: nothing is
    scattered, and the features of all 27 neighbours are never held at once.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, neighbours: Tensor) -> Tensor:
        """features: (N, A). weight: (27, A, B). neighbours: see `Points`. Returns (N, B)."""
        ctx.save_for_backward(features, weight, neighbours)
        return _convolved(features, weight, neighbours)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        """gradient: (N, B)."""
        features, weight, neighbours = ctx.saved_tensors
        gradient, padded = gradient.to(features), _padded(features)
        of_features = _convolved(gradient, weight.transpose(1, 2).flip(0), neighbours).to(features)
        of_weight = torch.stack([padded.index_select(0, chosen).T @ gradient for chosen in neighbours])
        return of_features, of_weight, None


def _convolved(features: Tensor, weight: Tensor, neighbours: Tensor) -> Tensor:
    padded = _padded(features)
    total = torch.zeros(len(features), weight.shape[2], device=features.device)
    for chosen, matrix in zip(neighbours, weight, strict=True):
        total += padded.index_select(0, chosen) @ matrix
    return total


def _padded(features: Tensor) -> Tensor:
    """(N + 1, C): the last row stands for no neighbour."""
    return functional.pad(features, (0, 0, 0, 1))


class Shrink(nn.Module):
    """2 x 2 x 2 with a stride of 2: a point for each block that holds one."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.weight = _weights(8, width_in, width_out)

    def forward(self, points: Points) -> Points:
        """Points of the grid with half as many along each side."""
        above = torch.cat([points.places[:, :1], points.places[:, 1:] // 2], 1)
        blocks, owner = torch.unique(points.at(above), return_inverse=True)  # `dim=0` takes ten times as long
        places = above.new_empty(len(blocks), 4).index_put((owner,), above)
        child = points.places[:, 1:] % 2 @ points.places.new_tensor([4, 2, 1])
        block = points.features.new_zeros(len(places), len(CHILDREN), points.features.shape[1])
        out = block.index_put((owner, child), points.features).flatten(1) @ self.weight.flatten(0, 1)
        heads, i, j, k = points.shape
        return Points(places, out, (heads, -(-i // 2), -(-j // 2), -(-k // 2)))


class Grow(nn.Module):
    """The transposed convolution: each point becomes the eight of its block, wherever the skull has bone."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.weight = _weights(8, width_in, width_out)

    def forward(self, points: Points, shape: tuple[int, int, int, int]) -> Points:
        """shape: of the finer grid."""
        first = points.places * points.places.new_tensor([1, 2, 2, 2])
        places = torch.cat([first + first.new_tensor([0, *child]) for child in CHILDREN])
        features = torch.cat([points.features @ weight for weight in self.weight])
        inside = (places < places.new_tensor(shape)).all(1)
        return Points(places[inside], features[inside], shape)


class SparseBlock(nn.Module):
    """x + f(x), f = twice (norm, SiLU, convolution)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(2)])
        self.convolutions = nn.ModuleList([SparseConvolution(width, width) for _ in range(2)])

    def forward(self, points: Points) -> Points:
        """The same points with as many features."""
        hidden = points
        for norm, convolution in zip(self.norms, self.convolutions, strict=True):
            hidden = convolution(hidden.with_features(functional.silu(norm(hidden.features))))
        return points.with_features(points.features + hidden.features)


class Sparse(BoneNetwork):
    """An encoder-decoder of sparse convolutions. At each level of the decoder points without bone are left out.

    The last of `widths` belongs to a grid coarse enough that its points span the defect.
    """

    def __init__(self, channels: Sequence[int], widths: Sequence[int]) -> None:
        super().__init__(channels)
        steps = list(pairwise(widths))
        self.enter = nn.Linear(len(channels) + len(LAYOUT.coordinates), widths[0])
        self.down = nn.ModuleList(SparseBlock(width) for width in widths)
        self.shrink = nn.ModuleList(Shrink(a, b) for a, b in steps)
        self.grow = nn.ModuleList(Grow(b, a) for a, b in steps)
        self.up = nn.ModuleList(SparseBlock(a) for a, _ in steps)
        self.occupied = nn.ModuleList(nn.Linear(a, 1) for a, _ in steps)
        for layer in self.occupied:
            start_at_little_bone(layer)

    def predict(self, bone: Tensor, where: Tensor) -> Tensor:
        """See `BoneNetwork.predict`."""
        points, odds = self._levels(bone, where, [])[-1]
        dense = torch.full(points.shape, NOT_VISITED, device=bone.device)
        dense[_at(points.places)] = odds.float()
        return dense

    def answers(self, bone: Tensor, where: Tensor, missing: Tensor) -> list[Answer]:
        """One answer for each level of the decoder, at its points; missing bone is always among them.

        In use it is not. So points are left out only where the network is sure (`REFINED`): were they left out from
        even odds, that a point is there would say in training that bone is missing, and in use a defect would be lost.
        """
        targets = [missing]
        for _ in self.occupied[1:]:
            targets.append(functional.max_pool3d(targets[-1], 2, ceil_mode=True))
        levels = self._levels(bone, where, targets[::-1])
        return [
            Answer(odds[None, :, None, None], target[_at(points.places)][None, :, None, None])
            for (points, odds), target in zip(levels, targets[::-1], strict=True)
        ]

    def _levels(self, bone: Tensor, where: Tensor, targets: Sequence[Tensor]) -> list[tuple[Points, Tensor]]:
        """Points and log-odds (N,) of each level of the decoder, the coarsest first; targets: of each, in training."""
        skipped, points = [], self._occupied(bone, where)
        for block, shrink in zip(self.down, [*self.shrink, None], strict=True):
            points = block(points)
            skipped.append(points)
            points = points if shrink is None else shrink(points)
        levels = []
        steps = zip(reversed(self.grow), reversed(self.up), reversed(self.occupied), skipped[-2::-1], strict=True)
        for number, (grow, block, occupied, skip) in enumerate(steps):
            points = block(_joined(grow(points, skip.shape), skip))
            odds = occupied(points.features)[:, 0]
            levels.append((points, odds))
            if number + 1 < len(self.grow):
                chosen = (odds > REFINED) | (skip.found(points.places) >= 0)
                points = points.kept(chosen | (targets[number][_at(points.places)] > 0) if targets else chosen)
        return levels

    def _occupied(self, bone: Tensor, where: Tensor) -> Points:
        places = torch.nonzero(bone[:, 0] > OCCUPIED)
        head, i, j, k = places.unbind(1)
        inputs = torch.cat([bone[head, :, i, j, k], where[head, :, i // 2, j // 2, k // 2].to(bone)], 1)
        heads, _, *sides = bone.shape
        return Points(places, self.enter(inputs), (heads, sides[0], sides[1], sides[2]))


def _joined(points: Points, skip: Points) -> Points:
    """The points, with the features of `skip` added where it has the same place."""
    number = skip.found(points.places)
    here = torch.nonzero(number >= 0)[:, 0]
    features = points.features.index_add(0, here, skip.features[number[here]].to(points.features))
    return Points(points.places, features, points.shape)


def _at(places: Tensor) -> tuple[Tensor, ...]:
    """Places (N, 4) as an index."""
    return places.unbind(1)


def _weights(count: int, width_in: int, width_out: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(count, width_in, width_out) * (2 / (count * width_in)) ** 0.5)
