"""What the volumetric U-Net is trained on: samples made on the fly, and stored cuts with the shape model fitted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from pcdiff.methods.volumetric.config import FusionConfig
from pcdiff.methods.volumetric.features import (
    LATTICE,
    STEP,
    Window,
    coarse_channels,
    fine_channels,
    mirrored,
    prior_log_odds,
    window_around,
)
from pcdiff.training.volumetric.fitted import FittedCase
from pcdiff.training.volumetric.samples import Samples

SETTINGS = FusionConfig().surface

Arrays = tuple[Tensor, Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Items(Dataset[list[Arrays]]):
    """Item k holds the samples of step k: a share of them from `fitted`, the others from `samples`.

    A sample is, in half precision: fine and coarse channels, the missing bone, and the log-odds of the completed
    tables, which are 0 where the shape model is hidden. Every second one, at random, is mirrored.
    """

    samples: Samples
    fitted: Sequence[Path] = ()
    batch: int = 1

    def __getitem__(self, item: int) -> list[Arrays]:
        """The samples of a step."""
        return [self._sample(item * self.batch + k) for k in range(self.batch)]

    def _sample(self, index: int) -> Arrays:
        config = self.samples.config
        rng = np.random.default_rng([self.samples.seed, 1, index])
        if self.fitted and rng.random() < config.fitted_share:
            case = FittedCase.load(self.fitted[int(rng.integers(len(self.fitted)))])
            fine, coarse, missing, odds = self._fitted(case, rng)
        else:
            made = self.samples.make(index)
            arrays = (made.fine, made.coarse, made.missing, np.zeros_like(made.missing))
            fine, coarse, missing, odds = (torch.from_numpy(array).half() for array in arrays)
        if rng.random() < 0.5:
            (fine,), (coarse,) = mirrored(fine[None], coarse[None])
            missing, odds = missing.flip(0), odds.flip(0)
        return fine, coarse, missing, odds

    def _fitted(self, case: FittedCase, rng: np.random.Generator) -> Arrays:
        """A window around one of the defects of a case."""
        config = self.samples.config
        window = _around_missing(case, int(rng.integers(len(case.windows))), int(rng.integers(*config.margin)), rng)
        strip = (slice(None), window[1], window[2])
        mean = self.samples.heads.mean_without((slice(0, LATTICE.shape[0]), *strip[1:]), case.used)
        fine = fine_channels(case.bone[strip] / np.float32(255), mean, window[0])
        maps = None if rng.random() < config.hidden else case.maps
        missing = case.missing[window] / np.float32(255)
        odds = np.zeros_like(missing) if maps is None else prior_log_odds(maps, window, SETTINGS)
        return (
            torch.from_numpy(fine).half(),
            coarse_channels(window, maps).half(),
            torch.from_numpy(missing).half(),
            torch.from_numpy(odds).half(),
        )


def _around_missing(case: FittedCase, number: int, margin: int, rng: np.random.Generator) -> Window:
    """A window around what is missing in defect `number`; the whole window of the defect where nothing is."""
    window = case.windows[number]
    index = np.argwhere(case.missing[window] >= 128)
    if not len(index):
        return window
    low = LATTICE.low + STEP * np.array([s.start for s in window])
    return window_around(low + STEP * index.min(0), low + STEP * index.max(0), margin, rng.random(3))
