"""Neighbour searches in plain torch: any device, any float dtype."""

from __future__ import annotations

import torch
from torch import Tensor

from pcdiff.nets.ops.gather import gather

PAIRS_AT_ONCE = 2**20  # bounds the (B, chunk, N) distance matrix to a few MB; more was not faster


def wide(points: Tensor) -> Tensor:
    """Converts half-precision coordinates to float32; their squared distances would have two digits."""
    return points.to(torch.promote_types(points.dtype, torch.float32))


def distances_to(query: Tensor, points: Tensor, index: Tensor) -> Tensor:
    """Squared distances to chosen neighbours, differentiable: (B, M, 3), (B, N, 3), (B, M, k) int64 -> (B, M, k)."""
    difference = query.transpose(1, 2)[..., None] - gather(points.transpose(1, 2), index)  # (B, 3, M, k)
    return difference.square().sum(1)


def _all_distances(query: Tensor, points: Tensor) -> Tensor:
    """Squared distances (B, M, N) by differences; |a|^2 - 2ab + |b|^2 would cancel for near neighbours."""
    dx, dy, dz = (query[:, :, None, axis] - points[:, None, :, axis] for axis in range(3))
    return dx.mul_(dx).addcmul_(dy, dy).addcmul_(dz, dz)


def _chunks(query: Tensor, points: Tensor) -> tuple[Tensor, ...]:
    """The query in pieces along M, so that each distance matrix has at most PAIRS_AT_ONCE elements."""
    return query.split(max(1, PAIRS_AT_ONCE // (points.shape[0] * points.shape[1])), dim=1)


def knn(query: Tensor, points: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """See `pcdiff.nets.ops.knn`."""
    query, points = wide(query), wide(points)
    with torch.no_grad():  # only the k distances returned need a gradient
        found = [_all_distances(part, points).topk(k, largest=False).indices for part in _chunks(query, points)]
    index = torch.cat(found, dim=1)
    return distances_to(query, points, index), index


@torch.no_grad()
def ball_query(centres: Tensor, points: Tensor, radius: float, k: int) -> Tensor:
    """See `pcdiff.nets.ops.ball_query`."""
    centres, points = wide(centres), wide(points)
    # Squared in the points' precision, as the CUDA kernels do: 0.1^2 differs in float32 and float64.
    radius2 = centres.new_tensor(radius).square()
    parts = []
    for part in _chunks(centres, points):
        inside = (_all_distances(part, points) < radius2).flatten(0, 1)  # (B m, N)
        row, column = inside.nonzero(as_tuple=True)  # row by row, columns ascending, hence in index order
        parts.append(slots(row, column, len(inside), k).unflatten(0, part.shape[:2]))
    return torch.cat(parts, dim=1)


def slots(row: Tensor, column: Tensor, rows: int, k: int) -> Tensor:
    """The first k hits of each row: row, column (E,) in order -> (rows, k).

    Spare slots repeat the first hit; a row without hits is 0.
    """
    hits = torch.bincount(row, minlength=rows)
    rank = torch.arange(len(row), device=row.device) - (hits.cumsum(0) - hits)[row]
    out = torch.zeros(rows, k, dtype=torch.int64, device=row.device)
    first = rank < k
    out[row[first], rank[first]] = column[first]
    spare = torch.arange(k, device=row.device) >= hits[:, None]
    return torch.where(spare, out[:, :1], out)


@torch.no_grad()
def furthest_point_sample(points: Tensor, m: int, start: int = 0) -> Tensor:
    """See `pcdiff.nets.ops.furthest_point_sample`."""
    x, y, z = wide(points).permute(2, 0, 1).contiguous()  # three of (B, N)
    nearest = torch.full_like(x, torch.inf)  # squared distance to the chosen set
    last = torch.full((len(points), 1), start, dtype=torch.int64, device=points.device)
    chosen = [last]
    for _ in range(m - 1):
        dx, dy, dz = (axis - axis.gather(1, last) for axis in (x, y, z))
        nearest = torch.minimum(nearest, dx.mul_(dx).addcmul_(dy, dy).addcmul_(dz, dz))
        last = nearest.argmax(1, keepdim=True)  # the first of equal maxima
        chosen.append(last)
    return torch.cat(chosen, dim=1)
