"""Symmetries of the denoiser, and its output before training."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pcdiff.methods.anchored.config import FEATURE_NAMES, NetworkConfig
from pcdiff.methods.anchored.network import AnchoredDenoiser, Skull
from pcdiff.nets.point_voxel import EXTENT, Conv3dBlock, CrossAttention, NoiseEmbedding, PointVoxelBlock, to_grid

BATCH, ANCHORS, BONE, FEATURES = 3, 40, 50, len(FEATURE_NAMES)
SIGMA = torch.tensor([0.1, 1.0, 3.0])
CONFIG = NetworkConfig(width=16, grid=8, step_grid=6, blocks=2, heads=2, dropout=0.3)


def unit(vectors: Tensor) -> Tensor:
    return vectors / vectors.norm(dim=-1, keepdim=True)


def with_random_zeros(network: Any) -> Any:
    """The network with random weights in the layers that are initialised at zero."""
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.3)
    return network


@pytest.fixture
def fresh() -> AnchoredDenoiser:
    """As training begins, with a last layer of zeros."""
    torch.manual_seed(0)
    return AnchoredDenoiser(CONFIG).eval()


@pytest.fixture
def network(fresh: AnchoredDenoiser) -> AnchoredDenoiser:
    """With an output that differs from zero."""
    return with_random_zeros(fresh)


@pytest.fixture
def skulls() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return {
        "anchors": 0.4 * normal(BATCH, ANCHORS, 3),
        "anchor_features": normal(BATCH, ANCHORS, FEATURES),
        "bone": 0.6 * normal(BATCH, BONE, 3),
        "bone_features": normal(BATCH, BONE, FEATURES),
        "normals": unit(normal(BATCH, ANCHORS, 3)),
    }


@pytest.fixture
def x() -> Tensor:
    return torch.randn(BATCH, ANCHORS, generator=torch.Generator().manual_seed(2))


def test_zero_output_reproduces_the_shape_model(fresh, skulls, x):
    out = fresh(x, SIGMA, fresh.encode(**skulls))
    assert torch.allclose(out.x0, x / (1 + SIGMA[:, None] ** 2), atol=1e-6)
    assert torch.allclose(out.normals, skulls["normals"].transpose(1, 2), atol=1e-6)


def test_normals_are_unit(network, skulls, x):
    out = network(x, SIGMA, network.encode(**skulls))
    assert torch.allclose(out.normals.norm(dim=1), torch.ones(BATCH, ANCHORS), atol=1e-5)
    assert not torch.allclose(out.normals, skulls["normals"].transpose(1, 2), atol=0.1)


def test_permuted_rays_permute_the_output(network, skulls, x):
    rays = torch.randperm(ANCHORS // 2, generator=torch.Generator().manual_seed(3))
    order = torch.cat([rays, ANCHORS // 2 + rays])  # both points of a ray
    straight = network(x, SIGMA, network.encode(**skulls))
    moved = {name: value[:, order] if not name.startswith("bone") else value for name, value in skulls.items()}
    permuted = network(x[:, order], SIGMA, network.encode(**moved))
    assert torch.allclose(permuted.x0, straight.x0[:, order], atol=1e-4)
    assert torch.allclose(permuted.normals, straight.normals[..., order], atol=1e-4)


def test_the_order_of_the_bone_points_has_no_influence(network, skulls, x):
    order = torch.randperm(BONE, generator=torch.Generator().manual_seed(4))
    straight = network(x, SIGMA, network.encode(**skulls)).x0
    moved = {name: value[:, order] if name.startswith("bone") else value for name, value in skulls.items()}
    assert torch.allclose(network(x, SIGMA, network.encode(**moved)).x0, straight, atol=1e-4)


def test_the_output_depends_on_the_bone_around_the_defect(network, skulls, x):
    straight = network(x, SIGMA, network.encode(**skulls)).x0
    other = skulls | {"bone_features": skulls["bone_features"] + 1}
    assert (network(x, SIGMA, network.encode(**other)).x0 - straight).abs().max() > 1e-2


def test_the_surroundings_can_be_dropped(network, skulls, x):
    other = skulls | {"bone_features": skulls["bone_features"] + 1, "bone": skulls["bone"] + 0.2}
    dropped = [network.encode(**each)._replace(gate=torch.zeros(BATCH, 1, 1)) for each in (skulls, other)]
    dropped = [bound._replace(features=dropped[0].features) for bound in dropped]
    assert torch.equal(network(x, SIGMA, dropped[0]).x0, network(x, SIGMA, dropped[1]).x0)
    always = with_random_zeros(
        AnchoredDenoiser(CONFIG.model_copy(update={"context_dropout": 1.0, "dropout": 0.0}))
    ).train()
    outputs = [always(x, SIGMA, always.encode(**each)).x0 for each in (skulls, other)]
    assert torch.equal(*outputs)


def test_the_predicted_mean_is_a_fixed_point(fresh, skulls):
    with torch.no_grad():
        for layer in fresh.guide:
            if isinstance(layer, nn.Conv1d) and not layer.weight.any():
                layer.weight.normal_()
    bound = fresh.encode(**skulls)
    assert bound.mean.abs().max() > 0.01
    assert torch.allclose(fresh(bound.mean, SIGMA, bound).x0, bound.mean, atol=1e-6)  # the last layer is still zero


def test_the_predicted_mean_depends_on_both_points_of_a_ray_and_no_others(network, skulls):
    features = skulls["anchor_features"]
    other = features.clone()
    other[:, 3] += 1
    straight = network.encode(**skulls).mean
    moved = skulls | {"anchor_features": other, "bone_features": skulls["bone_features"] + 1}
    change = (network.encode(**moved).mean - straight).abs()
    affected = torch.zeros(ANCHORS, dtype=torch.bool)
    affected[[3, ANCHORS // 2 + 3]] = True
    assert change[:, affected].min() > 0
    assert change[:, ~affected].max() == 0
    assert torch.equal(straight, network.predict_mean(features))


def test_a_batch_is_a_loop(network, skulls, x):
    together = network(x, SIGMA, network.encode(**skulls))
    for k in range(BATCH):
        alone = network.encode(**{name: value[k : k + 1] for name, value in skulls.items()})
        one = network(x[k : k + 1], SIGMA[k], alone)  # a scalar sigma is that of the whole batch
        assert torch.allclose(one.x0[0], together.x0[k], atol=1e-4)
        assert torch.allclose(one.normals[0], together.normals[k], atol=1e-4)


def test_a_skull_encoded_once_serves_every_step(network, skulls, x):
    bound = network.encode(**skulls)
    before = [value.clone() for value in bound]
    for sigma in (3.0, 0.5, 0.05):
        level = torch.tensor(sigma)
        assert torch.equal(network(x, level, bound).x0, network(x, level, network.encode(**skulls)).x0)
    assert all(torch.equal(a, b) for a, b in zip(before, bound, strict=True))


def test_one_skull_under_several_noises(network, skulls, x):
    noises = torch.randn(2 * BATCH, ANCHORS, generator=torch.Generator().manual_seed(5))
    bound = network.encode(**skulls)
    many = network(noises, torch.tensor(0.7), bound.repeated(2)).x0
    for k in range(2 * BATCH):
        mine = Skull(*(value[k // 2 : k // 2 + 1] for value in bound))  # each skull twice in a row
        assert torch.allclose(network(noises[k : k + 1], torch.tensor(0.7), mine).x0[0], many[k], atol=1e-4)


def test_gradients_reach_every_parameter(skulls, x):
    # with a width of 16 each group of the norms is a single channel, in which a bias before it is lost
    torch.manual_seed(0)
    network = with_random_zeros(AnchoredDenoiser(CONFIG.model_copy(update={"width": 32, "context_dropout": 0.0})))
    bound = network.encode(**skulls)
    out = network(x, SIGMA, bound)
    (out.x0.square().mean() + (out.normals - 1).square().mean() + bound.mean.square().mean()).backward()
    without = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().max() > 1e-7]
    assert not without


def test_dropout_only_while_training(network, skulls, x):
    bound = network.encode(**skulls)
    assert torch.equal(network(x, SIGMA, bound).x0, network(x, SIGMA, bound).x0)
    network.train()
    assert not torch.equal(network(x, SIGMA, bound).x0, network(x, SIGMA, bound).x0)


def test_bfloat16_is_near_float32(network, skulls, x):
    full = network(x, SIGMA, network.encode(**skulls))
    with torch.autocast("cpu", torch.bfloat16):
        half = network(x, SIGMA, network.encode(**skulls))
    assert half.x0.dtype == half.normals.dtype == torch.float32
    assert (half.x0 - full.x0).abs().mean() < 0.05 * full.x0.abs().mean()


@pytest.mark.parametrize("width", [16, 32, 64])
def test_sizes_that_the_config_offers(width, skulls, x):
    network = AnchoredDenoiser(NetworkConfig(width=width, grid=8, blocks=1))
    assert network(x, SIGMA, network.encode(**skulls)).x0.shape == x.shape


# --- point-voxel blocks ---------------------------------------------------------------------------------------------


def test_the_grid_spans_the_frame():
    corners = torch.tensor([[[-EXTENT, 0.0, EXTENT], [2 * EXTENT, -9.0, 0.0]]])
    assert torch.allclose(to_grid(corners, 9), torch.tensor([[[0.0, 4.0, 8.0], [8.0, 0.0, 4.0]]]))


def test_residual_blocks_begin_as_what_they_were_given_plus_a_little():
    grid = torch.randn(2, 8, 4, 4, 4, generator=torch.Generator().manual_seed(6))
    block = Conv3dBlock(8)
    nn.init.zeros_(block.layers[-1].weight)
    nn.init.zeros_(block.layers[-1].bias)
    assert torch.equal(block(grid), grid)


def test_attention_is_softmax_over_tokens():
    torch.manual_seed(1)
    attend = with_random_zeros(CrossAttention(16, heads=2).eval())
    points, tokens = torch.randn(2, 16, 5), torch.randn(2, 7, 16)
    query = attend.query(attend.norm(points)).transpose(1, 2)  # (B, N, C)
    key, value = attend.key_value(tokens).chunk(2, -1)
    heads = []
    for part in (slice(0, 8), slice(8, 16)):
        weight = (query[..., part] @ key[..., part].transpose(1, 2) / np.sqrt(8)).softmax(-1)
        heads.append(weight @ value[..., part])
    expected = attend.out(torch.cat(heads, -1).transpose(1, 2))
    assert torch.allclose(attend(points, tokens), expected, atol=1e-5)


def test_points_influence_their_neighbours_through_the_voxels():
    torch.manual_seed(2)
    block = with_random_zeros(PointVoxelBlock(16, 8, 16, 0.0).eval())
    points, modulation, gate = torch.randn(1, 16, 3), torch.zeros(1, 16), torch.ones(1, 1, 1)
    coordinates = torch.tensor([[[1.0, 1, 1], [1, 2, 1], [6, 6, 6]]])
    moved = points.clone()
    moved[..., 0] = moved[..., 0].flip(1)  # the group norm's statistics stay nearly the same
    change = (
        (block(moved, coordinates, modulation, gate) - block(points, coordinates, modulation, gate)).abs().mean(1)[0]
    )
    assert change[1] > 2 * change[2]
    closed = block(moved, coordinates, modulation, 0 * gate) - block(points, coordinates, modulation, 0 * gate)
    assert torch.equal(closed[..., 1:], torch.zeros_like(closed[..., 1:]))  # points that did not change


def test_noise_levels_have_distinct_embeddings():
    torch.manual_seed(3)
    embed = NoiseEmbedding(16)
    levels = torch.linspace(-1, 1, 9)
    distance = torch.cdist(embed(levels), embed(levels)) + torch.eye(9)
    assert distance.min() > 1e-3
    assert not embed.state_dict().keys() & {"frequencies"}  # a constant, not a weight


def test_the_noise_level_scales_normalised_features_and_then_shifts_them():
    """As norm(x) (1 + scale) + shift: a scale of -1 leaves nothing of the points, a shift leaves all."""
    torch.manual_seed(4)
    block = PointVoxelBlock(16, 4, 8, 0.0).eval()
    points, other = torch.randn(2, 1, 16, 5)
    coordinates, modulation, gate = torch.rand(1, 5, 3), torch.zeros(1, 8), torch.ones(1, 1, 1)

    def change() -> float:
        added = [block(each, coordinates, modulation, gate) - each for each in (points, other)]
        return float((added[0] - added[1]).abs().max().detach())

    with torch.no_grad():
        block.modulate.bias[:16] = -1.0
    assert change() < 1e-6
    with torch.no_grad():
        block.modulate.bias[:16] = 0.0
        block.modulate.bias[16:] = -1.0
    assert change() > 0.1
