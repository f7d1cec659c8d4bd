"""The neighbour searches of `pcdiff.nets.ops.plain` as Triton kernels for CUDA. Importing this file needs triton.

Triton is installed with torch for CUDA on Linux. Distances are float32, as in the original's kernels; other precisions
and `knn` with k other than 3 go to plain torch.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pcdiff.nets.ops import plain


@triton.jit
def _furthest(points, nearest, chosen, n, m, start, BLOCK: tl.constexpr):
    """One program a sample: points (B, 3, N), nearest (B, N) and chosen (B, m) are written."""
    sample = tl.program_id(0)
    points += sample * 3 * n
    nearest += sample * n
    chosen += sample * m
    last = tl.zeros([], tl.int32) + start
    tl.store(chosen, last)
    for step in range(1, m):
        x, y, z = tl.load(points + last), tl.load(points + n + last), tl.load(points + 2 * n + last)
        furthest = -1.0
        for first in range(0, n, BLOCK):
            k = first + tl.arange(0, BLOCK)
            inside = k < n
            dx = tl.load(points + k, mask=inside, other=0.0) - x
            dy = tl.load(points + n + k, mask=inside, other=0.0) - y
            dz = tl.load(points + 2 * n + k, mask=inside, other=0.0) - z
            near = tl.minimum(tl.load(nearest + k, mask=inside, other=-1.0), dx * dx + dy * dy + dz * dz)
            near = tl.where(inside, near, -1.0)
            tl.store(nearest + k, near, mask=inside)
            most, place = tl.max(near, axis=0, return_indices=True)
            last = tl.where(most > furthest, first + place, last)  # of ties the first: blocks go in order
            furthest = tl.maximum(most, furthest)
        tl.store(chosen + step, last)


@triton.jit
def _within(
    centres,
    points,
    slots,
    hits,
    m,
    n,
    radius2,
    k: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program for ROWS centres of a sample: the first k points of each in index order, and how many there are."""
    sample = tl.program_id(1)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    real = row < m
    centres += sample * 3 * m
    points += sample * 3 * n
    x = tl.load(centres + row, mask=real, other=0.0)[:, None]
    y = tl.load(centres + m + row, mask=real, other=0.0)[:, None]
    z = tl.load(centres + 2 * m + row, mask=real, other=0.0)[:, None]
    count = tl.zeros([ROWS], tl.int32)
    for first in range(0, n, BLOCK):
        column = first + tl.arange(0, BLOCK)
        inside = column < n
        dx = x - tl.load(points + column, mask=inside, other=0.0)[None]
        dy = y - tl.load(points + n + column, mask=inside, other=0.0)[None]
        dz = z - tl.load(points + 2 * n + column, mask=inside, other=0.0)[None]
        hit = (dx * dx + dy * dy + dz * dz < radius2) & inside[None] & real[:, None]
        place = count[:, None] + tl.cumsum(hit.to(tl.int32), axis=1) - 1
        at = slots + (sample * m + row[:, None]).to(tl.int64) * k + place
        tl.store(at, tl.broadcast_to(column[None], [ROWS, BLOCK]).to(tl.int64), mask=hit & (place < k))
        count += tl.sum(hit.to(tl.int32), axis=1)
    tl.store(hits + sample * m + row, count, mask=real)


