"""Seeded mutations of files, and what a reader may do with them: read, or refuse in one line."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pcdiff.errors import InputError

TIMES = int(os.environ.get("FUZZ", "1"))  # times more mutations, see `make fuzz`
WORDS = [b"nan", b"inf", b"-1", b"0", b"1e308", b"9" * 20, b"none", b"LIST", b"(1,0,0)", b"(", b"4", b"\xff", b"\0"]
WORDS += [b"\t", b": ", b":=", b"=", b"\n", b"\r", b"/etc/passwd", b"LOCAL", b"1" * 5000, b"2 2 2 2 2", b"1_0"]
NUMBERS = (np.nan, np.inf, -1, 1e38, 1e-38)
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


def mutated_header(head: bytes, rng: np.random.Generator) -> bytes:
    """A header with some of its bytes changed, removed or replaced by words and numbers."""
    data = bytearray(head)
    for _ in range(rng.choice([1, 1, 2, 5])):
        at, kind = int(rng.integers(len(data))), rng.integers(5)
        if kind == 0:
            data[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            data[at : at + int(rng.choice([1, 4, 20]))] = b""
        elif kind == 2:
            data[at : at + int(rng.choice([0, 1, 4]))] = WORDS[int(rng.integers(len(WORDS)))]
        elif kind == 3:
            lines = bytes(data).split(b"\n")
            lines.insert(int(rng.integers(len(lines))), lines[int(rng.integers(len(lines)))])
            data = bytearray(b"\n".join(lines))
        else:
            data[at : at + 4] = struct.pack("<f", NUMBERS[int(rng.integers(len(NUMBERS)))])
        data = data or bytearray(b"\n")
    return bytes(data)


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


def fuzz(
    path: Path,
    read: Callable[[Path], object],
    times: int,
    seed: int = 16,
    head: int | None = None,
    mutate: Callable[[bytes, np.random.Generator], bytes] = mutated,
) -> float:
    """How many of `times` mutations of a file a reader refuses; the file is as before in the end.

    head: only the first bytes are mutated, where the structure of a large file is. Of `TIMES` as many mutations the
    mean is given.
    """
    original = path.read_bytes()
    end = len(original) if head is None else head
    rng = np.random.default_rng(seed)
    count = 0
    for _ in range(times * TIMES):
        path.write_bytes(mutate(original[:end], rng) + original[end:])
        count += refused(lambda: read(path))
    path.write_bytes(original)
    return count / TIMES
