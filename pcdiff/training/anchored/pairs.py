"""Training pairs: a healthy head, a simulated craniotomy, the prior without that head, and the error of the prior.

As in use, the head is posed by the remaining bone, not by the bone that was removed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from einops import rearrange
from safetensors.numpy import load_file, save
from torch import Tensor
from torch.utils.data import Dataset

from pcdiff.data.craniotomy import Cranium, draw_outlines
from pcdiff.errors import InputError
from pcdiff.files import written_beside
from pcdiff.methods.anchored.condition import (
    DIRECTION_X,
    NORMAL_X,
    Condition,
    choose_rays,
    make_condition,
    make_frame,
    table_normals,
)
from pcdiff.prior.defects import open_rays
from pcdiff.prior.direction_map import MAP, PIXEL, RADIUS
from pcdiff.prior.fit import PriorFit, complete
from pcdiff.prior.folds import Population
from pcdiff.prior.model import ShapePrior
from pcdiff.training.anchored.augment import ORIGIN, jittered, pose_without, seen_in, smooth_field, warped
from pcdiff.training.recipes import PairsConfig

STERADIAN = (PIXEL / RADIUS) ** 2  # solid angle of each ray: the map is equal-area
THINNED = 3  # every third ray is enough to place and size a defect
PORE = 3.0  # mm from the smooth surface: a ray that met a pore, a suture or no bone
SMOOTH = 1.5  # pixels: the target is the surface without pores, which the surrounding bone does not predict
MAX_SHIFT = 6.0  # mm: a ray further from the prior met another bone

# Version of the way pairs are made: raise it when the same recipe gives other pairs, so that stored ones are remade.
VERSION = 2


@dataclass(frozen=True)
class Pair:
    """A condition and its target, for the P = 2 ANCHORS points.

    target: (P,) true displacement along the ray, in units of `Condition.prior_std_mm`. normals: (P, 3) true unit
    normals, network axes. valid: (P,) 1 if the truth is known, else 0.
    """

    condition: Condition
    target: np.ndarray
    normals: np.ndarray
    valid: np.ndarray


@dataclass(frozen=True)
class Pairs(Dataset[dict[str, np.ndarray]]):
    """Pair k is a function of (config, k) alone, the same in every worker and every run.

    priors: one for each fold, built without the heads of that fold. fold: (H,), of each head. store: folder to store
    pairs in, None to make each anew.
    """

    population: Population
    fold: np.ndarray
    priors: list[ShapePrior]
    config: PairsConfig
    store: Path | None = None

    def __len__(self) -> int:
        return self.config.pool

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Flat float16 arrays of a pair, named as in `Condition` and `Pair` ("true_normals" for the latter's)."""
        path = self.store / f"{index:07d}.safetensors" if self.store else None
        if path and path.exists():
            return load_file(path)
        pair = {name: value.astype(np.float16) for name, value in flatten(self.make(index)).items()}
        if path:
            with written_beside(path) as beside:
                beside.write_bytes(save(pair))
        return pair

    def make(self, index: int) -> Pair:
        """Draws head, deformation and defect, again if the defect does not fit on the head.

        Raises InputError after 20 heads.
        """
        rng = np.random.default_rng([self.config.seed, index])
        for _ in range(20):
            try:
                return self._draw(rng)
            except InputError as error:
                last = error
        raise InputError(f"pair {index}: expected a defect on one of 20 heads, found none; the last: {last}") from last

    def _draw(self, rng: np.random.Generator) -> Pair:
        fold, table_radii = self._head(rng)
        prior = self.priors[fold]
        kind = str(rng.choice(list(self.config.kinds), p=np.array(list(self.config.kinds.values()))))
        defects = 2 if rng.random() < self.config.two_defects else 1
        defect = cut_rays(table_radii, kind, defects, rng)
        pose = jittered(pose_without(prior, table_radii, defect), self.config.pose_mm, rng)
        table_radii, defect = seen_in(pose, table_radii, defect)
        observation = open_rays(table_radii[0], table_radii[1], defect)
        anchors, bone = choose_rays(observation)
        # only the anchors are completed, not all rays of defect and band: that makes pairs cheap
        fit = complete(prior, ORIGIN, observation, 0.0, anchors)
        return make_pair(fit, table_radii, anchors, bone)

    def _head(self, rng: np.random.Generator) -> tuple[int, np.ndarray]:
        """A head's fold and its (2, R) outer radius and thickness: mirrored, mixed and deformed at random."""
        people = self.population
        first = int(rng.integers(len(people.names)))
        fold = int(self.fold[first])
        mean = self.priors[fold].mean
        deviation = np.stack([people.outer[first], people.thickness[first]]) - mean
        others = np.setdiff1d(np.flatnonzero(self.fold == fold), first)
        if len(others) and rng.random() < self.config.mix:
            second = int(rng.choice(others))
            other = np.stack([people.outer[second], people.thickness[second]]) - mean
            if rng.random() < 0.5:
                other = other[:, MAP.mirror]
            angle = rng.uniform(0, np.pi / 2)  # unlike an average, a rotation preserves the covariance
            deviation = np.cos(angle) * deviation + np.sin(angle) * other
        if rng.random() < 0.5:
            deviation = deviation[:, MAP.mirror]
        if rng.random() < self.config.deform:
            deviation = deviation + np.stack([rng.uniform(0, mm) * smooth_field(rng) for mm in self.config.deform_mm])
        table_radii = mean + deviation
        table_radii[1] = np.maximum(table_radii[1], 1.0)
        if self.config.warp_mm:
            table_radii = warped(
                table_radii, rng.uniform(0, self.config.warp_mm) * np.stack([smooth_field(rng), smooth_field(rng)])
            )
        return fold, table_radii


