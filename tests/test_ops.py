"""Point operations against brute-force loops and closed forms; gradients; fast implementations against plain torch."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from pcdiff.nets import ops
from pcdiff.nets.ops import neighbours, plain, tree

SIZES = [(1, 1, 3, 3), (2, 5, 17, 4), (3, 2, 64, 8)]  # (B, C, N, r)


def rand(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def brute_distances(query: Tensor, points: Tensor) -> np.ndarray:
    """(B, M, N) squared distances in float64."""
    difference = query.double().numpy()[:, :, None] - points.double().numpy()[:, None]
    return (difference**2).sum(-1)


# --- gather ---------------------------------------------------------------------------------------------------------


def test_gather_picks_per_sample_and_keeps_the_index_shape() -> None:
    features = rand(2, 3, 5)
    index = torch.tensor([[[0, 4], [1, 1]], [[2, 3], [4, 0]]])
    out = ops.gather(features, index)
    assert out.shape == (2, 3, 2, 2)
    for b, c, i, j in np.ndindex(2, 3, 2, 2):
        assert out[b, c, i, j] == features[b, c, index[b, i, j]]
    assert ops.gather(features, index[:, 0, 0]).shape == (2, 3)  # one index per sample


# --- neighbours -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("batch", "m", "n", "k"), [(1, 1, 1, 1), (2, 7, 13, 3), (3, 40, 40, 40)])
def test_knn_is_brute_force(batch: int, m: int, n: int, k: int) -> None:
    query, points = rand(batch, m, 3), rand(batch, n, 3, seed=1)
    distance2, index = ops.knn(query, points, k)
    every = brute_distances(query, points)
    np.testing.assert_allclose(distance2.numpy(), np.sort(every, axis=-1)[..., :k], atol=1e-6)
    np.testing.assert_allclose(distance2.numpy(), np.take_along_axis(every, index.numpy(), -1), atol=1e-6)
    assert all(len(set(row)) == k for row in index.reshape(-1, k).tolist())


def test_knn_of_far_clouds_does_not_cancel() -> None:
    offset, points = 1000.0, rand(1, 50, 3)
    _, near = ops.knn(points, points, 3)
    distance2, far = ops.knn(points + offset, points + offset, 3)
    assert (distance2[..., 0] == 0).all()
    assert (near == far).float().mean() > 0.95  # adding the offset itself rounds at 6e-5


@pytest.mark.parametrize("radius", [0.05, 0.3, 2.0])
@pytest.mark.parametrize("k", [1, 4, 50])
def test_ball_query_is_the_loop(radius: float, k: int) -> None:
    centres, points = rand(2, 9, 3), rand(2, 31, 3, seed=1)
    inside = brute_distances(centres, points) < radius**2
    index = ops.ball_query(centres, points, radius, k)
    assert index.shape == (2, 9, k)
    for b, m in np.ndindex(2, 9):
        hits = np.flatnonzero(inside[b, m])[:k].tolist()
        assert index[b, m].tolist() == hits + [hits[0] if hits else 0] * (k - len(hits))


def test_ball_query_leaves_out_the_sphere_itself() -> None:
    points = torch.tensor([[[0.0, 0.0, 2.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.5]]])
    assert ops.ball_query(torch.zeros(1, 1, 3), points, 1.0, 2).tolist() == [[[2, 2]]]


def test_searches_do_not_depend_on_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    query, points = rand(2, 23, 3), rand(2, 31, 3, seed=1)
    whole = *plain.knn(query, points, 3), plain.ball_query(query, points, 0.3, 5)
    monkeypatch.setattr(plain, "PAIRS_AT_ONCE", 200)
    parts = *plain.knn(query, points, 3), plain.ball_query(query, points, 0.3, 5)
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))


@pytest.mark.parametrize("start", [0, 5])
def test_furthest_point_sample_is_the_greedy_loop(start: int) -> None:
    points = rand(3, 40, 3)
    index = ops.furthest_point_sample(points, 40, start)
    every = brute_distances(points, points)
    for b in range(3):
        chosen = [start]
        while len(chosen) < 40:
            chosen.append(int(every[b][chosen].min(0).argmax()))
        assert index[b].tolist() == chosen
    assert torch.equal(ops.furthest_point_sample(points, 7, start), index[:, :7])


def test_furthest_points_of_a_line_and_ties() -> None:
    line = torch.zeros(1, 9, 3)
    line[..., 0] = torch.arange(9)
    # 8 is furthest, then the middle; 2 and 6 tie and the lower index goes first, as do 1, 3, 5, 7 after them.
    assert ops.furthest_point_sample(line, 9).tolist() == [[0, 8, 4, 2, 6, 1, 3, 5, 7]]
    assert ops.furthest_point_sample(torch.ones(1, 3, 3), 3).tolist() == [[0, 0, 0]]  # nothing further left


def test_three_nn_weights_are_inverse_squared_distances() -> None:
    query, points = rand(2, 11, 3), rand(2, 19, 3, seed=1)
    every = brute_distances(query, points)
    index, weight = ops.three_nn_weights(query, points)
    for b, m in np.ndindex(2, 11):
        nearest = np.argsort(every[b, m])[:3]
        expected = 1 / every[b, m, nearest]
        assert index[b, m].tolist() == nearest.tolist()
        np.testing.assert_allclose(weight[b, m], expected / expected.sum(), rtol=1e-4)


def test_three_nn_weights_on_the_points_and_between_three() -> None:
    points = rand(1, 10, 3) * 10
    index, weight = ops.three_nn_weights(points, points)
    assert index[0, :, 0].tolist() == list(range(10))
    torch.testing.assert_close(weight[..., 0], torch.ones(1, 10))
    # Distances 1, 2, 2: weights 1, 1/4, 1/4 over 3/2.
    corners = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 2.0]]])
    index, weight = ops.three_nn_weights(torch.zeros(1, 1, 3), corners)
    values = torch.tensor([3.0, 6.0, 12.0])[index]
    assert (weight * values).sum().item() == pytest.approx((3 + 6 / 4 + 12 / 4) / 1.5)


def test_impossible_counts_are_refused() -> None:
    points = rand(1, 4, 3)
    for call in (
        lambda: ops.knn(points, points, 5),
        lambda: ops.furthest_point_sample(points, 5),
        lambda: ops.furthest_point_sample(points, 2, start=4),
        lambda: ops.three_nn_weights(points, points[:, :2]),
    ):
        with pytest.raises(ValueError, match="must be"):
            call()


# --- all of them ----------------------------------------------------------------------------------------------------


def test_batch_equals_loop() -> None:
    points, others = rand(3, 20, 3), rand(3, 9, 3, seed=1)

    def everything(points: Tensor, others: Tensor) -> tuple[Tensor, ...]:
        return (
            *ops.knn(others, points, 4),
            ops.ball_query(others, points, 0.4, 6),
            ops.furthest_point_sample(points, 8),
            *ops.three_nn_weights(others, points),
        )

    batch = everything(points, others)
    single = [everything(points[b : b + 1], others[b : b + 1]) for b in range(3)]
    for whole, pieces in zip(batch, zip(*single, strict=True), strict=True):
        torch.testing.assert_close(whole, torch.cat(pieces))


def test_dtype_follows_the_input() -> None:
    points = rand(1, 8, 3, dtype=torch.float64)
    assert ops.knn(points, points, 1)[0].dtype == torch.float64
    assert ops.three_nn_weights(points, points)[1].dtype == torch.float64


def test_gradients() -> None:
    points = (rand(2, 6, 3, dtype=torch.float64) * 2.8 + 0.1).requires_grad_()
    others = (rand(2, 4, 3, seed=1, dtype=torch.float64) * 2.8 + 0.1).requires_grad_()
    features = rand(2, 2, 6, seed=2, dtype=torch.float64).requires_grad_()
    check = torch.autograd.gradcheck
    assert check(lambda q, p: ops.knn(q, p, 3)[0], (others, points))
    assert check(lambda q, p: ops.three_nn_weights(q, p)[1], (others, points))
    index = ops.ball_query(others, points, 1.5, 3)
    assert check(lambda f: ops.gather(f, index), features)


# --- fast versions --------------------------------------------------------------------------------------------------


def assert_twins_agree(fast: ModuleType, m: int, n: int, k: int, device: str = "cpu") -> None:
    query, points = rand(2, m, 3).to(device), rand(2, n, 3, seed=1).to(device)
    found = []
    for twin in (plain, fast):
        leaf = points.clone().requires_grad_()
        distance2, index = twin.knn(query, leaf, k)
        found.append((index, distance2.detach(), *torch.autograd.grad(distance2.square().sum(), leaf)))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)
    for radius in (0.01, 0.3, 2.0):
        assert torch.equal(plain.ball_query(query, points, radius, k), fast.ball_query(query, points, radius, k))
    for cloud, start in ((points, 0), (points, 2), (points.double(), 0)):
        samples = [twin.furthest_point_sample(cloud, k, start) for twin in (plain, fast)]
        assert torch.equal(*samples)


TWIN_SIZES = [(1, 5, 1), (40, 70, 8), (200, 300, 32)]


@pytest.mark.parametrize(("m", "n", "k"), TWIN_SIZES)
def test_trees_agree_with_plain(m: int, n: int, k: int) -> None:
    assert_twins_agree(tree, m, n, k)


@pytest.mark.parametrize("candidates", [1, 3, 50])
def test_trees_choose_the_same_furthest_points_with_ties_and_copies(
    candidates: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a lattice nearly all distances are equal; the second half of the cloud repeats points of the first."""
    monkeypatch.setattr(tree, "CANDIDATES", candidates)
    monkeypatch.setattr(tree, "BRUTE", 0.05)  # the search by the tree too, in so small a cloud
    lattice = torch.cartesian_prod(*[torch.arange(5.0)] * 3)
    points = torch.stack([torch.cat([lattice, lattice.flip(0)]), torch.cat([rand(125, 3), rand(125, 3)])])
    assert torch.equal(tree.furthest_point_sample(points, 200), plain.furthest_point_sample(points, 200))


