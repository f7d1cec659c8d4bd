"""Trains the network of places from heads that `pcdiff prepare` cached.

usage: python tools/train_occupancy.py CACHE --cases 000-059 --skip 052 -o pcdiff/weights/places.safetensors

Cuts defects into the heads, fits the prior of another fold to each, and asks at places around the defect whether bone
is
missing. What is cut is kept in the cache: an interrupted run goes on. Its 560 cuts take 25 minutes on two cores.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save
from scipy import ndimage
from scipy.ndimage import map_coordinates
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from pcdiff.data.craniotomy import simulate_craniotomy
from pcdiff.data.heads import load_head
from pcdiff.errors import InputError
from pcdiff.files import written_beside
from pcdiff.geometry.occupancy import Head
from pcdiff.geometry.volume import Volume
from pcdiff.methods.occupancy.features import (
    MEAN_LOW,
    MEAN_SHAPE,
    Lattice,
    build_occupancy_features,
    lattice_around,
    occupancy_at,
)
from pcdiff.methods.occupancy.model import OccupancyModel
from pcdiff.methods.occupancy.network import OccupancyNetwork
from pcdiff.prior.fit import fit_head
from pcdiff.prior.folds import assign_folds, cached_heads, cached_prior, load_population
from pcdiff.prior.model import ShapePrior
from pcdiff.prior.pose import fit_pose, largest_piece

VERSION = 2  # of how cuts are made: raised when the same arguments give others
KINDS = {
    "frontoorbital": 0.30,
    "parietotemporal": 0.18,
    "bilateral": 0.14,
    "random_2": 0.12,
    "random_1": 0.10,
    "irregular": 0.08,
    "skullfix": 0.08,
}
TWO_DEFECTS = 0.08
DEFORM = 3.0  # mm, the largest standard deviation of a smooth deformation of the head
KNOTS = 10.0  # mm between the knots of one
LOOKS = 3  # at each cut: the head as it is, then deformed
ASKED = 1500  # places of each build_occupancy_features
FEWEST = 500  # missing places that a defect counts as at least, so that small ones do not rule
BATCH = 4096


def posed_mean(cache: Path, prior: ShapePrior, name: str) -> np.ndarray:
    """MEAN_SHAPE float32: occupancy of a head on the prior's mean, and of its mirror, averaged."""
    head = load_head(cache / "heads" / f"{name}.safetensors")
    occupancy = largest_piece(head.occupancy)
    pose, _ = fit_pose(occupancy, head.affine, prior.mean[0], prior.std[0])
    seen = occupancy_at(Head(occupancy, head.affine, name), pose, Lattice(MEAN_LOW, MEAN_SHAPE).points)
    return (seen + seen[::-1]) / 2


def deformation(rng: np.random.Generator, points: np.ndarray) -> np.ndarray:
    """(..., 3) mm: a smooth random displacement of up to `DEFORM` mm at points (..., 3) within the head."""
    count, low = np.array([24, 26, 25]), np.array([-120.0, -130.0, -125.0])
    sigma, size = rng.uniform(1.5, 3.5), rng.uniform(0, DEFORM)
    fields = np.stack([ndimage.gaussian_filter(rng.standard_normal(count), sigma) for _ in range(3)])
    fields *= size / fields.std()
    at = ((points - low) / KNOTS).reshape(-1, 3).T
    return np.stack([map_coordinates(f, at, order=1, mode="nearest") for f in fields], -1).reshape(points.shape)


def asked(
    cache: Path, priors: list[ShapePrior], means: np.ndarray, fold: dict[str, int], index: int, seed: int
) -> dict:
    """Cut `index`: places around it, as they are and in deformed heads, half of them mirrored: features, answers."""
    rng = np.random.default_rng([seed, index])
    name = sorted(fold)[index % len(fold)]
    head = load_head(cache / "heads" / f"{name}.safetensors")
    skull = Volume(head.occupancy >= 128, head.affine)
    for _ in range(20):
        kind = str(rng.choice(list(KINDS), p=list(KINDS.values())))
        try:
            left, implant = simulate_craniotomy(skull, kind, rng, 2 if rng.random() < TWO_DEFECTS else 1)
            # half-filled voxels beside the cut go with the implant
            out = implant.mask | (ndimage.binary_dilation(implant.mask) & ~left.mask)
            rest = Head(np.where(out, 0, head.occupancy).astype(np.uint8), head.affine, name)
            fit = fit_head(priors[fold[name]], rest, left)
            break
        except InputError as error:
            last = error
    else:
        raise InputError(f"cut {index}: expected a defect that the prior finds in {name}, got none of 20; {last}")
    missing = Head(np.where(out, head.occupancy, 0).astype(np.uint8), head.affine, name)
    found: dict[str, list[np.ndarray]] = {"features": [], "logit": [], "missing": [], "weight": []}
    for deformed in range(LOOKS):
        lattice = lattice_around(fit, rng.uniform(-1, 1, 3))
        points = lattice.points
        moved = deformation(rng, np.stack([points, points * [-1, 1, 1]])) if deformed else np.zeros((2, 1, 1, 1, 3))
        places = build_occupancy_features(fit, rest, means[fold[name]], lattice, moved)
        truth = occupancy_at(missing, fit.pose, points + moved[0]) >= 0.5
        if rng.random() < 0.5:
            places, truth = places.mirrored(), truth[::-1]
        some = rng.choice(len(places.index), min(len(places.index), ASKED), replace=False)
        at = tuple(places.index[some].T)
        found["features"].append(places.features(some))
        found["logit"].append(places.logit[at])
        found["missing"].append(truth[at])
        size = max(np.count_nonzero(truth & (places.bone < 0.5)), FEWEST)
        found["weight"].append(np.full(len(some), len(places.index) / len(some) / size, np.float32))
    return {key: np.concatenate(value) for key, value in found.items()}


