"""A binary mask on its scan's grid: the one place where file formats, axis order and patient space are handled."""

from __future__ import annotations

import bz2
import gzip
import math
import os
import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, cast

import nrrd
import numpy as np

from pcdiff.errors import InputError

MAX_VOXELS = 2**31
SPACING_RANGE = (0.1, 5.0)  # mm
RUN = 2**22  # values handled at a time, so that memory stays near the mask's own size

# Sign of each patient axis on the way to LPS; no name at all is taken as LPS.
NRRD_SPACES = {
    "": (1, 1, 1),
    "lps": (1, 1, 1),
    "left-posterior-superior": (1, 1, 1),
    "ras": (-1, -1, 1),
    "right-anterior-superior": (-1, -1, 1),
    "las": (1, -1, 1),
    "left-anterior-superior": (1, -1, 1),
}
# What a result inherits from its input's header. Key/value pairs stay behind: they may name the patient.
NRRD_GEOMETRY = (
    *("space", "space dimension", "space directions", "space origin", "space units", "measurement frame"),
    *("spacings", "units", "kinds", "centerings"),
)
NRRD_ENCODINGS = {"raw": "raw", "gzip": "gzip", "gz": "gzip", "bzip2": "bzip2", "bz2": "bzip2"}
NRRD_TYPES = {
    name: code
    for code, names in {
        "i1": ("signed char", "int8", "int8_t"),
        "u1": ("uchar", "unsigned char", "uint8", "uint8_t"),
        "i2": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
        "u2": ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
        "i4": ("int", "signed int", "int32", "int32_t"),
        "u4": ("uint", "unsigned int", "uint32", "uint32_t"),
        "i8": ("longlong", "long long", "long long int", "signed long long", "int64", "int64_t"),
        "u8": ("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"),
        "f4": ("float",),
        "f8": ("double",),
    }.items()
    for name in names
}
NIFTI_TYPES = {2: "u1", 256: "i1", 4: "i2", 512: "u2", 8: "i4", 768: "u4", 1024: "i8", 1280: "u8", 16: "f4", 64: "f8"}


@dataclass(frozen=True)
class Volume:
    """A binary mask on a regular, possibly oblique, possibly anisotropic grid.

    mask:   (I, J, K) bool. Index order is the file's own (first axis fastest in NRRD terms); nothing is flipped.
    affine: (4, 4) float64, voxel index (i, j, k) of a voxel's *centre* -> patient millimetres, LPS.
    header: what the file said of its geometry, verbatim, so that results are written onto exactly the same grid.
    """

    mask: np.ndarray
    affine: np.ndarray
    header: dict[str, Any] | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.mask.ndim != 3:
            raise ValueError(f"mask must be 3D, got shape {self.mask.shape}")
        if self.mask.dtype != bool:
            raise ValueError(f"mask must be bool, got {self.mask.dtype}")
        if self.affine.shape != (4, 4):
            raise ValueError(f"affine must have shape (4, 4), got {self.affine.shape}")

    @property
    def spacing(self) -> np.ndarray:
        """(3,) mm between voxel centres along each index axis: column norms of the affine, never its diagonal."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel in millilitres."""
        return float(abs(np.linalg.det(self.affine[:3, :3]))) / 1000.0

    @property
    def ml(self) -> float:
        """Volume of the mask in millilitres."""
        return float(np.count_nonzero(self.mask)) * self.voxel_ml

    def to_mm(self, index: np.ndarray) -> np.ndarray:
        """(..., 3) continuous voxel index -> (..., 3) mm."""
        return index @ self.affine[:3, :3].T + self.affine[:3, 3]

    def to_index(self, points: np.ndarray) -> np.ndarray:
        """(..., 3) mm -> (..., 3) continuous voxel index; undoes `to_mm`."""
        return (points - self.affine[:3, 3]) @ np.linalg.inv(self.affine[:3, :3]).T

    def with_mask(self, mask: np.ndarray) -> Volume:
        """Another mask on the same grid."""
        if mask.shape != self.mask.shape:
            raise ValueError(f"mask must have the grid's shape {self.mask.shape}, got {mask.shape}")
        return replace(self, mask=mask)

    def crop(self, low: np.ndarray, high: np.ndarray) -> Volume:
        """The sub-grid low <= index < high (clipped to the grid), a view; its affine is shifted, its header dropped."""
        low = np.clip(np.asarray(low, int), 0, self.mask.shape)
        high = np.clip(np.asarray(high, int), low, self.mask.shape)
        affine = self.affine.copy()
        affine[:3, 3] = self.to_mm(low.astype(float))
        return Volume(self.mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))], affine)


