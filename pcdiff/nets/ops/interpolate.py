"""Interpolation weights between two clouds."""

from __future__ import annotations

from torch import Tensor

from pcdiff.nets.ops.neighbours import knn


def three_nn_weights(query: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """The three nearest points of each query and their weights 1 / d^2 (Qi et al. 2017, PointNet++, eq. 2).

    query (B, M, 3), points (B, N, 3) -> index (B, M, 3) int64 and weight (B, M, 3), which adds up to 1. Squared
    distances are clamped to [1e-10, 1e10], so a query on a point takes its features. Differentiable in both clouds.
    Raises ValueError for fewer than three points.
    """
    distance2, index = knn(query, points, 3)
    weight = 1 / distance2.clamp(1e-10, 1e10)
    return index, weight / weight.sum(-1, keepdim=True)
