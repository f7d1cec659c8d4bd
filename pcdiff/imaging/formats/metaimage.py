"""MetaImage (.mha, or .mhd with its data file): a strict reader of the header; values are read in runs.

The values come from the file itself or from one regular file beside it. No other library sees a header.
"""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from pcdiff.errors import InputError
from pcdiff.imaging.formats.header import Invalid, file_beside, numbers, shown, whole
from pcdiff.imaging.formats.image import Image, split_axes
from pcdiff.imaging.formats.streams import read_runs, write_runs, zlib_writer

MAX_HEADER = 2**16  # bytes
MAX_AXES = 6
TYPES = {
    **{"met_char": "i1", "met_uchar": "u1", "met_short": "i2", "met_ushort": "u2", "met_int": "i4", "met_uint": "u4"},
    **{"met_long": "i4", "met_ulong": "u4", "met_long_long": "i8", "met_ulong_long": "u8"},
    **{"met_float": "f4", "met_double": "f8"},
}
DIRECTIONS, ORIGIN = ("transformmatrix", "rotation", "orientation"), ("offset", "position", "origin")
BYTE_ORDER = ("binarydatabyteordermsb", "elementbyteordermsb")
UNITS = {"": 1.0, "?": 1.0, "mm": 1.0, "cm": 10.0, "um": 0.001}


def open_image(path: Path) -> Image:
    """Reads the header. Raises InputError for a file that is not a valid MetaImage with its data in one file."""
    fields, end = _read_header(path)
    try:
        count = whole(_one(fields, "ndims"), least=1, most=MAX_AXES)
        sizes = [whole(size) for size in _one(fields, "dimsize").split()]
        channels = whole(_one(fields, "elementnumberofchannels", default="1"), least=1)
        if len(sizes) != count:
            raise Invalid(f"NDims {count} for {len(sizes)} sizes")
        kind = _one(fields, "elementtype").lower()
        if kind not in TYPES:
            raise InputError(f"{path}: MetaImage type {shown(kind)} is not read; save it as MET_UCHAR or MET_SHORT")
        axes = split_axes(path, [channels, *sizes] if channels > 1 else sizes, 1 if channels > 1 else None)
        header = _geometry(path, fields, count, axes.first - (channels > 1))
        data, at, packed = _where(path, fields, end)
        order = ">" if _flag(_one(fields, *BYTE_ORDER, default="False")) else "<"
        if not _flag(_one(fields, "binarydata", default="True")):
            raise Invalid("values as text")
    except Invalid as error:
        raise InputError(f"{path}: not a valid MetaImage header ({error}); correct it or export it again") from error
    dtype = np.dtype(order + TYPES[kind])
    encoding = ("gzip" if _is_gzip(data, at) else "zlib") if packed else "raw"
    stated = set(DIRECTIONS) & fields.keys()
    return Image(
        shape=axes.shape,
        affine=_affine(header),
        header=header,
        runs=read_runs(data, encoding, dtype, math.prod(sizes) * channels, at),
        notes=() if stated else ("the file does not state the patient's orientation: LPS is assumed",),
        layers=axes.layers,
        interleaved=axes.interleaved,
        files=tuple(dict.fromkeys((path, data))),
    )


def _read_header(path: Path) -> tuple[dict[str, str], int]:
    """(fields by name in lower case, byte after the header). The header ends with the line of ElementDataFile."""
    with path.open("rb") as file:
        head = file.read(MAX_HEADER)
    fields: dict[str, str] = {}
    at = 0
    while "elementdatafile" not in fields:
        line, newline, _ = head[at:].partition(b"\n")
        found = re.fullmatch(rb"\s*([^=]*?)\s*=\s*(.*?)\s*", line, re.DOTALL)
        if found is None and line.strip():
            raise InputError(f"{path}: not a valid MetaImage header (no 'name = value'); export it again")
        at += len(line) + len(newline)
        if found is not None:
            name = found[1].decode("ascii", "replace").lower()
            if name in fields:
                raise InputError(f"{path}: not a valid MetaImage header ({shown(name)} twice); export it again")
            fields[name] = os.fsdecode(found[2])
        if not newline and "elementdatafile" not in fields:
            raise InputError(f"{path}: not a valid MetaImage header (ElementDataFile is missing); export it again")
    return fields, at


