"""`run.json`, the record of a result, and the case folder that it completes.

A case folder appears as a whole or not at all. The record is written last, so a folder with a record is complete.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from shutil import rmtree
from typing import Any
from uuid import uuid4

from pcdiff.errors import InputError
from pcdiff.files import absolute, sha256, written_beside
from pcdiff.foreign import read_json
from pcdiff.geometry.grid import components
from pcdiff.geometry.volume import Volume
from pcdiff.imaging.volumes import read_volume
from pcdiff.pipeline.schemas import CaseRecord, ResultRecord

RECORD = "run.json"
SKULL = "defective_skull.nrrd"  # the mask that the implant is designed for


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
    files = record["files"] | {name: sha256(folder / name) for name in names}
    with written_beside(folder / RECORD) as path:
        path.write_text(json.dumps(record | {"files": files}, indent=1, allow_nan=False) + "\n", encoding="utf-8")


@contextmanager
def case_folder(folder: Path, overwrite: bool = False, source: Path | None = None) -> Iterator[Path]:
    """An empty temporary folder to write a case into; it becomes `folder` if the block succeeds, else it is deleted.

    In an existing folder only the files of an earlier result are replaced; other files stay. Raises InputError for a
    folder that cannot be written, for a folder that holds the `source`, and, without `overwrite`, for a folder with
    other files and no earlier result, and for one with the result of another input. The last is known when the block
    ends; `refuse_other_input` says so before the work.
    """
    beside = absolute(folder)  # `.` has a name, too
    if not beside.name:
        raise InputError(f"{folder}: expected a folder to write, got the root of the file system; choose another")
    if source is not None and _real(source).is_relative_to(_real(folder)):
        raise InputError(f"{folder}: holds the input {source.name}; choose another output folder")
    if folder.is_dir() and any(folder.iterdir()) and read_record(folder) is None and not overwrite:
        raise InputError(
            f"{folder}: expected a new folder or an earlier result, found other files; "
            "choose another output folder, or pass --overwrite to write between them"
        )
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if not folder.is_dir() and (folder.exists() or folder.is_symlink()):
            raise FileExistsError(17, "a file of that name exists")
        part = beside.with_name(f".{beside.name}.{uuid4().hex}")  # unique among threads and hosts on a shared disk
        part.mkdir()
    except OSError as error:
        raise InputError(f"{folder}: expected a folder to write to, got: {error.strerror}; choose another") from error
    try:
        yield part
        made = read_record(part)
        refuse_other_input(folder, None if made is None else recorded_digest(made), overwrite)
        _put(part, folder)
    finally:
        rmtree(part, ignore_errors=True)


def _put(part: Path, folder: Path) -> None:
    """Moves the files of a finished case into place, the record last."""
    if not folder.exists():
        part.rename(folder)
        return
    old = read_record(folder) or {"files": {}}
    (folder / RECORD).unlink(missing_ok=True)
    for name in old["files"]:
        stale = folder / name
        if _real(stale).is_relative_to(_real(folder)) and stale.is_file():
            stale.unlink()
            if stale.parent != folder and not any(stale.parent.iterdir()):
                stale.parent.rmdir()
    for path in sorted((path for path in part.rglob("*") if path.is_file()), key=lambda path: path.name == RECORD):
        target = folder / path.relative_to(part)
        target.parent.mkdir(exist_ok=True)
        path.replace(target)


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


def _real(path: Path) -> Path:
    """The path without links; unlike `resolve`, also where links lead in a circle."""
    return Path(os.path.realpath(path))


def pieces_ml(implant: Volume) -> list[float]:
    """Volume of each connected piece (26-neighbourhood) of an implant, ml, largest first."""
    return [round(len(piece) * implant.voxel_ml, 3) for piece in components(implant.mask)]
