"""The pairs that a recipe trains on and validates with, and the shape priors they are made with."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np

from pcdiff.data.cases import find_cases
from pcdiff.prior.folds import assign_folds, cached_prior, load_population
from pcdiff.prior.model import ShapePrior
from pcdiff.training.anchored.pairs import VERSION, Pairs
from pcdiff.training.recipes import TrainConfig

log = logging.getLogger(__name__)

VALIDATION_PAIRS = 64


def load_pairs(config: TrainConfig) -> tuple[Pairs, Pairs, ShapePrior]:
    """Pairs of the training heads, pairs of the validation heads, and the prior of all training heads.

    A pair of a training head is made with a prior built without the heads of its fold, a pair of a validation head with
    the prior of the training heads. What is made is stored in `run.cache`.
    Raises InputError if the cache lacks a head.
    """
    run = config.run
    names, held_out = (
        list(dict.fromkeys(case.name.rsplit("/", 1)[-1] for case in find_cases(run.data, cases)))
        for cases in (run.cases, run.validation)
    )
    names = [name for name in names if name not in run.skip]
    log.info("reading %d heads for training and %d for validation from %s", len(names), len(held_out), run.cache)
    log.info("their tables are measured once and then kept there; this takes several seconds a head")
    people = load_population(run.cache, names, max(run.workers, 1))
    fold = assign_folds(names, config.pairs.folds, run.same)
    priors = []
    for k in range(config.pairs.folds):
        log.info("building shape prior %d of %d, without the heads of its fold", k + 1, config.pairs.folds)
        priors.append(cached_prior(run.cache, people, fold != k))
    log.info("building the shape prior of all training heads")
    prior = cached_prior(run.cache, people, np.ones(len(names), bool))
    others = load_population(run.cache, held_out, max(run.workers, 1), prior)
    plain = {"mix": 0.0, "deform": 0.0, "warp_mm": 0.0, "pool": VALIDATION_PAIRS, "seed": 1}
    training = with_store(run.cache, Pairs(people, fold, priors, config.pairs))
    validation = Pairs(others, np.zeros(len(held_out), int), [prior], config.pairs.model_copy(update=plain))
    return training, with_store(run.cache, validation), prior


def with_store(cache: Path, pairs: Pairs) -> Pairs:
    """The pairs with a folder of `cache` to store them in, of their own for each recipe, priors and heads.

    The pool's size is left out: the first pairs of a larger pool are those of a smaller one.
    """
    people, config = pairs.population, pairs.config.model_dump_json(exclude={"pool"})
    made_of = [f"{VERSION}", config, *map(str, pairs.fold), *(prior.digest for prior in pairs.priors)]
    key = b"".join((",".join(made_of).encode(), people.outer.tobytes(), people.thickness.tobytes()))
    folder = cache / "pairs" / hashlib.sha256(key).hexdigest()[:12]
    folder.mkdir(parents=True, exist_ok=True)
    stored, pool = len(list(folder.glob("[0-9]*.safetensors"))), pairs.config.pool
    log.info("%d of %d pairs are in %s; others are made when first drawn", min(stored, pool), pool, folder)
    return replace(pairs, store=folder)
