"""The folder of a case: it appears whole or not at all, and an earlier result is replaced in one step.

A case is written into a hidden folder beside, `.NAME.<32 hex digits>`, which its writer keeps locked. A crash leaves at
most that folder, and the next writer of the case removes it: its lock is free. The locks are those of the operating
system, which end with the process; a disk without them keeps such folders.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import chain, count
from pathlib import Path
from uuid import uuid4

from pcdiff.errors import InputError
from pcdiff.files import absolute, folder_to_write, hold, release, sha256
from pcdiff.pipeline.record import RECORD, read_record, recorded_digest, refuse_other_input

IMPLANTS = ("implant.nrrd", "implant.stl")  # what people edit
OLD = ".old"  # ends the name of an earlier result between the two renames that replace it
_AT_FDCWD, _EXCHANGE = -100, 2  # of renameat2(2); renamex_np(2) has the same number for its swap


@contextmanager
def case_folder(folder: Path, overwrite: bool = False, source: Path | None = None) -> Iterator[Path]:
    """An empty temporary folder to write a case into; it becomes `folder` if the block succeeds, else it is deleted.

    In an existing folder only the files of an earlier result are replaced; other files stay, and so do implants that
    were changed since, see `kept_name`. Raises InputError for a
    folder that cannot be written, for a folder that holds the `source`, and, without `overwrite`, for a folder with
    other files and no earlier result, and for one with the result of another input. The last is known when the block
    ends; `refuse_other_input` says so before the work.
    """
    place = _real(folder) if folder.is_symlink() else absolute(folder)  # `.` has a name, too
    if not place.name:
        raise InputError(f"{folder}: expected a folder to write, got the root of the file system; choose another")
    if source is not None and _real(source).is_relative_to(_real(folder)):
        raise InputError(f"{folder}: holds the input {source.name}; choose another output folder")
    part = place.with_name(f".{place.name}.{uuid4().hex}")  # unique among threads and hosts on a shared disk
    with _new_folders_removed(place):
        with folder_to_write(folder):
            place.parent.mkdir(parents=True, exist_ok=True)
            with _locked(place.parent):
                _clear_away(place)
                _refuse_foreign_files(folder, overwrite)
                part.mkdir()
                lock = hold(part)
        try:
            yield part
            with _locked(place.parent):
                made = read_record(part)
                refuse_other_input(folder, None if made is None else recorded_digest(made), overwrite)
                _put(part, place)
        except OSError as error:
            if str(error.filename).startswith(str(part)):  # which is gone then
                error.filename = str(place) + str(error.filename).removeprefix(str(part))
            raise
        finally:
            shutil.rmtree(part, ignore_errors=True)
            release(lock)


def clear_away(folder: Path) -> None:
    """Removes what dead writers of a case folder have left beside it; of a writer that lives it removes nothing."""
    place = _real(folder) if folder.is_symlink() else absolute(folder)
    if place.parent.is_dir():
        with _locked(place.parent):
            _clear_away(place)


@contextmanager
def _new_folders_removed(place: Path) -> Iterator[None]:
    """On leaving, the folders above `place` that were made in between are removed if they are empty."""
    new = [each for each in place.parents if not each.exists()]
    try:
        yield
    finally:
        for each in new:
            with suppress(OSError):
                each.rmdir()


def _refuse_foreign_files(folder: Path, overwrite: bool) -> None:
    if not folder.is_dir() and (folder.exists() or folder.is_symlink()):
        raise FileExistsError
    if folder.is_dir() and any(folder.iterdir()) and read_record(folder) is None and not overwrite:
        raise InputError(
            f"{folder}: expected a new folder or an earlier result, found other files; "
            "choose another output folder, or pass --overwrite to write between them"
        )


def _put(part: Path, place: Path) -> None:
    """Makes a finished case the folder `place`; files there that are no earlier result's are taken along."""
    if place.exists():
        _take_along(place, part)
        if not _exchange(part, place):
            old = part.with_name(part.name + OLD)
            place.rename(old)
            part.rename(place)
            shutil.rmtree(old, ignore_errors=True)
    else:
        part.rename(place)


def changed_implants(folder: Path) -> list[str]:
    """Names of the implant's files in a case folder that are not as they were designed: a person has worked on them."""
    record = read_record(folder)
    files = {} if record is None else record["files"]
    return [
        name
        for name in IMPLANTS
        if name in files and (folder / name).is_file() and sha256(folder / name) != files[name]
    ]


def kept_name(folder: Path, name: str) -> str:
    """What a changed file is called beside a new design: implant.changed.nrrd, implant.changed-2.nrrd and so on."""
    stem, dot, suffix = name.partition(".")
    numbers = chain([""], (f"-{number}" for number in count(2)))
    names = (f"{stem}.changed{number}{dot}{suffix}" for number in numbers)
    return next(name for name in names if not (folder / name).exists())


def _take_along(place: Path, part: Path) -> None:
    """Links the other files of a folder into the part, or copies them where the disk has no links.

    Changed implants are taken along under another name.
    """
    record = read_record(place) or {"files": {}}
    earlier = {RECORD, *record["files"]}
    shutil.copymode(place, part)
    for name in changed_implants(place):
        shutil.copy2(place / name, part / kept_name(place, name))
    for root, _, names in os.walk(place):
        inside = Path(root).relative_to(place)
        others = [name for name in names if (inside / name).as_posix() not in earlier]
        if others or (inside != Path() and not any(Path(root).iterdir())):
            (part / inside).mkdir(parents=True, exist_ok=True)
        for name in others:
            target = part / inside / name
            if not target.exists():
                try:
                    os.link(Path(root, name), target, follow_symlinks=False)
                except (OSError, NotImplementedError):  # Windows links no links
                    shutil.copy2(Path(root, name), target, follow_symlinks=False)


def _clear_away(place: Path) -> None:
    """Removes what dead writers of a case have left, and puts an earlier result back that one has moved."""
    pattern = re.compile(rf"\.{re.escape(place.name)}\.[0-9a-f]{{32}}({re.escape(OLD)})?")
    for left in sorted(path for path in place.parent.iterdir() if pattern.fullmatch(path.name)):
        if left.name.endswith(OLD) and not place.exists():
            left.rename(place)
        elif (lock := hold(left, wait=False)) is not None:
            shutil.rmtree(left, ignore_errors=True)
            release(lock)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Holds the lock of a folder, where there are locks."""
    lock = hold(folder)
    try:
        yield
    finally:
        release(lock)


def _exchange(one: Path, other: Path) -> bool:
    """Swaps the names of two folders in one step; False where the system or the disk cannot."""
    if sys.platform == "win32":
        return False
    paths = os.fsencode(one), os.fsencode(other)
    with suppress(AttributeError, OSError):
        libc = ctypes.CDLL(None, use_errno=True)
        if sys.platform == "darwin":
            return bool(libc.renamex_np(*paths, _EXCHANGE) == 0)
        return bool(libc.renameat2(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _EXCHANGE) == 0)
    return False


def _real(path: Path) -> Path:
    """The path without links; unlike `resolve`, also where links lead in a circle."""
    return Path(os.path.realpath(path))
