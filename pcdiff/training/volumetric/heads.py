"""Healthy heads in the shape model's pose, registered on a template; computed once and stored in the cache."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from pcdiff.data.augmentation.registration import register, signed_distance
from pcdiff.data.heads import load_head
from pcdiff.files import sha256
from pcdiff.geometry.occupancy import Head
from pcdiff.methods.volumetric.features import LATTICE, soft_occupancy
from pcdiff.methods.volumetric.lattice import Lattice
from pcdiff.prior.model import ShapePrior
from pcdiff.prior.pose import fit_pose, largest_piece
from pcdiff.tensor_files import read_tensors, write_tensors
from pcdiff.training.volumetric.warps import BOX, HEAD_LOW, HEAD_SHAPE, HEAD_STEP

log = logging.getLogger(__name__)

REGISTERED_FORMAT = "pcdiff-registered-heads-1"
BATCH = 5  # heads registered at a time


@dataclass(frozen=True)
class Heads:
    """Healthy heads in the shape model's pose.

    occupancy: (N, *HEAD_SHAPE) uint8, 255 where all is bone. velocity: (N, 3, *knots) mm, from the template onto each
    head. person: (N,) int, equal where two entries are scans of one head.
    """

    occupancy: Tensor
    velocity: Tensor
    person: tuple[int, ...]

    @cached_property
    def digest(self) -> str:
        """Of all that samples are made of."""
        parts = (self.occupancy.numpy().tobytes(), self.velocity.numpy().tobytes(), str(self.person).encode())
        return hashlib.sha256(b"".join(parts)).hexdigest()

    def share_of_bone(self, number: int) -> Tensor:
        """(1, 1, *HEAD_SHAPE) float32 in [0, 1]."""
        return self.occupancy[number][None, None].float() / 255

    def mean(self, without: Sequence[int] = ()) -> np.ndarray:
        """(*LATTICE.shape) uint8: the mean of heads and mirror images, as `VolumetricModel.mean`.

        without: numbers of heads; all scans of their persons are left out.
        """
        excluded = {self.person[k] for k in without}
        total, count = self._sum.clone(), len(self.person)
        for number, person in enumerate(self.person):
            if person in excluded:
                total -= self._with_mirror_image(number)
                count -= 1
        return np.round((total / (2 * max(count, 1))).numpy()).astype(np.uint8)

    def _with_mirror_image(self, number: int) -> Tensor:
        """(*LATTICE.shape) float32, 0 to 510: head plus mirror image at the lattice's points, between those stored."""
        first = round((LATTICE.low[0] - HEAD_LOW[0] - HEAD_STEP / 2) / HEAD_STEP)
        part = self.occupancy[number, first : first + LATTICE.shape[0] + 1].float()
        between = (part[:-1] + part[1:]) / 2
        return between + between.flip(0)

    @cached_property
    def _sum(self) -> Tensor:
        total = self._with_mirror_image(0)
        for number in range(1, len(self.person)):
            total = total + self._with_mirror_image(number)
        return total


def load_heads(
    cache: Path,
    names: Sequence[str],
    same: Sequence[Sequence[str]],
    prior: ShapePrior,
    pool: Executor,
    progress: bool = True,
) -> Heads:
    """Posed and registered heads of a cache; same: names of one person. Raises InputError for an unreadable head."""
    files = [Path(cache) / "heads" / f"{name}.safetensors" for name in names]
    key = hashlib.sha256("".join([prior.digest, *map(sha256, files)]).encode()).hexdigest()[:12]
    stored = Path(cache) / f"registered-{key}.safetensors"
    if not stored.exists():
        log.info("posing and registering %d heads, several seconds each; they are stored in %s", len(names), stored)
        occupancy, velocity = _register(files, prior, pool, progress)
        write_tensors(stored, {"occupancy": occupancy, "velocity": velocity}, {"format": REGISTERED_FORMAT})
    file = read_tensors(stored, "registered heads", "remove it and run again", REGISTERED_FORMAT)
    occupancy = file.array("occupancy", "uint8", (len(names), *HEAD_SHAPE))
    velocity = file.array("velocity", "float", (len(names), 3, *BOX.knots))
    alias = {name: group[0] for group in same for name in group}
    persons = [alias.get(name, name) for name in names]
    numbers = tuple(persons.index(person) for person in persons)
    return Heads(torch.from_numpy(occupancy), torch.from_numpy(velocity), numbers)


def _register(
    files: Sequence[Path], prior: ShapePrior, pool: Executor, progress: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Occupancy and velocity fields; the template is the mean signed distance of heads and mirror images."""
    posing = pool.map(partial(_posed, prior=prior), files)
    occupancy = np.stack(list(tqdm(posing, "poses", len(files), disable=not progress)))
    distance = np.stack([signed_distance(torch.from_numpy(head / np.float32(255))).numpy() for head in occupancy])
    template = distance.mean(0)
    template = (template + template[::-1]) / 2
    groups = [distance[k : k + BATCH] for k in range(0, len(files), BATCH)]
    registering = pool.map(partial(_velocities, template=template), groups)
    fields = list(tqdm(registering, "registration", len(groups), disable=not progress))
    return occupancy, np.concatenate(fields)


def _posed(file: Path, prior: ShapePrior) -> np.ndarray:
    """HEAD_SHAPE uint8: the soft occupancy of a head in its pose on the shape model's mean."""
    head = load_head(file)
    occupancy = largest_piece(head.occupancy)
    pose, _ = fit_pose(occupancy, head.affine, prior.mean[0], prior.std[0], prior.settings.pose)
    lattice = Lattice(HEAD_LOW, HEAD_SHAPE, HEAD_STEP)
    return np.round(soft_occupancy(Head(occupancy, head.affine, head.name), pose, lattice) * 255).astype(np.uint8)


def _velocities(heads: np.ndarray, template: np.ndarray) -> np.ndarray:
    """Velocity fields (N, 3, *knots) of signed distances (N, I, J, K)."""
    return register(torch.from_numpy(template), torch.from_numpy(heads), BOX).numpy()
