"""`run.json`, the record of a result, and the case folder that it completes.

A case folder appears whole or not at all; the record is its last file, so a folder that has one is complete.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import metadata, resources
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any

from pcdiff.errors import InputError
from pcdiff.files import sha256, written_beside

RECORD = "run.json"
SKULL = "defective_skull.nrrd"  # in the folder where the input was not that mask itself
# The methods, and the weights of their own that are shipped.
METHODS = {"diffusion": "denoiser.safetensors", "prior": "prior.safetensors", "paper": None}


def weights_files(method: str, weights: Path | None = None) -> list[Path]:
    """What a method reads: its own weights (by default those shipped); then, unless it is the prior, a prior; then, for
    diffusion, a network of places where there is one.

    What lies beside other weights was made with them: their prior wins over the shipped one, and no other network of
    places fits them.
    Raises InputError for an unknown method, and for the paper's, of which none are shipped, without weights.
    """
    if method not in METHODS:
        raise InputError(f"unknown method {method!r}: expected one of {', '.join(METHODS)}")
    if method == "paper" and weights is None:
        raise InputError(
            "method paper: expected --weights, got none; its authors published none, so import a checkpoint of "
            "your own with pcdiff import-checkpoint, or train one by configs/paper_skullfix.yaml"
        )
    with resources.as_file(resources.files("pcdiff") / "weights") as shipped:
        files = [weights or shipped / str(METHODS[method])]
        if method != "prior":
            beside = files[0].with_name("prior.safetensors")
            files.append(beside if beside.is_file() else shipped / "prior.safetensors")
        if method == "diffusion":
            files += [path for path in [files[0].with_name("places.safetensors")] if path.is_file()]
    return files


def read_record(folder: Path) -> dict[str, Any] | None:
    """The `run.json` of a case folder, None where there is none or it is not sound."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and isinstance(record.get("files"), dict) else None


def write_record(part: Path, record: dict[str, Any]) -> None:
    """`run.json` beside the files of a case, with the sha256 of each."""
    found = (path.relative_to(part).as_posix() for path in sorted(part.rglob("*")) if path.is_file())
    renew_record(part, record | {"files": {}}, found)


def renew_record(folder: Path, record: dict[str, Any], names: Iterable[str]) -> None:
    """`run.json` again, with the sha256 of the files named, which are new, or have been written anew.

    So a design that takes this one's place takes them away too: none of them is of the implant that lies beside it.
    """
    files = record["files"] | {name: sha256(folder / name) for name in names}
    with written_beside(folder / RECORD) as path:
        path.write_text(json.dumps(record | {"files": files}, indent=1, allow_nan=False) + "\n", encoding="utf-8")


@contextmanager
def case_folder(folder: Path, overwrite: bool = False, source: Path | None = None) -> Iterator[Path]:
    """An empty folder beside to write a case into; it becomes `folder` when the block succeeds, and vanishes when not.

    Where there is a folder already, only what an earlier run wrote is replaced; other files in it stay. Raises
    InputError for a folder that cannot be written, for one that the `source` is to be read from, and, unless
    `overwrite`, for one that is not an earlier result.
    """
    if source is not None and source.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"{folder}: holds {source.name}, which is to be read; choose another output folder")
    if folder.is_dir() and any(folder.iterdir()) and read_record(folder) is None and not overwrite:
        raise InputError(
            f"{folder}: expected a new folder or an earlier result, found other files; "
            "choose another output folder, or pass --overwrite to write between them"
        )
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if folder.exists() and not folder.is_dir():
            raise FileExistsError(17, "a file of that name exists")
        part = Path(mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise InputError(f"{folder}: expected a folder to write to, got: {error.strerror}; choose another") from error
    try:
        part.chmod(0o777 & ~_umask())
        yield part
        _put(part, folder)
    finally:
        rmtree(part, ignore_errors=True)


def peak_memory_mb() -> float:
    """Peak resident set of this process, 10^6 bytes."""
    import resource

    if sys.platform == "linux":  # ru_maxrss begins at the resident set of whoever started us
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def machine() -> dict[str, Any]:
    """What the bytes of a result may depend on beside its settings."""
    packages = ("numpy", "scipy", "scikit-image", "torch")
    return {
        "platform": platform.platform(),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in packages},
        "cpu_count": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }


def _put(part: Path, folder: Path) -> None:
    """Moves a finished case into place, its record last."""
    if not folder.exists():
        part.rename(folder)
        return
    old = read_record(folder) or {"files": {}}
    (folder / RECORD).unlink(missing_ok=True)
    for name in old["files"]:
        stale = folder / name
        if stale.resolve().is_relative_to(folder.resolve()) and stale.is_file():
            stale.unlink()
            if stale.parent != folder and not any(stale.parent.iterdir()):
                stale.parent.rmdir()
    for path in sorted((path for path in part.rglob("*") if path.is_file()), key=lambda path: path.name == RECORD):
        target = folder / path.relative_to(part)
        target.parent.mkdir(exist_ok=True)
        path.replace(target)


def _umask() -> int:
    """mkdtemp makes a private folder; a case folder is as open as any other."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
