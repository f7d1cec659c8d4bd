"""What healthy skulls look like: mean and covariance of both tables over directions. Build, save, load, draw."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial
from importlib import resources
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from pcdiff.errors import InputError
from pcdiff.files import sha256, written_beside
from pcdiff.geometry.occupancy import Head
from pcdiff.geometry.volume import Volume
from pcdiff.prior.direction_map import MAP, RADII, Pose, crossing, profiles
from pcdiff.prior.pose import fit_pose, initial_pose, largest_piece

FORMAT = "pcdiff-prior-1"
WALL = 7.0  # mm, a first guess of the vault's thickness: where to look for the inner table
GROSS_OUTER, GROSS_THICKNESS = 10.0, 7.0  # mm from the median: beyond, the ray met something else than the vault
MODES = 40
FILL_MODES = 12  # modes that fill the gaps of a head while the covariance is learned
SMOOTH = 1.0  # pixels; the thickness of single rays is noisier than the covariance should know


@dataclass(frozen=True)
class TableRadii:
    """One head along the rays of the map, in its pose.

    outer, thickness: (R,) mm, NaN where the ray meets no wall. present: (R,) float, 1 where the wall stands, 0 where it
    does not, NaN outside the field of view.
    """

    outer: np.ndarray
    thickness: np.ndarray
    present: np.ndarray
    pose: Pose


@dataclass(frozen=True)
class ShapePrior:
    """Outer table and bone thickness over the directions of the map, in model millimetres.

    mean, std: (2, R): outer radius, thickness. modes: (M, 2, R), scaled to one standard deviation each, symmetric
    under mirroring as a set. present: (R,) share of heads with a wall here. heads: how many it was built from.
    """

    mean: np.ndarray
    std: np.ndarray
    modes: np.ndarray
    present: np.ndarray
    heads: int
    digest: str = field(default="", compare=False)

    @classmethod
    def shipped(cls) -> ShapePrior:
        """The prior that the package ships (CC BY-NC-SA 4.0, see the model card)."""
        with resources.as_file(resources.files("pcdiff") / "weights" / "prior.safetensors") as path:
            return cls.load(path)

    @classmethod
    def load(cls, path: Path) -> ShapePrior:
        """Reads what `save` wrote. Raises InputError for any other file."""
        try:
            with safe_open(path, "np") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != FORMAT:
                    raise InputError(f"{path}: expected a shape prior of format {FORMAT}, got another file")
                values = {name: file.get_tensor(name).astype(np.float32) for name in ("mean", "std", "modes")}
                present = file.get_tensor("present").astype(np.float32) / 255
        except (OSError, SafetensorError) as error:
            raise InputError(
                f"{path}: expected a shape prior, got {error}; build one with tools/build_prior.py"
            ) from error
        return cls(**values, present=present, heads=int(metadata["heads"]), digest=sha256(Path(path)))

    def save(self, path: Path) -> None:
        """The mean in single precision, what deviates from it in half precision."""
        tensors: dict[str, np.ndarray] = {
            "mean": self.mean.astype(np.float32),
            "std": self.std.astype(np.float16),
            "modes": self.modes.astype(np.float16),
            "present": np.round(self.present * 255).astype(np.uint8),
        }
        metadata = {"format": FORMAT, "heads": str(self.heads), "license": "CC-BY-NC-SA-4.0"}
        with written_beside(path) as beside:
            beside.write_bytes(save(tensors, metadata))

    def draw(self, rng: np.random.Generator, spacing: float = 0.8, scale: float = 0.8) -> Volume:
        """A healthy head that never was: the vault, in voxels of `spacing` mm. scale: how far from the mean, in std."""
        weights = rng.standard_normal(len(self.modes)).astype(np.float32) * scale
        outer, thickness = self.mean + np.tensordot(weights, self.modes, 1)
        outer = MAP.smoothed(outer, 1.0)
        inner = outer - np.maximum(MAP.smoothed(thickness, 1.0), 1.5)
        reach = float(outer.max()) + 3 * spacing
        size = int(np.ceil(2 * reach / spacing))
        affine = np.diag([spacing, spacing, spacing, 1.0])
        affine[:3, 3] = -(size - 1) / 2 * spacing
        axis = (np.arange(size) * spacing + affine[0, 3]).astype(np.float32)
        mask = np.zeros((size, size, size), bool)
        for k, z in enumerate(axis):  # slice by slice: the whole grid's coordinates would take a gigabyte
            points = np.stack([*np.meshgrid(axis, axis, indexing="ij"), np.full((size, size), z)], -1).reshape(-1, 3)
            radius = np.linalg.norm(points, axis=1)
            near = np.flatnonzero((radius > 30) & (radius < reach))
            directions = points[near] / radius[near, None]
            bone = radius[near] <= MAP.sample(MAP.to_image(outer), directions, 0.0)
            bone &= radius[near] >= MAP.sample(MAP.to_image(inner), directions, np.inf)
            flat = np.zeros(size * size, bool)
            flat[near] = bone
            mask[:, :, k] = flat.reshape(size, size)
        return Volume(mask, affine)


def measure_tables(head: Head, mean: np.ndarray, std: np.ndarray) -> TableRadii:
    """Poses a healthy head on the mean ((2, R) outer, thickness; std the same) and reads its tables."""
    occupancy = largest_piece(head.occupancy)
    pose, _ = fit_pose(occupancy, head.affine, mean[0], std[0])
    profile, seen = profiles(occupancy, head.affine, pose, MAP.directions)
    outer = crossing(profile, mean[0], outward=True)
    inner = crossing(profile, outer - mean[1], outward=False)
    wall = (mean[0] - mean[1] - 3)[:, None] <= RADII
    wall &= (mean[0] + 3)[:, None] >= RADII
    present = ((profile > 0.5) & wall).any(1).astype(np.float32)
    outer[np.abs(outer - mean[0]) > GROSS_OUTER] = np.nan
    thickness = outer - inner
    thickness[(thickness <= 0) | (np.abs(thickness - mean[1]) > GROSS_THICKNESS)] = np.nan
    return TableRadii(outer, thickness, np.where((seen | ~wall).all(1), present, np.nan), pose)


def first_outer(head: Head) -> np.ndarray:
    """(R,) mm: the outermost bone along each ray from a rough centre; enough for a first mean."""
    occupancy = largest_piece(head.occupancy)
    profile, _ = profiles(occupancy, head.affine, initial_pose(occupancy, head.affine), MAP.directions)
    return crossing(profile, None, outward=True)


def population_mean(heads: Sequence[Head], pool: Executor, rounds: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """(2, R) mean and (2, R) std of heads and their mirrors, posing and averaging in turn."""
    outer, spread = _average(np.array(list(pool.map(first_outer, heads))), 15.0)
    mean = np.stack([outer, np.full_like(outer, WALL)])
    std = np.stack([spread, np.full_like(outer, 2.0)])
    for _ in range(rounds):
        table_radii = list(pool.map(partial(measure_tables, mean=mean, std=std), heads))
        mean, std = average(table_radii)
    return mean, std


def average(table_radii: Sequence[TableRadii]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation (2, R) of heads and their mirrors."""
    outer, outer_std = _average(np.array([w.outer for w in table_radii]), GROSS_OUTER)
    thickness, thickness_std = _average(np.array([w.thickness for w in table_radii]), GROSS_THICKNESS)
    return np.stack([outer, thickness]), np.stack([outer_std, thickness_std])


