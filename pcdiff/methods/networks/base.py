"""What all networks of the field share: their input, their output, and what they are trained on."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pcdiff.methods.volumetric.config import LAYOUT
from pcdiff.nets.unet3d import INITIAL_LOG_ODDS


class Answer(NamedTuple):
    """A prediction to train on: log-odds and the share of missing bone that they should give, (B, I, J, K) each."""

    odds: Tensor
    missing: Tensor


class BoneNetwork(nn.Module):
    """Predicts log-odds of missing bone in a window of the lattice.

    Args:
        channels: which of `LAYOUT.fine` it reads.
    """

    whole = False  # it reads the whole lattice; else a window around each defect

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.channels = list(channels)

    def forward(self, fine: Tensor, coarse: Tensor, missing: Tensor | None = None) -> Tensor | list[Answer]:
        """Log-odds (B, I, J, K); with the share of missing bone, what is to be trained.

        fine: (B, 3, I, J, K), coarse: (B, C, I/2, J/2, K/2), see `volumetric.features.network_inputs`; of the coarse
        channels only the coordinates are read. missing: (B, I, J, K).
        """
        bone, where = fine[:, self.channels], coarse[:, : len(LAYOUT.coordinates)]
        if missing is None:
            return self.predict(bone, where)
        return self.answers(bone, where, missing)

    @abstractmethod
    def predict(self, bone: Tensor, where: Tensor) -> Tensor:
        """bone: (B, C, I, J, K), where: (B, 3, I/2, J/2, K/2) coordinates -> (B, I, J, K) log-odds."""

    def answers(self, bone: Tensor, where: Tensor, missing: Tensor) -> list[Answer]:
        """Predictions to train on; here the one that is used."""
        return [Answer(self.predict(bone, where), missing)]


def start_at_little_bone(layer: nn.Module) -> None:
    """Sets the bias of a last layer so that an untrained network predicts little bone."""
    assert isinstance(layer.bias, Tensor)
    with torch.no_grad():
        layer.bias.fill_(INITIAL_LOG_ODDS)
