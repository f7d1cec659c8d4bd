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
from pcdiff.imaging.formats.image import Image, Segment, by, not_3d, split_axes
from pcdiff.imaging.formats.streams import file_beside, gzip_writer, read_runs, shown, write_runs

MAX_HEADER = 2**20  # bytes
LPS, RAS, LAS = (1, 1, 1), (-1, -1, 1), (1, -1, 1)  # the sign of each axis relative to LPS
SPACES = {
    **dict.fromkeys(("", "lps", "left-posterior-superior", "lpst", "left-posterior-superior-time"), LPS),
    **dict.fromkeys(("ras", "right-anterior-superior", "rast", "right-anterior-superior-time"), RAS),
    **dict.fromkeys(("las", "left-anterior-superior", "last", "left-anterior-superior-time"), LAS),
    **dict.fromkeys(("scanner-xyz", "scanner-xyz-time", "3d-right-handed", "3d-right-handed-time"), LPS),
}
# Fields that a result copies from its input. Key/value pairs are not copied: they may name the patient.
GEOMETRY = (
    *("space", "space dimension", "space directions", "space origin", "space units", "measurement frame"),
    *("spacings", "units", "kinds", "centerings"),
)
SYNONYMS = {"datafile": "data file", "lineskip": "line skip", "byteskip": "byte skip"}
ENCODINGS = {"raw": "raw", "gzip": "gzip", "gz": "gzip", "bzip2": "bzip2", "bz2": "bzip2"}
ENDIANS = {"little": "<", "big": ">"}
TYPES = {
    name: code
    for code, names in {
        "i1": ("signed char", "int8", "int8_t"),
        "u1": ("uchar", "unsigned char", "uint8", "uint8_t"),
        "i2": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
        "u2": ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
        "i4": ("int", "signed int", "int32", "int32_t"),
        "u4": ("uint", "unsigned int", "uint32", "uint32_t"),
        "i8": (
            "longlong",
            "long long",
            "long long int",
            "signed long long",
            "signed long long int",
            "int64",
            "int64_t",
        ),
        "u8": ("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"),
        "f4": ("float",),
        "f8": ("double",),
    }.items()
    for name in names
}