def cut_rays(table_radii: np.ndarray, kind: str, defects: int, rng: np.random.Generator) -> np.ndarray:
    """Simulates a craniotomy: tables (2, R) -> (R,) int, the number of the defect at each ray, 0 for bone.

    Raises InputError if the defect does not fit or has fewer than a hundred rays.
    """
    known = np.flatnonzero(np.isfinite(table_radii).all(0))
    outer, inner = table_radii[0], table_radii[0] - table_radii[1]
    some = known[::THINNED]
    cranium = Cranium.from_rays(
        np.zeros(3), MAP.directions[some], outer[some], inner[some], np.full(len(some), THINNED * STERADIAN)
    )
    middle = (outer[known] + inner[known])[:, None] / 2 * MAP.directions[known]
    defect = np.zeros(len(outer), int)
    for number, outline in enumerate(draw_outlines(kind, rng, cranium, defects), start=1):
        defect[known[outline.contains(middle)]] = number
    if np.count_nonzero(defect) < 100:
        raise InputError(f"{kind}: expected a defect of a hundred rays, got {np.count_nonzero(defect)}; draw another")
    return defect


def make_pair(fit: PriorFit, table_radii: np.ndarray, anchors: np.ndarray, bone: np.ndarray) -> Pair:
    """The condition of a fitted defect and the true displacements at its anchors.

    table_radii: (2, R) of the complete head, in the pose of the fit.
    """
    condition = make_condition(fit, anchors, bone)
    tables = np.stack([table_radii[0], table_radii[0] - table_radii[1]])
    smooth, known = without_pores(tables)
    guess = np.stack([fit.outer[anchors], fit.outer[anchors] - fit.thickness[anchors]])
    shift = (smooth[:, anchors] - guess).reshape(-1)
    valid = known[:, anchors].reshape(-1) & (np.abs(shift) < MAX_SHIFT)
    target = np.where(valid, shift, 0) / condition.prior_std_mm
    true_normals = table_normals(np.stack([smooth[0], smooth[0] - smooth[1]]))[:, anchors]
    normals = make_frame(anchors).rotate_to_network(true_normals)
    return Pair(
        condition,
        np.clip(target, -8, 8).astype(np.float32),
        rearrange(normals, "wall ray xyz -> (wall ray) xyz").astype(np.float32),
        valid.astype(np.float32),
    )


def without_pores(tables: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Radii (2, R) of both tables -> the radii smoothed over the map, and (2, R) bool: measured, no pore, no spike."""
    known = np.isfinite(tables)
    for _ in range(2):
        smooth = np.stack([MAP.smoothed(np.where(k, t, 0), SMOOTH, k) for t, k in zip(tables, known, strict=True)])
        with np.errstate(invalid="ignore"):
            known = np.abs(tables - smooth) < PORE
    return smooth, known


def flatten(pair: Pair) -> dict[str, np.ndarray]:
    """All fields of a pair by name, for collation and storage."""
    return vars(pair.condition) | {"target": pair.target, "true_normals": pair.normals, "valid": pair.valid}


def mirrored(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The batch of the mirrored heads: x changes its sign in the network's and in the model's frame.

    The prior is symmetric, so distances, deviations, the noise's covariance and the target stay as they are.
    """
    flipped = {name: value.clone() for name, value in batch.items()}
    for name in ("anchors", "bone", "normals", "true_normals"):
        flipped[name][..., 0] *= -1
    for name in ("anchor_features", "bone_features"):
        for column in (NORMAL_X, DIRECTION_X):
            flipped[name][..., column] *= -1
    return flipped