def read_volume(path: str | Path) -> Volume:
    """A mask from NRRD (.nrrd), NIfTI-1 (.nii, .nii.gz) or MetaImage (.mha, .mhd), any numeric type, values {0, x}.

    Index order is the file's own; the affine takes voxel centres to LPS mm, whatever the file's patient space.
    Raises InputError for a missing, empty, damaged or truncated file, an unknown format, an image that is not 3D,
    a grid without a sound geometry, and values that are not those of a mask or hold no bone.
    """
    path = Path(path)
    kind = _kind(path)
    if not path.is_file():
        raise InputError(f"{path}: expected an image file, found none; check the path")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: the file is empty (0 bytes); export or copy it again")
    image = {"nrrd": _open_nrrd, "nifti": _open_nifti, "meta": _open_meta}[kind](path)
    _check_affine(path, image.affine)
    return Volume(_mask(path, image), image.affine, image.header)


def write_volume(volume: Volume, path: str | Path) -> None:
    """The mask as uint8 0/1, gzip, onto the grid it was read from (geometry verbatim where the format is the same).

    Format by suffix: .nrrd, .nii, .nii.gz, .mha. Same volume, same bytes: no time stamp. Raises InputError where the
    folder is missing or not writable; a failure leaves nothing behind and an older file untouched.
    """
    _write(volume.mask.view(np.uint8), volume, Path(path))


def write_map(values: np.ndarray, like: Volume, path: str | Path) -> None:
    """(I, J, K) values, e.g. an uncertainty in mm, as float32 on the grid of `like`; else as `write_volume`."""
    if values.shape != like.mask.shape:
        raise ValueError(f"values must have the grid's shape {like.mask.shape}, got {values.shape}")
    _write(values.astype(np.float32, copy=False), like, Path(path))


@contextmanager
def written_beside(path: Path) -> Iterator[Path]:
    """A path in the same folder to write to; it becomes `path` when the block succeeds and vanishes when it fails."""
    if not path.parent.is_dir():
        raise InputError(f"{path}: expected an existing output folder, found none; create {path.parent} first")
    if path.is_dir():
        raise InputError(f"{path}: expected a file to write, found a folder; give a file name")
    part = path.with_name(f".{os.getpid()}.{path.name}")  # keeps the suffix, by which SimpleITK knows the format
    try:
        part.touch()
    except OSError as error:
        raise InputError(f"{path}: cannot write here ({error.strerror}); choose a writable folder") from error
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@dataclass(frozen=True)
class _Image:
    """A file whose header was read: values come as flat runs, first index fastest, when they are asked for."""

    shape: tuple[int, int, int]
    affine: np.ndarray
    header: dict[str, Any]
    runs: Iterator[np.ndarray]


def _kind(path: Path) -> str:
    for suffix, kind in {".nrrd": "nrrd", ".nii": "nifti", ".nii.gz": "nifti", ".mha": "meta", ".mhd": "meta"}.items():
        if path.name.lower().endswith(suffix):
            return kind
    if path.suffix.lower() == ".nhdr":
        raise InputError(f"{path}: detached NRRD headers are not read; save it as one .nrrd file")
    raise InputError(f"{path}: expected .nrrd, .nii, .nii.gz, .mha or .mhd, got another format; convert it first")


def _shape(path: Path, sizes: list[int]) -> tuple[int, int, int]:
    if len(sizes) != 3 or min(sizes) < 1:
        raise InputError(f"{path}: expected a 3D image, got size {'x'.join(map(str, sizes))}; export one 3D volume")
    if math.prod(sizes) > MAX_VOXELS:
        raise InputError(f"{path}: {'x'.join(map(str, sizes))} voxels are more than 2**31; crop or resample it first")
    return sizes[0], sizes[1], sizes[2]


