"""Craniotomies with the shape model fitted to what remains, on the lattice; made once and stored.

The shape model of a sample is built without the heads of its fold, and a sample is made of heads of one fold alone: as
in use, the model has never seen the head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save
from scipy import ndimage

from pcdiff.errors import InputError
from pcdiff.files import written_beside
from pcdiff.geometry.occupancy import Head
from pcdiff.geometry.volume import Volume
from pcdiff.methods.occupancy.lattice import TableMaps
from pcdiff.methods.volumetric.features import LATTICE, Window, defect_windows
from pcdiff.prior.fit import PriorFit, fit_head
from pcdiff.prior.model import ShapePrior
from pcdiff.tensor_files import read_tensors
from pcdiff.training.recipes import VolumetricSamplesConfig
from pcdiff.training.volumetric.cut import cut_region
from pcdiff.training.volumetric.heads import Heads
from pcdiff.training.volumetric.samples import (
    COARSE_AXES,
    MAX_DRAWS,
    MIN_POINTS,
    SCAN_END_MM,
    draw_cut,
    draw_shape,
    find_cranium,
    near_bone,
)
from pcdiff.training.volumetric.warps import HEAD_LOW, HEAD_SHAPE, HEAD_STEP, knots_in_head, warped

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
        both = (np.round(255 * share).astype(np.uint8) for share in (bone, missing))
        return cls(*both, TableMaps.of(fit), tuple(defect_windows(fit)), tuple(used))

    def save(self, path: Path) -> None:
        """Writes everything into one file."""
        arrays = {"bone": self.bone, "missing": self.missing, "used": np.array(self.used, np.int64)}
        arrays |= {f"maps.{name}": values.astype(np.float32) for name, values in vars(self.maps).items()}
        arrays["windows"] = np.array([[[s.start, s.stop] for s in window] for window in self.windows])
        with written_beside(path) as beside:
            beside.write_bytes(save(arrays, {"format": FITTED_FORMAT}))

    @classmethod
    def load(cls, path: Path) -> FittedCase:
        """Reads what `save` wrote. Raises InputError for another file."""
        arrays = read_tensors(path, "a fitted case", "remove it and run again", FITTED_FORMAT).tensors
        maps = TableMaps(**{key[5:]: values for key, values in arrays.items() if key.startswith("maps.")})
        windows = [tuple(slice(*map(int, side)) for side in window) for window in arrays["windows"]]
        return cls(arrays["bone"], arrays["missing"], maps, tuple(windows), tuple(arrays["used"].tolist()))


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