def keep(folder: Path, index: int, **arguments: object) -> Path:
    """Makes a cut, if it is not in the folder yet."""
    path = folder / f"{index:05d}.safetensors"
    if not path.exists():
        made = asked(index=index, **arguments)  # type: ignore[arg-type]
        with written_beside(path) as beside:
            beside.write_bytes(save({name: np.ascontiguousarray(value) for name, value in made.items()}))
    return path


def train(files: list[Path], passes: int, seeds: Sequence[int]) -> tuple[tuple[OccupancyNetwork, ...], float]:
    """Cross-entropy, each defect weighted alike; a network of each seed, and their mean loss in the last pass."""
    loaded = [load_file(path) for path in files]
    features, logit, missing, weight = (
        torch.from_numpy(np.concatenate([cut[name] for cut in loaded]))
        for name in ("features", "logit", "missing", "weight")
    )
    weight = weight / weight.mean()
    found = [train_one(features, logit, missing.float(), weight, passes, seed) for seed in seeds]
    return tuple(network for network, _ in found), float(np.mean([loss for _, loss in found]))


def train_one(
    features: Tensor, logit: Tensor, missing: Tensor, weight: Tensor, passes: int, seed: int
) -> tuple[OccupancyNetwork, float]:
    """One network. features: (N, FEATURES) float16; logit, missing, weight: (N,) float32."""
    torch.manual_seed(seed)
    network = OccupancyNetwork()
    optimiser = torch.optim.AdamW(network.parameters(), 1e-3, weight_decay=0.05)
    steps = passes * (len(features) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-3, steps, pct_start=0.03, div_factor=100)
    for number in range(passes):
        losses = []
        for some in torch.randperm(len(features))[: len(features) // BATCH * BATCH].split(BATCH):
            said = network(features[some].float(), logit[some])
            loss = functional.binary_cross_entropy_with_logits(said, missing[some], weight[some])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            losses.append(loss.item())
        print(f"seed {seed}, pass {number + 1}: {np.mean(losses):.4f}", flush=True)
    return network.eval(), float(np.mean(losses))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cache", type=Path)
    parser.add_argument("--cases", default="000-059", help="range of head names, first and last")
    parser.add_argument("--skip", nargs="*", default=["052"], help="heads left out: SkullFix 052 is 000 again")
    parser.add_argument("--same", nargs="*", default=["011,042"], help="names of one head: kept in one fold")
    parser.add_argument("--cuts", type=int, default=560)
    parser.add_argument("--passes", type=int, default=10)
    parser.add_argument("--members", type=int, default=3, help="networks, whose log-odds are averaged")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("-o", "--out", type=Path, required=True)
    args = parser.parse_args()
    names = cached_heads(args.cache, args.cases, args.skip)
    people = load_population(args.cache, names, args.workers)
    fold = assign_folds(names, args.folds, [group.split(",") for group in args.same])
    priors = [cached_prior(args.cache, people, fold != k) for k in range(args.folds)]
    prior = cached_prior(args.cache, people, np.ones(len(names), bool))
    made_of = [f"{VERSION} {args.seed}", *names, *map(str, fold), *(p.digest for p in priors)]
    folder = args.cache / "places" / hashlib.sha256(",".join(made_of).encode()).hexdigest()[:12]
    folder.mkdir(parents=True, exist_ok=True)

    with ProcessPoolExecutor(args.workers, mp_context=get_context("spawn")) as pool:
        posed = pool.map(partial(posed_mean, args.cache, prior), names)
        heads = np.stack(list(tqdm(posed, "mean head", len(names))))
        means = [heads[fold != k].mean(0) for k in range(args.folds)] + [heads.mean(0)]
        mean = np.round(np.stack(means) * 255).astype(np.uint8)
        make = partial(
            keep,
            folder,
            cache=args.cache,
            priors=priors,
            means=mean[:-1],
            fold=dict(zip(names, fold.tolist(), strict=True)),
            seed=args.seed,
        )
        files = list(tqdm(pool.map(make, range(args.cuts), chunksize=4), "cuts", args.cuts))
    networks, loss = train(files, args.passes, range(args.seed, args.seed + args.members))
    numbers = {"cuts": args.cuts, "passes": args.passes, "members": args.members}
    notes = {"cases": args.cases, "loss": f"{loss:.4f}"} | {name: str(value) for name, value in numbers.items()}
    OccupancyModel(networks, mean[-1]).save(args.out, notes)
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
