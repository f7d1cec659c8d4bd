"""What all formats share: an image whose values are read in runs, so that memory stays near the size of the mask."""

from __future__ import annotations

import bz2
import gzip
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from pcdiff.errors import InputError

MAX_VOXELS = 2**31
RUN = 2**22  # values that are read at a time


@dataclass(frozen=True)
class Image:
    """An image file whose header has been read; `runs` reads its values, flat, first index fastest.

    slice_thickness: mm, if the header states it besides the distance between slices. notes: for the user.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray  # (4, 4) index -> mm, LPS
    header: dict[str, Any]
    runs: Iterator[np.ndarray]
    slice_thickness: float | None = None
    notes: tuple[str, ...] = ()


def checked_shape(path: Path, sizes: list[int]) -> tuple[int, int, int]:
    """The sizes of a 3D image of at most 2**31 voxels. Raises InputError for other sizes."""
    if len(sizes) != 3 or min(sizes) < 1:
        raise InputError(f"{path}: expected a 3D image, got size {'x'.join(map(str, sizes))}; export one 3D volume")
    if math.prod(sizes) > MAX_VOXELS:
        raise InputError(f"{path}: {'x'.join(map(str, sizes))} voxels are more than 2**31; crop or resample it first")
    return sizes[0], sizes[1], sizes[2]


def damaged(path: Path) -> InputError:
    """The error for image data that end early or fail their checksum."""
    return InputError(f"{path}: the image data is truncated or damaged; copy or export the file again")


def read_runs(
    path: Path, encoding: str, dtype: np.dtype, count: int, at: int = 0, skip: int = 0
) -> Iterator[np.ndarray]:
    """`count` values in runs. The stream begins at byte `at` of the file, the values `skip` decoded bytes later.

    encoding: raw, gzip or bzip2. Raises InputError for a file that ends early or is damaged.
    """
    with path.open("rb") as file:
        file.seek(at)
        try:
            stream: IO[bytes] = file
            if encoding != "raw":
                stream = cast(IO[bytes], gzip.GzipFile(fileobj=file) if encoding == "gzip" else bz2.BZ2File(file))
            stream.read(skip)
            for start in range(0, count, RUN):
                data = stream.read(min(RUN, count - start) * dtype.itemsize)
                run = np.frombuffer(data, dtype, len(data) // dtype.itemsize)
                if run.size < min(RUN, count - start):
                    raise EOFError
                yield run
            stream.read(1)  # makes a compressed stream check its checksum
        except (EOFError, OSError, zlib.error) as error:
            raise damaged(path) from error


def runs_of(values: np.ndarray) -> Iterator[np.ndarray]:
    """(N,) values in runs, which are views."""
    for start in range(0, values.size, RUN):
        yield values[start : start + RUN]


def write_runs(values: np.ndarray, stream: IO[bytes]) -> None:
    """Writes (I, J, K) values to a stream in runs, first index fastest."""
    for run in np.array_split(values.T, max(1, values.size // RUN)):  # (k, j, i)
        stream.write(np.ascontiguousarray(run).data)


def gzip_writer(file: IO[bytes]) -> IO[bytes]:
    """A gzip stream without name and time, so that the same volume gives the same bytes."""
    return cast(IO[bytes], gzip.GzipFile("", "wb", 1, file, mtime=0))
