"""NIfTI-1 in one file (.nii, .nii.gz), as specified in nifti1.h.

SimpleITK is not used: it reads truncated files as zeros and refuses the sheared sform of a tilted gantry.
"""

from __future__ import annotations

import math
import struct
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from pcdiff.errors import InputError
from pcdiff.imaging.formats.image import Image, checked_shape, gzip_writer, read_runs, write_runs

TYPES = {2: "u1", 256: "i1", 4: "i2", 512: "u2", 8: "i4", 768: "u4", 1024: "i8", 1280: "u8", 16: "f4", 64: "f8"}


def open_image(path: Path) -> Image:
    """Reads the header. Raises InputError for a file that is not a valid NIfTI-1 image in one file."""
    with path.open("rb") as file:
        encoding = "gzip" if file.read(2) == b"\x1f\x8b" else "raw"
    raw = b"".join(run.tobytes() for run in read_runs(path, encoding, np.dtype("u1"), 352))[:348]
    order = "<" if raw[:4] == struct.pack("<i", 348) else ">"
    if struct.unpack(f"{order}i", raw[:4])[0] != 348 or raw[344:347] != b"n+1":
        raise InputError(f"{path}: not a single-file NIfTI-1 image; convert it to NRRD")
    rank, *sizes = struct.unpack(f"{order}8h", raw[40:56])
    code = struct.unpack(f"{order}h", raw[70:72])[0]
    begin, slope, inter = struct.unpack(f"{order}3f", raw[108:120])
    if code not in TYPES:
        raise InputError(f"{path}: NIfTI data type {code} is not read; save it as uint8 or int16")
    sizes = sizes[: max(rank, 0)]
    while len(sizes) > 3 and sizes[-1] == 1:
        sizes.pop()
    shape = checked_shape(path, sizes)
    if not 352 <= begin <= 2**24:
        raise InputError(f"{path}: the NIfTI header is not valid (vox_offset {begin:g}); export it again")
    runs = read_runs(path, encoding, np.dtype(order + TYPES[code]), math.prod(shape), skip=int(begin))
    if slope and math.isfinite(slope) and math.isfinite(inter) and (slope, inter) != (1, 0):
        runs = (run * slope + inter for run in runs)
    placed = any(code > 0 for code in struct.unpack(f"{order}2h", raw[252:256]))
    notes = () if placed else ("the file does not state the patient's orientation: RAS axes are assumed",)
    return Image(shape, _affine(raw), {"nifti": raw}, runs, notes=notes)


def _affine(raw: bytes) -> np.ndarray:
    """(4, 4) index -> LPS mm by sform, else qform, else pixdim alone (methods 3, 2, 1 of nifti1.h); the file is RAS."""
    order = "<" if raw[:4] == struct.pack("<i", 348) else ">"
    pixdim = struct.unpack(f"{order}8f", raw[76:108])
    qform, sform = struct.unpack(f"{order}2h", raw[252:256])
    b, c, d, *offset = struct.unpack(f"{order}6f", raw[256:280])
    affine = np.diag([*pixdim[1:4], 1.0])
    if sform > 0:
        affine[:3] = np.reshape(struct.unpack(f"{order}12f", raw[280:328]), (3, 4))
    elif qform > 0:
        a = math.sqrt(max(0.0, 1.0 - b * b - c * c - d * d))
        rotation = np.array(
            [
                [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
                [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
                [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
            ]
        )
        affine[:3, :3] = rotation * (pixdim[1], pixdim[2], pixdim[3] * (-1 if pixdim[0] < 0 else 1))
        affine[:3, 3] = offset
    affine[:3] *= {1: 1000.0, 3: 0.001}.get(raw[123] & 7, 1.0)  # metres, micrometres
    affine[:2] *= -1
    return affine + 0.0


def save_image(values: np.ndarray, affine: np.ndarray, header: dict[str, Any] | None, path: Path) -> None:
    """Writes (I, J, K) uint8 or float32; the geometry is copied from `header` if that describes the same grid.

    Otherwise it is written as an sform. Raises InputError for an axis of more than 32767 voxels.
    """
    head = _head(values, affine, (header or {}).get("nifti"))
    packed = path.suffix.lower() == ".gz"
    with path.open("wb") as file, gzip_writer(file) if packed else nullcontext(file) as stream:
        stream.write(head)
        write_runs(values, stream)


def _head(values: np.ndarray, affine: np.ndarray, raw: bytes | None) -> bytes:
    code, bits = (16, 32) if values.dtype == np.float32 else (2, 8)
    head = bytearray(352)
    if max(values.shape) > 32767:
        raise InputError(f"NIfTI-1 holds at most 32767 voxels along an axis, got {values.shape}; write .nrrd")
    if raw is not None and raw[:4] == struct.pack("<i", 348) and np.array_equal(_affine(raw), affine):
        head[76:108], head[123], head[252:328] = raw[76:108], raw[123], raw[252:328]
    else:
        ras = affine[:3] * np.array([-1.0, -1.0, 1.0])[:, None]
        head[76:108] = struct.pack("<8f", 1, *np.linalg.norm(affine[:3, :3], axis=0), 0, 0, 0, 0)
        head[123] = 2  # mm
        head[254:256], head[280:328] = struct.pack("<h", 1), struct.pack("<12f", *ras.ravel())
    head[:4], head[344:348] = struct.pack("<i", 348), b"n+1\0"
    head[40:56] = struct.pack("<8h", 3, *values.shape, 1, 1, 1, 1)
    head[70:74], head[108:120] = struct.pack("<2h", code, bits), struct.pack("<3f", 352, 1, 0)
    return bytes(head)