def build(table_radii: Sequence[TableRadii], mean: np.ndarray, std: np.ndarray) -> ShapePrior:
    """Mean and modes of the tables of heads (already posed on about this mean) and of their mirrors."""
    residual = np.stack([np.stack([w.outer, w.thickness]) for w in table_radii]) - mean  # (H, 2, R)
    known = np.isfinite(residual)
    residual = np.where(known, residual, 0)
    residual[:, 1] = np.stack([MAP.smoothed(r, SMOOTH, k) for r, k in zip(residual[:, 1], known[:, 1], strict=True)])
    flat = np.concatenate([residual, residual[..., MAP.mirror]]).reshape(2 * len(table_radii), -1).astype(np.float32)
    gaps = ~np.concatenate([known, known[..., MAP.mirror]]).reshape(flat.shape)
    for _ in range(6):  # EM: a head's gaps take the values that its own modes expect there
        weights, values, modes = np.linalg.svd(flat, full_matrices=False)
        filled = (weights[:, :FILL_MODES] * values[:FILL_MODES]) @ modes[:FILL_MODES]
        flat = np.where(gaps, filled, flat)
    _, values, modes = np.linalg.svd(flat, full_matrices=False)
    scaled = modes[:MODES] * (values[:MODES] / np.sqrt(len(flat)))[:, None]
    with np.errstate(invalid="ignore"):
        seen = np.array([w.present for w in table_radii])
        seen = np.concatenate([seen, seen[:, MAP.mirror]])
        present = np.nansum(seen, 0) / np.maximum(np.isfinite(seen).sum(0), 1)
    return ShapePrior(mean, std, scaled.reshape(-1, 2, mean.shape[1]), present, len(table_radii))


def _average(values: np.ndarray, gross: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean and std of (H, R) heads and their mirrors without outliers; rays that few heads know borrow from others."""
    both = np.concatenate([values, values[:, MAP.mirror]])
    median = np.nanmedian(np.where(np.isfinite(both).any(0), both, 0), axis=0)
    good = np.isfinite(both) & (np.abs(both - median) < gross)
    count = good.sum(0)
    mean = np.where(good, both, 0).sum(0) / np.maximum(count, 1)
    std = np.sqrt((np.where(good, both - mean, 0) ** 2).sum(0) / np.maximum(count, 1))
    far = count < 0.3 * len(both)
    mean, std = (MAP.filled(np.where(far, np.nan, v))[MAP.inside] for v in (mean, std))
    return mean, np.where(far, np.maximum(std, gross / 2), np.maximum(std, 0.3))
