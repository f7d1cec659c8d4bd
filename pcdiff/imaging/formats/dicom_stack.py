"""The grid of a stack of slices: a line through their positions, and equal steps along it.

Slices that lie in equal steps are the grid themselves. Where steps differ by up to a factor of two, planes in equal
steps are interpolated between the slices. A slice that is missing is an error: it is never made up.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np

from pcdiff.errors import InputError
from pcdiff.imaging.formats.dicom_header import Slice

SAME_MM = 0.01  # between slices at one position
OFF_MM, OFF_SHARE = (
    0.1,
    0.1,
)  # by which a slice may be off its place along the stack; the larger counts, share of a step
BESIDE_MM = 0.2  # of a slice from the line through the stack, in addition to a tenth of a step
MAX_RATIO = 2.05  # of the widest step to the narrowest: a factor of two, with rounded positions
MANY = 4  # wide steps in a row are another slice distance, fewer are missing slices


@dataclass(frozen=True)
class Stack:
    """The grid of N slices in ascending order.

    affine: (4, 4) index -> LPS mm. places: (K,) where the planes of the grid lie, 0 for the first slice to N - 1 for
    the last; None if they are the slices. steps: mm, the narrowest and the widest between slices.
    """

    affine: np.ndarray
    places: np.ndarray | None
    steps: tuple[float, float]


def axes_of(slices: list[Slice]) -> np.ndarray:
    """(3, 3) unit vectors in rows: along a row, along a column, the normal; the mean of slices that hardly differ."""
    row, column = np.mean([part.directions for part in slices], axis=0).reshape(2, 3)
    normal = np.cross(row, column)
    return np.stack([axis / np.linalg.norm(axis) for axis in (row, column, normal)])


def heights_of(slices: list[Slice], normal: np.ndarray) -> np.ndarray:
    """(N,) mm of each slice along the normal."""
    return np.array([part.position for part in slices]) @ normal


def stack_of(source: Path, slices: list[Slice]) -> Stack:
    """The grid of slices that ascend along their normal.

    Raises InputError for slices beside each other, two at one position, missing ones, and steps that differ too much.
    """
    positions = np.array([part.position for part in slices])
    row, column, normal = axes_of(slices)
    heights = positions @ normal
    axis = int(np.abs(normal).argmax())
    steps = np.diff(heights)
    usual = float(np.median(steps))
    narrow, wide = float(steps.min()), float(steps.max())

    def where(k: int) -> str:
        first, last = positions[k : k + 2, axis]
        return f"between slice {k + 1} and {k + 2} of {len(slices)}, {'xyz'[axis]} = {first:.1f} and {last:.1f} mm"

    if narrow < SAME_MM:
        raise InputError(
            f"{source}: two slices at one position {where(int(steps.argmin()))}; export one reconstruction of the CT "
            "alone"
        )
    start, shear = _line(source, positions, heights, usual, axis)
    first, step = np.polynomial.polynomial.polyfit(np.arange(len(heights)), heights, 1)
    places = None
    if np.abs(heights - first - step * np.arange(len(heights))).max() > max(OFF_MM, OFF_SHARE * step):
        for k, missing in _missing(steps, usual):
            which = "1 slice is" if missing == 1 else f"{missing} slices are"
            raise InputError(f"{source}: {which} missing {where(k)}; export the whole series again")
        if wide > MAX_RATIO * narrow:
            raise InputError(
                f"{source}: expected slice distances that differ by no more than a factor of two, got {narrow:.2f} to "
                f"{wide:.2f} mm, the widest {where(int(steps.argmax()))}; export a series with one slice distance"
            )
        first, length = heights[0], heights[-1] - heights[0]
        count = int(np.ceil(length / narrow - 1e-3))
        step = length / count
        places = np.interp(first + step * np.arange(count + 1), heights, np.arange(len(heights)))
    spacing = np.mean([part.spacing for part in slices], axis=0)
    affine = np.eye(4)
    affine[:3, :3] = np.stack([row * spacing[0], column * spacing[1], shear * step], 1)
    affine[:3, 3] = start + shear * first
    return Stack(affine.round(9) + 0.0, places, (narrow, wide))  # without the noise of the fit, and no negative zeros


def _line(
    source: Path, positions: np.ndarray, heights: np.ndarray, usual: float, axis: int
) -> tuple[np.ndarray, np.ndarray]:
    """(position at height 0, mm by which the position changes for each mm of height) of the line through slices."""
    start, shear = np.polynomial.polynomial.polyfit(heights, positions, 1)
    beside = np.linalg.norm(positions - start - heights[:, None] * shear, axis=1)
    if beside.max() > BESIDE_MM + OFF_SHARE * usual:
        k = int(beside.argmax())
        raise InputError(
            f"{source}: slice {k + 1} of {len(positions)}, {'xyz'[axis]} = {positions[k, axis]:.1f} mm, lies "
            f"{beside[k]:.1f} mm beside the line through the stack; export the series again"
        )
    return start, shear


def _missing(steps: np.ndarray, usual: float) -> list[tuple[int, int]]:
    """(step, number of slices that are missing there): few steps in a row that are a multiple of the usual one."""
    found: list[tuple[int, int]] = []
    for number, group in groupby(enumerate(np.rint(steps / usual).astype(int)), lambda step: step[1]):
        run = [k for k, _ in group]
        near = abs(steps[run].mean() / usual - number) < 2 * OFF_SHARE
        if number >= 2 and near and len(run) < MANY:
            found += [(k, number - 1) for k in run]
    return found
