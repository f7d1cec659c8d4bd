"""What the strict readers of headers share: whole numbers, numbers, and the file beside a header."""

from __future__ import annotations

import os
import re
from pathlib import Path

from pcdiff.errors import InputError

MAX_NAME = 255  # bytes of a file's name


class Invalid(Exception):
    """A field that the format does not allow; the message says which."""


def shown(text: str) -> str:
    """Foreign text for a message: at most 60 characters, all of them printable."""
    return "".join(each if each.isprintable() else "?" for each in text.strip()[:60])


def whole(text: str, least: int = 0, most: int = 10**12) -> int:
    """A whole number of at most twelve digits. Raises Invalid for another text."""
    if not re.fullmatch(r"[+-]?[0-9]{1,12}", text) or not least <= int(text) <= most:
        raise Invalid(f"expected a whole number from {least} to {most}, got {shown(text)}")
    return int(text)


def numbers(tokens: list[str], count: int | None = None) -> list[float]:
    """Numbers, nan and inf too, `count` of them if it is given. Raises Invalid for others."""
    try:
        values = [float(token.replace("_", "?")) for token in tokens]
    except ValueError as error:
        raise Invalid(f"expected numbers, got {shown(' '.join(tokens))}") from error
    if count not in (None, len(values)):
        raise Invalid(f"expected {count} numbers, got {shown(' '.join(tokens))}")
    return values


def file_beside(header: Path, name: str) -> Path:
    """The data file that a header names: a regular file in the header's own folder, no link.

    Raises InputError for anything else: another folder, a link, a pipe, several files, or no file.
    """
    inside = not re.search(r"[/\\\0]", name) and name not in ("", ".", "..") and len(os.fsencode(name)) <= MAX_NAME
    if not inside or (header.parent / name).is_symlink() or not (header.parent / name).is_file():
        raise InputError(
            f"{header}: expected one data file beside the header, a file and no link, got '{shown(name)}'; put it "
            "there, or save the image as one file"
        )
    return header.parent / name
