"""A residual U-Net over volumes whose convolutions all run at half of the input's resolution.

Blocks of 2 x 2 x 2 voxels are folded into channels at the entry and unfolded at the exit: convolutions of few channels
at full resolution would take most of the time on a CPU, and most of the memory on a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

INITIAL_LOG_ODDS = -4.0  # of an untrained network: bone is missing in few voxels
OUTPUT_GAIN = 3.0  # normalised features are bounded, and the last layer's weights grow slowly


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of each voxel, so that the output does not depend on the volume's size."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, I, J, K) -> the same shape."""
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class ResidualBlock(nn.Module):
    """x + f(x), f = twice (norm, SiLU, 3 x 3 x 3 convolution); the last convolution starts at zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([ChannelNorm(width) for _ in range(2)])
        self.convolutions = nn.ModuleList([nn.Conv3d(width, width, 3, padding=1) for _ in range(2)])
        for parameter in self.convolutions[1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, I, J, K) -> the same shape."""
        hidden = x
        for norm, convolution in zip(self.norms, self.convolutions, strict=True):
            hidden = convolution(functional.silu(norm(hidden)))
        return x + hidden


class UNet3d(nn.Module):
    """Volumes -> log-odds of each voxel.

    Args:
        channels: of the input at full resolution.
        coarse: further channels, which come at half of the resolution.
        widths: channels of the levels; each level is half as fine as the one before.
        blocks: residual blocks of each level, on the way down and on the way up.
    """

    def __init__(self, channels: int, coarse: int, widths: Sequence[int] = (32, 64, 128), blocks: int = 1) -> None:
        super().__init__()
        self.enter = nn.Conv3d(8 * channels + coarse, widths[0], 3, padding=1)
        self.down = nn.ModuleList([_blocks(width, blocks) for width in widths[:-1]])
        self.shrink = nn.ModuleList([nn.Conv3d(a, b, 2, stride=2) for a, b in pairwise(widths)])
        self.middle = _blocks(widths[-1], 2 * blocks)
        self.grow = nn.ModuleList([nn.Conv3d(b, a, 1) for a, b in pairwise(widths)])
        self.join = nn.ModuleList([nn.Conv3d(2 * width, width, 1) for width in widths[:-1]])
        self.up = nn.ModuleList([_blocks(width, blocks) for width in widths[:-1]])
        self.norm = ChannelNorm(widths[0])
        self.leave = nn.Conv3d(widths[0], 8, 1)
        nn.init.zeros_(self.leave.weight)
        assert self.leave.bias is not None
        nn.init.constant_(self.leave.bias, INITIAL_LOG_ODDS)
        self.side = 2 ** len(widths)  # sides of the input must be multiples of it
        self.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]

    def features(self, x: Tensor, coarse: Tensor) -> Tensor:
        """x: (B, C, I, J, K), coarse: (B, C', I/2, J/2, K/2) -> (B, widths[0], I/2, J/2, K/2).

        Raises ValueError where a side is no multiple of `side`.
        """
        if any(side % self.side for side in x.shape[2:]):
            raise ValueError(f"sides must be multiples of {self.side}, got {tuple(x.shape[2:])}; pad the volume")
        hidden = self.enter(torch.cat([fold(x), coarse], 1).contiguous(memory_format=torch.channels_last_3d))
        skipped = []
        for blocks, shrink in zip(self.down, self.shrink, strict=True):
            hidden = blocks(hidden)
            skipped.append(hidden)
            hidden = shrink(hidden)
        hidden = self.middle(hidden)
        for grow, join, blocks, skip in zip(
            reversed(self.grow), reversed(self.join), reversed(self.up), reversed(skipped), strict=True
        ):
            hidden = functional.interpolate(grow(hidden), scale_factor=2.0, mode="nearest")
            hidden = blocks(join(torch.cat([hidden, skip], 1)))
        return self.norm(hidden)

    def forward(self, x: Tensor, coarse: Tensor) -> Tensor:
        """See `features` -> (B, I, J, K) log-odds."""
        return self.log_odds(self.features(x, coarse))

    def log_odds(self, features: Tensor) -> Tensor:
        """What `features` returns -> (B, I, J, K)."""
        return unfold(self.leave(OUTPUT_GAIN * functional.silu(features)))[:, 0]


def fold(x: Tensor) -> Tensor:
    """(B, C, 2 I, 2 J, 2 K) -> (B, 8 C, I, J, K): blocks of voxels become channels."""
    return rearrange(x, "b c (i p) (j q) (k r) -> b (c p q r) i j k", p=2, q=2, r=2)


def unfold(x: Tensor) -> Tensor:
    """(B, 8 C, I, J, K) -> (B, C, 2 I, 2 J, 2 K): the inverse of `fold`."""
    return rearrange(x, "b (c p q r) i j k -> b c (i p) (j q) (k r)", p=2, q=2, r=2)


def _blocks(width: int, count: int) -> nn.Sequential:
    return nn.Sequential(*(ResidualBlock(width) for _ in range(count)))
