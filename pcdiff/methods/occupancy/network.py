"""The network of places: is bone missing here? Each place answers by itself, from what it sees around."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from pcdiff.methods.occupancy.features import FEATURES

TRUST = 0.5  # of what the rays say that stands before anything is learned: they are too sure of themselves


class OccupancyNetwork(nn.Module):
    """Log-odds of missing bone at single places. A network that says nothing tones down what the rays say."""

    def __init__(self, width: int = 384, dropout: float = 0.2) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(FEATURES, affine=False)
        self.enter = nn.Linear(FEATURES, width)
        self.hidden = nn.Linear(width, width // 2)
        self.leave = nn.Linear(width // 2, 1)
        self.dropout = nn.Dropout(dropout)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, features: Tensor, logit: Tensor) -> Tensor:
        """features: (N, FEATURES). logit: (N,), what the rays say. Returns (N,)."""
        hidden = self.norm(features).clamp(-4, 4)
        for layer in (self.enter, self.hidden):
            hidden = self.dropout(functional.silu(layer(hidden)))
        return TRUST * logit + self.leave(hidden)[:, 0]
