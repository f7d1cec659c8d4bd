"""Measures the heads of generative models, and of simple ones, against real heads; writes JSON.

usage: python tools/measure_generators.py CACHE vae=runs/vae/generator.safetensors ... -o docs/results/augmentation.json

The simple ones: the mean head alone, the shape model's Gaussian, and mixtures of the tables of two or three heads with
random weights.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from pcdiff.environment import worker_pool
from pcdiff.prior.folds import cached_heads, load_population
from pcdiff.prior.model import ShapePrior
from pcdiff.training.augmentation.generator import Generator
from pcdiff.training.augmentation.measures import Reference
from pcdiff.training.augmentation.sources import load_sources


def gaussian(reference: Reference, count: int, rng: np.random.Generator) -> np.ndarray:
    """(count, 2, R) mm: the shape model's mean, and its modes with standard normal weights."""
    prior = reference.prior
    weights = rng.standard_normal((count, len(prior.modes)))
    return prior.mean + np.tensordot(weights, prior.modes, 1)


def mixtures(reference: Reference, count: int, rng: np.random.Generator) -> np.ndarray:
    """(count, 2, R) mm: means of two or three heads, or their mirror images, with weights from a flat distribution."""
    made = []
    for _ in range(count):
        several = int(rng.integers(2, 4))
        chosen = rng.choice(len(reference.real), several, replace=False)
        made.append(np.tensordot(rng.dirichlet(np.ones(several)), reference.real[chosen], 1))
    return np.stack(made)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cache", type=Path)
    parser.add_argument("weights", nargs="*", metavar="NAME=FILE")
    parser.add_argument("--cases", default="000-059")
    parser.add_argument("--skip", nargs="*", default=["052"], help="heads left out: SkullFix 052 is 000 again")
    parser.add_argument("--held-out", default="060-074")
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("-o", "--out", type=Path, required=True)
    args = parser.parse_args()
    prior = ShapePrior.shipped()
    with worker_pool(1) as pool:
        sources = load_sources(args.cache, args.cases, args.skip, prior, pool, 1, True)
    names = cached_heads(args.cache, args.held_out)
    deviations = load_population(args.cache, names, 1, prior).deviations(prior.mean)
    held_out = {name: prior.mean + deviations[k] for k, name in enumerate(names)}
    reference = Reference(prior, sources.names, prior.mean + sources.deviations, sources.scales, held_out)
    groups = {"mean": prior.mean[None]}
    for name, make in (("gaussian", gaussian), ("mixtures", mixtures)):
        groups[name] = make(reference, args.count, np.random.default_rng(0))
    for name, file in (part.split("=", 1) for part in args.weights):
        groups[name] = Generator.load(Path(file), prior).tables(args.count, 0)
    rng = np.random.default_rng(1)
    sizes = sources.scales[rng.integers(len(sources.scales), size=args.count)]
    records = {
        name: [reference.record(each, size) for each, size in zip(tables, sizes, strict=False)]
        for name, tables in groups.items()
    }
    args.out.write_text(json.dumps(reference.summary(records), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