def _where(path: Path, fields: dict[str, str], end: int) -> tuple[Path, int, bool]:
    """(file of the data, byte at which they begin or -1 for those at its end, whether they are packed)."""
    name, packed = fields["elementdatafile"], _flag(_one(fields, "compresseddata", default="False"))
    skip = whole(_one(fields, "headersize", default="0"), least=-1)
    if re.fullmatch(r"LIST(\s+\d+D?)?", name, re.IGNORECASE):
        raise InputError(f"{path}: a list of data files is not read; save the image as one .mha file")
    local = name.lower() == "local"
    if (skip < 0 and packed) or (skip > 0 and local):
        raise Invalid(f"HeaderSize {skip}")
    if local:
        return path, -1 if skip else end, packed
    return file_beside(path, name.removeprefix("./")), skip, packed


def _is_gzip(path: Path, at: int) -> bool:
    with path.open("rb") as file:
        file.seek(at)
        return file.read(2) == b"\x1f\x8b"


def _geometry(path: Path, fields: dict[str, str], count: int, first: int) -> dict[str, Any]:
    """Spacing, direction (9 numbers, rows of the matrix) and origin in mm of the three axes from `first` on."""
    if not {"elementspacing", "elementsize"} & fields.keys():
        raise InputError(f"{path}: spacing is missing (no ElementSpacing); export it with its geometry")
    unit = _one(fields, "distanceunits", default="").lower()
    if unit not in UNITS:
        raise Invalid(f"DistanceUnits {shown(unit)}")
    spacing = numbers(fields["elementspacing" if "elementspacing" in fields else "elementsize"].split(), count)
    identity = " ".join("1" if i == j else "0" for i in range(count) for j in range(count))
    matrix = np.reshape(numbers(_one(fields, *DIRECTIONS, default=identity).split(), count * count), (count, count))
    origin = numbers(_one(fields, *ORIGIN, default=" ".join(["0"] * count)).split(), count)
    space = slice(first, first + 3)
    turned = matrix.copy()
    turned[space, space] = 0
    if np.any(turned[space]):
        raise Invalid("axes of space that turn into others")
    return {
        "spacing": tuple(float(value) * UNITS[unit] for value in spacing[space]),
        "direction": tuple(matrix[space, space].T.ravel().tolist()),  # the file has a row for each axis
        "origin": tuple(float(value) * UNITS[unit] for value in origin[space]),
    }


def _one(fields: dict[str, str], *names: str, default: str | None = None) -> str:
    """The value of a field, whichever of its names the file uses."""
    values = {fields[name] for name in names if name in fields} or {default or ""}
    if len(values) > 1 or (values == {""} and default is None):
        raise Invalid(f"{names[0]} {'has two values' if len(values) > 1 else 'is missing'}")
    return values.pop()


def _flag(text: str) -> bool:
    if text.lower() not in ("true", "t", "1", "false", "f", "0"):
        raise Invalid(f"expected True or False, got {shown(text)}")
    return text.lower() in ("true", "t", "1")


def _affine(header: dict[str, Any]) -> np.ndarray:
    affine = np.eye(4)
    with np.errstate(over="ignore", invalid="ignore"):  # `check_affine` refuses what is not finite
        affine[:3, :3] = np.reshape(header["direction"], (3, 3)) * header["spacing"]
    affine[:3, 3] = header["origin"]
    return affine


def save_image(values: np.ndarray, affine: np.ndarray, header: dict[str, Any] | None, path: Path) -> None:
    """Writes (I, J, K) uint8 or float32; the geometry is copied from `header` if that describes the same grid."""
    if header is None or "direction" not in header or not np.array_equal(_affine(header), affine):
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        header = {"spacing": spacing.tolist(), "direction": (affine[:3, :3] / spacing).ravel().tolist()}
        header["origin"] = affine[:3, 3].tolist()
    lines = {
        **{"ObjectType": "Image", "NDims": 3, "BinaryData": True, "BinaryDataByteOrderMSB": False},
        **{"CompressedData": True, "CompressedDataSize": f"{0:012d}"},
        "TransformMatrix": _joined(np.reshape(header["direction"], (3, 3)).T.ravel().tolist()),
        **{"Offset": _joined(header["origin"]), "CenterOfRotation": "0 0 0", "AnatomicalOrientation": "RAI"},
        **{"ElementSpacing": _joined(header["spacing"]), "DimSize": _joined(values.shape)},
        "ElementType": "MET_FLOAT" if values.dtype == np.float32 else "MET_UCHAR",
        "ElementDataFile": "LOCAL",
    }
    head = "".join(f"{name} = {value}\n" for name, value in lines.items()).encode("ascii")
    with path.open("wb") as file:
        file.write(head)
        with zlib_writer(file) as stream:
            write_runs(values, stream)
        size = file.tell() - len(head)
        file.seek(head.index(b"CompressedDataSize = ") + len(b"CompressedDataSize = "))
        file.write(f"{size:012d}".encode())


def _joined(values: Any) -> str:
    return " ".join(repr(value) for value in values)
