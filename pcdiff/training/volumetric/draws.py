"""Draws of virtual craniotomies: a head in the shape of another or of a mixture, and the outlines of a cut."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from pcdiff.data.augmentation.registration import mixed, reshaped
from pcdiff.data.craniotomy import draw_outlines
from pcdiff.data.outline import Cranium, Outline
from pcdiff.geometry.volume import Volume
from pcdiff.training.recipes import VolumetricSamplesConfig
from pcdiff.training.volumetric.heads import Heads
from pcdiff.training.volumetric.warps import (
    BOX,
    HEAD_LOW,
    HEAD_SHAPE,
    HEAD_STEP,
    mirrored_velocity,
    random_velocity,
)

COARSE_STEP = 2 * HEAD_STEP  # mm; enough to place and size a cut
COARSE_AXES = tuple(
    np.arange((n - 1) // 2 + 1) * COARSE_STEP + low for n, low in zip(HEAD_SHAPE, HEAD_LOW, strict=True)
)


def draw_shape(
    heads: Heads, config: VolumetricSamplesConfig, rng: np.random.Generator, among: Sequence[int]
) -> tuple[int, list[int], Tensor]:
    """A head, all heads used, and the displacement field (1, 3, *knots) that shows it in the shape drawn.

    among: the heads to choose from.
    """
    velocity, among = heads.velocity, list(among)
    number = int(rng.choice(among))
    chance = rng.random()
    if chance < config.own_shape:
        others, weights = [number], np.ones(1)
    else:
        several = 1 if chance < config.own_shape + config.other_shape else min(int(rng.integers(2, 4)), len(among))
        others = [int(k) for k in rng.choice(among, several, replace=False)]
        weights = rng.dirichlet(np.ones(several))
    fields = [mirrored_velocity(velocity[k]) if k != number and rng.random() < 0.5 else velocity[k] for k in others]
    shape = mixed(torch.stack(fields), torch.from_numpy(weights).float()[None])
    shape = shape + random_velocity(rng, config.deform_mm, shape.shape[2:])
    return number, [number, *others], reshaped(velocity[number][None], shape, BOX)


def draw_cut(rng: np.random.Generator, config: VolumetricSamplesConfig, cranium: Cranium) -> tuple[str, list[Outline]]:
    """A kind of defect, and outlines of one or two."""
    kind = str(rng.choice(list(config.kinds), p=np.array(list(config.kinds.values()))))
    return kind, draw_outlines(kind, rng, cranium, 2 if rng.random() < config.two_defects else 1)


def find_cranium(whole: np.ndarray) -> Cranium:
    """Of a head, given as share of bone at `COARSE_AXES`."""
    affine = np.diag([COARSE_STEP] * 3 + [1.0])
    affine[:3, 3] = HEAD_LOW
    return Cranium.from_volume(Volume(whole >= 0.5, affine))


def near_bone(whole: np.ndarray, axes: Sequence[np.ndarray]) -> np.ndarray:
    """(I, J, K) bool: points of three axes that can hold bone, by the head at `COARSE_AXES`."""
    near = ndimage.maximum_filter(whole, 3) > 0
    nearest = [
        np.minimum(np.round((axis - coarse[0]) / COARSE_STEP).astype(int), len(coarse) - 1)
        for axis, coarse in zip(axes, COARSE_AXES, strict=True)
    ]
    return near[np.ix_(*nearest)]
