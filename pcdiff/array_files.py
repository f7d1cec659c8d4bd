"""NPZ files of foreign folders: names, types and shapes are compared before a value is unpacked."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy

from pcdiff.foreign import check_file, parsing

MAX_BYTES = 512 * 2**20  # of all arrays of a file, unpacked
MAX_NAMES = 1_000
MAX_HEADER = 1_000  # characters of an array's header


@dataclass(frozen=True)
class ArrayKind:
    """What an array has to be. kinds: of its type, as numpy abbreviates them. shape: None where any length will do."""

    kinds: str
    shape: tuple[int | None, ...]

    def fits(self, dtype: np.dtype, shape: Sequence[int]) -> bool:
        """Whether an array of this type and shape is of the kind."""
        same = len(shape) == len(self.shape) and all(
            wanted in (None, got) for wanted, got in zip(self.shape, shape, strict=True)
        )
        return same and dtype.kind in self.kinds and not dtype.hasobject

    def __str__(self) -> str:
        return f"({', '.join('any' if n is None else str(n) for n in self.shape)})"


def read_arrays(path: Path, expected: dict[str, ArrayKind], what: str, remedy: str) -> dict[str, np.ndarray]:
    """The arrays of an NPZ file by name.

    expected: of each array by its name; a name that ends in `*` stands for all that begin so. Arrays that are not named
    are left out. what, remedy: for messages.

    Raises InputError for another file, and for an array of another type or shape, before it is unpacked.
    """
    check_file(path, what, remedy, MAX_BYTES)
    with parsing(path, what, remedy), zipfile.ZipFile(path) as archive:
        return dict(_arrays(archive, expected))


def _arrays(archive: zipfile.ZipFile, expected: dict[str, ArrayKind]) -> Iterator[tuple[str, np.ndarray]]:
    entries = {entry.filename.removesuffix(".npy"): entry for entry in archive.infolist()}
    if len(entries) > MAX_NAMES:
        raise ValueError(f"{len(entries)} arrays")
    total = 0
    for name, entry in entries.items():
        kind = next((kind for key, kind in expected.items() if _is_named(name, key)), None)
        if kind is None:
            continue
        with archive.open(entry) as file:
            dtype, shape, fortran = _header(file)
            if not kind.fits(dtype, shape):
                raise ValueError(f"values of {name} of shape {shape} and type {dtype}, expected shape {kind}")
            size = dtype.itemsize * int(np.prod(shape, dtype=object))
            total += size
            if total > MAX_BYTES or size > entry.file_size:
                raise ValueError(f"{name} of shape {shape}, which is more than the file holds or the memory should")
            data = file.read(size)
        if len(data) < size:
            raise ValueError(f"{name} cut short")
        yield name, np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")


def _is_named(name: str, key: str) -> bool:
    return name.startswith(key[:-1]) if key.endswith("*") else name == key


def _header(file: IO[bytes]) -> tuple[np.dtype, tuple[int, ...], bool]:
    """Type, shape and order of an array, from the head of its file."""
    version = npy.read_magic(file)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran, dtype = read(file, max_header_size=MAX_HEADER)
    if any(n < 0 for n in shape):
        raise ValueError(f"a shape of {shape}")
    return dtype, shape, fortran