class _Invalid(Exception):
    """A field that the format does not allow; the message says which."""


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
        sizes = [_whole(size) for size in fields.get("sizes", "").split()]
        if "dimension" in fields and _whole(fields["dimension"]) != len(sizes):
            raise _Invalid(f"dimension {shown(fields['dimension'])} for {len(sizes)} sizes")
        axes = split_axes(path, sizes, _first_axis_of_space(path, fields, sizes))
        affine = _affine(fields, axes.first)
        data, at, skip = _where(path, fields, end)
    except _Invalid as error:
        raise InputError(f"{path}: the NRRD header is not valid ({error}); correct it or export it again") from error
    dtype = np.dtype(ENDIANS[order] + TYPES[kind])
    runs = read_runs(data, ENCODINGS[encoding], dtype, math.prod(sizes), at, skip)
    return Image(
        shape=axes.shape,
        affine=affine,
        header=_copied(fields) if len(sizes) == 3 else {},
        runs=runs,
        notes=_notes(fields.get("space", "")),
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
    lines, skip = _whole(fields.get("line skip", "0")), _whole(fields.get("byte skip", "0"), least=-1)
    if lines:
        with data.open("rb") as file:
            file.seek(at)
            head = file.read(MAX_HEADER)
        parts = head.split(b"\n", lines)
        if len(parts) <= lines:
            raise _Invalid(f"line skip {lines} leads beyond the data")
        at += len(head) - len(parts[lines])
    if skip < 0:
        if ENCODINGS[fields["encoding"].lower()] != "raw":
            raise _Invalid("byte skip -1 for packed data")
        return data, -1, 0
    return data, at, skip


def _first_axis_of_space(path: Path, fields: dict[str, str], sizes: list[int]) -> int | None:
    """The number of the first axis with a place in space, None where the header does not state which these are."""
    if "space directions" in fields:
        placed = [vector is not None for vector in _vectors(fields["space directions"])]
    elif "kinds" in fields:
        placed = [kind in ("domain", "space") for kind in fields["kinds"].lower().split()]
    else:
        return None
    if len(placed) != len(sizes):
        raise not_3d(path, sizes)
    count = sum(placed)
    if count < 3 and "space directions" in fields:
        raise _Invalid(f"expected three space directions, got {count} and the others none or not a number")
    if count != 3:
        return None
    first = placed.index(True)
    if not all(placed[first : first + 3]):
        raise InputError(f"{path}: expected three axes of space side by side, got size {by(sizes)}; export one volume")
    return first


def _affine(fields: dict[str, str], first: int = 0) -> np.ndarray:
    """(4, 4) index -> LPS mm. first: the first of the three axes of space."""
    space = fields.get("space", "").lower()
    if space not in SPACES:
        raise _Invalid(f"expected space LPS, RAS or LAS, got '{shown(fields['space'])}': save it in LPS")
    rows: list[Any]
    if "space directions" in fields:
        rows = _vectors(fields["space directions"])[first : first + 3]
    elif "spacings" in fields:
        rows = list(np.diag(_numbers(fields["spacings"].split())[first : first + 3]))
    else:
        raise _Invalid("spacing is missing: neither 'space directions' nor 'spacings'; export it with its geometry")
    origin = _vectors(fields.get("space origin", "(0,0,0)"), zero=(0.0, 0.0, 0.0))
    if len(rows) != 3 or any(row is None for row in rows) or len(origin) != 1 or origin[0] is None:
        raise _Invalid("expected three space directions, or spacings, and one space origin of three numbers")
    affine = np.eye(4)
    affine[:3, :3] = np.array(rows, float).T
    affine[:3, 3] = origin[0]
    affine[:3] *= np.array(SPACES[space])[:, None]
    return affine + 0.0  # no negative zeros


def _vectors(text: str, zero: tuple[float, ...] | None = None) -> list[tuple[float, ...] | None]:
    """Vectors of three numbers, or of four of which the last, time, is 0; None for none, nan and zero vectors."""
    if re.sub(r"none|\([^()]*\)", "", text.lower()).strip():
        raise _Invalid(f"expected vectors such as (1,0,0), got {shown(text)}")
    vectors: list[tuple[float, ...] | None] = []
    for token in re.findall(r"none|\([^()]*\)", text.lower()):
        values = (math.nan,) * 3 if token == "none" else _numbers(token[1:-1].split(","))
        if len(values) not in (3, 4):
            raise _Invalid(f"expected vectors of three numbers, got {shown(token)}")
        if not any(values[:3]):
            vectors.append(zero)
        elif any(map(math.isnan, values)):
            vectors.append(None)
        elif values[3:] in ((), (0.0,)):
            vectors.append(values[:3])
        else:
            raise _Invalid(f"expected a direction in space, got {shown(token)}")
    return vectors


def _numbers(tokens: list[str]) -> tuple[float, ...]:
    try:
        return tuple(float(token.replace("_", "?")) for token in tokens)
    except ValueError as error:
        raise _Invalid(f"expected numbers, got {shown(' '.join(tokens))}") from error


def _whole(text: str, least: int = 0) -> int:
    if not re.fullmatch(r"[+-]?[0-9]{1,12}", text) or int(text) < least:
        raise _Invalid(f"expected a whole number of {least} or more, got {shown(text)}")
    return int(text)


def _copied(fields: dict[str, str]) -> dict[str, str]:
    """The fields of the geometry of three axes that a result may copy: those with as many values as axes."""
    header = {name: fields[name] for name in GEOMETRY if name in fields}
    for name in ("units", "space units"):
        if not re.fullmatch(r'("[^"]*"\s*){3}', header.get(name, "")):
            header.pop(name, None)
    for name in ("kinds", "centerings"):
        if len(header.get(name, "").split()) != 3:
            header.pop(name, None)
    try:
        frame = _vectors(header.get("measurement frame", ""))
    except _Invalid:
        frame = []
    if len(frame) != 3 or None in frame:
        header.pop("measurement frame", None)
    named = bool(header.get("space"))
    if named:
        header.pop("space dimension", None)
    time = header.get("space", "").lower().endswith(("time", "rast", "last", "lpst"))
    return {} if time or header.get("space dimension", "3") != "3" else header


def _notes(space: str) -> tuple[str, ...]:
    if not space:
        return ("the file does not state the patient's orientation: LPS is assumed",)
    if space.lower().startswith(("scanner", "3d")):
        why = f"the file states axes of the scanner ({shown(space)}), not of the patient"
        return (f"{why}: LPS is assumed, right for a head that lies on its back, head first",)
    return ()


def _segments(pairs: dict[str, str]) -> tuple[Segment, ...]:
    """The segments that 3D Slicer names, in its order."""
    found = []
    for key, name in pairs.items():
        if (match := re.fullmatch(r"segment(\d{1,4})_name", key)) is None:
            continue
        value, layer = (pairs.get(f"segment{match[1]}_{field}", "") for field in ("labelvalue", "layer"))
        whole = all(re.fullmatch(r"\d{0,9}", text) for text in (value, layer))
        if whole and value:
            found.append((int(match[1]), Segment(shown(name), int(value), int(layer or 0))))
    return tuple(segment for _, segment in sorted(found))


def save_image(values: np.ndarray, affine: np.ndarray, header: dict[str, Any] | None, path: Path) -> None:
    """Writes (I, J, K) uint8 or float32, gzip; `header` is copied if it describes the same grid, else LPS is used."""
    with path.open("wb") as file:
        file.write(_head(values, affine, header or {}))
        with gzip_writer(file) as stream:
            write_runs(values, stream)


def _head(values: np.ndarray, affine: np.ndarray, header: dict[str, Any]) -> bytes:
    if not {"space directions", "spacings"} & header.keys() or not np.array_equal(_affine(header), affine):
        vectors = [f"({','.join(repr(float(x)) for x in vector)})" for vector in affine[:3].T]
        header = {"space": "left-posterior-superior", "space directions": " ".join(vectors[:3])}
        header |= {"kinds": "domain domain domain", "space origin": vectors[3]}
    fields = {"type": "float" if values.dtype == np.float32 else "uint8", "dimension": "3"}
    fields |= {name: header[name] for name in ("space", "space dimension") if name in header}
    fields |= {"sizes": " ".join(map(str, values.shape))} | header
    fields |= {"endian": "little", "encoding": "gzip"}
    text = "NRRD0005\n" + "".join(f"{name}: {value}\n" for name, value in fields.items()) + "\n"
    return text.encode("utf8", "surrogateescape")
