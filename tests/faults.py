"""A disk that is full, or read-only, from the n-th change on: of what Python writes beneath a folder."""

from __future__ import annotations

import builtins
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

CHANGES = ("mkdir", "rename", "replace", "link", "fsync", "truncate")


class Disk:
    """Counts the changes beneath a folder: files opened to write, writes, fsync, renames and new folders.

    From number `first` on each of them fails with the error `number`; what is there can still be removed.
    """

    def __init__(self, folder: Path, first: int | None, number: int) -> None:
        self.folder, self.first, self.number, self.changes = str(folder), first, number, 0

    def change(self, path: object = None) -> None:
        """Counts a change, and raises OSError if it is not possible any more."""
        self.changes += 1
        if self.first is not None and self.changes >= self.first:
            raise OSError(self.number, os.strerror(self.number), *([] if path is None else [str(path)]))

    def has(self, path: object) -> bool:
        """Whether a path lies beneath the folder."""
        return not isinstance(path, int) and os.fspath(path).startswith(self.folder)  # type: ignore[arg-type]


@contextmanager
def failing(folder: Path, first: int | None, number: int) -> Iterator[Disk]:
    """While entered, the disk beneath the folder fails; see `Disk`. first: None for never."""
    disk = Disk(folder, first, number)
    real_open, real_os_open = io.open, os.open

    class Raw(io.FileIO):
        def write(self, data: Any) -> int:
            disk.change()
            return super().write(data)

    def opened(file: Any, mode: str = "r", buffering: int = -1, *args: Any, **options: Any) -> Any:
        if not disk.has(file) or not set(mode) & set("wax+"):
            return real_open(file, mode, buffering, *args, **options)
        disk.change(file)
        raw = Raw(file, mode.replace("b", "").replace("t", ""))
        if not buffering:
            return raw
        buffered = (io.BufferedRandom if "+" in mode else io.BufferedWriter)(raw)  # type: ignore[type-var]
        return buffered if "b" in mode else io.TextIOWrapper(buffered, *args, **options)

    def os_opened(path: Any, flags: int, *args: Any, **options: Any) -> int:
        if flags & os.O_CREAT and disk.has(path):
            disk.change(path)
        return real_os_open(path, flags, *args, **options)

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *args: Any, **options: Any) -> Any:
            if disk.has(path) or (isinstance(path, int) and disk.has(Path(f"/proc/self/fd/{path}").readlink())):
                disk.change(None if isinstance(path, int) else path)
            return real(path, *args, **options)

        return call

    with (
        mock.patch.object(builtins, "open", opened),
        mock.patch.object(io, "open", opened),
        mock.patch.object(os, "open", os_opened),
        mock.patch.multiple(os, **{name: counted(getattr(os, name)) for name in CHANGES}),
    ):
        yield disk
