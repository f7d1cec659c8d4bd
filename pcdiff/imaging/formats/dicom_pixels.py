"""The pixels of DICOM slices as HU.

Plain and RLE pixels are read by numpy and pydicom. Other compressed ones are decoded by SimpleITK in a process of its
own, `dicom_decoder.py`, which gets the pixels in a file without the rest of the header, and has limits for memory and
time: a file that makes the decoder crash is one error here.
"""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

import numpy as np
from pydicom import uid
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.pixels import get_decoder
from scipy import ndimage

from pcdiff.errors import InputError
from pcdiff.imaging.formats import dicom_decoder
from pcdiff.imaging.formats.dicom_files import DicomFile, Window, inflated

COMPRESSED = (
    *(uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEGLossless, uid.JPEGLosslessSV1),
    *(uid.JPEGLSLossless, uid.JPEGLSNearLossless, uid.JPEG2000Lossless, uid.JPEG2000, uid.RLELossless),
)
JPEG_FRAMES = (0xC0, 0xC1, 0xC2, 0xC3, 0xF7)  # markers of the segments that state the size of an image
AIR = -1024  # HU of what is no pixel
MIN_TISSUE = -500  # HU; padding below it is air already
MAX_HU = 32767  # no more is measured
BATCH = 64  # slices that one decoder decodes
DECODER_SECONDS = 120  # for a batch; it takes 2
OVERHEAD = 2**20  # bytes by which compressed pixels may exceed plain ones


@dataclass(frozen=True)
class Pixels:
    """Where the pixels of a slice are, and how their stored values become HU.

    at: offset of the pixel data in the file. frame: index of the slice among `frames` in the file. syntax: transfer
    syntax UID. compressed: whether the pixel data are in fragments. size: columns, rows. bits: allocated, stored, and
    the number of the highest. padding: lowest and highest stored value that is none, or None.
    """

    file: DicomFile
    at: int
    frame: int
    frames: int
    syntax: str
    compressed: bool
    big_endian: bool
    size: tuple[int, int]
    bits: tuple[int, int, int]
    signed: bool
    slope: float
    intercept: float
    padding: tuple[int, int] | None

    @property
    def needs_decoder(self) -> bool:
        """Whether SimpleITK is needed."""
        return self.compressed and self.syntax != uid.RLELossless

    @property
    def bytes(self) -> int:
        """Bytes of one slice, plain."""
        return self.size[0] * self.size[1] * self.bits[0] // 8


def read_hu(slices: list[Pixels]) -> Iterator[np.ndarray]:
    """(rows, columns) HU of each slice in turn. Raises InputError for pixels that are damaged or cannot be decoded."""
    with _Streams() as streams:
        for needs_decoder, group in groupby(slices, lambda pixels: pixels.needs_decoder):
            alike = list(group)
            if needs_decoder:
                for first in range(0, len(alike), BATCH):
                    batch = alike[first : first + BATCH]
                    for pixels, stored in zip(batch, _decoded(batch, streams), strict=True):
                        yield _to_hu(pixels, stored, stored)
            else:
                for pixels in alike:
                    stored = _plain(pixels, streams)
                    yield _to_hu(pixels, stored, _without_other_bits(stored, pixels))


class _Streams(ExitStack):
    """The open file of the slice that is read; the next slice may be a frame of the same file."""

    _file: DicomFile | None = None
    _stream: IO[bytes]

    def at(self, pixels: Pixels, limit: int) -> Window:
        """The file at its pixel data, for at most `limit` bytes."""
        if pixels.file is not self._file:
            self.close()
            stream = self.enter_context(pixels.file.open())
            if pixels.file.member is not None and pixels.frames > 1:
                # Frames in any order would be unpacked again and again. What follows them may be a bomb.
                stream = io.BytesIO(stream.read(pixels.at + pixels.frames * pixels.bytes + OVERHEAD))
            self._file, self._stream = pixels.file, inflated(stream)
        self._stream.seek(pixels.at)
        return Window(self._stream, limit)


def _plain(pixels: Pixels, streams: _Streams) -> np.ndarray:
    """(rows, columns) values as they are stored, of plain or RLE pixels."""
    order = ">" if pixels.big_endian else "<"
    kind = np.dtype(f"{order}{'i' if pixels.signed else 'u'}{pixels.bits[0] // 8}")
    columns, rows = pixels.size
    if not pixels.compressed:
        try:
            window = streams.at(pixels, pixels.bytes)
            window.seek(pixels.at + pixels.frame * pixels.bytes)
            return np.frombuffer(window.read(pixels.bytes), kind).reshape(rows, columns)
        except InputError:
            raise
        except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
            raise _damaged(pixels) from error
    alone = _alone(pixels, streams)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of bytes after the pixels
            return get_decoder(uid.RLELossless).as_array(alone, raw=True)[0].reshape(rows, columns)
    except Exception as error:  # pydicom has no error of its own for what is no RLE
        raise _damaged(pixels) from error


