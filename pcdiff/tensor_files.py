"""Safetensors files that name their format: written with a checksum, opened, checked and read in one way."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ValidationError

from pcdiff.config import Config
from pcdiff.errors import InputError
from pcdiff.files import check_as_shipped, shipped_digests, written_beside
from pcdiff.foreign import check_file, parsing, place_of, read_bytes

MAX_BYTES = 4 * 2**30
CHECKSUM = "checksum"  # in the metadata: of everything else in the file
KINDS = {"float": "f", "integer": "iu", "uint8": "u"}  # of numpy's types


@dataclass(frozen=True)
class TensorFile:
    """The content of a safetensors file: tensors by name (numpy arrays or torch tensors), and its metadata.

    metadata: without the checksum. what, remedy: for messages. sha256: of the file. compared: whether the values are
    known to be those that were written, by the file's own checksum or because it is as it was shipped.
    """

    path: Path
    tensors: dict[str, Any]
    metadata: dict[str, str]
    what: str
    remedy: str
    sha256: str
    compared: bool

    def config(self, kind: type[Config]) -> Config:
        """The JSON under "config" in the metadata; it has to be complete, so that no default of this version applies.

        Raises InputError where it is absent, incomplete or of another version.
        """
        text = self.metadata.get("config", "{}")
        try:
            config = kind.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            raise self._other_version(place_of(first["loc"]), str(first["msg"])) from error
        if missing := _missing(json.loads(text), config.model_dump()):
            raise self._other_version(", ".join(missing), "not in the file")
        return config

    def notes(self, schema: type[Config]) -> Config:
        """The metadata's values, by a schema that ignores the others. Raises InputError for what does not fit."""
        with parsing(self.path, f"{self.what} with its metadata", self.remedy):
            return schema.model_validate(self.metadata)

    def array(
        self,
        name: str,
        kind: Literal["float", "integer", "uint8"],
        shape: Sequence[int | None],
        finite: bool = True,
    ) -> np.ndarray:
        """A tensor as an array, in the type that it is stored in.

        shape: None where any length will do. finite: whether NaN and infinity are refused. Raises InputError for a
        name that is not there, another kind or shape, and values that are not finite.
        """
        if name not in self.tensors:
            raise InputError(f"{self.path}: expected {self.what}, got one without {name}; {self.remedy}")
        with parsing(self.path, f"{self.what} with {name} as {kind}", self.remedy):
            values = np.asarray(self.tensors[name])
        fits = len(shape) == values.ndim and all(n in (None, m) for n, m in zip(shape, values.shape, strict=True))
        if not fits or values.dtype.kind not in KINDS[kind] or (kind == "uint8" and values.itemsize > 1):
            wanted = f"{kind} ({', '.join('any' if n is None else str(n) for n in shape)})"
            raise self._other(name, f"as {wanted}", f"{values.dtype} {values.shape}")
        if finite and kind == "float" and not np.isfinite(values).all():
            raise self._other(name, "of finite numbers", "NaN or infinity")
        return values

    def _other(self, name: str, wanted: str, got: str) -> InputError:
        return InputError(f"{self.path}: expected {self.what} with {name} {wanted}, got {got}; {self.remedy}")

    def _other_version(self, where: str, problem: str) -> InputError:
        return InputError(
            f"{self.path}: weights of another version of pcdiff: config: {where}: {problem}; "
            "use the version that wrote them, or train anew"
        )


def write_tensors(path: Path, tensors: Mapping[str, Any], metadata: Mapping[str, str]) -> None:
    """Writes tensors, all numpy or all torch, with their metadata and a checksum, whole or not at all.

    The same content gives the same bytes.
    """
    if all(isinstance(value, np.ndarray) for value in tensors.values()):
        save = _library("np").save
        contiguous = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    else:
        save = _library("pt").save
        contiguous = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    checksum = _checksum(save(contiguous, dict(metadata)))
    content = _ordered(save(contiguous, {**metadata, CHECKSUM: checksum}))
    with written_beside(path) as beside:
        beside.write_bytes(content)


def read_tensors(
    path: Path, what: str, remedy: str, file_format: str | None = None, framework: Literal["np", "pt"] = "np"
) -> TensorFile:
    """Reads a safetensors file whole.

    A file with a checksum has to have the values that it was written with. One that the package ships has to be as it
    was shipped.

    Args:
        path: the file.
        what: what it is expected to hold, for the message.
        remedy: what the user can do, for the message.
        file_format: the expected "format" of the metadata; None accepts any file.
        framework: numpy arrays or torch tensors.

    Raises:
        InputError: no such file, no safetensors, another format, or a file that has changed since it was written.
    """
    path = Path(path)
    data = read_bytes(path, what, remedy, MAX_BYTES)
    digest = hashlib.sha256(data).hexdigest()
    check_as_shipped(path, digest)
    with parsing(path, what, remedy):
        tensors = _library(framework).load(data)
        metadata = _header(data).get("__metadata__", {})
    found = metadata.get("format")
    if file_format is not None and found != file_format:
        found = found or "a file without a format"
        raise InputError(f"{path}: expected {what} of format {file_format}, got {found}; {remedy}")
    if (checksum := metadata.pop(CHECKSUM, None)) not in (None, _checksum(data)):
        raise InputError(f"{path}: expected {what}, got a damaged file (its checksum differs); {remedy}")
    compared = checksum is not None or digest in shipped_digests().values()
    return TensorFile(path, tensors, metadata, what, remedy, digest, compared)


def read_metadata(path: Path) -> dict[str, str] | None:
    """The metadata of a safetensors file, None where the file cannot be read."""
    from safetensors import safe_open

    try:
        check_file(path, "a safetensors file", "check the path", MAX_BYTES)
        with parsing(path, "a safetensors file", "write it again"), safe_open(path, "np") as file:
            metadata: dict[str, str] = file.metadata() or {}
    except InputError:
        return None
    metadata.pop(CHECKSUM, None)
    return metadata


def _library(framework: Literal["np", "pt"]) -> Any:
    """The part of safetensors for a framework; only networks need torch."""
    return import_module("safetensors.numpy" if framework == "np" else "safetensors.torch")


def _header(data: bytes) -> dict[str, Any]:
    """The header of a safetensors file that the library has accepted."""
    header: dict[str, Any] = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return header


def _ordered(data: bytes) -> bytes:
    """The same file with its metadata by name: the library writes them in an order that changes from call to call."""
    header = _header(data)
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the tensors stay aligned
    return len(text).to_bytes(8, "little") + text + data[8 + int.from_bytes(data[:8], "little") :]


def _checksum(data: bytes) -> str:
    """The SHA-256 of a safetensors file's names, types, places, metadata and values, but not of a checksum in it."""
    header = _header(data)
    header.get("__metadata__", {}).pop(CHECKSUM, None)
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    digest.update(memoryview(data)[8 + int.from_bytes(data[:8], "little") :])
    return digest.hexdigest()


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
