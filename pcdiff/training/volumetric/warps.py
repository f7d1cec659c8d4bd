"""Deformed heads on a lattice: a displacement field on coarse knots, a jitter of the pose, and interpolation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from pcdiff.data.augmentation.registration import Box, displaced

HEAD_STEP = 2.0  # mm, of the lattice that heads are stored on
HEAD_LOW, HEAD_SHAPE = np.array([-100.0, -120.0, -110.0]), (101, 116, 106)  # model space
BOX = Box(tuple(HEAD_LOW), tuple(HEAD_LOW + HEAD_STEP * (np.array(HEAD_SHAPE) - 1)))
MIRROR = torch.tensor([-1.0, 1.0, 1.0])


def mirrored_velocity(velocity: Tensor) -> Tensor:
    """The velocity field (3, I, J, K) of the mirrored head; the template is symmetric."""
    return velocity.flip(1) * MIRROR[:, None, None, None]


def random_velocity(rng: np.random.Generator, mm: float, shape: Sequence[int]) -> Tensor:
    """(1, 3, *shape) mm: a smooth random velocity field with a standard deviation of up to `mm`."""
    sigma = rng.uniform(1.5, 4.0)
    fields = np.stack([ndimage.gaussian_filter(rng.standard_normal(shape), sigma) for _ in range(3)])
    fields *= rng.uniform(0, mm) / fields.std()
    return torch.from_numpy(fields).float()[None]


def knots_in_head(field: Tensor, pose: tuple[np.ndarray, np.ndarray]) -> Tensor:
    """(*knots, 3): where each knot of `BOX` is read in a head, in `Box.to_unit`: posed, then displaced."""
    linear, shift = (torch.from_numpy(part).float() for part in pose)
    posed = BOX.points(field.shape[2:]) @ linear.T + shift
    return BOX.to_unit(displaced(field, BOX, posed[None]))[0]


def warped(occupancy: Tensor, knots: Tensor, axes: Sequence[np.ndarray], near: np.ndarray | None = None) -> np.ndarray:
    """A head (1, 1, *HEAD_SHAPE) at the points of three axes, mm -> (I, J, K) share of bone.

    knots: see `knots_in_head`. near: (I, J, K) bool, points that can hold bone; the others get none.
    """
    dense = at_axes(knots, axes)
    if near is None:
        return functional.grid_sample(occupancy, dense[None], align_corners=True)[0, 0].numpy()
    head = np.zeros(near.shape, np.float32)
    some = dense[torch.from_numpy(near)][None, None, None]
    head[near] = functional.grid_sample(occupancy, some, align_corners=True)[0, 0, 0, 0].numpy()
    return head


def at_axes(knots: Tensor, axes: Sequence[np.ndarray]) -> Tensor:
    """Values (A, B, C, 3) on knots spread evenly over `BOX`, at the points of three axes, mm -> (I, J, K, 3)."""
    dense = knots
    for axis, low, high, count in zip(axes, BOX.low, BOX.high, knots.shape[:3], strict=True):
        # the first axis is replaced, and comes back as the last but one
        dense = torch.tensordot(interpolation(axis, low, high, count), dense, dims=([1], [0])).movedim(0, 2)
    return dense


def interpolation(at: np.ndarray, low: float, high: float, knots: int) -> Tensor:
    """(N, knots) float32: Catmull-Rom weights at (N,) places of knots spaced evenly from low to high.

    Exact for straight lines: a knot beyond an end is extrapolated from the two before it.
    """
    place = np.clip((np.asarray(at, float) - low) / (high - low) * (knots - 1), 0, knots - 1)
    first = np.minimum(np.floor(place).astype(int), knots - 2)
    t = place - first
    weights = np.stack([-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, t**3 - t**2]) / 2
    matrix = np.zeros((len(place), knots + 2))  # a knot more at either end
    for offset, weight in enumerate(weights):
        matrix[np.arange(len(place)), first + offset] = weight
    for beyond, end, before in ((0, 1, 2), (-1, -2, -3)):
        matrix[:, end] += 2 * matrix[:, beyond]
        matrix[:, before] -= matrix[:, beyond]
    return torch.from_numpy(matrix[:, 1:-1]).float()
