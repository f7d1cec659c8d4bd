"""`run.json`, the record of a result: what it was made of, and the sha256 of its files.

It is written last, so a folder with a record is complete.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pcdiff.errors import InputError
from pcdiff.files import flush, sha256, written_beside
from pcdiff.foreign import read_json
from pcdiff.geometry.grid import components
from pcdiff.geometry.volume import Volume
from pcdiff.imaging.volumes import read_volume
from pcdiff.pipeline.schemas import CaseRecord, ResultRecord

RECORD = "run.json"
SKULL = "defective_skull.nrrd"  # the mask that the implant is designed for
GREY = "grey.npz"  # what pictures show of a CT


def read_record(folder: Path) -> dict[str, Any] | None:
    """The `run.json` of a result's folder; None if it is missing or damaged."""
    try:
        return read_json(folder / RECORD, ResultRecord, "the record of a result", "design it again")
    except InputError:
        return None


def recorded_digest(record: Mapping[str, Any]) -> str | None:
    """The sha256 of the input that a result was made of; None where the record has none."""
    return (record.get("input") or {}).get("sha256")


def refuse_other_input(folder: Path, digest: str | None, overwrite: bool) -> None:
    """Raises InputError if the folder holds the result of another input than that of this sha256."""
    earlier = read_record(folder)
    if not overwrite and earlier is not None and recorded_digest(earlier) != digest:
        raise InputError(
            f"{folder}: holds the result of another input; choose another output folder, or pass --overwrite to "
            "replace it"
        )


def write_record(part: Path, record: dict[str, Any]) -> None:
    """Writes `run.json` with the sha256 of every file in the folder."""
    found = (path.relative_to(part).as_posix() for path in sorted(part.rglob("*")) if path.is_file())
    renew_record(part, record | {"files": {}}, found)


def renew_record(folder: Path, record: dict[str, Any], names: Iterable[str]) -> None:
    """Writes `run.json` again with the sha256 of files that are new or have changed.

    A later design in the same folder removes every file that the record names.
    """
    changed = list(names)
    for name in changed:
        flush(folder / name)  # the record vouches for them, also after a power cut
    files = record["files"] | {name: sha256(folder / name) for name in changed}
    with written_beside(folder / RECORD) as path:
        path.write_text(json.dumps(record | {"files": files}, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        flush(path)


def case_record(folder: Path) -> dict[str, Any]:
    """The record of a case folder. Raises InputError where there is none, or another one than a design's."""
    if not (folder / RECORD).is_file():
        raise InputError(
            f"{folder}: expected a case folder with {RECORD}, found none; give a folder that `pcdiff design` wrote"
        )
    return read_json(folder / RECORD, CaseRecord, "the record of a design", "design the case again")


def case_skull(folder: Path, skull: Path | None = None) -> Volume:
    """The defective skull of a case: the file given, else the one in the folder. Raises InputError if it is missing."""
    path = skull or folder / SKULL
    if not path.is_file():
        raise InputError(f"{path}: expected the defective skull of {folder}, found none; give it with --skull")
    return read_volume(path)


def pieces_ml(implant: Volume) -> list[float]:
    """Volume of each connected piece (26-neighbourhood) of an implant, ml, largest first."""
    return [round(len(piece) * implant.voxel_ml, 3) for piece in components(implant.mask)]
