"""Safetensors files that name their format: opened, checked and read in one way."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError, safe_open

from pcdiff.config import Config
from pcdiff.errors import InputError


@dataclass(frozen=True)
class TensorFile:
    """The content of a safetensors file: tensors by name (numpy arrays or torch tensors), and metadata."""

    path: Path
    tensors: dict[str, Any]
    metadata: dict[str, str]

    def config(self, kind: type[Config]) -> Config:
        """The JSON under "config" in the metadata; it has to be complete, so that no default of this version applies.

        Raises InputError where it is absent, incomplete or of another version.
        """
        text = self.metadata.get("config", "{}")
        try:
            config = kind.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            raise self._other_version(".".join(map(str, first["loc"])), str(first["msg"])) from error
        if missing := _missing(json.loads(text), config.model_dump()):
            raise self._other_version(", ".join(missing), "not in the file")
        return config

    def _other_version(self, where: str, problem: str) -> InputError:
        return InputError(
            f"{self.path}: weights of another version of pcdiff: config: {where}: {problem}; "
            "use the version that wrote them, or train anew"
        )


def read_tensors(
    path: Path, what: str, remedy: str, file_format: str | None = None, framework: Literal["np", "pt"] = "np"
) -> TensorFile:
    """Reads a safetensors file whole.

    Args:
        path: the file.
        what: what it is expected to hold, for the message.
        remedy: what the user can do, for the message.
        file_format: the expected "format" of the metadata; None accepts any file.
        framework: numpy arrays or torch tensors.

    Raises:
        InputError: no such file, no safetensors, or another format.
    """
    try:
        with safe_open(path, framework) as file:
            metadata = file.metadata() or {}
            found = metadata.get("format")
            if file_format is not None and found != file_format:
                found = found or "a file without a format"
                raise InputError(f"{path}: expected {what} of format {file_format}, got {found}; {remedy}")
            return TensorFile(Path(path), {name: file.get_tensor(name) for name in file.keys()}, metadata)  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: expected {what}, got: {error}; {remedy}") from error


def read_metadata(path: Path) -> dict[str, str] | None:
    """The metadata of a safetensors file, None where the file cannot be read."""
    try:
        with safe_open(path, "np") as file:
            return file.metadata() or {}
    except (OSError, SafetensorError):
        return None


def _missing(stored: dict[str, Any], complete: dict[str, Any], prefix: str = "") -> list[str]:
    """Names of the fields that a stored config lacks, with dots between sections."""
    missing = []
    for name, value in complete.items():
        if name not in stored:
            missing.append(prefix + name)
        elif isinstance(value, dict) and isinstance(stored[name], dict):
            missing += _missing(stored[name], value, f"{prefix}{name}.")
    return missing


def check_layout(path: Path, what: str, found: BaseModel, expected: BaseModel) -> None:
    """Raises InputError that names each field in which a layout read from a file differs from this version's."""
    mine = dict(expected)
    differences = [_difference(name, value, mine[name]) for name, value in found if value != mine[name]]
    if differences:
        raise InputError(
            f"{path}: made for another {what}: {'; '.join(differences)}. "
            "Use the version of pcdiff that wrote the file, or build it anew"
        )


def _difference(name: str, found: object, expected: object) -> str:
    if not isinstance(found, tuple) or not isinstance(expected, tuple):
        return f"{name} is {found}, expected {expected}"
    parts = [f"without {item}" for item in expected if item not in found]
    parts += [f"with {item}" for item in found if item not in expected]
    return f"{name} {', '.join(parts) or 'in another order'}"
