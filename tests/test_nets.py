"""The surface denoiser: its symmetries, what a batch is, its output before training; and the noise embedding."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from pcdiff.methods.surface.config import LAYOUT, SurfaceNetworkConfig
from pcdiff.methods.surface.network import PointBlock, Surface, SurfaceDenoiser
from pcdiff.nets.noise_embedding import NoiseEmbedding

BATCH, POINTS = 3, 40
SIGMA = torch.tensor([0.1, 1.0, 3.0])
SIGMA_DATA = 0.8
CONFIG = SurfaceNetworkConfig(width=16, blocks=2, heads=2, dropout=0.3)


def random_zeros(network: nn.Module) -> None:
    """Random weights in the layers that are initialised at zero."""
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.3)


@pytest.fixture
def network() -> SurfaceDenoiser:
    """With an output that differs from zero."""
    torch.manual_seed(0)
    made = SurfaceDenoiser(CONFIG, SIGMA_DATA).eval()
    random_zeros(made)
    return made


@pytest.fixture
def surfaces() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(BATCH, POINTS, *shape, generator=generator)

    return {
        "positions": 30 * normal(3),
        "static": normal(len(LAYOUT.static)),
        "profile": normal(len(LAYOUT.offsets_mm), LAYOUT.channels),
    }


@pytest.fixture
def x() -> Tensor:
    return torch.randn(BATCH, POINTS, generator=torch.Generator().manual_seed(2))


def test_permuted_points_permute_the_output(network, surfaces, x):
    order = torch.randperm(POINTS, generator=torch.Generator().manual_seed(3))
    straight = network(x, SIGMA, network.encode(**surfaces))
    permuted = network.encode(**{name: value[:, order] for name, value in surfaces.items()})
    assert torch.allclose(network(x[:, order], SIGMA, permuted), straight[:, order], atol=1e-4)


def test_only_distances_between_points_count(network, surfaces, x):
    straight = network(x, SIGMA, network.encode(**surfaces))
    turned = surfaces | {"positions": surfaces["positions"].flip(-1) + 7}
    assert torch.allclose(network(x, SIGMA, network.encode(**turned)), straight, atol=1e-3)
    wider = surfaces | {"positions": 2 * surfaces["positions"]}
    assert not torch.allclose(network(x, SIGMA, network.encode(**wider)), straight, atol=1e-2)


def test_a_batch_is_a_loop(network, surfaces, x):
    together = network(x, SIGMA, network.encode(**surfaces))
    for k in range(BATCH):
        alone = network.encode(**{name: value[k : k + 1] for name, value in surfaces.items()})
        one = network(x[k : k + 1], SIGMA[k], alone)  # a scalar sigma is that of the whole batch
        assert torch.allclose(one[0], together[k], atol=1e-4)


def test_a_surface_encoded_once_serves_every_step(network, surfaces, x):
    bound = network.encode(**surfaces)
    before = [value.clone() for value in bound]
    for sigma in (3.0, 0.5, 0.05):
        level = torch.tensor(sigma)
        assert torch.equal(network(x, level, bound), network(x, level, network.encode(**surfaces)))
    assert all(torch.equal(a, b) for a, b in zip(before, bound, strict=True))


def test_one_surface_under_several_noises(network, surfaces):
    noises = torch.randn(2 * BATCH, POINTS, generator=torch.Generator().manual_seed(5))
    bound = network.encode(**surfaces)
    many = network(noises, torch.tensor(0.7), bound.repeated(2))
    for k in range(2 * BATCH):
        mine = Surface(*(value[k // 2 : k // 2 + 1] for value in bound))  # each surface twice in a row
        assert torch.allclose(network(noises[k : k + 1], torch.tensor(0.7), mine)[0], many[k], atol=1e-4)


def test_gradients_reach_every_parameter(network, surfaces, x):
    network(x, SIGMA, network.encode(**surfaces)).square().mean().backward()
    without = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().max() > 1e-7]
    assert not without


def test_dropout_only_while_training(network, surfaces, x):
    bound = network.encode(**surfaces)
    assert torch.equal(network(x, SIGMA, bound), network(x, SIGMA, bound))
    network.train()
    assert not torch.equal(network(x, SIGMA, bound), network(x, SIGMA, bound))


@pytest.mark.filterwarnings("ignore:Mismatch dtype")  # the norm is computed in float32 then
def test_bfloat16_is_near_float32(network, surfaces, x):
    full = network(x, SIGMA, network.encode(**surfaces))
    with torch.autocast("cpu", torch.bfloat16):
        half = network(x, SIGMA, network.encode(**surfaces))
    assert half.dtype == torch.float32
    assert (half - full).abs().mean() < 0.05 * full.abs().mean()


@pytest.mark.parametrize(("width", "heads"), [(16, 1), (32, 4), (96, 8)])
def test_sizes_that_the_config_offers(width, heads, surfaces, x):
    network = SurfaceDenoiser(SurfaceNetworkConfig(width=width, blocks=1, heads=heads), SIGMA_DATA)
    assert network(x, SIGMA, network.encode(**surfaces)).shape == x.shape


# --- blocks ---------------------------------------------------------------------------------------------------------


def test_heads_look_at_near_points_first() -> None:
    """Two points a millimetre apart influence each other more than one a metre away."""
    torch.manual_seed(2)
    block = PointBlock(16, 2, 0.0).eval()
    points, modulation = torch.randn(1, 3, 16), torch.zeros(1, 16)
    distance = torch.tensor([[[0.0, 1, 1000], [1, 0, 1000], [1000, 1000, 0]]])
    moved = points.clone()
    moved[:, 0] = moved[:, 0].flip(-1)
    change = (block(moved, distance, modulation) - block(points, distance, modulation)).abs().mean(-1)[0]
    assert change[1] > 1e-3
    assert change[2] < 1e-6


def test_attention_is_softmax_over_normalised_queries_and_keys() -> None:
    torch.manual_seed(1)
    block = PointBlock(16, 2, 0.0).eval()
    points, distance = torch.randn(2, 7, 16), 20 * torch.rand(2, 7, 7)
    query, key, value = block.query_key_value(points).chunk(3, -1)
    heads = []
    for head, part in enumerate((slice(0, 8), slice(8, 16))):
        q, k = (functional.rms_norm(each[..., part], (8,)) for each in (query, key))
        scores = q @ k.mT / 8**0.5 - distance / block.log_reach[head].exp()
        heads.append(scores.softmax(-1) @ value[..., part])
    assert torch.allclose(block._attend(points, distance), block.out(torch.cat(heads, -1)), atol=1e-5)


def test_the_noise_level_scales_normalised_features_and_then_shifts_them() -> None:
    """As norm(x) (1 + scale) + shift: a scale of -1 leaves nothing of the points, a shift leaves all."""
    torch.manual_seed(4)
    block = PointBlock(16, 2, 0.0).eval()
    points, other = torch.randn(2, 1, 5, 16)
    distance, modulation = torch.zeros(1, 5, 5), torch.zeros(1, 16)
    with torch.no_grad():
        block.modulate.bias[5 * 16 :] = -1.0  # the gate of the perceptron, which sees the points again

    def change() -> float:
        added = [block(each, distance, modulation) - each for each in (points, other)]
        return float((added[0] - added[1]).abs().max().detach())

    with torch.no_grad():
        block.modulate.bias[:16] = -1.0
    assert change() < 1e-6
    with torch.no_grad():
        block.modulate.bias[:16] = 0.0
        block.modulate.bias[16:32] = -1.0
    assert change() > 0.1


def test_noise_levels_have_distinct_embeddings() -> None:
    torch.manual_seed(3)
    embed = NoiseEmbedding(16)
    levels = torch.linspace(-1, 1, 9)
    distance = torch.cdist(embed(levels), embed(levels)) + torch.eye(9)
    assert distance.min() > 1e-3
    assert not embed.state_dict().keys() & {"frequencies"}  # a constant, not a weight
