"""Results on stdout, messages on stderr, and the choice of a device."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from typing import Any

import typer

from pcdiff.environment import may_have_gpu
from pcdiff.errors import InputError, first_line


def debugging() -> bool:
    """Whether PCDIFF_DEBUG=1 asks for tracebacks."""
    return os.environ.get("PCDIFF_DEBUG") == "1"


def available_device(name: str) -> str:
    """The device of that name after a test that it can be used; `auto` is a GPU that can be used, else the CPU.

    Loads torch only where there may be a GPU. Raises InputError for an unknown device and one that cannot be used.
    """
    if name == "cpu" or (name == "auto" and not may_have_gpu()):
        return "cpu"
    if name == "auto":
        try:
            return available_device("cuda")
        except InputError:
            return "cpu"
    if not re.fullmatch(r"cuda(:\d+)?", name):
        raise InputError(f"device {name!r}: expected cpu, cuda, cuda:N or auto; use --device cpu")
    import torch

    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {name!r} cannot be used ({first_line(error)}); use --device cpu") from error
    return name


def print_json(record: Mapping[str, Any]) -> None:
    """Prints a result on stdout as one line of JSON: what `--json` asks for. Every value must be finite."""
    typer.echo(json.dumps(record, allow_nan=False))


def print_message(text: str) -> None:
    """Prints a line on stderr."""
    typer.echo(f"pcdiff: {one_line(text)}", err=True)


def one_line(text: str) -> str:
    """The text with its control characters written out: file names may hold line ends, and what a terminal obeys."""
    return "".join(each if ord(each) >= 32 and each != "\x7f" else f"\\x{ord(each):02x}" for each in text)
