"""Seeded mutations of files, and what a reader may do with them: read, or refuse in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from pcdiff.errors import InputError

TOKENS = (b"null", b"{}", b"[" * 3000, b"9" * 5000, b"1e999", b"NaN", b"-1", b"\xff\xfe", b"\0" * 9, b'"', b"&a [*a]")


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """The bytes with some of them changed, cut off, repeated, or replaced by what parsers stumble over."""
    changed = bytearray(data)
    kind = rng.integers(4)
    at = int(rng.integers(len(changed)))
    if kind == 0:
        for place in rng.integers(len(changed), size=int(rng.integers(1, 9))):
            changed[place] = int(rng.integers(256))
    elif kind == 1:
        del changed[at:]
    elif kind == 2:
        changed[at:at] = changed[: int(rng.integers(1, 100))]
    else:
        changed[at : at + 1] = TOKENS[int(rng.integers(len(TOKENS)))]
    return bytes(changed)


def refused(read: Callable[[], object]) -> bool:
    """Whether it raises an InputError of one line. Any other error fails the test."""
    try:
        read()
    except InputError as error:
        message = str(error)
    else:
        return False
    assert "\n" not in message
    assert len(message) < 3000
    return True


def fuzz(path: Path, read: Callable[[Path], object], times: int, seed: int = 16, head: int | None = None) -> int:
    """How many mutations of a file a reader refuses; the file is as before in the end.

    head: only the first bytes are mutated, where the structure of a large file is.
    """
    original = path.read_bytes()
    end = len(original) if head is None else head
    rng = np.random.default_rng(seed)
    count = 0
    for _ in range(times):
        path.write_bytes(mutated(original[:end], rng) + original[end:])
        count += refused(lambda: read(path))
    path.write_bytes(original)
    return count
