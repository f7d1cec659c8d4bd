"""The neighbour searches of `pcdiff.nets.ops.plain` on pytorch3d's kernels. Importing this file needs pytorch3d.

pytorch3d breaks ties in its own order, so `knn` and `furthest_point_sample` agree with plain torch only without ties.
"""

from __future__ import annotations

import torch
from pytorch3d import ops as pytorch3d
from torch import Tensor

from pcdiff.nets.ops import plain


def knn(query: Tensor, points: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """See `pcdiff.nets.ops.knn`. Distances are computed in torch, since pytorch3d's backward pass is float32 only."""
    query, points = plain.wide(query), plain.wide(points)
    with torch.no_grad():
        index = pytorch3d.knn_points(query, points, K=k).idx
    return plain.distances_to(query, points, index), index


@torch.no_grad()
def ball_query(centres: Tensor, points: Tensor, radius: float, k: int) -> Tensor:
    """See `pcdiff.nets.ops.ball_query`. pytorch3d leaves -1 in spare slots, which are set to the first hit, or 0."""
    centres, points = plain.wide(centres), plain.wide(points)
    index = pytorch3d.ball_query(centres, points, K=k, radius=radius, return_nn=False).idx
    return torch.where(index < 0, index[..., :1].clamp(min=0), index)


@torch.no_grad()
def furthest_point_sample(points: Tensor, m: int, start: int = 0) -> Tensor:
    """See `pcdiff.nets.ops.furthest_point_sample`. For float32 and start 0; else plain torch."""
    points = plain.wide(points)
    if start != 0 or points.dtype != torch.float32:
        return plain.furthest_point_sample(points, m, start)
    return pytorch3d.sample_farthest_points(points, K=m)[1]
