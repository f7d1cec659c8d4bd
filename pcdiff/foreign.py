"""Bytes that others wrote: opened within limits, and every error of a parser turned into ours, in one place."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pcdiff.errors import InputError

if TYPE_CHECKING:
    from pydantic import BaseModel

    Model = TypeVar("Model", bound=BaseModel)

MAX_TEXT_BYTES = 64 * 2**20  # of a JSON file; a record has some kilobytes
MAX_CAUSE = 300  # characters of a parser's message
MAX_PLACE = 120  # characters of a field's place


@contextmanager
def parsing(source: object, expected: str, remedy: str) -> Iterator[None]:
    """Turns whatever a parser raises in the block into one InputError line; an InputError passes unchanged.

    source: where the bytes come from; starts the line. expected: what they should be. remedy: what the user can do.
    Only what reads foreign bytes belongs into the block: an error of our own code would be blamed on the file.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{source}: expected {expected}, got: {cause_of(error)}; {remedy}") from error


def cause_of(error: Exception) -> str:
    """What a parser says, in one line: each wrong field of a schema, else its message."""
    from pydantic import ValidationError

    if isinstance(error, ValidationError):
        wrong = [
            ": ".join(filter(None, [place_of(each["loc"]), each["msg"]]))
            for each in error.errors(include_url=False, include_context=False, include_input=False)
        ]
        more = f"; and {len(wrong) - 8} more" if len(wrong) > 8 else ""
        return "; ".join(wrong[:8]) + more
    if isinstance(error, MemoryError):
        return "more than fits into the memory"
    if isinstance(error, RecursionError):
        return "values nested too deeply"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split())[:MAX_CAUSE] or type(error).__name__


def place_of(location: Iterable[object]) -> str:
    """Where in a file a field is, from a schema's location; a file can name a field as long as it likes."""
    return ".".join(map(str, location))[:MAX_PLACE]


def check_file(path: Path, expected: str, remedy: str, limit: int | None = None) -> None:
    """Raises InputError unless the path is a regular file, or a link to one, of at most `limit` bytes."""
    with parsing(path, expected, remedy):
        found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        kind = "a folder" if stat.S_ISDIR(found.st_mode) else "a pipe or device"
        raise InputError(f"{path}: expected {expected}, got: {kind}; {remedy}")
    if limit is not None and found.st_size > limit:
        raise _too_large(path, expected, remedy, limit)


def read_bytes(path: Path, expected: str, remedy: str, limit: int = MAX_TEXT_BYTES) -> bytes:
    """The bytes of a file that passes `check_file`, and that ends within `limit` bytes as it is read."""
    check_file(path, expected, remedy, limit)
    with (
        parsing(path, expected, remedy),
        os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)), "rb") as file,
    ):
        data = file.read(limit + 1)
    if len(data) > limit:  # a file of the kernel has no size
        raise _too_large(path, expected, remedy, limit)
    return data


def read_json(path: Path, schema: type[Model], expected: str, remedy: str) -> dict[str, Any]:
    """The values of a JSON file that fits a schema, as they stand in the file.

    Keys that the schema does not name are kept where it allows them. Raises InputError that names what does not fit.
    """
    data = read_bytes(path, expected, remedy)
    with parsing(path, expected, remedy):
        return schema.model_validate_json(data).model_dump(exclude_unset=True)


def _too_large(path: Path, expected: str, remedy: str, limit: int) -> InputError:
    return InputError(f"{path}: expected {expected}, of at most {limit / 1e6:.0f} MB, got: a larger file; {remedy}")
