"""Files that are written whole or not at all, and the digest of their bytes."""

from __future__ import annotations

import csv
import hashlib
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import resources
from pathlib import Path
from typing import IO
from uuid import uuid4

from pcdiff.errors import NOT_WRITTEN, InputError

# What begins a formula in a spreadsheet, after OWASP, "CSV Injection"; the last four are full-width forms.
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes in hex. Raises InputError for a missing file, and for a folder."""
    if path.is_dir():
        raise InputError(f"{path}: expected a file, got a folder; give the file in it")
    if not path.is_file():
        raise InputError(f"{path}: expected a file, found none; check the path")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush(path: Path) -> None:
    """Makes sure that a file's bytes are on the disk. Raises OSError with the file's name for a disk that is full."""
    with path.open("rb+") as file:
        try:
            os.fsync(file.fileno())
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from error


def absolute(path: Path) -> Path:
    """The path from the root, without `.` and `..`. Unlike `resolve` it keeps links: their names are the user's."""
    return Path(os.path.abspath(path))  # noqa: PTH100


def hold(path: Path, wait: bool = True) -> int | None:
    """Locks a file or a folder until `release` or the process's end; None where it is locked, or cannot be."""
    if sys.platform == "win32":
        return None
    import fcntl

    handle = None
    with suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        return handle
    release(handle)
    return None


def release(lock: int | None) -> None:
    """Gives back what `hold` returned."""
    if lock is not None:
        os.close(lock)


def opened_alone(path: Path, command: str) -> IO[str]:
    """The file, to add to, locked until it is closed where the system has locks.

    command: which locks it. Raises InputError where another process holds it.
    """
    file = path.open("a", encoding="utf-8")
    with suppress(ImportError):
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise InputError(
                f"{path.parent}: another `{command}` writes here; wait for it, or choose another output folder"
            ) from None
        except OSError:
            pass  # a disk without locks
    return file


@contextmanager
def folder_to_write(folder: Path) -> Iterator[None]:
    """Around a block that makes a folder and its first files, so that an error names the folder.

    Raises InputError where nothing can be written, OSError for a disk that is full or read-only.
    """
    try:
        yield
    except OSError as error:
        if error.errno in NOT_WRITTEN:
            raise OSError(error.errno, error.strerror, str(folder)) from error
        found = "a file in its path" if isinstance(error, FileExistsError | NotADirectoryError) else error.strerror
        raise InputError(f"{folder}: expected a folder to write to, got {found}; choose another") from error


def make_folder(folder: Path) -> None:
    """Makes a folder, with those above it, unless it exists. Raises as `folder_to_write` does."""
    with folder_to_write(folder):
        folder.mkdir(parents=True, exist_ok=True)


@contextmanager
def written_beside(path: Path) -> Iterator[Path]:
    """A temporary path in the same folder to write to; it replaces `path` when the block succeeds, else it is removed.

    Its name is unique, so threads, processes and hosts that share the folder may write the same file: the last one to
    finish wins. What writers of the file that died have left is removed, where the disk has locks. Raises InputError
    for a missing or unwritable folder, and where `path` is a folder; OSError with the file's name for a disk that is
    full.
    """
    if not path.parent.is_dir():
        raise InputError(f"{path}: expected an existing output folder, found none; create {path.parent} first")
    if path.is_dir():
        raise InputError(f"{path}: expected a file to write, found a folder; give a file name")
    try:
        part, lock = _new_part(path)
    except OSError as error:
        if error.errno in NOT_WRITTEN:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise InputError(f"{path}: cannot write here ({error.strerror}); choose a writable folder") from error
    try:
        yield part
        part.replace(path)
    except OSError as error:
        # A write fails without the file's name, and nobody knows that of the part.
        if error.errno is not None and error.filename in (None, str(part)):
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
        raise
    finally:
        part.unlink(missing_ok=True)
        release(lock)


def _new_part(path: Path) -> tuple[Path, int | None]:
    """An empty file beside `path`, and the lock that says that its writer lives."""
    pattern = re.compile(rf"\.[0-9a-f]{{32}}\.{re.escape(path.name)}")
    with suppress(OSError):
        for left in [each for each in path.parent.iterdir() if pattern.fullmatch(each.name)]:
            if (lock := hold(left, wait=False)) is not None:
                left.unlink(missing_ok=True)
                release(lock)
    while True:
        part = path.with_name(f".{uuid4().hex}.{path.name}")  # SimpleITK reads the format from the suffix
        part.touch(exist_ok=False)
        lock = hold(part)
        if part.exists():
            return part, lock
        release(lock)  # another writer came between


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Writes a table. Names come from foreign files, so a text that a spreadsheet would calculate gets a `'` in front.

    Every text is quoted: nothing in it can begin another cell.
    """
    with written_beside(path) as part, part.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_NONNUMERIC)
        writer.writerow(columns)
        for row in rows:
            writer.writerow(
                [f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULA) else cell for cell in row]
            )


def refuse_to_replace(path: Path, overwrite: bool, of: str = "patient") -> None:
    """Raises InputError for a file that exists, unless `overwrite` says so: it may be of another patient.

    of: what else it may be of another. Raises InputError, too, where no file can be, such as below a file.
    """
    with folder_to_write(path.parent), suppress(FileNotFoundError):
        path.stat()
        if not overwrite:
            raise InputError(
                f"{path}: expected a new file, found one that may be of another {of}; choose another name, or pass "
                "--overwrite to replace it"
            )


def shipped_file(name: str) -> Path:
    """The path of a shipped recipe or document, such as "configs/diffusion.yaml" or "docs/checks.md".

    A wheel holds configs/ and docs/ inside the package; in a clone they lie beside it.
    """
    package = Path(str(resources.files("pcdiff")))
    inside = package / name
    return inside if inside.exists() else package.parent / name


def shipped_digests() -> dict[str, str]:
    """The SHA-256 of each weights file of this package, by its name. Raises InputError where their list is damaged."""
    path = Path(str(resources.files("pcdiff"))) / "weights" / "SHA256SUMS"
    try:
        return {name: digest for digest, name in map(str.split, path.read_text(encoding="utf-8").splitlines())}
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: expected the checksums of the shipped weights, got a missing or damaged file; install pcdiff "
            "again (in a clone: git checkout it)"
        ) from error


def check_as_shipped(path: Path, digest: str) -> None:
    """Raises InputError for a weights file of this package whose SHA-256, `digest`, is not that it was shipped with."""
    if (known := shipped_sha256(path)) not in (None, digest):
        raise InputError(
            f"{path}: expected the file as it was shipped, with sha256 {str(known)[:16]}, got {digest[:16]}: it has "
            "changed; install pcdiff again (in a clone, for new weights: make checksums)"
        )


def shipped_sha256(path: Path) -> str | None:
    """The SHA-256 that a weights file of this package was shipped with; None for any other file.

    `weights/SHA256SUMS` lists them; `make checksums` writes it. Raises InputError for a file in that folder that it
    does not list.
    """
    folder = Path(str(resources.files("pcdiff"))) / "weights"
    if os.path.realpath(path.parent) != os.path.realpath(folder):
        return None
    known = shipped_digests()
    if path.name not in known:
        raise InputError(
            f"{path}: expected one of the shipped weights ({', '.join(known)}), got another file; keep your own "
            "elsewhere (in a clone, for new ones: make checksums)"
        )
    return known[path.name]
