"""Registration of heads: exponentials of velocity fields, and heads in other shapes."""

from __future__ import annotations

import torch
from torch.nn.functional import avg_pool3d

from pcdiff.data.augmentation.registration import (
    Box,
    composed,
    displaced,
    exponential,
    mixed,
    register,
    reshaped,
    sample,
    signed_distance,
)

BOX = Box((-40.0, -40.0, -40.0), (40.0, 40.0, 40.0))
SHAPE = (21, 21, 21)
INNER = (slice(None), slice(None), *(slice(2, -2),) * 3)


def ball(radius: float, centre: tuple[float, float, float] = (0, 0, 0)) -> torch.Tensor:
    """Soft occupancy of a ball on the lattice."""
    return ((radius - (BOX.points(SHAPE) - torch.tensor(centre)).norm(dim=-1)) / 4 + 0.5).clamp(0, 1)


def smooth_velocity(count: int, mm: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return avg_pool3d(torch.randn(count, 3, *BOX.knots, generator=generator), 5, 1, 2) * mm


def test_a_constant_velocity_is_a_shift() -> None:
    velocity = torch.tensor([3.0, -2.0, 1.0])[None, :, None, None, None].expand(1, 3, *BOX.knots)
    assert torch.allclose(exponential(velocity, BOX), velocity, atol=1e-4)


def test_the_opposite_velocity_leads_back() -> None:
    velocity = smooth_velocity(1, 8)
    there, back = exponential(velocity, BOX), exponential(-velocity, BOX)
    assert there[INNER].abs().max() > 2
    assert composed(back, there, BOX)[INNER].abs().max() < 0.35


def test_registration_carries_one_ball_onto_another() -> None:
    template, head = ball(20), ball(28, (4, 0, 0))
    velocity = register(signed_distance(template), signed_distance(head)[None], BOX, levels=((2, 20),))
    points = BOX.points(SHAPE)[None]
    moved = sample(head[None, None], BOX, displaced(exponential(velocity, BOX), BOX, points))[0, 0] > 0.5
    expected = template > 0.5
    assert 2 * (moved & expected).sum() / (moved.sum() + expected.sum()) > 0.9  # 0.53 before


def test_a_head_in_its_own_shape_stays_and_mixtures_lie_between() -> None:
    velocity = smooth_velocity(2, 8)
    assert reshaped(velocity[:1], velocity[:1], BOX)[INNER].abs().max() < 0.35
    assert torch.equal(mixed(velocity, torch.eye(2)), velocity)
    assert torch.allclose(mixed(velocity, torch.full((1, 2), 0.5))[0], velocity.mean(0))


def test_a_signed_distance_is_negative_inside_and_clipped() -> None:
    distance = signed_distance(ball(20))
    assert distance[10, 10, 10] == -3
    assert distance[0, 0, 0] == 8
