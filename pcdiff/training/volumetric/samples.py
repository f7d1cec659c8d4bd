"""Training samples: virtual craniotomies in registered, mixed, deformed and mirrored heads, made on the fly.

A cut is a region of space, and the network's input inside it is exactly air: bone is multiplied by 1 - region on the
network's lattice, after all interpolation. A region that is marked before interpolation leaves a trace of the removed
bone in the input; a network learns to read the trace, and fails on real skulls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from pcdiff.data.augmentation.registration import mixed, reshaped
from pcdiff.data.craniotomy import draw_outlines
from pcdiff.data.outline import Cranium, Outline
from pcdiff.errors import InputError
from pcdiff.geometry.volume import Volume
from pcdiff.methods.volumetric.features import LATTICE, STEP, Window, coarse_channels, fine_channels, window_around
from pcdiff.training.recipes import VolumetricSamplesConfig
from pcdiff.training.volumetric.cut import cut_region
from pcdiff.training.volumetric.heads import Heads
from pcdiff.training.volumetric.warps import (
    BOX,
    HEAD_LOW,
    HEAD_SHAPE,
    HEAD_STEP,
    knots_in_head,
    mirrored_velocity,
    random_pose,
    random_velocity,
    warped,
)

MIN_POINTS = 600  # lattice points of a cut, 5 ml; a smaller one is drawn again
MAX_DRAWS = 30
COARSE_STEP = 2 * HEAD_STEP  # mm; enough to place and size a cut
COARSE_AXES = tuple(
    np.arange((n - 1) // 2 + 1) * COARSE_STEP + low for n, low in zip(HEAD_SHAPE, HEAD_LOW, strict=True)
)
SCAN_END_MM = (-95.0, -38.0)  # height at which a short scan ends


@dataclass(frozen=True)
class Sample:
    """A window around the first defect of a head; the shape model is hidden.

    fine, coarse: the network's input, see `features.network_inputs`. missing: (I, J, K) share of missing bone. region,
    region_mirrored: (I, J, K), 1 where the cut has emptied space, in the head and in its mirror image.
    """

    fine: np.ndarray
    coarse: np.ndarray
    missing: np.ndarray
    region: np.ndarray
    region_mirrored: np.ndarray
    kind: str


@dataclass(frozen=True)
class Samples:
    """Sample k is a function of (config, seed, k) alone."""

    heads: Heads
    config: VolumetricSamplesConfig
    seed: int = 0

    def make(self, index: int) -> Sample:
        """Draws head, shape and cut. Raises InputError where none of 30 heads has room for the cut drawn."""
        rng = np.random.default_rng([self.seed, index])
        last: Exception | None = None
        for _ in range(MAX_DRAWS):
            try:
                return self._draw(rng)
            except InputError as error:
                last = error
        raise InputError(f"sample {index}: expected a cut in one of {MAX_DRAWS} heads, got none; the last: {last}")

    def _draw(self, rng: np.random.Generator) -> Sample:
        config = self.config
        number, used, field = draw_shape(self.heads, config, rng, range(len(self.heads.person)))
        knots = knots_in_head(field, random_pose(rng, config))
        occupancy = self.heads.share_of_bone(number)
        whole = warped(occupancy, knots, COARSE_AXES)
        cranium = find_cranium(whole)
        kind, outlines = draw_cut(rng, config, cranium)
        inside = cranium.bone[outlines[0].contains(cranium.bone)]
        margin = int(rng.integers(*config.margin))
        window = window_around(inside.min(0), inside.max(0), margin, rng.random(3))

        strip = (slice(0, LATTICE.shape[0]), window[1], window[2])  # the other side is an input, too
        axes = [low + STEP * np.arange(s.start, s.stop) for low, s in zip(LATTICE.low, strip, strict=True)]
        head = warped(occupancy, knots, axes, near_bone(whole, axes))
        if rng.random() < config.short_scan:
            head[:, :, axes[2] < rng.uniform(*SCAN_END_MM)] = 0
        region = cut_region(head, axes, outlines)
        mean = self.heads.mean_without(strip, used)
        return _sample(head, region, mean, window, kind)


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


def _sample(head: np.ndarray, region: np.ndarray, mean: np.ndarray, window: Window, kind: str) -> Sample:
    """From arrays over the head's width: (80, J, K) share of bone, emptied region, and mean head."""
    across = window[0]
    missing = (head * region)[across]
    if np.count_nonzero(missing >= 0.5) < MIN_POINTS:
        raise InputError(f"{kind}: expected a cut of {MIN_POINTS} lattice points; draw another")
    fine = fine_channels(head * (1 - region), mean, across)
    return Sample(fine, coarse_channels(window).numpy(), missing, region[across], region[::-1][across], kind)


def near_bone(whole: np.ndarray, axes: Sequence[np.ndarray]) -> np.ndarray:
    """(I, J, K) bool: points of three axes that can hold bone, by the head at `COARSE_AXES`."""
    near = ndimage.maximum_filter(whole, 3) > 0
    nearest = [
        np.minimum(np.round((axis - coarse[0]) / COARSE_STEP).astype(int), len(coarse) - 1)
        for axis, coarse in zip(axes, COARSE_AXES, strict=True)
    ]
    return near[np.ix_(*nearest)]
