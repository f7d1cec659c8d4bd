"""Pick features by point index."""

from __future__ import annotations

from torch import Tensor


def gather(features: Tensor, index: Tensor) -> Tensor:
    """out[b, c, ...] = features[b, c, index[b, ...]].

    features (B, C, N), index (B, ...) int64 in [0, N) -> (B, C, ...). Differentiable in the features.
    """
    batch, channels, _ = features.shape
    flat = index.reshape(batch, 1, -1).expand(-1, channels, -1)  # (B, C, P)
    return features.gather(2, flat).reshape(batch, channels, *index.shape[1:])
