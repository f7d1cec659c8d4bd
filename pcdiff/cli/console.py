"""What the command line says when something goes wrong, and the checks that only it needs."""

from __future__ import annotations

import os
import re

import typer

from pcdiff.errors import InputError, OutputError


def debugging() -> bool:
    """Does the user want tracebacks?"""
    return os.environ.get("PCDIFF_DEBUG") == "1"


def device_that_is_there(name: str) -> str:
    """The name of a device that is there; of `auto` a GPU, where there is one.

    Raises InputError for any other; loads torch only where it must.
    """
    if name == "cpu":
        return name
    if name == "auto":
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cuda(:\d+)?", name):
        raise InputError(f"device {name!r}: expected cpu, cuda, cuda:N or auto; use --device cpu")
    import torch

    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {name!r} cannot be used ({first_line(error)}); use --device cpu") from error
    return name


def say(text: str) -> None:
    """A line on stderr."""
    typer.echo(f"pcdiff: {text}", err=True)


def exit_code(error: Exception) -> int:
    """2 for what the user can mend, 1 for a failure."""
    return 2 if isinstance(error, InputError) else 1


def line_on(error: Exception) -> str:
    """What went wrong, in one line for the user."""
    if isinstance(error, InputError | OutputError):
        return first_line(error)
    if isinstance(error, OSError):
        return f"{error.filename or 'input or output'}: {error.strerror or first_line(error)}"
    if isinstance(error, MemoryError):
        return "out of memory; close other programs, or crop the scan to the head"
    return f"unexpected {type(error).__name__}: {first_line(error)}; PCDIFF_DEBUG=1 shows where, please report it"


def first_line(error: Exception) -> str:
    """Of its message, or its name where it has none."""
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
