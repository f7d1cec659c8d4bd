"""Registration of healthy heads, and new heads from it: each head is deformed onto a template, then into other shapes.

A head i has a stationary velocity field v_i on a coarse grid of knots (Arsigny et al. 2006, log-Euclidean framework);
phi_i = exp(v_i) carries the template onto the head, so that head_i(phi_i(x)) resembles template(x). Head i in the shape
of head j is x -> head_i(phi_i(phi_j^-1(x))), where phi_j^-1 = exp(-v_j). Any convex mixture of velocity fields is a
shape, too. The heads must lie in one pose, so no affine part is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

KNOT_MM = 8.0  # between the knots of a velocity field
SQUARINGS = 5  # exp(v) is v / 2^5, composed with itself five times
CLIP = (-3.0, 8.0)  # lattice steps; beyond them a signed distance does not influence the registration
LEVELS = ((4, 50), (2, 40))  # coarse to fine: every how many-th lattice point is compared, and steps of Adam
RATE_MM = 0.5  # a step of Adam
STIFFNESS = 0.02  # weight of the squared differences between neighbouring knots


@dataclass(frozen=True)
class Box:
    """The block of space that a lattice spans; low, high: (3,) mm, its first and its last point."""

    low: tuple[float, float, float]
    high: tuple[float, float, float]

    @property
    def knots(self) -> tuple[int, int, int]:
        """Number of knots along each axis, about `KNOT_MM` apart."""
        i, j, k = (round((last - first) / KNOT_MM) + 1 for first, last in zip(self.low, self.high, strict=True))
        return i, j, k

    def to_unit(self, points: Tensor) -> Tensor:
        """(..., 3) mm -> coordinates for `functional.grid_sample`: -1 to 1, the last axis first."""
        low, high = points.new_tensor(self.low), points.new_tensor(self.high)
        return ((points - low) * (2 / (high - low)) - 1).flip(-1)

    def points(self, shape: Sequence[int]) -> Tensor:
        """(I, J, K, 3) mm: the points of a lattice of this shape that spans the box."""
        axes = [torch.linspace(first, last, n) for first, last, n in zip(self.low, self.high, shape, strict=True)]
        return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)


def sample(values: Tensor, box: Box, points: Tensor, outside: str = "zeros") -> Tensor:
    """Values (B, C, I, J, K) on a lattice over the box, at points (B, i, j, k, 3) mm, trilinear -> (B, C, i, j, k).

    outside: the value outside the box, "zeros" or the nearest one ("border").
    """
    return functional.grid_sample(values, box.to_unit(points), padding_mode=outside, align_corners=True)


def displaced(field: Tensor, box: Box, points: Tensor) -> Tensor:
    """Points (B, i, j, k, 3) mm after a displacement field (B, 3, I, J, K) mm."""
    return points + sample(field, box, points, "border").movedim(1, -1)


def composed(outer: Tensor, inner: Tensor, box: Box) -> Tensor:
    """The displacement field of x -> outer(inner(x)), both (B, 3, I, J, K) mm on the knots of the box."""
    points = box.points(inner.shape[2:]).to(inner)[None]
    return inner + sample(outer, box, points + inner.movedim(1, -1), "border")


def exponential(velocity: Tensor, box: Box) -> Tensor:
    """exp(v): the displacement field (B, 3, I, J, K) mm of a stationary velocity field, by scaling and squaring."""
    field = velocity / 2**SQUARINGS
    for _ in range(SQUARINGS):
        field = composed(field, field, box)
    return field


def signed_distance(occupancy: Tensor) -> Tensor:
    """(I, J, K) share of bone -> lattice steps to the bone's surface, negative inside, clipped."""
    bone = occupancy.numpy() >= 0.5
    distance = ndimage.distance_transform_edt(~bone) - ndimage.distance_transform_edt(bone)
    return torch.from_numpy(distance).float().clamp(*CLIP)


def register(
    template: Tensor,
    heads: Tensor,
    box: Box,
    levels: Sequence[tuple[int, int]] = LEVELS,
    weight: Tensor | None = None,
) -> Tensor:
    """Velocity fields (B, 3, *box.knots) mm that carry a template onto heads.

    Adam descends the mean squared difference of heads(exp(v)) and template, plus the squared differences of
    neighbouring knots.

    Args:
        template: (I, J, K) signed distance.
        heads: (B, I, J, K) signed distances, all on one lattice over the box.
        box: what the lattice spans.
        levels: see `LEVELS`.
        weight: (I, J, K) of each lattice point in the mean, 0 where the template is unknown; by default 1.
    """
    weight = torch.ones_like(template) if weight is None else weight
    velocity = torch.zeros(len(heads), 3, *box.knots, requires_grad=True)
    for every, steps in levels:
        shape = [(n - 1) // every + 1 for n in template.shape]
        points = box.points(shape)[None].expand(len(heads), -1, -1, -1, -1)
        moving, fixed, share = (
            _reduced(values, every, shape) for values in (heads[:, None], template[None, None], weight[None, None])
        )
        share = share / share.mean()
        optimiser = torch.optim.Adam([velocity], RATE_MM)
        for _ in range(steps):
            field = exponential(velocity, box)
            difference = sample(moving, box, displaced(field, box, points), "border") - fixed
            # summed over heads: each is a problem of its own
            loss = (share * difference**2).mean((1, 2, 3, 4)).sum() + STIFFNESS * _roughness(velocity)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return velocity.detach()


def mixed(velocities: Tensor, weights: Tensor) -> Tensor:
    """(N, 3, I, J, K) velocity fields, (B, N) weights that add up to one -> (B, 3, I, J, K)."""
    return torch.einsum("bn,n...->b...", weights, velocities)


def reshaped(source: Tensor, shape: Tensor, box: Box) -> Tensor:
    """The displacement field that shows a head in another shape: x -> exp(source)(exp(-shape)(x)).

    source: (B, 3, I, J, K), the head's own velocity field. shape: (B, 3, I, J, K), that of the shape that it takes.
    """
    return composed(exponential(source, box), exponential(-shape, box), box)


def _roughness(velocity: Tensor) -> Tensor:
    differences = [velocity.diff(dim=axis) for axis in (2, 3, 4)]
    return sum((d**2).mean((1, 2, 3, 4)).sum() for d in differences)  # type: ignore[return-value]


def _reduced(values: Tensor, every: int, shape: Sequence[int]) -> Tensor:
    """Values (B, 1, I, J, K), filtered by a box and read at every `every`-th point."""
    size = every // 2 * 2 + 1
    smooth = functional.avg_pool3d(values, size, 1, size // 2, count_include_pad=False)
    return functional.interpolate(smooth, list(shape), mode="trilinear", align_corners=True)
