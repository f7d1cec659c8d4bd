"""Builds the statistical shape model that the package ships from heads that `pcdiff prepare` cached.

usage: python tools/build_prior.py CACHE --cases 000-059 --skip 052 -o pcdiff/weights/prior.safetensors
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pcdiff.prior.folds import cached_heads, load_population


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cache", type=Path)
    parser.add_argument("--cases", default="000-059", help="range of head names, first and last")
    parser.add_argument("--skip", nargs="*", default=["052"], help="heads left out: SkullFix 052 is 000 again")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("-o", "--out", type=Path, required=True)
    args = parser.parse_args()
    names = cached_heads(args.cache, args.cases, args.skip)
    population = load_population(args.cache, names, args.workers)
    prior = population.prior([True] * len(names))
    prior.save(args.out)
    print(f"{args.out}: {prior.heads} heads, {len(prior.modes)} modes, {args.out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