def _check_affine(path: Path, affine: np.ndarray) -> None:
    low, high = SPACING_RANGE
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all():
        raise InputError(f"{path}: spacing or origin is missing (not a number); export it with its geometry")
    if spacing.min() < low * (1 - 1e-6) or spacing.max() > high * (1 + 1e-6):
        got = " x ".join(f"{s:.4g}" for s in spacing)
        raise InputError(f"{path}: expected a spacing of {low:g} to {high:g} mm, got {got}; mend the header")
    if abs(np.linalg.det(affine[:3, :3] / spacing)) < 0.1:  # 1: perpendicular axes; 30 degrees of gantry tilt: 0.87
        raise InputError(f"{path}: the image axes lie in one plane (degenerate directions); mend the header")


def _mask(path: Path, image: _Image) -> np.ndarray:
    flat = np.empty(math.prod(image.shape), bool)
    value, start = None, 0
    for run in image.runs:
        nonzero = flat[start : start + run.size]
        np.not_equal(run, 0, out=nonzero)
        start += run.size
        count = np.count_nonzero(nonzero)
        if count and value is None:
            value = run[nonzero.argmax()]
        if count and np.count_nonzero(run == value) != count:
            other = run[nonzero & (run != value)][0]
            raise InputError(
                f"{path}: expected a mask with two values, 0 and one other, got 0, {value}, {other}, ...; "
                "threshold the bone first (a CT: about 300 HU), or keep one label"
            )
    if value is None:
        raise InputError(f"{path}: the mask holds no bone (every voxel is 0); check the threshold or the label")
    if flat.all():
        raise InputError(f"{path}: expected a mask with background 0, but every voxel is {value}; check the threshold")
    return flat.reshape(image.shape, order="F")


def _damaged(path: Path) -> InputError:
    return InputError(f"{path}: the image data is truncated or damaged; copy or export the file again")


def _runs(path: Path, encoding: str, dtype: np.dtype, count: int, at: int = 0, skip: int = 0) -> Iterator[np.ndarray]:
    """`count` values as runs: the stream begins at byte `at` of the file, the values `skip` decoded bytes later."""
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
            stream.read(1)  # a compressed stream is only whole once its checksum was read
        except (EOFError, OSError, zlib.error) as error:
            raise _damaged(path) from error


def _open_nrrd(path: Path) -> _Image:
    with path.open("rb") as file:
        head = file.read(2**20)
    end = re.search(rb"\r?\n\r?\n", head)
    if not head.startswith(b"NRRD000"):
        raise InputError(f"{path}: not an NRRD file (it does not begin with NRRD000); check the file")
    if end is None:
        raise InputError(f"{path}: the NRRD header does not end (truncated file?); copy or export it again")
    lines = [line for line in head[: end.start()].decode("ascii", "replace").splitlines()[1:] if line[:1] != "#"]
    fields = dict(re.split(r": *", line.rstrip(), maxsplit=1) for line in lines if re.match(r"[^:]+:(?!=)", line))
    detached = {"data file", "datafile", "line skip", "lineskip", "byte skip", "byteskip"} & fields.keys()
    if detached:
        raise InputError(f"{path}: NRRD field '{detached.pop()}' is not read; save it as one plain .nrrd file")
    if fields.get("encoding", "").lower() not in NRRD_ENCODINGS:
        raise InputError(f"{path}: NRRD encoding {fields.get('encoding')} is not read; save it as gzip")
    if fields.get("type", "").lower() not in NRRD_TYPES:
        raise InputError(f"{path}: NRRD type {fields.get('type')} is not that of a mask; save it as uint8")
    dtype = np.dtype(("<" if fields.get("endian", "little") == "little" else ">") + NRRD_TYPES[fields["type"].lower()])
    header = {name: fields[name] for name in NRRD_GEOMETRY if name in fields}
    shape = _shape(path, [int(size) for size in re.findall(r"-?\d+", fields.get("sizes", ""))])
    try:
        affine = _nrrd_affine(header)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except (nrrd.errors.NRRDError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"{path}: the NRRD header is not sound ({reason}); export it again") from error
    encoding = NRRD_ENCODINGS[fields["encoding"].lower()]
    return _Image(shape, affine, header, _runs(path, encoding, dtype, math.prod(shape), at=end.end()))


