"""NRRD with an attached header, raw, gzip or bzip2. pynrrd parses the geometry; values are read in runs."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import nrrd
import numpy as np

from pcdiff.errors import InputError
from pcdiff.imaging.formats.image import Image, checked_shape, gzip_writer, read_runs, write_runs

# Sign of each patient axis relative to LPS; a file without a space is taken as LPS.
SPACES = {
    "": (1, 1, 1),
    "lps": (1, 1, 1),
    "left-posterior-superior": (1, 1, 1),
    "ras": (-1, -1, 1),
    "right-anterior-superior": (-1, -1, 1),
    "las": (1, -1, 1),
    "left-anterior-superior": (1, -1, 1),
}
# Fields that a result copies from its input. Key/value pairs are not copied: they may name the patient.
GEOMETRY = (
    *("space", "space dimension", "space directions", "space origin", "space units", "measurement frame"),
    *("spacings", "units", "kinds", "centerings"),
)
ENCODINGS = {"raw": "raw", "gzip": "gzip", "gz": "gzip", "bzip2": "bzip2", "bz2": "bzip2"}
TYPES = {
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


def open_image(path: Path) -> Image:
    """Reads the header. Raises InputError for a file that is not a valid NRRD file with attached data."""
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
    if fields.get("encoding", "").lower() not in ENCODINGS:
        raise InputError(f"{path}: NRRD encoding {fields.get('encoding')} is not read; save it as gzip")
    if fields.get("type", "").lower() not in TYPES:
        raise InputError(f"{path}: NRRD type {fields.get('type')} is not read; save it as uint8 or int16")
    dtype = np.dtype(("<" if fields.get("endian", "little") == "little" else ">") + TYPES[fields["type"].lower()])
    header = {name: fields[name] for name in GEOMETRY if name in fields}
    shape = checked_shape(path, [int(size) for size in re.findall(r"-?\d+", fields.get("sizes", ""))])
    try:
        affine = _affine(header)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except (nrrd.errors.NRRDError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"{path}: the NRRD header is not valid ({reason}); export it again") from error
    encoding = ENCODINGS[fields["encoding"].lower()]
    notes = () if header.get("space") else ("the file does not state the patient's orientation: LPS is assumed",)
    runs = read_runs(path, encoding, dtype, math.prod(shape), at=end.end())
    return Image(shape, affine, header, runs, notes=notes)


def _affine(header: dict[str, str]) -> np.ndarray:
    parsed = nrrd.read_header(["NRRD0005", *(f"{name}: {value}" for name, value in header.items())])
    space = str(parsed.get("space", "")).lower()
    if space not in SPACES:
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
    affine[:3] *= np.array(SPACES[space])[:, None]
    return affine + 0.0  # no negative zeros


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
    return ("NRRD0005\n" + "".join(f"{name}: {value}\n" for name, value in fields.items()) + "\n").encode("ascii")
