"""NIfTI-1 and NIfTI-2, in one file (.nii) or a pair (.hdr, .img), plain or gzip, as in nifti1.h and nifti2.h.

SimpleITK is not used: it reads truncated files as zeros and refuses the sheared sform of a tilted gantry.
"""

from __future__ import annotations

import math
import re
import struct
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pcdiff.errors import InputError
from pcdiff.imaging.formats.header import file_beside, shown
from pcdiff.imaging.formats.image import Axes, Image, Segment, not_3d, split_axes
from pcdiff.imaging.formats.streams import gzip_writer, read_bytes, read_runs, write_runs

TYPES = {2: "u1", 256: "i1", 4: "i2", 512: "u2", 8: "i4", 768: "u4", 1024: "i8", 1280: "u8", 16: "f4", 64: "f8"}
SIZES = {348: b"n+1 ni1", 540: b"n+2 ni2"}  # bytes of the header, and the magic words: one file, a pair
MAX_OFFSET = 2**24  # bytes before the values
MAX_EXTENSION = 2**20  # bytes after the header in which names of labels are looked for
SAME_PLACE_MM = 1.0  # by which sform and qform may differ
UNIT_SQUARE = 1.001  # of a quaternion's three parts at most; numbers of the header are rounded
TEMPLATES = {3: "Talairach", 4: "MNI 152"}  # codes of spaces into which heads are scaled
# A name of a label, as TotalSegmentator writes it into the header's extension.
LABEL = re.compile(r'<Label\s+Key="(\d{1,5})"[^<>]{0,200}>\s*<!\[CDATA\[([^\[\]]{1,200})\]\]>')


@dataclass(frozen=True)
class _Header:
    """The fields of either version that are used. begin: byte of the values. placed: whether a code is set."""

    paired: bool
    order: str
    sizes: list[int]
    code: int
    begin: int
    scale: tuple[float, float]
    pixdim: tuple[float, ...]
    qform: int
    sform: int
    quaternion: tuple[float, ...]
    rows: tuple[float, ...]
    units: int


def open_image(path: Path) -> Image:
    """Reads the header of a file, or of either file of a pair. Raises InputError for a file that is not valid NIfTI."""
    header_path, data_path = _files(path)
    raw = _begin(header_path)
    head = _parse(header_path, raw)
    if head.paired and header_path == data_path:
        raise InputError(f"{path}: the header of a NIfTI pair is named .hdr, beside it lies .img; rename the two files")
    if head.code not in TYPES:
        raise InputError(f"{path}: NIfTI data type {head.code} is not read; save it as uint8 or int16")
    axes = split_axes(path, head.sizes)
    _check_axes(path, head)
    notes = _notes(path, head, axes)
    least = 0 if head.paired else len(raw) + 4
    if not least <= head.begin <= MAX_OFFSET:
        raise InputError(f"{path}: the NIfTI header is not valid (vox_offset {head.begin}); export it again")
    dtype, count = np.dtype(head.order + TYPES[head.code]), math.prod(head.sizes)
    runs = read_runs(data_path, _encoding(data_path), dtype, count, skip=head.begin)
    slope, inter = head.scale
    if slope and math.isfinite(slope) and math.isfinite(inter) and (slope, inter) != (1, 0):
        runs = (_scaled(run, slope, inter) for run in runs)
    return Image(
        shape=axes.shape,
        affine=_affine(head),
        header={"nifti": raw} if len(raw) == 348 else {},
        runs=runs,
        notes=notes,
        layers=axes.layers,
        interleaved=axes.interleaved,
        segments=_segments(header_path, head, len(raw)) if axes.layers == 1 else (),
        files=tuple(dict.fromkeys((header_path, data_path))),
    )


def is_header(head: bytes) -> bool:
    """Whether unpacked bytes begin with the magic word of a NIfTI header, of one file or of a pair."""
    return head[344:347] in SIZES[348].split() or head[4:7] in SIZES[540].split()


def _encoding(path: Path) -> str:
    with path.open("rb") as file:
        return "gzip" if file.read(2) == b"\x1f\x8b" else "raw"


