"""Neighbour searches: k-d trees on the CPU; on CUDA pytorch3d, else Triton, else plain torch."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from types import ModuleType

from torch import Tensor

from pcdiff.nets.ops import plain, tree


@cache
def _on_cuda() -> ModuleType:
    """The implementation for CUDA tensors, found at the first call: importing pytorch3d takes seconds."""
    for name in ("pytorch3d_kernels", "triton_kernels"):
        try:
            return import_module(f"pcdiff.nets.ops.{name}")
        except ImportError:  # absent, or built for another torch
            continue
    return plain


def _implementation(points: Tensor) -> ModuleType:
    if points.is_cuda:
        return _on_cuda()
    return tree if points.device.type == "cpu" else plain


def knn(query: Tensor, points: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k nearest points of each query, nearest first; ties in any order.

    query (B, M, 3), points (B, N, 3) -> squared distances (B, M, k), float32 at least, and index (B, M, k) int64.
    The distances are differentiable in both clouds. Memory stays bounded.
    Raises ValueError for k beyond N.
    """
    if not 1 <= k <= points.shape[1]:
        raise ValueError(f"k must be 1 to the number of points, {points.shape[1]}, got {k}")
    return _implementation(points).knn(query, points, k)


def ball_query(centres: Tensor, points: Tensor, radius: float, k: int) -> Tensor:
    """Up to k points with d^2 < radius^2 of each centre, the first in index order (Qi et al. 2017, PointNet++).

    centres (B, M, 3), points (B, N, 3), radius in the points' unit -> index (B, M, k) int64. Spare slots repeat the
    first hit; without any hit all are 0: the rule of the original CUDA kernel. k may exceed N.
    """
    return _implementation(points).ball_query(centres, points, radius, k)


def furthest_point_sample(points: Tensor, m: int, start: int = 0) -> Tensor:
    """M indices, each the point furthest from all chosen before; ties go to the lowest index (not on pytorch3d).

    points (B, N, 3) -> index (B, m) int64, the first of which is `start`. A smaller m gives a prefix of a larger one.
    Raises ValueError for m beyond N or start outside the cloud.
    """
    n = points.shape[1]
    if not 1 <= m <= n:
        raise ValueError(f"m must be 1 to the number of points, {n}, got {m}")
    if not 0 <= start < n:
        raise ValueError(f"start must be an index below {n}, got {start}")
    return _implementation(points).furthest_point_sample(points, m, start)
