"""Multi-atlas: the training heads that fit best are deformed onto the patient's bone, and vote."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from pydantic import BaseModel, Field
from scipy.ndimage import map_coordinates
from torch import Tensor

from pcdiff.config import StrictConfig
from pcdiff.data.augmentation.registration import Box, displaced, exponential, register, sample, signed_distance
from pcdiff.errors import InputError
from pcdiff.foreign import parsing
from pcdiff.geometry.occupancy import Head, head_occupancy
from pcdiff.geometry.volume import Volume
from pcdiff.methods.base import Proposal
from pcdiff.methods.candidates import OrientedPoints
from pcdiff.methods.rbf import spline
from pcdiff.methods.registry import WeightsFiles
from pcdiff.methods.volumetric.features import soft_occupancy
from pcdiff.methods.volumetric.lattice import Lattice, TableMaps, map_position, missing_table_points
from pcdiff.prior.direction_map import MAP, RADII, crossing, inner_table
from pcdiff.prior.fit import PriorFit
from pcdiff.prior.model import ShapePrior
from pcdiff.tensor_files import check_layout, read_tensors, write_tensors

ATLAS_FORMAT = "pcdiff-atlas-1"
WHAT, REMEDY = "an atlas of heads", "choose another file, or make one with `pcdiff train atlas`"
VOTERS = 16  # heads that are deformed
MARGIN_MM = 24.0  # of bone around the missing tables
CLEAR_MM = 1.5  # bone nearer to the defect may be cut in part and does not count
NEAR_MM = 15.0  # distance from the defect over which the weight of bone falls to 1/e
SCHEDULE = ((4, 40), (2, 30))  # of the registration, see `registration.LEVELS`
BAND_MM = 16.0  # bone around the defect on which the vote is read
FAR = 8.0  # lattice steps, outside of what was deformed


class AtlasLayout(StrictConfig):
    """The lattice that heads are stored on, in model space; x from -80 to 80 mm. Another layout is refused."""

    step_mm: float = 2.0
    low_mm: tuple[float, float, float] = (-80.0, -120.0, -110.0)
    shape: tuple[int, int, int] = (81, 116, 106)
    levels: int = 4  # of the share of bone: 0, 1/3, 2/3 and 1


LAYOUT = AtlasLayout()
LATTICE = Lattice(np.array(LAYOUT.low_mm), LAYOUT.shape, LAYOUT.step_mm)


class _Notes(BaseModel):
    """What the metadata says beside the layout."""

    heads: int = Field(ge=1, le=1000)


@dataclass(frozen=True)
class Atlas:
    """Healthy heads in the shape model's pose: (N, *LATTICE.shape) uint8, 0 to `levels` - 1 times the share of bone."""

    heads: np.ndarray

    @classmethod
    def of(cls, occupancy: np.ndarray) -> Self:
        """occupancy: (N, *LATTICE.shape) uint8, 255 where all is bone."""
        return cls(np.round(occupancy * ((LAYOUT.levels - 1) / 255)).astype(np.uint8))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads what `save` wrote. Raises InputError for another file, format or layout, and a damaged file."""
        file = read_tensors(path, WHAT, REMEDY, ATLAS_FORMAT)
        check_layout(file.path, "lattice", file.config(AtlasLayout), LAYOUT)
        shape = (file.notes(_Notes).heads, *LAYOUT.shape)
        size = int(np.prod(shape))
        with parsing(path, WHAT, REMEDY):
            content = zlib.decompressobj().decompress(file.array("heads", "uint8", (None,)).tobytes(), size + 1)
        heads = np.frombuffer(content, np.uint8)
        if heads.size != size or heads.max() >= LAYOUT.levels:
            raise InputError(f"{path}: expected {WHAT} of shape {shape}, got another number of values; {REMEDY}")
        return cls(heads.reshape(shape))

    def save(self, path: Path) -> None:
        """Writes the heads compressed by zlib."""
        content = np.frombuffer(zlib.compress(self.heads.tobytes(), 9), np.uint8)
        metadata = {"format": ATLAS_FORMAT, "heads": str(len(self.heads)), "license": "CC-BY-NC-SA-4.0"}
        write_tensors(path, {"heads": content}, metadata | {"config": LAYOUT.model_dump_json()})


@dataclass(frozen=True)
class AtlasMethod:
    """The mean of the deformed heads' signed distances, moved to the rim; in an ensemble the heads one by one."""

    prior: ShapePrior
    atlas: Atlas

    def __call__(
        self, skull: Volume, fit: PriorFit, *, ensemble: int = 1, seed: int = 0, device: str = "cpu"
    ) -> Proposal:
        """See `PriorBasedMethod`."""
        around = Around.of(fit, head_occupancy(skull))
        moved = around.deformed(around.best(self.atlas, max(VOTERS, ensemble)))
        votes = [moved.mean(0)] if ensemble == 1 else list(moved[:ensemble])
        return Proposal([OrientedPoints(fit.completed_surface(*around.tables(vote, fit))) for vote in votes])