def _begin(path: Path) -> bytes:
    """The header, whose first number is its size, in either order of bytes; of another file the first 348 bytes."""
    encoding = _encoding(path)
    raw = read_bytes(path, encoding, 348)
    if 540 in struct.unpack("<i", raw[:4]) + struct.unpack(">i", raw[:4]):
        raw = read_bytes(path, encoding, 540)
    return raw


def _files(path: Path) -> tuple[Path, Path]:
    """(file of the header, file of the values): the same, or a pair of which `path` is one."""
    ends = re.search(r"\.(hdr|img)(\.gz)?$", path.name, re.IGNORECASE)
    if ends is None:
        return path, path
    stem, upper = path.name[: ends.start()], ends[1].isupper()
    if ends[1].lower() == "img" and not _has_magic(path):
        return _companion(path, stem, ".HDR" if upper else ".hdr"), path
    if not _parse(path, _begin(path)).paired:
        return path, path
    return path, _companion(path, stem, ".IMG" if upper else ".img")


def _has_magic(path: Path) -> bool:
    try:
        return is_header(_begin(path))
    except InputError:  # too short for a header
        return False


def _companion(path: Path, stem: str, suffix: str) -> Path:
    names = [f"{stem}{suffix}", f"{stem}{suffix}{'.GZ' if suffix.isupper() else '.gz'}"]
    there = [name for name in names if path.with_name(name).exists()]
    return file_beside(path, there[0] if there else names[0])


def _parse(path: Path, raw: bytes) -> _Header:
    """The header's fields. Raises InputError for another file, and for Analyze 7.5."""
    order = "<" if struct.unpack("<i", raw[:4])[0] == len(raw) else ">"
    magic = raw[344:347] if len(raw) == 348 else raw[4:7]
    if struct.unpack(f"{order}i", raw[:4])[0] != len(raw) or magic not in SIZES[len(raw)].split():
        if len(raw) == 348 and struct.unpack(f"{order}i", raw[:4])[0] == 348 and not any(raw[344:348]):
            raise InputError(f"{path}: Analyze 7.5 does not state which side is left; save the scan as NIfTI or NRRD")
        raise InputError(f"{path}: not a NIfTI-1 or NIfTI-2 image; convert it to NRRD")

    def read(kind: str, at: int) -> tuple[Any, ...]:
        return struct.unpack_from(order + kind, raw, at)

    first = len(raw) == 348
    rank, *sizes = read("8h", 40) if first else read("8q", 16)
    begin, *scale = read("3f", 108) if first else read("q2d", 168)
    qform, sform = read("2h", 252) if first else read("2i", 344)
    if not 1 <= rank <= 7:
        raise InputError(f"{path}: the NIfTI header is not valid ({rank} axes); export it again")
    if not math.isfinite(begin):
        raise InputError(f"{path}: the NIfTI header is not valid (vox_offset {begin}); export it again")
    return _Header(
        paired=magic[1:2] == b"i",
        order=order,
        sizes=[*sizes[: min(rank, 3)], *(size or 1 for size in sizes[3:rank])],  # some write 0 for an axis of one
        code=read("h", 70 if first else 12)[0],
        begin=int(begin),
        scale=(scale[0], scale[1]),
        pixdim=read("8f", 76) if first else read("8d", 104),
        qform=qform,
        sform=sform,
        quaternion=read("6f", 256) if first else read("6d", 352),
        rows=read("12f", 280) if first else read("12d", 400),
        units=raw[123] if first else read("i", 516)[0],
    )


def _affine(head: _Header) -> np.ndarray:
    """(4, 4) index -> LPS mm by sform, else qform, else pixdim alone (methods 3, 2, 1 of nifti1.h); the file is RAS."""
    if head.sform > 0:
        return _lps(head, np.vstack([np.reshape(head.rows, (3, 4)), [0, 0, 0, 1]]))
    return _by_qform(head) if head.qform > 0 else _lps(head, np.diag([*head.pixdim[1:4], 1.0]))