@pytest.mark.parametrize(("m", "n", "k"), TWIN_SIZES)
def test_pytorch3d_agrees_with_plain(m: int, n: int, k: int) -> None:
    pytest.importorskip("pytorch3d")
    from pcdiff.nets.ops import pytorch3d_kernels as fast

    assert_twins_agree(fast, m, n, k, "cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize(("m", "n", "k"), TWIN_SIZES)
def test_the_adapter_corrects_the_differences_of_pytorch3d(
    m: int, n: int, k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pytorch3d is built from source and mostly absent: a stub with its documented signatures and padding."""

    def knn_points(p1: Tensor, p2: Tensor, K: int = 1) -> SimpleNamespace:
        return SimpleNamespace(idx=plain.knn(p1, p2, K)[1])

    def ball_query(p1: Tensor, p2: Tensor, K: int, radius: float, return_nn: bool) -> SimpleNamespace:
        index = torch.full((len(p1), p1.shape[1], K), -1)
        for b, i in np.ndindex(index.shape[:2]):
            hits = ((p1[b, i] - p2[b]).square().sum(-1) < radius**2).nonzero()[:K, 0]
            index[b, i, : len(hits)] = hits
        return SimpleNamespace(idx=index)

    def sample_farthest_points(points: Tensor, K: int) -> tuple[Tensor, Tensor]:
        assert points.dtype == torch.float32
        return points[:, :K], plain.furthest_point_sample(points, K)

    stub = ModuleType("pytorch3d")
    stub.ops = SimpleNamespace(
        knn_points=knn_points, ball_query=ball_query, sample_farthest_points=sample_farthest_points
    )
    monkeypatch.setitem(sys.modules, "pytorch3d", stub)
    # A copy of the module under another name, so that the stub does not remain in the real one.
    spec = importlib.util.spec_from_file_location("adapter", Path(plain.__file__).with_name("pytorch3d_kernels.py"))
    adapter = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(adapter)
    assert_twins_agree(adapter, m, n, k)


def test_kernels_agree_with_plain() -> None:
    """On a GPU if there is one, else in Triton's interpreter, which tests the logic but not the compiler."""
    pytest.importorskip("triton")
    on_gpu = torch.cuda.is_available()
    code = f"""
from test_ops import TWIN_SIZES, assert_twins_agree, plain, rand, torch
from pcdiff.nets.ops import triton_kernels as kernels
device = {"cuda" if on_gpu else "cpu"!r}
for m, n, k in TWIN_SIZES:
    assert_twins_agree(kernels, m, n, k, device)
    query, points = rand(2, m, 3).to(device), rand(2, n, 3, seed=1).to(device)
    assert torch.equal(kernels.knn(query, points, 3)[1], plain.knn(query, points, 3)[1])
"""
    environment = os.environ | ({} if on_gpu else {"TRITON_INTERPRET": "1"})  # read when triton is imported
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_without_pytorch3d_and_triton_cuda_tensors_take_plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    for package, twin in (("pytorch3d", "pytorch3d_kernels"), ("triton", "triton_kernels")):
        monkeypatch.setitem(sys.modules, package, None)  # importing it now fails
        monkeypatch.delitem(sys.modules, f"pcdiff.nets.ops.{twin}", raising=False)
    assert neighbours._on_cuda.__wrapped__() is plain
