"""NRRD, attached or detached (.nhdr), raw, gzip or bzip2: a strict reader of the header; values are read in runs.

Names of fields and words among their values ignore case. Layers and names of segments are read as 3D Slicer and ITK
write them.
"""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from pcdiff.errors import InputError
from pcdiff.imaging.formats.header import Invalid, file_beside, shown, whole
from pcdiff.imaging.formats.image import Image, Segment, split_axes
from pcdiff.imaging.formats.nrrd_geometry import affine_of, copied, first_axis_of_space, notes_on
from pcdiff.imaging.formats.streams import gzip_writer, read_runs, write_runs

MAX_HEADER = 2**20  # bytes
SYNONYMS = {"datafile": "data file", "lineskip": "line skip", "byteskip": "byte skip"}
ENCODINGS = {"raw": "raw", "gzip": "gzip", "gz": "gzip", "bzip2": "bzip2", "bz2": "bzip2"}
ENDIANS = {"little": "<", "big": ">"}
TYPES = {
    name: code
    for code, names in {
        "i1": "signed char, int8, int8_t",
        "u1": "uchar, unsigned char, uint8, uint8_t",
        "i2": "short, short int, signed short, signed short int, int16, int16_t",
        "u2": "ushort, unsigned short, unsigned short int, uint16, uint16_t",
        "i4": "int, signed int, int32, int32_t",
        "u4": "uint, unsigned int, uint32, uint32_t",
        "i8": "longlong, long long, long long int, signed long long, signed long long int, int64, int64_t",
        "u8": "ulonglong, unsigned long long, unsigned long long int, uint64, uint64_t",
        "f4": "float",
        "f8": "double",
    }.items()
    for name in names.split(", ")
}


def open_image(path: Path) -> Image:
    """Reads the header. Raises InputError for a file that is not a valid NRRD file with its data in one file."""
    fields, pairs, end = _read_header(path)
    encoding, kind = fields.get("encoding", "").lower(), fields.get("type", "").lower()
    order = fields.get("endian", "little").lower()
    if encoding not in ENCODINGS:
        raise InputError(f"{path}: NRRD encoding {shown(encoding) or 'none'} is not read; save it as gzip")
    if kind not in TYPES:
        raise InputError(f"{path}: NRRD type {shown(kind) or 'none'} is not read; save it as uint8 or int16")
    if order not in ENDIANS:
        raise InputError(f"{path}: NRRD endian: expected little or big, got {shown(order)}; correct the header")
    try:
        sizes = [whole(size) for size in fields.get("sizes", "").split()]
        if "dimension" in fields and whole(fields["dimension"]) != len(sizes):
            raise Invalid(f"dimension {shown(fields['dimension'])} for {len(sizes)} sizes")
        axes = split_axes(path, sizes, first_axis_of_space(path, fields, sizes))
        affine = affine_of(fields, axes.first)
        data, at, skip = _where(path, fields, end)
    except Invalid as error:
        raise InputError(f"{path}: the NRRD header is not valid ({error}); correct it or export it again") from error
    dtype = np.dtype(ENDIANS[order] + TYPES[kind])
    runs = read_runs(data, ENCODINGS[encoding], dtype, math.prod(sizes), at, skip)
    return Image(
        shape=axes.shape,
        affine=affine,
        header=copied(fields) if len(sizes) == 3 else {},
        runs=runs,
        notes=notes_on(fields.get("space", "")),
        layers=axes.layers,
        interleaved=axes.interleaved,
        segments=_segments(pairs),
        files=tuple(dict.fromkeys((path, data))),
    )