def _decoded(batch: list[Pixels], streams: _Streams) -> Iterator[np.ndarray]:
    """(rows, columns) int32 stored values of each slice, decoded by SimpleITK in another process."""
    with TemporaryDirectory(prefix="pcdiff-") as name:
        paths = [Path(name) / f"{number:02d}.dcm" for number in range(len(batch))]
        for pixels, path in zip(batch, paths, strict=True):
            _alone(pixels, streams).save_as(path, enforce_file_format=True)
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(
                [sys.executable, "-P", dicom_decoder.__file__, name],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=DECODER_SECONDS,
                env=os.environ | dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"),
                check=False,
            )
        for pixels, path in zip(batch, paths, strict=True):
            columns, rows = pixels.size
            decoded = path.with_suffix(dicom_decoder.DECODED)
            if not decoded.exists() or decoded.stat().st_size != 4 * rows * columns:
                raise InputError(
                    f"{pixels.file}: its compressed image cannot be decoded, or is damaged; copy it again, or export "
                    "it without compression"
                )
            yield np.fromfile(decoded, "<i4").reshape(rows, columns)


def _alone(pixels: Pixels, streams: _Streams) -> FileDataset:
    """A data set with the compressed pixels of one slice, what is needed to decode them, and nothing of the patient."""
    meta = FileMetaDataset()
    data = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of fragments without an end
            frame = get_frame(streams.at(pixels, pixels.bytes + OVERHEAD), pixels.frame, number_of_frames=pixels.frames)
            if _coded_size(frame) not in (None, pixels.size):
                raise ValueError("the header states another size than the image")
            meta.TransferSyntaxUID = uid.UID(pixels.syntax)
            meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = uid.CTImageStorage, "1.2"
            data.SOPClassUID, data.SOPInstanceUID, data.Modality = uid.CTImageStorage, "1.2", "CT"
            data.Columns, data.Rows = pixels.size
            data.BitsAllocated, data.BitsStored, data.HighBit = pixels.bits
            data.SamplesPerPixel, data.PixelRepresentation = 1, int(pixels.signed)
            data.PhotometricInterpretation = "MONOCHROME2"
            data.PixelData = encapsulate([frame])
            data["PixelData"].VR = "OB"
    except InputError:
        raise
    except Exception as error:  # pydicom has no error of its own for what is no DICOM
        raise _damaged(pixels) from error
    return data


def _coded_size(frame: bytes) -> tuple[int, int] | None:
    """(columns, rows) that a JPEG or JPEG-LS image states itself, for which decoders do not care; None for others."""
    at = 2 if frame[:2] == b"\xff\xd8" else len(frame)
    while frame[at : at + 1] == b"\xff":
        marker, length = frame[at + 1], int.from_bytes(frame[at + 2 : at + 4])
        if marker in JPEG_FRAMES:
            return int.from_bytes(frame[at + 7 : at + 9]), int.from_bytes(frame[at + 5 : at + 7])
        at += 2 + length
    return None


def _without_other_bits(stored: np.ndarray, pixels: Pixels) -> np.ndarray:
    """Stored values without what old scanners put into bits that are not used."""
    allocated, used, high = pixels.bits
    if used == allocated:
        return stored
    shifted = (stored.astype(np.int64) >> (high + 1 - used)) & (2**used - 1)
    return shifted - ((shifted >> (used - 1)) << used) if pixels.signed else shifted


def _to_hu(pixels: Pixels, stored: np.ndarray, values: np.ndarray) -> np.ndarray:
    """(rows, columns) HU: int32 where slope and intercept are whole numbers. Padding is air.

    stored: with all their bits, which padding may need. values: with the bits that are used.
    """
    whole = pixels.slope.is_integer() and pixels.intercept.is_integer()
    kind = np.int64 if whole else np.float64
    hu = values.astype(kind) * kind(pixels.slope) + kind(pixels.intercept)
    low, high = pixels.padding or (0, -1)
    corner = int(stored[0, 0])
    if not low <= corner <= high and not pixels.signed and corner >= 2**15 and pixels.bits[0] == 16:
        low = high = corner  # -2000 around the field of view, written as 63536 without a word
    padding = (stored >= low) & (stored <= high) & (hu > MIN_TISSUE)
    if padding.any():
        hu[_outside(padding) | (padding & (hu > MAX_HU))] = AIR
    return hu


def _outside(padding: np.ndarray) -> np.ndarray:
    """The part of a mask that reaches the border of the slice: inside, the value of padding may be that of tissue."""
    labels, _ = ndimage.label(padding)
    border = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    return np.isin(labels, np.setdiff1d(border, 0))


def _damaged(pixels: Pixels) -> InputError:
    return InputError(f"{pixels.file}: the DICOM file's image is truncated or damaged; copy or export it again")
