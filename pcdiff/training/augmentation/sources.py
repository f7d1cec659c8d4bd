"""The heads that new ones are made of: files, poses, registration, and tables along rays."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from pcdiff.data.heads import load_head
from pcdiff.files import sha256
from pcdiff.prior.direction_map import Pose
from pcdiff.prior.folds import cached_heads, load_population
from pcdiff.prior.model import ShapePrior
from pcdiff.prior.pose import fit_pose, largest_piece
from pcdiff.tensor_files import read_tensors, write_tensors
from pcdiff.training.volumetric.heads import Heads, load_heads

POSES_FORMAT = "pcdiff-poses-1"


@dataclass(frozen=True)
class Sources:
    """Heads of a cache, N of them.

    files: of the heads. heads: posed and registered. poses: of each head on the shape model's mean.
    deviations: (2 N, 2, R) mm of their tables from the mean, and of those of their mirror images.
    """

    names: tuple[str, ...]
    files: tuple[Path, ...]
    heads: Heads
    poses: tuple[Pose, ...]
    deviations: np.ndarray

    @property
    def scales(self) -> np.ndarray:
        """(N, 3) patient millimetres of each head for a millimetre of the model, along the model's axes."""
        return np.stack([np.linalg.norm(pose.linear, axis=0) for pose in self.poses])


def load_sources(
    cache: Path, cases: str, skip: Sequence[str], prior: ShapePrior, pool: Executor, workers: int, progress: bool
) -> Sources:
    """The heads of a range such as 000-059; what is computed of them is stored in the cache.

    Raises InputError for a cache without these heads.
    """
    names = cached_heads(cache, cases, skip)
    files = tuple(Path(cache) / "heads" / f"{name}.safetensors" for name in names)
    heads = load_heads(cache, names, (), prior, pool, progress)
    poses = load_poses(cache, files, prior, pool, progress)
    deviations = load_population(cache, names, workers, prior).deviations(prior.mean)
    return Sources(tuple(names), files, heads, poses, deviations)


def load_poses(
    cache: Path, files: Sequence[Path], prior: ShapePrior, pool: Executor, progress: bool = True
) -> tuple[Pose, ...]:
    """The poses of heads on the shape model's mean, a second each, once."""
    key = hashlib.sha256("".join([prior.digest, *map(sha256, files)]).encode()).hexdigest()[:12]
    stored = Path(cache) / f"poses-{key}.safetensors"
    if not stored.exists():
        posing = pool.map(partial(_pose, prior=prior), files)
        poses = list(tqdm(posing, "poses", len(files), disable=not progress))
        arrays = {
            "linear": np.stack([pose.linear for pose in poses]),
            "shift": np.stack([pose.shift for pose in poses]),
        }
        write_tensors(stored, arrays, {"format": POSES_FORMAT})
    file = read_tensors(stored, "poses of heads", "remove it and run again", POSES_FORMAT)
    linear, shift = file.array("linear", "float", (len(files), 3, 3)), file.array("shift", "float", (len(files), 3))
    return tuple(map(Pose, linear, shift))


def _pose(file: Path, prior: ShapePrior) -> Pose:
    head = load_head(file)
    pose, _ = fit_pose(largest_piece(head.occupancy), head.affine, prior.mean[0], prior.std[0], prior.settings.pose)
    return pose
