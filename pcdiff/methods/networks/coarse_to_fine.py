"""Two networks (Li, Bayat 2020): one finds the defect on the whole head, a second one answers around it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional

from pcdiff.methods.networks.base import Answer, BoneNetwork
from pcdiff.methods.networks.config import Block
from pcdiff.methods.networks.encoder_decoder import EncoderDecoder, padded
from pcdiff.methods.volumetric.config import LAYOUT
from pcdiff.methods.volumetric.features import MARGIN, Window

SURE = 0.5  # share of missing bone that counts as found


class CoarseToFine(BoneNetwork):
    """The first network sees the whole lattice at half its resolution; the second one a box around what that finds.

    In the box the second one's answer counts, elsewhere the first one's.
    """

    whole = True

    def __init__(self, channels: Sequence[int], block: Block, widths: Sequence[int]) -> None:
        super().__init__(channels)
        inputs = range(len(channels))
        self.rough = EncoderDecoder(inputs, block, widths)
        self.refine = EncoderDecoder(inputs, block, widths)

    def predict(self, bone: Tensor, where: Tensor) -> Tensor:
        """See `BoneNetwork.predict`."""
        rough = self._rough(bone, where)
        return self._refined(bone, where, rough, rough.sigmoid())

    def answers(self, bone: Tensor, where: Tensor, missing: Tensor) -> list[Answer]:
        """The answers of both networks, each trained for itself: the box lies around the true missing bone."""
        rough = self._rough(bone, where)
        return [Answer(rough, missing), Answer(self._refined(bone, where, rough.detach(), missing), missing)]

    def _rough(self, bone: Tensor, where: Tensor) -> Tensor:
        """(B, I, J, K) log-odds of the first network."""
        half = [functional.avg_pool3d(padded(x.float(), mode="replicate"), 2) for x in (bone, where)]
        odds = self.rough.predict(*half)[:, None].float()
        return functional.interpolate(odds, scale_factor=2.0, mode="trilinear")[
            :, 0, : bone.shape[2], : bone.shape[3], : bone.shape[4]
        ]

    def _refined(self, bone: Tensor, where: Tensor, rough: Tensor, found: Tensor) -> Tensor:
        """(B, I, J, K) log-odds: the rough ones, replaced in a box around the share of missing bone that is found."""
        refined = rough.clone()
        for number, share in enumerate(found):
            if (box := box_around(share >= SURE)) is not None:
                blocks = tuple(slice(side.start // 2, side.stop // 2) for side in box)
                inputs = (x[number][(slice(None), *part)][None] for x, part in ((bone, box), (where, blocks)))
                refined[(number, *box)] = self.refine.predict(*inputs)[0].float()
        return refined


def box_around(found: Tensor) -> Window | None:
    """A box with its margin around the points found, (I, J, K) bool; None where there are none.

    Its sides are multiples of `LAYOUT.window_multiple`, as far as the lattice goes, and it begins at even points.
    """
    if not found.any():
        return None
    sides = []
    for axis, side in enumerate(found.shape):
        along = found.movedim(axis, 0).flatten(1).any(1).nonzero()
        first, last = int(along[0]) - MARGIN, int(along[-1]) + 1 + MARGIN
        multiple = LAYOUT.window_multiple
        length = min(-(-(last - first) // multiple), side // multiple) * multiple
        start = min(max((first + last - length) // 2, 0), side - length)
        sides.append(slice(start - start % 2, start - start % 2 + length))
    a, b, c = sides
    return a, b, c