def _by_qform(head: _Header) -> np.ndarray:
    b, c, d, *offset = head.quaternion
    a = math.sqrt(max(0.0, 1.0 - b * b - c * c - d * d))  # `_check_axes` refuses what is no rotation
    rotation = [
        [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
        [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
        [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
    ]
    steps = (head.pixdim[1], head.pixdim[2], head.pixdim[3] * (-1 if head.pixdim[0] < 0 else 1))
    affine = np.eye(4)
    affine[:3, :3] = [[value * step for value, step in zip(row, steps, strict=True)] for row in rotation]
    affine[:3, 3] = offset
    return _lps(head, affine)


def _lps(head: _Header, ras: np.ndarray) -> np.ndarray:
    affine = ras.copy()
    with np.errstate(over="ignore"):  # `check_affine` refuses what is not finite
        affine[:3] *= {1: 1000.0, 3: 0.001}.get(head.units & 7, 1.0)  # metres, micrometres
    affine[:2] *= -1
    return affine + 0.0


def _scaled(run: np.ndarray, slope: float, inter: float) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):
        return run * np.float64(slope) + inter


def _check_axes(path: Path, head: _Header) -> None:
    """Raises InputError for steps below 0 and a quaternion that is no rotation: they mirror or scale the head.

    An sform needs neither.
    """
    if head.sform > 0:
        return
    if any(step < 0 for step in head.pixdim[1:4]):
        steps = ", ".join(f"{step:g}" for step in head.pixdim[1:4])
        raise InputError(f"{path}: expected a spacing above 0, got {steps}; which side is left? correct the header")
    if head.qform > 0 and sum(part * part for part in head.quaternion[:3]) > UNIT_SQUARE:
        raise InputError(f"{path}: the NIfTI header is not valid (its quaternion is no rotation); export it again")


def _notes(path: Path, head: _Header, axes: Axes) -> tuple[str, ...]:
    """What the user should know about axes and places. Raises InputError for axes whose spacing is doubtful."""
    notes = []
    if (space := TEMPLATES.get(head.sform if head.sform > 0 else head.qform)) is not None:
        notes.append(
            f"the file states the space of a template ({space}): is this head scaled to it? Then the implant does not "
            "fit the patient; give the scan itself"
        )
    if axes.first:
        if any(size not in (0, 1) for size in head.pixdim[4 : len(head.sizes) + 1]):
            raise not_3d(path, head.sizes)
        notes.append("the first axis is no axis of space: directions and spacing are taken to be those of the others")
    if head.sform <= 0 and head.qform <= 0:
        notes.append("the file does not state the patient's orientation: RAS axes are assumed")
    elif head.sform > 0 and head.qform > 0:
        corners = np.array(np.meshgrid(*[[0, n - 1] for n in axes.shape], [1])).reshape(4, -1)
        with np.errstate(over="ignore", invalid="ignore"):  # of numbers that are no places, which `check_affine` names
            apart = np.abs((_affine(head) - _by_qform(head)) @ corners).max()
        if apart > SAME_PLACE_MM:
            notes.append(f"sform and qform differ by up to {apart:.0f} mm: the sform is used; check the orientation")
    return tuple(notes)


def _segments(path: Path, head: _Header, size: int) -> tuple[Segment, ...]:
    """The labels that TotalSegmentator names in the header's extension."""
    length = head.begin - size
    if head.paired or length < 8:
        return ()
    text = read_bytes(path, _encoding(path), min(length, MAX_EXTENSION), skip=size).decode("utf8", "replace")
    return tuple(Segment(shown(name), int(key)) for key, name in LABEL.findall(text))


def save_image(values: np.ndarray, affine: np.ndarray, header: dict[str, Any] | None, path: Path) -> None:
    """Writes (I, J, K) uint8 or float32; the geometry is copied from `header` if that describes the same grid.

    Otherwise it is written as an sform. Raises InputError for an axis of more than 32767 voxels.
    """
    head = _head(path, values, affine, (header or {}).get("nifti"))
    packed = path.suffix.lower() == ".gz"
    with path.open("wb") as file, gzip_writer(file) if packed else nullcontext(file) as stream:
        stream.write(head)
        write_runs(values, stream)


def _head(path: Path, values: np.ndarray, affine: np.ndarray, raw: bytes | None) -> bytes:
    code, bits = (16, 32) if values.dtype == np.float32 else (2, 8)
    head = bytearray(352)
    if max(values.shape) > 32767:
        raise InputError(f"NIfTI-1 holds at most 32767 voxels along an axis, got {values.shape}; write .nrrd")
    if raw is not None and raw[:4] == struct.pack("<i", 348) and np.array_equal(_affine(_parse(path, raw)), affine):
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