@dataclass(frozen=True)
class Around:
    """The patient around the defects, on a part of the atlas's lattice.

    window: the part. bone: (I, J, K) share of bone. weight: (I, J, K) of the bone, 0 where it is missing.
    """

    window: tuple[slice, ...]
    lattice: Lattice
    bone: np.ndarray
    weight: np.ndarray

    @classmethod
    def of(cls, fit: PriorFit, head: Head) -> Self:
        """Reads the head around the fit's defects."""
        points, step = missing_table_points(fit), LATTICE.step
        first = np.floor((points.min(0) - MARGIN_MM - LATTICE.low) / step).astype(int)
        last = np.ceil((points.max(0) + MARGIN_MM - LATTICE.low) / step).astype(int) + 1
        window = tuple(slice(max(a, 0), min(b, n)) for a, b, n in zip(first, last, LATTICE.shape, strict=True))
        i, j, k = (part.stop - part.start for part in window)
        lattice = Lattice(LATTICE.low + step * np.array([part.start for part in window]), (i, j, k), step)
        (border,) = TableMaps.of(fit).sample(map_position(lattice.points)[0], "border")
        weight = np.where(border < -CLEAR_MM, np.exp(border / NEAR_MM), 0).astype(np.float32)
        return cls(window, lattice, soft_occupancy(head, fit.pose, lattice), weight)

    @property
    def box(self) -> Box:
        """What the lattice spans."""
        low, high = self.lattice.low, self.lattice.low + self.lattice.step * (np.array(self.lattice.shape) - 1)
        return Box(tuple(low.tolist()), tuple(high.tolist()))

    def best(self, atlas: Atlas, count: int) -> list[np.ndarray]:
        """(I, J, K) share of bone of the heads and mirrored heads that differ least from the patient's bone."""
        both = [head[self.window] for stored in atlas.heads for head in (stored, stored[::-1])]
        shares = [head.astype(np.float32) / (LAYOUT.levels - 1) for head in both]
        order = np.argsort([(self.weight * np.abs(share - self.bone)).sum() for share in shares], kind="stable")
        return [shares[number] for number in order[:count]]

    def deformed(self, heads: Sequence[np.ndarray]) -> np.ndarray:
        """(N, I, J, K) signed distances, lattice steps, of heads registered to the bone, the best-fitting first."""
        target, moving = distance(self.bone), torch.stack([distance(head) for head in heads])
        weight, points = torch.from_numpy(self.weight), torch.from_numpy(self.lattice.points).float()[None]
        fields = exponential(register(target, moving, self.box, SCHEDULE, weight), self.box)
        moved = torch.cat(
            [
                sample(head[None, None], self.box, displaced(field[None], self.box, points), "border")[0]
                for head, field in zip(moving, fields, strict=True)
            ]
        )
        misfit = (weight * (moved - target) ** 2).sum((1, 2, 3))
        return moved[misfit.argsort(stable=True)].numpy()

    def tables(self, vote: np.ndarray, fit: PriorFit) -> tuple[np.ndarray, np.ndarray]:
        """Outer radius and thickness, (R,) mm, of signed distances (I, J, K), moved to the rim as `mean` is.

        Of several crossings of a ray the one nearest to the shape model's completion counts.
        """
        observed, reach = fit.observation, fit.prior.settings.tables.inner_reach_mm
        rays = np.flatnonzero(observed.distance <= BAND_MM)
        points = MAP.directions[rays, None] * RADII[:, None]
        index = (points - self.lattice.low) / self.lattice.step
        steps = map_coordinates(vote, index.reshape(-1, 3).T, order=1, cval=FAR).reshape(points.shape[:2])
        profile = np.clip(0.5 - steps, 0, 1)
        outer, inner = np.full((2, len(observed.outer)), np.nan)
        outer[rays] = crossing(profile, fit.outer[rays], outward=True)
        inner[rays] = inner_table(profile, (fit.outer - fit.thickness)[rays], reach)
        outer, inner = (MAP.filled(radius)[MAP.inside] for radius in (outer, inner))
        outer = outer + spline(fit, observed.outer - outer)
        return outer, outer - inner - spline(fit, observed.outer - observed.thickness - inner)


def distance(share: np.ndarray) -> Tensor:
    """(I, J, K) share of bone -> lattice steps to its surface, negative inside; near it, finer than a step."""
    soft = torch.from_numpy(np.ascontiguousarray(share))
    steps = signed_distance(soft)
    return torch.where(steps.abs() <= 1, 0.5 - soft, steps - 0.5 * steps.sign())


def load(files: WeightsFiles) -> AtlasMethod:
    """The method with the heads of the files. Raises InputError for a file of another kind."""
    assert files.own is not None
    return AtlasMethod(ShapePrior.load(files.prior), Atlas.load(files.own))
