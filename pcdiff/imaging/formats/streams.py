"""The values of an image file as streams that unpack them run by run, so that memory stays small."""

from __future__ import annotations

import bz2
import gzip
import io
import math
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, cast

import numpy as np

from pcdiff.errors import InputError

RUN = 2**22  # values that are read at a time
CHUNK = 2**16  # packed bytes that are read at a time
MAX_RATIO = 1100  # deflate packs at most 1032 bytes into one
MAX_REST = 16  # runs of bytes that may follow the values in a packed stream


def damaged(path: Path) -> InputError:
    """The error for image data that end early or fail their checksum."""
    return InputError(f"{path}: the image data is truncated or damaged; copy or export the file again")


def read_runs(
    path: Path, encoding: str, dtype: np.dtype, count: int, at: int = 0, skip: int = 0
) -> Iterator[np.ndarray]:
    """`count` values in runs. The stream begins at byte `at` of the file, the values `skip` decoded bytes later.

    encoding: raw, gzip, zlib or bzip2. at: -1 for values that end with the file, raw only. Raises InputError, before
    it reads anything, for a file too small to hold the values; and for one that ends early or is damaged.
    """
    size, wanted = path.stat().st_size, count * dtype.itemsize
    if at < 0:
        at = size - wanted
    ratio = {"raw": 1, "bzip2": math.inf}.get(encoding, MAX_RATIO)
    if at < 0 or (size - at) * ratio < wanted + skip:
        raise damaged(path)
    return _runs(path, encoding, dtype, count, at, skip)


def _runs(path: Path, encoding: str, dtype: np.dtype, count: int, at: int, skip: int) -> Iterator[np.ndarray]:
    with path.open("rb") as file:
        file.seek(at)
        try:
            stream = OPENERS[encoding](file)
            _skip(stream, skip)
            for start in range(0, count, RUN):
                data = stream.read(min(RUN, count - start) * dtype.itemsize)
                run = np.frombuffer(data, dtype, len(data) // dtype.itemsize)
                if run.size < min(RUN, count - start):
                    raise EOFError
                yield run
            if stream is not file:
                _check_rest(stream)
        except (EOFError, OSError, zlib.error) as error:
            raise damaged(path) from error


def read_bytes(path: Path, encoding: str, count: int, skip: int = 0) -> bytes:
    """The first bytes of a file, decoded. Raises InputError for a file that ends early or is damaged up to there."""
    with path.open("rb") as file:
        try:
            stream = OPENERS[encoding](file)
            _skip(stream, skip)
            data = stream.read(count)
        except (EOFError, OSError, zlib.error) as error:
            raise damaged(path) from error
    if len(data) < count:
        raise damaged(path)
    return data


def _skip(stream: IO[bytes], count: int) -> None:
    while count > 0:
        passed = len(stream.read(min(count, RUN)))
        if not passed:
            raise EOFError
        count -= passed


def _check_rest(stream: IO[bytes]) -> None:
    """Reads a packed stream to its end, where its checksum is. Raises EOFError where much more follows."""
    for _ in range(MAX_REST):
        if not stream.read(RUN):
            return
    raise EOFError


class _Inflated(io.RawIOBase):
    """The bytes of a zlib stream, as MetaImage packs its values."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._packed = zlib.decompressobj()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self._packed.eof:
            packed = self._packed.unconsumed_tail or self._file.read(CHUNK)
            data = self._packed.decompress(packed, len(buffer))
            if data:
                buffer[: len(data)] = data
                return len(data)
            if not packed:
                raise EOFError
        return 0


class _Deflating(io.RawIOBase):
    """Packs what is written into a zlib stream; closing it ends the stream and leaves the file open."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._packer = zlib.compressobj(1)

    def writable(self) -> bool:
        return True

    def write(self, data: memoryview) -> int:  # type: ignore[override]
        self._file.write(self._packer.compress(data))
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._file.write(self._packer.flush())
        super().close()


OPENERS: dict[str, Callable[[IO[bytes]], IO[bytes]]] = {
    "raw": lambda file: file,
    "gzip": lambda file: cast(IO[bytes], gzip.GzipFile(fileobj=file)),
    "zlib": lambda file: cast(IO[bytes], io.BufferedReader(_Inflated(file), CHUNK)),
    "bzip2": lambda file: cast(IO[bytes], bz2.BZ2File(file)),
}


def write_runs(values: np.ndarray, stream: IO[bytes]) -> None:
    """Writes (I, J, K) values to a stream in runs, first index fastest."""
    for run in np.array_split(values.T, max(1, values.size // RUN)):  # (k, j, i)
        stream.write(np.ascontiguousarray(run).data)


def gzip_writer(file: IO[bytes]) -> IO[bytes]:
    """A gzip stream without name and time, so that the same volume gives the same bytes.

    By zlib: ISA-L packs a mask in a tenth of the time, but with it one of 950 equal masks had other bytes.
    """
    return cast(IO[bytes], gzip.GzipFile("", "wb", 1, file, mtime=0))


def zlib_writer(file: IO[bytes]) -> IO[bytes]:
    """A zlib stream, as MetaImage packs its values."""
    return cast(IO[bytes], _Deflating(file))
