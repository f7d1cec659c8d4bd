"""Two networks (Li, Bayat 2020): one finds the defect on the whole head, a second one refines around it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from pcdiff.methods.networks.base import Answer, BoneNetwork
from pcdiff.methods.networks.config import Block
from pcdiff.methods.networks.encoder_decoder import EncoderDecoder, padded

CROP = (56, 64, 64)  # lattice points that the second network sees: 112 x 128 x 128 mm
UNSURE = 0.1  # share of missing bone that does not count for the crop's place


class CoarseToFine(BoneNetwork):
    """The first network sees the whole lattice at half its resolution; the crop lies around what it finds.

    The second one reads bone and the first one's log-odds, and its own are added to them.
    """

    whole = True

    def __init__(self, channels: Sequence[int], block: Block, widths: Sequence[int]) -> None:
        super().__init__(channels)
        own = range(len(channels) + 1)
        self.rough = EncoderDecoder(range(len(channels)), block, widths)
        self.refine = EncoderDecoder(own, block, widths)
        torch.nn.init.zeros_(self.refine.leave.weight)
        torch.nn.init.zeros_(self.refine.leave.bias)  # type: ignore[arg-type]

    def predict(self, bone: Tensor, where: Tensor) -> Tensor:
        """See `BoneNetwork.predict`."""
        rough = self._rough(bone, where)
        found = rough.sigmoid()
        return torch.stack([self._refined(*head) for head in zip(bone, where, rough, found, strict=True)])

    def answers(self, bone: Tensor, where: Tensor, missing: Tensor) -> list[Answer]:
        """The answers of both networks, each trained for itself: the crop lies around the true missing bone."""
        rough = self._rough(bone, where)
        fine = torch.stack([self._refined(*head) for head in zip(bone, where, rough.detach(), missing, strict=True)])
        return [Answer(rough, missing), Answer(fine, missing)]

    def _rough(self, bone: Tensor, where: Tensor) -> Tensor:
        """(B, I, J, K) log-odds of the first network."""
        half = [functional.avg_pool3d(padded(x.float(), mode="replicate"), 2) for x in (bone, where)]
        odds = self.rough.predict(*half)[:, None].float()
        return functional.interpolate(odds, scale_factor=2.0, mode="trilinear")[
            :, 0, : bone.shape[2], : bone.shape[3], : bone.shape[4]
        ]

    def _refined(self, bone: Tensor, where: Tensor, rough: Tensor, around: Tensor) -> Tensor:
        """(I, J, K) log-odds of one head: the rough ones, corrected in the crop around a share of missing bone."""
        first = crop_around(around)
        crop = tuple(slice(a, a + side) for a, side in zip(first, CROP, strict=True))
        half = tuple(slice(a // 2, (a + side) // 2) for a, side in zip(first, CROP, strict=True))
        inputs = torch.cat([bone[(slice(None), *crop)], rough[None][(slice(None), *crop)].to(bone) / 4])
        correction = self.refine.predict(inputs[None], where[(slice(None), *half)][None])[0]
        refined = rough.clone()
        refined[crop] = refined[crop] + correction.float()
        return refined


def crop_around(share: Tensor) -> list[int]:
    """First lattice points, even, of the crop around the mean place of missing bone; share: (I, J, K)."""
    weight = (share.float() - UNSURE).clamp(min=0)
    first = []
    for axis, (side, crop) in enumerate(zip(share.shape, CROP, strict=True)):
        if side < crop:
            raise ValueError(f"expected at least {CROP} lattice points, got {tuple(share.shape)}")
        along = weight.movedim(axis, 0).flatten(1).sum(1)
        middle = float((along * torch.arange(side).to(along)).sum() / along.sum().clamp(min=1e-6))
        corner = min(max(round(middle - crop / 2), 0), side - crop)
        first.append(corner - corner % 2)
    return first