def _nrrd_affine(header: dict[str, str]) -> np.ndarray:
    parsed = nrrd.read_header(["NRRD0005", *(f"{name}: {value}" for name, value in header.items())])
    space = str(parsed.get("space", "")).lower()
    if space not in NRRD_SPACES:
        raise InputError(f"expected NRRD space LPS, RAS or LAS, got '{parsed['space']}'; save it in LPS")
    if "space directions" in parsed:
        rows = [[math.nan] * 3 if row is None else row for row in parsed["space directions"]]
    elif "spacings" in parsed:
        rows = list(np.diag(parsed["spacings"]))
    else:
        raise InputError("spacing is missing (neither 'space directions' nor 'spacings'); export it with its geometry")
    affine = np.eye(4)
    affine[:3, :3] = np.array(rows, float).T
    affine[:3, 3] = parsed.get("space origin", np.zeros(3))
    affine[:3] *= np.array(NRRD_SPACES[space])[:, None]
    return affine + 0.0  # no negative zeros


def _open_nifti(path: Path) -> _Image:
    """NIfTI-1 by its own header (nifti1.h): SimpleITK reads truncated files as zeros and refuses a sheared sform."""
    encoding = "gzip" if path.name.lower().endswith(".gz") else "raw"
    raw = b"".join(run.tobytes() for run in _runs(path, encoding, np.dtype("u1"), 352))[:348]
    order = "<" if raw[:4] == struct.pack("<i", 348) else ">"
    if struct.unpack(f"{order}i", raw[:4])[0] != 348 or raw[344:347] != b"n+1":
        raise InputError(f"{path}: not a single-file NIfTI-1 image; convert it to NRRD")
    rank, *sizes = struct.unpack(f"{order}8h", raw[40:56])
    code = struct.unpack(f"{order}h", raw[70:72])[0]
    begin, slope, inter = struct.unpack(f"{order}3f", raw[108:120])
    if code not in NIFTI_TYPES:
        raise InputError(f"{path}: NIfTI data type {code} is not that of a mask; save it as uint8")
    sizes = sizes[: max(rank, 0)]
    while len(sizes) > 3 and sizes[-1] == 1:
        sizes.pop()
    shape = _shape(path, sizes)
    if not 352 <= begin <= 2**24:
        raise InputError(f"{path}: the NIfTI header is not sound (vox_offset {begin:g}); export it again")
    runs = _runs(path, encoding, np.dtype(order + NIFTI_TYPES[code]), math.prod(shape), skip=int(begin))
    if slope and math.isfinite(slope) and inter:
        runs = (run * slope + inter for run in runs)
    return _Image(shape, _nifti_affine(raw), {"nifti": raw}, runs)


def _nifti_affine(raw: bytes) -> np.ndarray:
    """sform, else qform, else pixdim alone (methods 3, 2, 1 of nifti1.h), all RAS in the file."""
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


def _open_meta(path: Path) -> _Image:
    import SimpleITK as sitk

    with path.open("rb") as file:
        head = file.read(2**16)
    named = re.search(rb"^ElementDataFile *= *(.+?) *\r?$", head, re.MULTILINE)
    local = named is not None and named[1] == b"LOCAL"
    if named is None or (path.suffix.lower() == ".mha") != local:
        raise InputError(f"{path}: not a sound MetaImage header (ElementDataFile); export it again")
    beside = named[1].decode("utf8", "replace")
    if not local and (re.search(r"[/\\ %]", beside) or not path.with_name(beside).is_file()):
        raise InputError(f"{path}: expected one data file beside the header, got '{beside}'; save it as .mha")
    if not re.search(rb"^Element(Spacing|Size) *=", head, re.MULTILINE):
        raise InputError(f"{path}: spacing is missing (no ElementSpacing); export it with its geometry")
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise InputError(f"{path}: not a sound MetaImage header; export it again") from error
    if reader.GetNumberOfComponents() != 1:
        raise InputError(f"{path}: expected one value per voxel, got {reader.GetNumberOfComponents()}; save a mask")
    shape = _shape(path, list(reader.GetSize()))
    header = {"spacing": reader.GetSpacing(), "direction": reader.GetDirection(), "origin": reader.GetOrigin()}

    def runs() -> Iterator[np.ndarray]:
        try:
            image = reader.Execute()
        except RuntimeError as error:
            raise _damaged(path) from error
        values = sitk.GetArrayViewFromImage(image).reshape(-1)  # (k, j, i): first index fastest
        for start in range(0, values.size, RUN):
            yield values[start : start + RUN]

    return _Image(shape, _meta_affine(header), header, runs())


