"""Craniotomies with the shape model fitted to what remains, on the lattice; made once and stored.

The shape model of a sample is built without the heads of its fold, and a sample is made of heads of one fold alone: as
in use, the model has never seen the head.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path

import numpy as np
from scipy import ndimage
from tqdm import tqdm

from pcdiff.errors import InputError
from pcdiff.geometry.occupancy import Head
from pcdiff.geometry.volume import Volume
from pcdiff.methods.volumetric.features import LATTICE, Window, defect_windows
from pcdiff.methods.volumetric.lattice import TableMaps
from pcdiff.prior.direction_map import SIZE
from pcdiff.prior.fit import PriorFit, fit_head
from pcdiff.prior.model import ShapePrior
from pcdiff.tensor_files import read_tensors, write_tensors
from pcdiff.training.recipes import VolumetricSamplesConfig
from pcdiff.training.volumetric.cut import cut_region
from pcdiff.training.volumetric.draws import COARSE_AXES, draw_cut, draw_shape, find_cranium, near_bone
from pcdiff.training.volumetric.heads import Heads
from pcdiff.training.volumetric.warps import HEAD_LOW, HEAD_SHAPE, HEAD_STEP, knots_in_head, warped

log = logging.getLogger(__name__)

STREAM = 7  # of random numbers, apart from that of the windows
MIN_POINTS = 600  # lattice points of a cut, 5 ml; a smaller one is drawn again
MAX_DRAWS = 30
SCAN_END_MM = (-95.0, -38.0)  # height at which a short scan ends
FITTED_FORMAT = "pcdiff-fitted-case-1"
HEAD_AXES = tuple(low + HEAD_STEP * np.arange(n) for low, n in zip(HEAD_LOW, HEAD_SHAPE, strict=True))
LATTICE_AXES = tuple(low + LATTICE.step * np.arange(n) for low, n in zip(LATTICE.low, LATTICE.shape, strict=True))


@dataclass(frozen=True)
class FittedCase:
    """A defective skull on the lattice, in the pose of the shape model fitted to it.

    bone, missing: `LAYOUT.shape` uint8, 255 times the share of bone that is there, and that is missing.
    maps: of the completed tables. windows: around each defect. used: numbers of the training heads that it is made of.
    """

    bone: np.ndarray
    missing: np.ndarray
    maps: TableMaps
    windows: tuple[Window, ...]
    used: tuple[int, ...] = ()

    @classmethod
    def of(cls, fit: PriorFit, bone: np.ndarray, missing: np.ndarray, used: Sequence[int] = ()) -> FittedCase:
        """bone, missing: `LAYOUT.shape` float, in the pose of the fit."""
        here, gone = (np.round(255 * share).astype(np.uint8) for share in (bone, missing))
        return cls(here, gone, TableMaps.of(fit), tuple(defect_windows(fit)), tuple(used))

    def save(self, path: Path) -> None:
        """Writes everything into one file."""
        arrays = {"bone": self.bone, "missing": self.missing, "used": np.array(self.used, np.int64)}
        arrays |= {f"maps.{name}": values.astype(np.float32) for name, values in vars(self.maps).items()}
        arrays["windows"] = np.array([[[s.start, s.stop] for s in window] for window in self.windows])
        write_tensors(path, arrays, {"format": FITTED_FORMAT})

    @classmethod
    def load(cls, path: Path) -> FittedCase:
        """Reads what `save` wrote. Raises InputError for another file."""
        file = read_tensors(path, "a fitted case", "remove it and run again", FITTED_FORMAT)
        bone, missing = (file.array(name, "uint8", LATTICE.shape) for name in ("bone", "missing"))
        maps = TableMaps(*(file.array(f"maps.{each.name}", "float", (SIZE, SIZE)) for each in fields(TableMaps)))
        ends = file.array("windows", "integer", (None, 3, 2))
        if ((ends[..., 0] < 0) | (ends[..., 1] <= ends[..., 0]) | (ends[..., 1] > np.array(LATTICE.shape))).any():
            raise InputError(f"{path}: expected windows inside the lattice, got others; {file.remedy}")
        windows = tuple((slice(*a), slice(*b), slice(*c)) for a, b, c in ends.tolist())
        return cls(bone, missing, maps, windows, tuple(file.array("used", "integer", (None,)).tolist()))


@dataclass(frozen=True)
class Folds:
    """Shape models in folds. fold: (N,) of each head; priors: each built without the heads of its fold."""

    fold: np.ndarray
    priors: tuple[ShapePrior, ...]

    def heads(self, fold: int) -> list[int]:
        """Numbers of the heads of a fold."""
        return [int(k) for k in np.flatnonzero(self.fold == fold)]


def store_fitted_cases(
    cache: Path,
    heads: Heads,
    folds: Folds,
    config: VolumetricSamplesConfig,
    pool: Executor,
    progress: bool = True,
) -> list[Path]:
    """Files of `config.fitted` cases, made where they are not in the cache yet; few cuts may fail and are left out."""
    made_of = [heads.digest, config.model_dump_json(exclude={"fitted", "windows"})]
    made_of += [*map(str, folds.fold), *(prior.digest for prior in folds.priors)]
    folder = cache / "fitted" / hashlib.sha256(",".join(made_of).encode()).hexdigest()[:12]
    folder.mkdir(parents=True, exist_ok=True)
    log.info("fitting shape models to %d cuts, about three seconds each; they are stored in %s", config.fitted, folder)
    making = pool.map(
        partial(_store, folder=folder, heads=heads, folds=folds, config=config), range(config.fitted), chunksize=8
    )
    files = list(tqdm(making, "fitted cuts", config.fitted, disable=not progress))
    return [file for file in files if file is not None]


def _store(index: int, folder: Path, heads: Heads, folds: Folds, config: VolumetricSamplesConfig) -> Path | None:
    """Makes case `index`, unless it is there; None where it cannot be made."""
    path = folder / f"{index:05d}.safetensors"
    if not path.exists():
        fold = index % len(folds.priors)
        rng = np.random.default_rng([STREAM, index])
        try:
            case = make_fitted_case(heads, folds.heads(fold), folds.priors[fold], config, rng)
        except InputError as error:
            log.warning("cut %d left out: %s", index, error)
            return None
        case.save(path)
    return path


def make_fitted_case(
    heads: Heads, among: Sequence[int], prior: ShapePrior, config: VolumetricSamplesConfig, rng: np.random.Generator
) -> FittedCase:
    """Draws head, shape and cut, and fits a shape model to what remains.

    among: the heads to draw from. prior: a shape model built without them. Raises InputError where none of 30 cuts
    drawn is found by the shape model.
    """
    last: Exception | None = None
    for _ in range(MAX_DRAWS):
        try:
            return _draw(heads, among, prior, config, rng)
        except InputError as error:
            last = error
    raise InputError(f"expected a defect that the shape model finds in {MAX_DRAWS} draws, got none; the last: {last}")


def _draw(
    heads: Heads, among: Sequence[int], prior: ShapePrior, config: VolumetricSamplesConfig, rng: np.random.Generator
) -> FittedCase:
    number, used, field = draw_shape(heads, config, rng, among)
    occupancy = heads.share_of_bone(number)
    mirror = np.diag([rng.choice([-1.0, 1.0]), 1.0, 1.0])
    knots = knots_in_head(field, (mirror, np.zeros(3)))
    whole = warped(occupancy, knots, COARSE_AXES)
    _, outlines = draw_cut(rng, config, find_cranium(whole))
    head = warped(occupancy, knots, HEAD_AXES, near_bone(whole, HEAD_AXES))
    first = int(np.argmax((head > 0).any((0, 1))))  # the scan ends where the head does
    if rng.random() < config.short_scan:
        first = max(first, int(np.searchsorted(HEAD_AXES[2], rng.uniform(*SCAN_END_MM))))
    axes = (*HEAD_AXES[:2], HEAD_AXES[2][first:])
    low = np.array([axis[0] for axis in axes])
    head = head[:, :, first:]
    region = cut_region(head, axes, outlines)

    fit = _fit(prior, head * (1 - region), low)
    if fit.defects > len(outlines):
        raise InputError(f"expected {len(outlines)} defects, got {fit.defects}; draw another head")

    # read in the head itself: what was interpolated on the lattice above would be interpolated twice
    pose = (mirror @ fit.pose.linear, mirror @ fit.pose.shift)
    at = fit.pose.to_patient(LATTICE.points)
    posed = warped(occupancy, knots_in_head(field, pose), LATTICE_AXES)
    posed[at[..., 2] < low[2]] = 0
    index = np.moveaxis((at - low) / HEAD_STEP, -1, 0)
    removed = ndimage.map_coordinates(region, index, order=1)
    missing = posed * removed
    if np.count_nonzero(missing >= 0.5) < MIN_POINTS:
        raise InputError(f"expected a cut of {MIN_POINTS} lattice points; draw another")
    return FittedCase.of(fit, posed - missing, missing, used)


def _fit(prior: ShapePrior, rest: np.ndarray, low: np.ndarray) -> PriorFit:
    """rest: (I, J, K) share of bone on a lattice with the step of `HEAD_AXES`; low: (3,) mm, its first point."""
    affine = np.diag([HEAD_STEP] * 3 + [1.0])
    affine[:3, 3] = low
    occupancy = np.round(255 * rest).astype(np.uint8)
    return fit_head(prior, Head(occupancy, affine, ""), Volume(occupancy >= 128, affine))
