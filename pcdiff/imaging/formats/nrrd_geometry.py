"""The axes of an NRRD file: which of them are in space, and where, in LPS mm. pynrrd parses the vectors."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import nrrd
import numpy as np

from pcdiff.errors import InputError
from pcdiff.imaging.formats.header import Invalid, numbers, shown
from pcdiff.imaging.formats.image import by, not_3d

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


def first_axis_of_space(path: Path, fields: dict[str, str], sizes: list[int]) -> int | None:
    """The number of the first axis with a place in space, None where the header does not state which these are."""
    if "space directions" in fields:
        placed = [vector is not None for vector in _vectors(fields["space directions"])]
    elif "kinds" in fields:
        placed = [kind in ("domain", "space") for kind in fields["kinds"].lower().split()]
    else:
        return None
    count = sum(placed)
    if "space directions" in fields and len(placed) != len(sizes):
        raise not_3d(path, sizes)
    if "space directions" in fields and count < 3:
        raise Invalid(f"expected three space directions, got {count} and the others none or not a number")
    if count != 3 or len(placed) != len(sizes):
        return None
    first = placed.index(True)
    if not all(placed[first : first + 3]):
        raise InputError(f"{path}: expected three axes of space side by side, got size {by(sizes)}; export one volume")
    return first


def affine_of(fields: dict[str, str], first: int = 0) -> np.ndarray:
    """(4, 4) index -> LPS mm. first: the first of the three axes of space."""
    space = fields.get("space", "").lower()
    if space not in SPACES:
        raise Invalid(f"expected space LPS, RAS or LAS, got '{shown(fields['space'])}': save it in LPS")
    rows: list[Any]
    if "space directions" in fields:
        rows = _vectors(fields["space directions"])[first : first + 3]
    elif "spacings" in fields:
        rows = list(np.diag(numbers(fields["spacings"].split())[first : first + 3]))
    else:
        raise Invalid("spacing is missing: neither 'space directions' nor 'spacings'; export it with its geometry")
    origin = _vectors(fields.get("space origin", "(0,0,0)"), zero=(0.0, 0.0, 0.0))
    if len(rows) != 3 or any(row is None for row in rows) or len(origin) != 1 or origin[0] is None:
        raise Invalid("expected three space directions, or spacings, and one space origin of three numbers")
    affine = np.eye(4)
    affine[:3, :3] = np.array(rows, float).T
    affine[:3, 3] = origin[0]
    affine[:3] *= np.array(SPACES[space])[:, None]
    return affine + 0.0  # no negative zeros


def copied(fields: dict[str, str]) -> dict[str, str]:
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
    except Invalid:
        frame = []
    if len(frame) != 3 or None in frame:
        header.pop("measurement frame", None)
    if header.get("space"):
        header.pop("space dimension", None)
    time = header.get("space", "").lower().endswith(("time", "rast", "last", "lpst"))
    return {} if time or header.get("space dimension", "3") != "3" else header


def notes_on(space: str) -> tuple[str, ...]:
    """What the user should know about the space that a file states."""
    if not space:
        return ("the file does not state the patient's orientation: LPS is assumed",)
    if space.lower().startswith(("scanner", "3d")):
        why = f"the file states axes of the scanner ({shown(space)}), not of the patient"
        return (f"{why}: LPS is assumed, right for a head that lies on its back, head first",)
    return ()


def _vectors(text: str, zero: tuple[float, ...] | None = None) -> list[tuple[float, ...] | None]:
    """Vectors of three numbers, or of four of which the last, time, is 0; None for none, nan and zero vectors."""
    if re.sub(r"none|\([^()]*\)", "", text.lower()).strip():
        raise Invalid(f"expected vectors such as (1,0,0), got {shown(text)}")
    vectors: list[tuple[float, ...] | None] = []
    for token in re.findall(r"none|\([^()]*\)", text.lower()):
        values = (math.nan,) * 3 if token == "none" else _vector(token)
        if len(values) not in (3, 4):
            raise Invalid(f"expected vectors of three numbers, got {shown(token)}")
        if not any(values[:3]):
            vectors.append(zero)
        elif any(map(math.isnan, values)):
            vectors.append(None)
        elif values[3:] in ((), (0.0,)):
            vectors.append(values[:3])
        else:
            raise Invalid(f"expected a direction in space, got {shown(token)}")
    return vectors


def _vector(token: str) -> tuple[float, ...]:
    try:
        return tuple(nrrd.parse_vector(token, float).tolist())
    except (nrrd.NRRDError, ValueError) as error:
        raise Invalid(f"expected a vector such as (1,0,0), got {shown(token)}") from error
