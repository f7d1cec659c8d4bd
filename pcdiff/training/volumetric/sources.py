"""What training samples are made of: registered heads, and cuts to which shape models in folds are fitted."""

from __future__ import annotations

import logging
from concurrent.futures import Executor
from pathlib import Path

from pcdiff.data.splits import assign_folds
from pcdiff.prior.folds import cached_heads, cached_prior, load_population
from pcdiff.prior.model import ShapePrior
from pcdiff.training.recipes import RunConfig, VolumetricSamplesConfig
from pcdiff.training.volumetric.fitted import Folds, store_fitted_cases
from pcdiff.training.volumetric.heads import Heads, load_heads

log = logging.getLogger(__name__)


def load_sources(
    run: RunConfig, samples: VolumetricSamplesConfig, prior: ShapePrior, pool: Executor, progress: bool = True
) -> tuple[Heads, list[Path]]:
    """The heads of a run, posed on `prior`, and the files of `samples.fitted` cuts; all of it is stored in the cache.

    Raises InputError if the cache lacks heads.
    """
    names = cached_heads(run.cache, run.cases, run.skip)
    heads = load_heads(run.cache, names, run.same, prior, pool, progress)
    log.info("building %d shape models, each without the heads of a fold", samples.folds)
    people = load_population(run.cache, names, max(run.workers, 1))
    fold = assign_folds(names, samples.folds, run.same)
    priors = tuple(cached_prior(run.cache, people, fold != k) for k in range(samples.folds))
    return heads, store_fitted_cases(run.cache, heads, Folds(fold, priors), samples, pool, progress)