def _read_header(path: Path) -> tuple[dict[str, str], dict[str, str], int]:
    """(fields by name in lower case, key/value pairs by key in lower case, byte after the header)."""
    with path.open("rb") as file:
        head = file.read(MAX_HEADER + 1)
    if not re.match(rb"NRRD000\d[ \t]*\r?\n", head):
        raise InputError(f"{path}: not an NRRD file (it does not begin with NRRD000); check the file")
    end = re.search(rb"\r?\n\r?\n", head)
    if end is None and (len(head) > MAX_HEADER or not re.search(rb"\n *data *file *:", head, re.IGNORECASE)):
        raise InputError(f"{path}: the NRRD header does not end (truncated file?); copy or export it again")
    fields: dict[str, str] = {}
    pairs: dict[str, str] = {}
    lines = re.split(r"\r?\n", head[: end.start() if end else None].decode("utf8", "surrogateescape"))
    for number, line in enumerate(lines[1:], 2):
        if line.startswith("#") or not line.strip():
            continue
        name, colon, value = line.partition(":")
        into = pairs if value.startswith("=") else fields
        name = " ".join(name.lower().split())
        name = SYNONYMS.get(name, name)
        if not colon or (into is fields and name in fields):
            what = "is no field" if not colon else f"gives {shown(name)} twice"
            raise InputError(f"{path}: the NRRD header is not valid (line {number} {what}); correct it")
        into[name] = value.removeprefix("=").strip()
    return fields, pairs, end.end() if end else len(head)


def _where(path: Path, fields: dict[str, str], end: int) -> tuple[Path, int, int]:
    """(file of the data, byte at which it begins, decoded bytes to skip after that)."""
    data, at = path, end
    if (name := fields.get("data file")) is not None:
        if re.fullmatch(r"LIST(\s+\d+)?", name, re.IGNORECASE):
            raise InputError(f"{path}: a list of data files is not read; save the image as one .nrrd file")
        data = file_beside(path, os.fsdecode(name.removeprefix("./").encode("utf8", "surrogateescape")))
        at = 0
    lines, skip = whole(fields.get("line skip", "0")), whole(fields.get("byte skip", "0"), least=-1)
    if lines:
        with data.open("rb") as file:
            file.seek(at)
            head = file.read(MAX_HEADER)
        parts = head.split(b"\n", lines)
        if len(parts) <= lines:
            raise Invalid(f"line skip {lines} leads beyond the data")
        at += len(head) - len(parts[lines])
    if skip < 0:
        if ENCODINGS[fields["encoding"].lower()] != "raw":
            raise Invalid("byte skip -1 for packed data")
        return data, -1, 0
    return data, at, skip


def _segments(pairs: dict[str, str]) -> tuple[Segment, ...]:
    """The segments that 3D Slicer names, in its order. Before its version 4.11 each was a layer with the value 1."""
    found = []
    for key, name in pairs.items():
        if (match := re.fullmatch(r"segment([0-9]{1,4})_name", key)) is None:
            continue
        number = int(match[1])
        value = pairs.get(f"segment{number}_labelvalue", "1")
        layer = pairs.get(f"segment{number}_layer", "0" if f"segment{number}_labelvalue" in pairs else str(number))
        if all(re.fullmatch(r"[0-9]{1,9}", text) for text in (value, layer)):
            found.append((number, Segment(shown(name), int(value), int(layer))))
    return tuple(segment for _, segment in sorted(found))


def save_image(values: np.ndarray, affine: np.ndarray, header: dict[str, Any] | None, path: Path) -> None:
    """Writes (I, J, K) uint8 or float32, gzip; `header` is copied if it describes the same grid, else LPS is used."""
    with path.open("wb") as file:
        file.write(_head(values, affine, header or {}))
        with gzip_writer(file) as stream:
            write_runs(values, stream)


def _head(values: np.ndarray, affine: np.ndarray, header: dict[str, Any]) -> bytes:
    if not {"space directions", "spacings"} & header.keys() or not np.array_equal(affine_of(header), affine):
        vectors = [f"({','.join(repr(float(x)) for x in vector)})" for vector in affine[:3].T]
        header = {"space": "left-posterior-superior", "space directions": " ".join(vectors[:3])}
        header |= {"kinds": "domain domain domain", "space origin": vectors[3]}
    fields = {"type": "float" if values.dtype == np.float32 else "uint8", "dimension": "3"}
    fields |= {name: header[name] for name in ("space", "space dimension") if name in header}
    fields |= {"sizes": " ".join(map(str, values.shape))} | header
    fields |= {"endian": "little", "encoding": "gzip"}
    text = "NRRD0005\n" + "".join(f"{name}: {value}\n" for name, value in fields.items()) + "\n"
    return text.encode("utf8", "surrogateescape")
