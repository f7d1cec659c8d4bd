"""A CT in DICOM files as one image: its files, their headers, the wanted series, and its slices as a stack.

Headers are read first, and pixels only of the series that is wanted. The affine follows the slices' own positions, so
that a stack sheared by gantry tilt keeps its true geometry.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pcdiff.errors import InputError
from pcdiff.imaging.formats.dicom_files import dicom_files
from pcdiff.imaging.formats.dicom_header import Slice, read_slices
from pcdiff.imaging.formats.dicom_pixels import read_hu
from pcdiff.imaging.formats.dicom_series import MIN_SLICES, choose, find_series, one_acquisition, without_copies
from pcdiff.imaging.formats.dicom_stack import stack_of
from pcdiff.imaging.formats.image import Image, checked_shape


def open_scan(source: Path, series: str | None = None, acquisition: int | None = None) -> Image:
    """The only CT of a head in a folder, a zip archive or a file with many frames.

    Values are HU (slope and intercept applied), index order is column, row, slice, and slices ascend along the normal.
    series: chooses by number in the list (1, 2, ...) or UID. acquisition: chooses among several at the same place.
    Raises InputError for no CT, several without a choice, and slices that are missing, unequal or damaged.
    """
    found = find_series([part for file in dicom_files(source) for part in read_slices(file)])
    chosen, notes = choose(source, found, series)
    slices, said = without_copies(source, one_acquisition(source, chosen, acquisition))
    if len(slices) < MIN_SLICES:
        raise InputError(f"{source}: expected {MIN_SLICES} slices of a head or more, got {len(slices)}; choose others")
    stack = stack_of(source, slices)
    notes += said
    if chosen.merged > 1:
        notes += (
            f"{chosen.merged} series of the same geometry were put together: they are one stack, with a "
            "SeriesInstanceUID for each slice, as some anonymisers leave it",
        )
    thickness = max((part.thickness for part in slices if part.thickness), default=None)
    if stack.places is not None:
        narrow, wide = stack.steps
        step = float(np.linalg.norm(stack.affine[:3, 2]))
        notes += (
            f"slices are {narrow:.2f} to {wide:.2f} mm apart: interpolated in equal steps of {step:.2f} mm; implant "
            "and mask lie on that grid, not on the slices",
        )
        thickness = max(thickness or 0.0, wide)
    planes = len(slices) if stack.places is None else len(stack.places)
    shape = checked_shape(source, [*slices[0].pixels.size, planes])
    return Image(shape, stack.affine, {}, _runs(slices, stack.places), slice_thickness=thickness, notes=notes)


def _runs(slices: list[Slice], places: np.ndarray | None) -> Iterator[np.ndarray]:
    """The values of each plane, flat."""
    planes = read_hu([part.pixels for part in slices])
    if places is None:
        yield from (hu.reshape(-1) for hu in planes)
        return
    below, above, first = next(planes), next(planes), 0
    for place in places:
        while place > first + 1:
            below, above, first = above, next(planes), first + 1
        yield (below + (above - below) * (place - first)).reshape(-1)
