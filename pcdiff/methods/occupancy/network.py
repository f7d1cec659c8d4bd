"""Per-point MLP: log-odds that a query point belongs to the missing bone, from occupancy patches around it."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from pcdiff.methods.occupancy.config import SETTINGS, OccupancySettings


class OccupancyNetwork(nn.Module):
    """Log-odds of missing bone at single points: a correction to those of the completed tables.

    With zero output the tables' log-odds remain, times `table_weight`, because they are overconfident.
    """

    def __init__(self, settings: OccupancySettings = SETTINGS) -> None:
        super().__init__()
        features, width = settings.features, settings.width
        self.table_weight = settings.table_weight
        self.norm = nn.BatchNorm1d(features, affine=False)
        self.enter = nn.Linear(features, width)
        self.hidden = nn.Linear(width, width // 2)
        self.leave = nn.Linear(width // 2, 1)
        self.dropout = nn.Dropout(settings.dropout)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, features: Tensor, table_log_odds: Tensor) -> Tensor:
        """features: (N, F). table_log_odds: (N,), of the completed tables. Returns log-odds (N,)."""
        hidden = self.norm(features).clamp(-4, 4)
        for layer in (self.enter, self.hidden):
            hidden = self.dropout(functional.silu(layer(hidden)))
        return self.table_weight * table_log_odds + self.leave(hidden)[:, 0]
