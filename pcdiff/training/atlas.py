"""The atlas's file: the training heads in the shape model's pose."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pcdiff.environment import worker_pool
from pcdiff.methods.atlas import LATTICE, Atlas
from pcdiff.prior.folds import cached_heads
from pcdiff.training.prior import shape_model
from pcdiff.training.recipes import AtlasTrainConfig
from pcdiff.training.run_state import same_recipe
from pcdiff.training.volumetric.heads import load_heads
from pcdiff.training.volumetric.warps import HEAD_LOW, HEAD_STEP


def train(config: AtlasTrainConfig, progress: bool = True) -> Path:
    """Writes and returns `atlas.safetensors` in `config.run.out`, beside config.json; one scan of each person.

    Raises InputError if the cache lacks heads or the folder holds a run of another recipe.
    """
    run = config.run
    names = cached_heads(run.cache, run.cases, run.skip)
    same_recipe(run.out / "config.json", config)
    with worker_pool(run.workers) as pool:
        heads = load_heads(run.cache, names, run.same, shape_model(run), pool, progress)
    first = np.round((LATTICE.low - HEAD_LOW) / HEAD_STEP).astype(int)
    i, j, k = (slice(start, start + n) for start, n in zip(first.tolist(), LATTICE.shape, strict=True))
    path = run.out / "atlas.safetensors"
    Atlas.of(heads.occupancy[sorted(set(heads.person))][:, i, j, k].numpy()).save(path)
    return path
