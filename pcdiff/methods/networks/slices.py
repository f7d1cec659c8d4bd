"""Networks over slices along three axes, whose log-odds are averaged (Yang 2021), or one along z with a memory.

ConvLSTM: Shi 2015, equation 3, without peepholes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn

from pcdiff.methods.networks.base import Answer, BoneNetwork, start_at_little_bone
from pcdiff.methods.networks.config import Block
from pcdiff.methods.networks.encoder_decoder import Levels
from pcdiff.methods.volumetric.config import LAYOUT
from pcdiff.nets.unet3d import fold, unfold

AXES = "ijk"


class SliceNetwork(nn.Module):
    """A network over the slices of a volume along one axis.

    Slices are two lattice points thick, and a pixel is a block of 2 x 2 points, folded into channels.
    """

    def __init__(self, axis: str, channels: int, block: Block, widths: Sequence[int]) -> None:
        super().__init__()
        rest = " ".join(AXES.replace(axis, ""))
        self.together, self.apart = f"b c i j k -> (b {axis}) c {rest}", f"(b {axis}) c {rest} -> b c i j k"
        self.axis = axis
        recurrent = block == "lstm"
        self.levels = Levels("residual" if recurrent else block, 2, channels, widths)
        self.memory = BidirectionalConvLstm(widths[0]) if recurrent else None
        self.leave = nn.Conv2d(widths[0], 8, 1)
        start_at_little_bone(self.leave)

    def forward(self, blocks: Tensor) -> Tensor:
        """(B, C, I/2, J/2, K/2) blocks of lattice points -> (B, I, J, K) log-odds."""
        count = blocks.shape[2 + AXES.index(self.axis)]
        hidden = self.levels(rearrange(blocks, self.together))
        if self.memory is not None:
            hidden = self.memory(hidden.unflatten(0, (-1, count))).flatten(0, 1)
        return unfold(rearrange(self.leave(hidden), self.apart, **{self.axis: count}))[:, 0]


class BidirectionalConvLstm(nn.Module):
    """Two ConvLSTM cells that run through the slices, one in each direction; their sum is added to the input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gates = nn.ModuleList(nn.Conv2d(2 * width, 4 * width, 3, padding=1) for _ in range(2))

    def forward(self, slices: Tensor) -> Tensor:
        """(B, N, C, I, J) -> the same shape."""
        onwards, backwards = self.gates
        return slices + self._run(slices, onwards) + self._run(slices.flip(1), backwards).flip(1)

    def _run(self, slices: Tensor, gates: nn.Module) -> Tensor:
        hidden = cell = torch.zeros_like(slices[:, 0])
        found = []
        for image in slices.unbind(1):
            enter, forget, leave, new = gates(torch.cat([image, hidden], 1)).chunk(4, 1)
            cell = forget.sigmoid() * cell + enter.sigmoid() * new.tanh()
            hidden = leave.sigmoid() * cell.tanh()
            found.append(hidden)
        return torch.stack(found, 1)


class Slices(BoneNetwork):
    """A network for each axis; with the block `lstm`, one along z."""

    def __init__(self, channels: Sequence[int], block: Block, widths: Sequence[int]) -> None:
        super().__init__(channels)
        count = 8 * len(channels) + len(LAYOUT.coordinates)
        axes = "k" if block == "lstm" else AXES
        self.networks = nn.ModuleList(SliceNetwork(axis, count, block, widths) for axis in axes)

    def predict(self, bone: Tensor, where: Tensor) -> Tensor:
        """See `BoneNetwork.predict`."""
        return torch.stack(self._all(bone, where)).mean(0)

    def answers(self, bone: Tensor, where: Tensor, missing: Tensor) -> list[Answer]:
        """One answer for each axis: the networks are trained side by side."""
        return [Answer(odds, missing) for odds in self._all(bone, where)]

    def _all(self, bone: Tensor, where: Tensor) -> list[Tensor]:
        blocks = torch.cat([fold(bone), where.to(bone)], 1)
        return [network(blocks) for network in self.networks]
