"""The statistical shape model of a run's own heads; without one, a run builds on the shipped one."""

from __future__ import annotations

from pathlib import Path

from pcdiff.methods.registry import PRIOR
from pcdiff.prior.folds import cached_heads, load_population
from pcdiff.prior.model import ShapePrior
from pcdiff.training.recipes import PriorTrainConfig, RunConfig
from pcdiff.training.run_state import same_recipe


def train(config: PriorTrainConfig, progress: bool = True) -> Path:
    """Writes and returns `prior.safetensors` in `config.run.out`, beside config.json.

    Raises InputError if the cache lacks heads or the folder holds a run of another recipe.
    """
    same_recipe(config.run.out / "config.json", config)
    return build_own_prior(config.run)


def build_own_prior(run: RunConfig) -> Path:
    """Writes `prior.safetensors`, of the heads that the run trains on, into `run.out` and returns it; once.

    Raises InputError if the cache lacks heads.
    """
    path = run.out / PRIOR
    if not path.exists():
        names = cached_heads(run.cache, run.cases, run.skip)
        path.parent.mkdir(parents=True, exist_ok=True)
        load_population(run.cache, names, max(run.workers, 1)).prior([True] * len(names)).save(path)
    return path


def shape_model(run: RunConfig) -> ShapePrior:
    """The shape model that a run builds on: `prior.safetensors` in `run.out` where it lies there, else the shipped one.

    `pcdiff design` takes it likewise: what lies beside weights was made with them.
    """
    path = run.out / PRIOR
    return ShapePrior.load(path) if path.is_file() else ShapePrior.shipped()