@triton.jit
def _three_nearest(
    query,
    points,
    found,
    m,
    n,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program for ROWS queries of a sample: found (B, M, 3), nearest first."""
    sample = tl.program_id(1)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    real = row < m
    query += sample * 3 * m
    points += sample * 3 * n
    x = tl.load(query + row, mask=real, other=0.0)[:, None]
    y = tl.load(query + m + row, mask=real, other=0.0)[:, None]
    z = tl.load(query + 2 * m + row, mask=real, other=0.0)[:, None]
    d0 = tl.full([ROWS], float("inf"), tl.float32)
    d1, d2 = d0, d0
    i0 = tl.zeros([ROWS], tl.int64)
    i1, i2 = i0, i0
    for first in range(0, n, BLOCK):
        column = first + tl.arange(0, BLOCK)
        inside = column < n
        dx = x - tl.load(points + column, mask=inside, other=0.0)[None]
        dy = y - tl.load(points + n + column, mask=inside, other=0.0)[None]
        dz = z - tl.load(points + 2 * n + column, mask=inside, other=0.0)[None]
        distance = tl.where(inside[None], dx * dx + dy * dy + dz * dz, float("inf"))
        for _ in tl.static_range(3):
            least, place = tl.min(distance, axis=1, return_indices=True)
            index = (first + place).to(tl.int64)
            distance = tl.where(tl.arange(0, BLOCK)[None] == place[:, None], float("inf"), distance)
            before0, before1, before2 = least < d0, least < d1, least < d2
            i2 = tl.where(before1, i1, tl.where(before2, index, i2))
            d2 = tl.where(before1, d1, tl.where(before2, least, d2))
            i1 = tl.where(before0, i0, tl.where(before1, index, i1))
            d1 = tl.where(before0, d0, tl.where(before1, least, d1))
            i0 = tl.where(before0, index, i0)
            d0 = tl.where(before0, least, d0)
    at = found + (sample * m + row).to(tl.int64) * 3
    tl.store(at, i0, mask=real)
    tl.store(at + 1, i1, mask=real)
    tl.store(at + 2, i2, mask=real)


def knn(query: Tensor, points: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """See `pcdiff.nets.ops.knn`."""
    query, points = plain.wide(query), plain.wide(points)
    if k != 3 or query.dtype != torch.float32 or points.dtype != torch.float32:
        return plain.knn(query, points, k)
    batch, m, n = len(query), query.shape[1], points.shape[1]
    index = torch.zeros(batch, m, 3, dtype=torch.int64, device=query.device)
    rows = 32
    _three_nearest[(triton.cdiv(m, rows), batch)](_by_axis(query), _by_axis(points), index, m, n, rows, 256)
    return plain.distances_to(query, points, index), index


@torch.no_grad()
def ball_query(centres: Tensor, points: Tensor, radius: float, k: int) -> Tensor:
    """See `pcdiff.nets.ops.ball_query`."""
    centres, points = plain.wide(centres), plain.wide(points)
    if centres.dtype != torch.float32 or points.dtype != torch.float32:
        return plain.ball_query(centres, points, radius, k)
    batch, m, n = len(centres), centres.shape[1], points.shape[1]
    slots = torch.zeros(batch, m, k, dtype=torch.int64, device=points.device)
    hits = torch.zeros(batch, m, dtype=torch.int32, device=points.device)
    radius2 = float(torch.tensor(radius, dtype=torch.float32).square())
    rows = 16
    _within[(triton.cdiv(m, rows), batch)](
        _by_axis(centres), _by_axis(points), slots, hits, m, n, radius2, k, rows, 256
    )
    spare = torch.arange(k, device=points.device) >= hits[..., None]
    return torch.where(spare, slots[..., :1], slots)


@torch.no_grad()
def furthest_point_sample(points: Tensor, m: int, start: int = 0) -> Tensor:
    """See `pcdiff.nets.ops.furthest_point_sample`."""
    points = plain.wide(points)
    if points.dtype != torch.float32:
        return plain.furthest_point_sample(points, m, start)
    batch, n = points.shape[:2]
    nearest = torch.full((batch, n), torch.inf, device=points.device)
    chosen = torch.zeros(batch, m, dtype=torch.int64, device=points.device)
    _furthest[(batch,)](_by_axis(points), nearest, chosen, n, m, start, 4096, num_warps=16)
    return chosen


def _by_axis(points: Tensor) -> Tensor:
    """(B, N, 3) -> (B, 3, N), contiguous, so that consecutive points are consecutive in memory."""
    return points.detach().transpose(1, 2).contiguous()
