"""Encoder-decoders in two or three dimensions, of blocks that the challenges' entries used, from MONAI.

Sources: Ronneberger 2015 and Ellis 2020 (plain, residual), Hu 2018 (squeeze and excitation), Huang 2017 (dense),
Milletari 2016 (V-Net), Isensee 2021 (nnU-Net), Wodzinski 2021 (strided first and transposed last convolution).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from monai.networks.blocks import ConvDenseBlock, Convolution, ResidualSELayer, ResidualUnit
from monai.networks.nets import DynUNet
from torch import Tensor, nn
from torch.nn import functional

from pcdiff.methods.networks.base import Answer, BoneNetwork, start_at_little_bone
from pcdiff.methods.networks.config import Block
from pcdiff.methods.volumetric.config import LAYOUT

GROWTH = 16  # channels that each layer of a dense block adds
DENSE_LAYERS = 3
SQUEEZE = 8  # channels for one of the gate's hidden layer
NORM = ("group", {"num_groups": 8})
LEAKY = ("leakyrelu", {"negative_slope": 0.01})


def make_block(block: Block, dimensions: int, width_in: int, width_out: int) -> nn.Module:
    """Two convolutions or more, from width_in to width_out channels at one resolution."""
    if block == "plain":
        return nn.Sequential(
            Convolution(dimensions, width_in, width_out, norm=NORM, act=LEAKY),
            Convolution(dimensions, width_out, width_out, norm=NORM, act=LEAKY),
        )
    if block == "residual":
        return ResidualUnit(dimensions, width_in, width_out, norm=NORM, act=LEAKY)
    if block == "squeeze":
        gate = ResidualSELayer(dimensions, width_out, r=SQUEEZE)
        return nn.Sequential(ResidualUnit(dimensions, width_in, width_out, norm=NORM, act=LEAKY), gate)
    if block == "dense":
        layers = ConvDenseBlock(dimensions, width_in, [GROWTH] * DENSE_LAYERS, act=LEAKY, norm="instance")
        last = Convolution(dimensions, width_in + GROWTH * DENSE_LAYERS, width_out, 1, 1, norm=NORM, act=LEAKY)
        return nn.Sequential(layers, last)
    assert block == "vnet"
    return ResidualUnit(dimensions, width_in, width_out, kernel_size=5, norm=NORM, act="prelu")


class Levels(nn.Module):
    """An encoder-decoder whose output is as fine as its input.

    Args:
        block: see `make_block`.
        dimensions: 2 or 3.
        channels: of the input.
        widths: channels of the levels.
    """

    def __init__(self, block: Block, dimensions: int, channels: int, widths: Sequence[int]) -> None:
        super().__init__()
        steps = list(pairwise(widths))
        self.down = nn.ModuleList(
            make_block(block, dimensions, a, b) for a, b in zip([channels, *widths[1:-1]], widths[:-1], strict=True)
        )
        self.shrink = nn.ModuleList(Convolution(dimensions, a, b, 2, 2, conv_only=True, padding=0) for a, b in steps)
        self.middle = make_block(block, dimensions, widths[-1], widths[-1])
        self.grow = nn.ModuleList(Convolution(dimensions, b, a, 1, 1, conv_only=True) for a, b in steps)
        self.up = nn.ModuleList(make_block(block, dimensions, 2 * a, a) for a, _ in steps)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) -> (B, widths[0], ...). Sides need not be multiples of anything."""
        skipped = []
        for block, shrink in zip(self.down, self.shrink, strict=True):
            x = block(x)
            skipped.append(x)
            x = shrink(padded(x))
        x = self.middle(x)
        for grow, block, skip in zip(reversed(self.grow), reversed(self.up), reversed(skipped), strict=True):
            x = functional.interpolate(grow(x), scale_factor=2.0, mode="nearest")
            x = block(torch.cat([_cropped(x, skip.shape[2:]), skip], 1))
        return x


class EncoderDecoder(BoneNetwork):
    """Convolutions at half of the lattice's resolution and coarser."""

    def __init__(self, channels: Sequence[int], block: Block, widths: Sequence[int]) -> None:
        super().__init__(channels)
        self.enter = nn.Conv3d(len(channels), widths[0], 4, 2, 1)
        self.levels = Levels(block, 3, widths[0] + len(LAYOUT.coordinates), widths)
        self.leave = nn.ConvTranspose3d(widths[0], 1, 4, 2, 1)
        start_at_little_bone(self.leave)

    def predict(self, bone: Tensor, where: Tensor) -> Tensor:
        """See `BoneNetwork.predict`."""
        hidden = self.levels(torch.cat([self.enter(bone), where.to(bone)], 1))
        odds: Tensor = self.leave(hidden)[:, 0]
        return odds


class NnUNet(BoneNetwork):
    """nnU-Net's network at the lattice's resolution, with deep supervision. widths: see `planning.planned_widths`."""

    def __init__(self, channels: Sequence[int], widths: Sequence[int]) -> None:
        super().__init__(channels)
        deeper = len(widths) - 1
        self.network = DynUNet(
            3,
            len(channels),
            1,
            kernel_size=[3] * len(widths),
            strides=[1] + [2] * deeper,
            upsample_kernel_size=[2] * deeper,
            filters=list(widths),
            deep_supervision=deeper > 1,
            deep_supr_num=max(deeper - 1, 1),
        )

    def predict(self, bone: Tensor, where: Tensor) -> Tensor:
        """See `BoneNetwork.predict`."""
        odds = self._all_depths(bone)
        odds = odds[:, 0] if odds.ndim == bone.ndim + 1 else odds  # in training: all depths
        return _cropped(odds, bone.shape[2:])[:, 0]

    def answers(self, bone: Tensor, where: Tensor, missing: Tensor) -> list[Answer]:
        """One answer for each depth, all at full resolution."""
        odds = self._all_depths(bone)
        depths = odds.unbind(1) if odds.ndim == bone.ndim + 1 else [odds]
        return [Answer(_cropped(depth, bone.shape[2:])[:, 0], missing) for depth in depths]

    def _all_depths(self, bone: Tensor) -> Tensor:
        odds: Tensor = self.network(padded(bone, 2 ** (len(self.network.filters) - 1)))
        return odds


def padded(x: Tensor, multiple: int = 2, mode: str = "constant") -> Tensor:
    """Zeros after the last values, so that each side is a multiple; mode: of `functional.pad`."""
    ends = [(0, -side % multiple) for side in reversed(x.shape[2:])]
    return functional.pad(x, [n for end in ends for n in end], mode)


def _cropped(x: Tensor, sides: Sequence[int]) -> Tensor:
    """The first values of each side."""
    for axis, side in enumerate(sides, 2):
        x = x.narrow(axis, 0, side)
    return x
