"""An encoder-decoder that sees one patch of the lattice at a time (Li 2020): what a small memory allows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from monai.inferers import sliding_window_inference
from torch import Tensor
from torch.nn import functional

from pcdiff.methods.networks.base import Answer, BoneNetwork
from pcdiff.methods.networks.config import Block
from pcdiff.methods.networks.encoder_decoder import EncoderDecoder, padded

SIDE = 32  # lattice points: 64 mm
TOGETHER = "b c (i p) (j q) (k r) -> (b i j k) c p q r"
BATCH = 4  # patches at a time


class Patches(BoneNetwork):
    """Trained on patches side by side; used on patches that overlap by half, weighted towards their middle."""

    def __init__(self, channels: Sequence[int], block: Block, widths: Sequence[int]) -> None:
        super().__init__(channels)
        self.network = EncoderDecoder(range(len(channels)), block, widths)

    def predict(self, bone: Tensor, where: Tensor) -> Tensor:
        """See `BoneNetwork.predict`."""
        full = functional.interpolate(where, scale_factor=2.0, mode="nearest")
        count = bone.shape[1]

        def predict_patches(patches: Tensor) -> Tensor:
            own = functional.avg_pool3d(patches[:, count:].float(), 2)
            return self.network.predict(patches[:, :count], own)[:, None].float()

        both = torch.cat([bone.float(), full.float()], 1)
        found = sliding_window_inference(both, SIDE, BATCH, predict_patches, overlap=0.5, mode="gaussian")
        assert isinstance(found, Tensor)
        return found[:, 0]

    def answers(self, bone: Tensor, where: Tensor, missing: Tensor) -> list[Answer]:
        """The answer of all patches, laid side by side."""
        shape = bone.shape[2:]
        grid = {name: -(-side // SIDE) for name, side in zip("ijk", shape, strict=True)}
        odds = self.network.predict(_patches(bone, SIDE), _patches(where, SIDE // 2))
        odds = rearrange(odds, "(b i j k) p q r -> b (i p) (j q) (k r)", **grid)
        return [Answer(odds[:, : shape[0], : shape[1], : shape[2]], missing)]


def _patches(x: Tensor, side: int) -> Tensor:
    """(B, C, I, J, K) -> (B N, C, side, side, side), with zeros beyond the volume."""
    return rearrange(padded(x, side), TOGETHER, p=side, q=side, r=side)