def _meta_affine(header: dict[str, Any]) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(header["direction"], (3, 3)) * header["spacing"]
    affine[:3, 3] = header["origin"]
    return affine


def _write(values: np.ndarray, grid: Volume, path: Path) -> None:
    kind = _kind(path)
    if path.suffix.lower() == ".mhd":
        raise InputError(f"{path}: .mhd splits an image into two files; write .mha instead")
    with written_beside(path) as part:
        if kind == "meta":
            _save_meta(values, grid, part)
            return
        head = _nrrd_head(values, grid) if kind == "nrrd" else _nifti_head(values, grid)
        with part.open("wb") as file:
            packed = kind == "nrrd" or path.suffix.lower() == ".gz"
            if kind == "nrrd":
                file.write(head)
            # No name and no time in the gzip header: the same volume gives the same bytes.
            stream = gzip.GzipFile("", "wb", 1, file, mtime=0) if packed else file
            if kind == "nifti":
                stream.write(head)
            for slab in np.array_split(values.T, max(1, values.size // RUN)):  # (k, j, i): first index fastest
                stream.write(np.ascontiguousarray(slab).data)
            stream.close()


def _same_grid(grid: Volume, affine: np.ndarray) -> bool:
    """Is the header kept from reading still that of this grid?"""
    return np.array_equal(affine, grid.affine)


def _nrrd_head(values: np.ndarray, grid: Volume) -> bytes:
    header = grid.header or {}
    if not {"space directions", "spacings"} & header.keys() or not _same_grid(grid, _nrrd_affine(header)):
        vectors = [f"({','.join(repr(float(x)) for x in vector)})" for vector in grid.affine[:3].T]
        header = {"space": "left-posterior-superior", "space directions": " ".join(vectors[:3])}
        header |= {"kinds": "domain domain domain", "space origin": vectors[3]}
    fields = {"type": "float" if values.dtype == np.float32 else "uint8", "dimension": "3"}
    fields |= {name: header[name] for name in ("space", "space dimension") if name in header}
    fields |= {"sizes": " ".join(map(str, values.shape))} | header
    fields |= {"endian": "little", "encoding": "gzip"}
    return ("NRRD0005\n" + "".join(f"{name}: {value}\n" for name, value in fields.items()) + "\n").encode("ascii")


def _nifti_head(values: np.ndarray, grid: Volume) -> bytes:
    raw = (grid.header or {}).get("nifti")
    code, bits = (16, 32) if values.dtype == np.float32 else (2, 8)
    head = bytearray(352)
    if max(values.shape) > 32767:
        raise InputError(f"NIfTI-1 holds at most 32767 voxels along an axis, got {values.shape}; write .nrrd")
    if raw is not None and raw[:4] == struct.pack("<i", 348) and _same_grid(grid, _nifti_affine(raw)):
        head[76:108], head[123], head[252:328] = raw[76:108], raw[123], raw[252:328]
    else:
        ras = grid.affine[:3] * np.array([-1.0, -1.0, 1.0])[:, None]
        head[76:108] = struct.pack("<8f", 1, *grid.spacing, 0, 0, 0, 0)
        head[123] = 2  # mm
        head[254:256], head[280:328] = struct.pack("<h", 1), struct.pack("<12f", *ras.ravel())
    head[:4], head[344:348] = struct.pack("<i", 348), b"n+1\0"
    head[40:56] = struct.pack("<8h", 3, *values.shape, 1, 1, 1, 1)
    head[70:74], head[108:120] = struct.pack("<2h", code, bits), struct.pack("<3f", 352, 1, 0)
    return bytes(head)


def _save_meta(values: np.ndarray, grid: Volume, path: Path) -> None:
    import SimpleITK as sitk

    header = grid.header or {}
    if "direction" not in header or not _same_grid(grid, _meta_affine(header)):
        direction, spacing = grid.affine[:3, :3] / grid.spacing, grid.spacing
        header = {"spacing": spacing.tolist(), "direction": direction.ravel().tolist()}
        header["origin"] = grid.affine[:3, 3].tolist()
    image = sitk.GetImageFromArray(values.T)
    image.SetSpacing(header["spacing"])
    image.SetDirection(header["direction"])
    image.SetOrigin(header["origin"])
    sitk.WriteImage(image, str(path), True, 1)
