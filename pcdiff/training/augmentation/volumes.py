"""Heads on a lattice of 2 mm as images for generative models of volumes, and back."""

from __future__ import annotations

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional

from pcdiff.data.augmentation.generators import VOLUME
from pcdiff.data.augmentation.registration import signed_distance
from pcdiff.training.volumetric.warps import HEAD_LOW, HEAD_SHAPE, HEAD_STEP

REACH = 3.0  # lattice steps, of distances to the bone's surface; farther points have the largest one, 1 in an image
SIDE = 4  # points along each side of a block
POINTS, BLOCKS = "n (i a) (j b) (k c)", "n (a b c) i j k"  # axes
AFFINE = np.diag([HEAD_STEP, HEAD_STEP, HEAD_STEP, 1.0])
AFFINE[:3, 3] = HEAD_LOW


def to_images(occupancy: Tensor) -> Tensor:
    """(N, *HEAD_SHAPE) uint8, 255 where all is bone -> (N, *VOLUME) float16, which halves the memory of a population.

    A signed distance is smooth where a share of bone has steps, and thin bone keeps its place in it.
    """
    images = torch.empty(len(occupancy), *VOLUME, dtype=torch.float16)
    sides = zip(reversed(VOLUME[1:]), reversed(HEAD_SHAPE), strict=True)
    behind = [count for blocks, points in sides for count in (0, SIDE * blocks - points)]
    for number, head in enumerate(occupancy):
        distance = signed_distance(head.float() / 255).clamp(-REACH, REACH) / REACH
        padded = functional.pad(distance[None], behind, value=1.0)
        images[number] = rearrange(padded, f"{POINTS} -> {BLOCKS}", a=SIDE, b=SIDE, c=SIDE)[0]
    return images


def to_heads(images: Tensor) -> np.ndarray:
    """(N, *VOLUME) -> (N, *HEAD_SHAPE) uint8, 255 where all is bone."""
    distance = rearrange(images.float(), f"{BLOCKS} -> {POINTS}", a=SIDE, b=SIDE, c=SIDE) * REACH
    i, j, k = HEAD_SHAPE
    return ((0.5 - distance[:, :i, :j, :k]).clamp(0, 1) * 255).round().to(torch.uint8).numpy()
