"""Carry features from one cloud to another."""

from __future__ import annotations

from torch import Tensor

from pcdiff.nets.ops.gather import gather
from pcdiff.nets.ops.neighbours import knn


def three_nn_interpolate(query: Tensor, points: Tensor, features: Tensor) -> Tensor:
    """Mean of the three nearest points' features, weighted by 1 / d^2 (Qi et al. 2017, PointNet++, eq. 2).

    query (B, M, 3), points (B, N, 3), features (B, C, N) -> (B, C, M) of the features' dtype. Squared distances are
    clamped to [1e-10, 1e10], so a query on a point takes its features. Differentiable in features and positions.
    Raises ValueError for fewer than three points.
    """
    index, weight = three_nn_weights(query, points)
    return (gather(features, index) * weight[:, None]).sum(-1).to(features.dtype)


def three_nn_weights(query: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """The three nearest points of each query and their weights, index and weight both (B, M, 3); see above."""
    distance2, index = knn(query, points, 3)
    weight = 1 / distance2.clamp(1e-10, 1e10)
    return index, weight / weight.sum(-1, keepdim=True)
