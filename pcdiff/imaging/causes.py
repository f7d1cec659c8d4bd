"""Why the values of an image are neither a CT in HU nor a mask of the bone, in words that say what to do."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from pcdiff.errors import InputError
from pcdiff.geometry.grid import voxels_per_mm
from pcdiff.imaging.formats.image import Image
from pcdiff.imaging.labels import find_labels, several_labels

AIR, BONE = -500, 300  # HU; a CT of a head has voxels below the one and above the other
MIN_SHARE = 1e-3  # of the voxels that are air, and of those that are bone, in HU
BYTE = 255  # the largest value of a picture
RAW = 1024  # raw CT numbers are HU + 1024
RAW_MAX = 4095 + RAW
TISSUE_RAW = (RAW - 50, RAW + 150)  # of soft tissue; in raw numbers most of what is above 300
TISSUE_SHARE = 0.4
ZEROS = 0.15  # of voxels with exactly 0 HU; in a whole CT it is a hundredth
CLIPPED_BONE, CLIPPED_AIR = 0.01, 0.1  # of voxels with exactly the largest and the smallest value
FEW_LABELS, MAX_LABELS = 16, 256  # values; more than a few must form areas, as labels do and grey values do not
INVERTED = 0.95  # of the voxels at the faces of the grid that a mask of a background holds
SOLID_MM = 25.0  # radius of a ball in the mask; bone is nowhere half as thick
COARSE_MM = 3.0


@dataclass(frozen=True)
class _Values:
    """What the values of an image are. counts: (65536,) voxels by rounded value + 32768, clipped; NaN is left out.

    whole: whether all are whole numbers. areas: share of voxels, between the extremes, that
    equal their neighbour.
    """

    low: float
    high: float
    nan: int
    whole: bool
    areas: float
    counts: np.ndarray

    @property
    def voxels(self) -> int:
        """Voxels with a number."""
        return int(self.counts.sum())

    def between(self, low: float, high: float) -> int:
        """Voxels with rounded values of low to high."""
        first, last = (int(np.clip(np.rint(value), -32768, 32767)) + 32768 for value in (low, high))
        return int(self.counts[first : last + 1].sum())


def neither_ct_nor_mask(path: Path, image: Image, again: Image) -> InputError:
    """The error for an image with one layer that is neither. image, again: the same image, opened twice."""
    values = _look_at(image.runs)
    distinct = np.count_nonzero(values.counts)
    if values.nan and distinct <= 2:
        return InputError(
            f"{path}: expected a mask with two values, 0 and one other, but {values.nan} voxels are nan (not a "
            "number); set the background to 0, for example with numpy.nan_to_num"
        )
    if not values.whole and values.low >= 0 and values.high <= 1:
        return InputError(
            f"{path}: expected a mask with two values, 0 and one other, got values between 0 and 1; if they are a "
            "network's probabilities, threshold them at 0.5 first; if it is a scaled CT, export it in HU"
        )
    areas = distinct <= FEW_LABELS or (distinct <= MAX_LABELS and values.areas > 0.5)
    if values.whole and not values.nan and values.low >= 0 and values.high <= 32767 and areas:
        return several_labels(path, again, find_labels(path, again))
    return _not_in_hu(path, values)


def is_hounsfield(values: np.ndarray) -> bool:
    """Whether air and bone both have a share of the voxels, as in every CT of a head."""
    air, bone = np.count_nonzero(values < AIR), np.count_nonzero(values >= BONE)
    return bool(min(air, bone) >= MIN_SHARE * values.size)


def not_in_hu(path: Path, values: np.ndarray) -> InputError:
    """The error for a scan (I, J, K) that is no CT in HU."""
    return _not_in_hu(path, _look_at(np.ravel(part) for part in values.T))


def _not_in_hu(path: Path, values: _Values) -> InputError:
    return InputError(
        f"{path}: expected a CT in HU (air about -1000, bone above {BONE}) or a mask, got values of {values.low:g} to "
        f"{values.high:g}; {_remedy(values)}, and give no MR"
    )


def check_ct(path: Path, values: np.ndarray) -> None:
    """Raises InputError for a CT whose background was set to 0 HU: it would be taken for tissue."""
    share = np.count_nonzero(values == 0) / values.size
    if share > ZEROS:
        raise InputError(
            f"{path}: {share:.0%} of the voxels are exactly 0 HU, which is water: the CT was masked with 0; set the "
            "background to -1000 HU, or give the original CT"
        )


def check_bone(path: Path, mask: np.ndarray, affine: np.ndarray) -> None:
    """Raises InputError for a mask of the background, and for one of the whole head or of the brain."""
    faces = np.concatenate([np.ravel(np.moveaxis(mask, axis, 0)[[0, -1]]) for axis in range(3)])
    if np.count_nonzero(mask) > mask.size / 2 and faces.mean() > INVERTED:
        raise InputError(
            f"{path}: expected a mask of the bone, but it holds {np.count_nonzero(mask) / mask.size:.0%} of all voxels "
            "and the edges of the scan: it is inverted; give bone the value 1 and all else 0"
        )
    spacing = 1 / voxels_per_mm(affine[:3, :3])
    step = np.maximum(1, np.round(COARSE_MM / spacing)).astype(int)
    coarse = np.pad(mask[:: step[0], :: step[1], :: step[2]], 1)
    if ndimage.distance_transform_edt(coarse, spacing * step).max() > SOLID_MM:
        raise InputError(
            f"{path}: expected a mask of the bone, but a ball of {2 * SOLID_MM:.0f} mm is filled: it holds the whole "
            "head, or the brain; threshold the CT at about 300 HU, and fill nothing"
        )


def _look_at(runs: Iterable[np.ndarray]) -> _Values:
    low, high, nan, whole, equal, pairs = np.inf, -np.inf, 0, True, 0, 0
    counts = np.zeros(65536, np.int64)
    for run in runs:
        if run.dtype.kind == "f":
            numbers = ~np.isnan(run)
            nan += run.size - int(np.count_nonzero(numbers))
            run = run[numbers]
            whole = whole and bool(np.array_equal(run, np.rint(run)))
        if run.size:
            low, high = min(low, float(run.min())), max(high, float(run.max()))
            rounded = np.clip(np.rint(run), -32768, 32767).astype(np.int64) + 32768
            counts += np.bincount(rounded, minlength=65536)
            inner = (run != run.min()) & (run != run.max())
            pairs += int(np.count_nonzero(inner[:-1]))
            equal += int(np.count_nonzero(inner[:-1] & (run[1:] == run[:-1])))
    return _Values(low, high, nan, whole, equal / max(1, pairs), counts)


def _remedy(values: _Values) -> str:
    raw = values.low >= 0 and BONE < values.high <= RAW_MAX
    if raw and values.between(*TISSUE_RAW) > TISSUE_SHARE * values.between(BONE, RAW_MAX):
        return f"subtract {RAW}: they are raw CT numbers"
    if values.between(0, 0) > ZEROS * values.voxels and values.low < 0:
        return f"{values.between(0, 0) / values.voxels:.0%} are 0: the CT was masked with 0; export the original"
    ends = ((values.high, values.high <= BONE, CLIPPED_BONE), (values.low, values.low >= AIR, CLIPPED_AIR))
    for value, cut, least in ends:
        share = values.between(value, value) / max(1, values.voxels)
        if cut and share > least:
            byte = values.whole and values.low == 0 and BYTE // 2 < values.high <= BYTE
            soft = f" (probabilities of 0 to {BYTE}: threshold them at {BYTE // 2 + 1})" if byte else ""
            return f"{share:.0%} are {value:g}: the CT was clipped to a window, or masked; export the original{soft}"
    return f"subtract {RAW} if they are raw CT numbers" if raw else "export it in HU"
