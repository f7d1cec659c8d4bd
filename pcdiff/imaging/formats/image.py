"""What all formats share: an image whose header has been read and whose values are read later, in runs."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pcdiff.environment import memory_at_hand
from pcdiff.errors import InputError

MAX_VOXELS = 2**31
MAX_LAYERS = 1024


class Segment(NamedTuple):
    """A segment that a file names: the voxels with `value` in one of its layers."""

    name: str
    value: int
    layer: int = 0


@dataclass(frozen=True)
class Image:
    """An image file whose header has been read; `runs` reads its values, once, flat, first index fastest.

    slice_thickness: mm, if the header states it besides the distance between slices. notes: for the user.
    layers: volumes in the file, on one grid. interleaved: whether the layers of a voxel follow each other; otherwise
    one layer follows the other. segments: those that the file names. files: all that hold the image.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray  # (4, 4) index -> mm, LPS
    header: dict[str, Any]
    runs: Iterator[np.ndarray]
    slice_thickness: float | None = None
    notes: tuple[str, ...] = ()
    layers: int = 1
    interleaved: bool = False
    segments: tuple[Segment, ...] = ()
    files: tuple[Path, ...] = ()

    def __enter__(self) -> Image:
        return self

    def __exit__(self, *_: object) -> None:
        """Closes the file, even if not all was read."""
        if isinstance(self.runs, Generator):
            self.runs.close()

    def runs_by_layer(self) -> Iterator[tuple[int, np.ndarray]]:
        """(layer, values) in runs; those of one layer, put together, are its voxels, first index fastest."""
        start, voxels = 0, math.prod(self.shape)
        for run in self.runs:
            if self.interleaved:
                for layer in range(self.layers):
                    yield layer, run[(layer - start) % self.layers :: self.layers]
            else:
                for layer in range(start // voxels, (start + run.size - 1) // voxels + 1):
                    first = max(layer * voxels - start, 0)
                    yield layer, run[first : (layer + 1) * voxels - start]
            start += run.size


class Axes(NamedTuple):
    """The axes of a file: the number of the first of the three axes of space, and what the others mean, see `Image`."""

    first: int
    shape: tuple[int, int, int]
    layers: int
    interleaved: bool


def checked_shape(path: Path, sizes: list[int]) -> tuple[int, int, int]:
    """The sizes of a 3D image of at most 2**31 voxels. Raises InputError for other sizes."""
    if len(sizes) != 3 or min(sizes) < 1:
        raise not_3d(path, sizes)
    if math.prod(sizes) > MAX_VOXELS:
        raise InputError(f"{path}: {by(sizes)} voxels are more than 2**31; crop or resample it first")
    return sizes[0], sizes[1], sizes[2]


def split_axes(path: Path, sizes: list[int], first: int | None = None) -> Axes:
    """Three axes of space next to each other; the axes before or after them count the layers.

    first: of the axes of space, if the header states it. Otherwise they are those that leave the fewest layers, so
    axes of one before and after a volume do not matter. Raises InputError as `checked_shape`, and for layers both
    before and after.
    """
    if len(sizes) < 3 or min(sizes) < 1:
        raise not_3d(path, sizes)
    if first is None:
        first = max(range(len(sizes) - 2), key=lambda a: (math.prod(sizes[a : a + 3]), -a))
    shape = checked_shape(path, sizes[first : first + 3])
    before, after = math.prod(sizes[:first]), math.prod(sizes[first + 3 :])
    if min(before, after) > 1 or max(before, after) > MAX_LAYERS:
        raise not_3d(path, sizes)
    return Axes(first, shape, max(before, after), before > 1)


def check_memory(path: Path, shape: tuple[int, ...], per_voxel: float) -> None:
    """Raises InputError for a grid that needs more memory than there is, at so many bytes for each voxel."""
    need, free = math.prod(shape) * per_voxel, memory_at_hand()
    if need > free:
        raise InputError(
            f"{path}: {by(shape)} voxels need about {need / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free; "
            "crop the scan to the head, or resample it"
        )


def by(sizes: tuple[int, ...] | list[int]) -> str:
    """Sizes in words: 512x512x300."""
    return "x".join(map(str, sizes))


def not_3d(path: Path, sizes: list[int]) -> InputError:
    """The error for an image with too few axes, or with too many."""
    return InputError(f"{path}: expected a 3D image, got size {by(sizes)}; export one 3D volume")
