"""Files that appear whole or not at all, and what their bytes are known by."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pcdiff.errors import InputError


def sha256(path: Path) -> str:
    """Of a file's bytes. Raises InputError where there is no such file."""
    if not path.is_file():
        raise InputError(f"{path}: expected a file, found none; check the path")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
