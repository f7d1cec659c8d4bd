"""The neighbour searches of `nets.ops.plain` for the CPU, on k-d trees: the same results, faster."""

from __future__ import annotations

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from pcdiff.nets.ops import plain

CANDIDATES = 512  # furthest points that are decided among themselves before the other distances are updated
BRUTE = 0.3  # of the cloud's extent: if new points reach further, all distances are as cheap as a search


@torch.no_grad()
def _trees(points: Tensor) -> list[cKDTree]:
    return [cKDTree(cloud) for cloud in plain.wide(points).double().numpy()]


def knn(query: Tensor, points: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """See `pcdiff.nets.ops.knn`."""
    query, points = plain.wide(query), plain.wide(points)
    found = [tree.query(each, k)[1] for tree, each in zip(_trees(points), query.detach().double().numpy(), strict=True)]
    index = torch.from_numpy(np.stack(found).reshape(*query.shape[:2], k).astype(np.int64))
    return plain.distances_to(query, points, index), index


@torch.no_grad()
def ball_query(centres: Tensor, points: Tensor, radius: float, k: int) -> Tensor:
    """See `pcdiff.nets.ops.ball_query`."""
    centres, points = plain.wide(centres), plain.wide(points)
    radius2 = centres.new_tensor(radius).square()
    out = torch.zeros(*centres.shape[:2], k, dtype=torch.int64)
    for b, (own, tree) in enumerate(zip(_trees(centres), _trees(points), strict=True)):
        # a slightly larger radius, then the exact test in the points' precision, which decides the border as `plain`
        pairs = own.sparse_distance_matrix(tree, radius * (1 + 1e-5), output_type="ndarray")
        order = np.lexsort((pairs["j"], pairs["i"]))
        row, column = torch.from_numpy(pairs["i"][order]), torch.from_numpy(pairs["j"][order])
        dx, dy, dz = (centres[b, row] - points[b, column]).unbind(-1)
        inside = dx.square().addcmul_(dy, dy).addcmul_(dz, dz) < radius2
        row, column = row[inside], column[inside]
        out[b] = plain.slots(row, column, centres.shape[1], k)
    return out


@torch.no_grad()
def furthest_point_sample(points: Tensor, m: int, start: int = 0) -> Tensor:
    """See `pcdiff.nets.ops.furthest_point_sample`."""
    return torch.from_numpy(np.stack([_furthest(cloud, m, start) for cloud in plain.wide(points).numpy()]))


def _furthest(points: np.ndarray, m: int, start: int) -> np.ndarray:
    """(N, 3) -> (m,) int64, the exact greedy choice, many points at a time.

    A candidate that is still further than every non-candidate is the exact greedy choice, because distances only
    decrease. So several points are chosen among the candidates before the distances of all points are updated.
    """
    tree = cKDTree(points)
    extent = np.ptp(points, axis=0).max()
    nearest = np.full(len(points), np.inf, points.dtype)  # squared distance to the chosen set
    chosen = [start]
    _update(nearest, points, tree, np.array([start]), extent)
    while len(chosen) < m:
        some = _furthest_candidates(nearest)
        rest = -np.inf
        if len(some) < len(points):
            others = np.ones(len(points), bool)
            others[some] = False
            rest = nearest[others].max()
        candidates, left = np.ascontiguousarray(points[some].T), nearest[some]
        fresh: list[int] = []
        while len(chosen) + len(fresh) < m:
            first = int(left.argmax())  # of ties the lowest index: candidates are in the cloud's order
            if not left[first] > rest:
                break
            fresh.append(int(some[first]))
            np.minimum(left, _distances(candidates, candidates[:, first]), out=left)
        if not fresh:  # a tie with another point: the lowest index of all
            fresh = [int(nearest.argmax())]
        reach = float(np.sqrt(nearest[some].max()))
        chosen += fresh
        _update(nearest, points, tree, np.array(fresh), reach)
    return np.array(chosen, np.int64)


def _furthest_candidates(nearest: np.ndarray) -> np.ndarray:
    """Indices of the CANDIDATES largest distances, ascending."""
    if len(nearest) <= CANDIDATES:
        return np.arange(len(nearest))
    return np.sort(np.argpartition(nearest, -CANDIDATES)[-CANDIDATES:])


def _distances(points: np.ndarray, to: np.ndarray) -> np.ndarray:
    """(3, N), (3,) -> (N,) squared, summed in the order of the CUDA kernels."""
    dx, dy, dz = (points[axis] - to[axis] for axis in range(3))
    return dx * dx + dy * dy + dz * dz


def _update(nearest: np.ndarray, points: np.ndarray, tree: cKDTree, fresh: np.ndarray, reach: float) -> None:
    """Updates, in place, the distances of all points within `reach` of the fresh ones; others cannot decrease."""
    if reach > BRUTE * np.ptp(tree.data, axis=0).max():
        columns = np.ascontiguousarray(points.T)
        for one in fresh:
            np.minimum(nearest, _distances(columns, points[one]), out=nearest)
        return
    found = tree.query_ball_point(points[fresh], reach * (1 + 1e-5))
    each = np.fromiter((len(list_) for list_ in found), np.int64, len(found))
    index = np.concatenate([np.asarray(list_, np.int64) for list_ in found])
    from_ = np.repeat(fresh, each)
    np.minimum.at(nearest, index, _distances(points[index].T, points[from_].T))
