"""Trains the occupancy network from heads that `pcdiff prepare` cached.

usage: python tools/train_occupancy.py CACHE --cases 000-059 --skip 052 -o pcdiff/weights/occupancy.safetensors

Simulates craniotomies on the heads, fits to each the shape model of another fold, and samples query points around the
defect, for which it is known whether bone is missing. The samples are stored in the cache, so that an interrupted run
can go on. 560 craniotomies take 25 minutes on two cores.
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
from pcdiff.methods.occupancy.config import SETTINGS
from pcdiff.methods.occupancy.features import MIRROR, build_occupancy_features, occupancy_at
from pcdiff.methods.occupancy.lattice import Lattice, lattice_around
from pcdiff.methods.occupancy.model import OccupancyModel
from pcdiff.methods.occupancy.network import OccupancyNetwork
from pcdiff.prior.fit import PriorFit, fit_head
from pcdiff.prior.folds import assign_folds, cached_heads, cached_prior, load_population
from pcdiff.prior.model import ShapePrior
from pcdiff.prior.pose import fit_pose, largest_piece

VERSION = 2  # of the samples: raised when the same arguments give others
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
VIEWS = 3  # of each craniotomy: the head as it is, then deformed
QUERIES = 1500  # query points of each view
MIN_MISSING = 500  # lattice points that a defect is weighted as at least, so that small defects do not dominate
BATCH = 4096


def posed_mean(cache: Path, prior: ShapePrior, name: str) -> np.ndarray:
    """`mean_shape` float32: occupancy of a head posed on the mean, averaged with that of its mirror image."""
    head = load_head(cache / "heads" / f"{name}.safetensors")
    occupancy = largest_piece(head.occupancy)
    pose, _ = fit_pose(occupancy, head.affine, prior.mean[0], prior.std[0], prior.settings.pose)
    lattice = Lattice(np.array(SETTINGS.mean_low_mm), SETTINGS.mean_shape, SETTINGS.step_mm)
    posed = occupancy_at(Head(occupancy, head.affine, name), pose, lattice.points)
    return (posed + posed[::-1]) / 2


def deformation(rng: np.random.Generator, points: np.ndarray) -> np.ndarray:
    """(..., 3) mm: a smooth random displacement of up to `DEFORM` mm at points (..., 3) within the head."""
    count, low = np.array([24, 26, 25]), np.array([-120.0, -130.0, -125.0])
    sigma, size = rng.uniform(1.5, 3.5), rng.uniform(0, DEFORM)
    fields = np.stack([ndimage.gaussian_filter(rng.standard_normal(count), sigma) for _ in range(3)])
    fields *= size / fields.std()
    at = ((points - low) / KNOTS).reshape(-1, 3).T
    return np.stack([map_coordinates(f, at, order=1, mode="nearest") for f in fields], -1).reshape(points.shape)


def simulate(cache: Path, prior: ShapePrior, name: str, rng: np.random.Generator) -> tuple[PriorFit, Head, Head]:
    """A craniotomy on a head: the fit to what remains, the remaining head, and the missing bone as a head of its own.

    Raises InputError where the shape model finds no defect in 20 attempts.
    """
    head = load_head(cache / "heads" / f"{name}.safetensors")
    skull = Volume(head.occupancy >= 128, head.affine)
    for _ in range(20):
        kind = str(rng.choice(list(KINDS), p=list(KINDS.values())))
        try:
            left, implant = simulate_craniotomy(skull, kind, rng, 2 if rng.random() < TWO_DEFECTS else 1)
            # half-filled voxels beside the cut belong to the implant
            out = implant.mask | (ndimage.binary_dilation(implant.mask) & ~left.mask)
            rest = Head(np.where(out, 0, head.occupancy).astype(np.uint8), head.affine, name)
            fit = fit_head(prior, rest, left)
            break
        except InputError as error:
            last = error
    else:
        raise InputError(f"{name}: expected a defect that the shape model finds, got none in 20 attempts; {last}")
    return fit, rest, Head(np.where(out, head.occupancy, 0).astype(np.uint8), head.affine, name)


def sample(
    cache: Path, priors: list[ShapePrior], means: np.ndarray, fold: dict[str, int], index: int, seed: int
) -> dict:
    """Query points around craniotomy `index`: features, tables' log-odds, whether bone is missing, and weights.

    The points come from the head as it is and from deformed ones, half of them mirrored.
    """
    rng = np.random.default_rng([seed, index])
    name = sorted(fold)[index % len(fold)]
    fit, rest, missing = simulate(cache, priors[fold[name]], name, rng)
    found: dict[str, list[np.ndarray]] = {"features": [], "logit": [], "missing": [], "weight": []}
    for view in range(VIEWS):
        lattice = lattice_around(fit, SETTINGS, rng.uniform(-1, 1, 3))
        points = lattice.points
        moved = deformation(rng, np.stack([points, points * MIRROR])) if view else np.zeros((2, 1, 1, 1, 3))
        queries = build_occupancy_features(fit, rest, means[fold[name]], SETTINGS, lattice, moved)
        truth = occupancy_at(missing, fit.pose, points + moved[0]) >= 0.5
        if rng.random() < 0.5:
            queries, truth = queries.mirrored(), truth[::-1]
        some = rng.choice(len(queries.index), min(len(queries.index), QUERIES), replace=False)
        at = tuple(queries.index[some].T)
        found["features"].append(queries.features(some))
        found["logit"].append(queries.table_log_odds[at])
        found["missing"].append(truth[at])
        size = max(np.count_nonzero(truth & (queries.bone < 0.5)), MIN_MISSING)
        found["weight"].append(np.full(len(some), len(queries.index) / len(some) / size, np.float32))
    return {key: np.concatenate(value) for key, value in found.items()}


def store(folder: Path, index: int, **arguments: object) -> Path:
    """Samples craniotomy `index`, unless it is in the folder already; returns its file."""
    path = folder / f"{index:05d}.safetensors"
    if not path.exists():
        made = sample(index=index, **arguments)  # type: ignore[arg-type]
        with written_beside(path) as beside:
            beside.write_bytes(save({name: np.ascontiguousarray(value) for name, value in made.items()}))
    return path


def train(files: list[Path], passes: int, seeds: Sequence[int]) -> tuple[tuple[OccupancyNetwork, ...], float]:
    """Trains one network for each seed; returns them and their mean loss in the last pass.

    The loss is cross-entropy in which each defect has the same weight.
    """
    loaded = [load_file(path) for path in files]
    features, logit, missing, weight = (
        torch.from_numpy(np.concatenate([samples[name] for samples in loaded]))
        for name in ("features", "logit", "missing", "weight")
    )
    weight = weight / weight.mean()
    found = [train_one(features, logit, missing.float(), weight, passes, seed) for seed in seeds]
    return tuple(network for network, _ in found), float(np.mean([loss for _, loss in found]))


def train_one(
    features: Tensor, logit: Tensor, missing: Tensor, weight: Tensor, passes: int, seed: int
) -> tuple[OccupancyNetwork, float]:
    """One network. features: (N, F) float16; logit, missing, weight: (N,) float32."""
    torch.manual_seed(seed)
    network = OccupancyNetwork(SETTINGS)
    optimiser = torch.optim.AdamW(network.parameters(), 1e-3, weight_decay=0.05)
    steps = passes * (len(features) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-3, steps, pct_start=0.03, div_factor=100)
    for number in range(passes):
        losses = []
        for some in torch.randperm(len(features))[: len(features) // BATCH * BATCH].split(BATCH):
            predicted = network(features[some].float(), logit[some])
            loss = functional.binary_cross_entropy_with_logits(predicted, missing[some], weight[some])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            losses.append(loss.item())
        print(f"seed {seed}, pass {number + 1}: {np.mean(losses):.4f}", flush=True)
    return network.eval(), float(np.mean(losses))


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cache", type=Path)
    parser.add_argument("--cases", default="000-059", help="range of head names, first and last")
    parser.add_argument("--skip", nargs="*", default=["052"], help="heads left out: SkullFix 052 is 000 again")
    parser.add_argument("--same", nargs="*", default=["011,042"], help="names of one head, for one fold")
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
    folder = args.cache / "occupancy" / hashlib.sha256(",".join(made_of).encode()).hexdigest()[:12]
    folder.mkdir(parents=True, exist_ok=True)

    with ProcessPoolExecutor(args.workers, mp_context=get_context("spawn")) as pool:
        posed = pool.map(partial(posed_mean, args.cache, prior), names)
        heads = np.stack(list(tqdm(posed, "mean head", len(names))))
        means = [heads[fold != k].mean(0) for k in range(args.folds)] + [heads.mean(0)]
        mean = np.round(np.stack(means) * 255).astype(np.uint8)
        make = partial(
            store,
            folder,
            cache=args.cache,
            priors=priors,
            means=mean[:-1],
            fold=dict(zip(names, fold.tolist(), strict=True)),
            seed=args.seed,
        )
        files = list(tqdm(pool.map(make, range(args.cuts), chunksize=4), "craniotomies", args.cuts))
    networks, loss = train(files, args.passes, range(args.seed, args.seed + args.members))
    numbers = {"cuts": args.cuts, "passes": args.passes, "members": args.members}
    notes = {"cases": args.cases, "loss": f"{loss:.4f}"} | {name: str(value) for name, value in numbers.items()}
    OccupancyModel(networks, mean[-1], SETTINGS).save(args.out, notes)
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
