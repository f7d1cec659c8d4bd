"""The command `doctor`: dependencies, methods, weights and devices of this installation, and the time of a case."""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from pcdiff import DISTRIBUTION, __version__, install_hint
from pcdiff.cli import options
from pcdiff.cli.console import print_json, print_message
from pcdiff.environment import cpu_count
from pcdiff.errors import MethodError, first_line
from pcdiff.files import sha256, shipped_sha256
from pcdiff.methods.registry import DEFAULT, METHODS, installed_methods, weights_files

PURPOSES = {  # of the extras that a user may want
    "open3d": "a window for `pcdiff view`, and the screened surface reconstruction",
    "dicom": "implants as DICOM Segmentation",
    "triton": "faster point operations on CUDA",
    "baselines": "networks of the field, from MONAI",
    "train": "training",
    "cohort": "many cases on all cores or a cluster: `pcdiff cohort`",
    "mcp": "a server for agents: `pcdiff mcp`",
}
MIN_DSC = 0.95  # of the built-in case; it reaches 0.962
USUAL_COST = "15 s and 1.0 GB on two cores for a CT of 0.4 mm; pcdiff doctor --try measures it here"
MARKS = {True: "ok ", False: "BAD", None: "   "}


@dataclass(frozen=True)
class Finding:
    """One line of the report. good: whether it is as it should be, None for information."""

    name: str
    words: str
    good: bool | None = True


def doctor(
    try_it: Annotated[bool, typer.Option("--try", help="Also design the built-in case and measure it.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Check the installation: dependencies, methods, weights, devices, and the time of a case.

    The exit code is 1 if something is missing or wrong. With --try the built-in case is also designed, in a temporary
    folder; that takes about half a minute.

        pcdiff doctor
        pcdiff doctor --try
    """
    findings = []
    for finding in examine(try_it):
        findings.append(finding)
        if not as_json:
            typer.echo(f"{MARKS[finding.good]} {finding.name:<30} {finding.words}")
    problems = sum(finding.good is False for finding in findings)
    if as_json:
        print_json({"problems": problems, "findings": [asdict(finding) for finding in findings]})
    if problems:
        print_message(f"{problems} problem{'' if problems == 1 else 's'}, marked BAD above")
        raise typer.Exit(1)
    if not as_json:
        typer.echo("all dependencies found")


def examine(try_it: bool = False) -> Iterator[Finding]:
    """Examines this installation, one finding after the other. Takes some seconds, loads torch, needs no network.

    try_it: also designs the built-in case.
    """
    yield Finding("pcdiff", f"{__version__}, Python {platform.python_version()}, {platform.platform()}", None)
    yield from _dependencies()
    yield from _methods()
    yield from _devices()
    yield _display()
    yield _built_in_case() if try_it else Finding("a case", USUAL_COST, None)


def requirements() -> dict[str, list[str]]:
    """Packages that this distribution requires, by extra; "" stands for those that are always needed.

    Raises PackageNotFoundError if the distribution is not installed.
    """
    found: dict[str, list[str]] = {"": []}
    for line in metadata.requires(DISTRIBUTION) or []:
        name = re.match(r"[\w.-]+", line)
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", line)
        if name:
            found.setdefault(extra[1] if extra else "", []).append(name[0])
    return found


def _dependencies() -> Iterator[Finding]:
    try:
        required = requirements()
    except metadata.PackageNotFoundError:
        yield Finding(DISTRIBUTION, f"not installed as a package; run {install_hint()}", False)
        return
    for name in required[""]:
        version = version_of(name)
        yield Finding(name, version or f"missing; run pip install {name}", version is not None)
    for extra, purpose in PURPOSES.items():
        missing = [name for name in required.get(extra, []) if version_of(name) is None]
        words = f"installed: {purpose}"
        if missing:
            words = f"optional, without {', '.join(missing)}; for {purpose} run {install_hint(extra)}"
        yield Finding(f"extra {extra}", words, None)


def _methods() -> Iterator[Finding]:
    """Each method of the table and of other packages, then each weights file once."""
    weights: list[Path] = []
    for name, entry in (METHODS | installed_methods()).items():
        if entry.required:
            yield Finding(f"method {name}", f"{entry.help}: {entry.required}", None)
            continue
        files = weights_files(name)
        missing = [path.name for path in files if not path.is_file()]
        words = f"{entry.help}; licence: {entry.licence}" if not missing else f"without {', '.join(missing)}"
        good: bool | None = not missing
        if good and entry.extra and not entry.is_installed:
            good, words = None, f"{words}; optional, run {install_hint(entry.extra)}"
        if name not in METHODS:
            try:
                entry.find_loader()
            except MethodError as error:
                good, words = False, first_line(error).removeprefix(f"method {name} ")
        yield Finding(f"method {name}", words, good)
        weights += [path for path in files if path not in weights]
    yield from map(_weights_file, weights)


def _weights_file(path: Path) -> Finding:
    """Whether a weights file is there, and is as it was shipped."""
    if not path.is_file():
        return Finding(path.name, f"missing; run {install_hint()} again", False)
    digest, known = sha256(path), shipped_sha256(path)
    if known not in (None, digest):
        return Finding(
            path.name, f"changed: sha256 {digest[:16]}, shipped {str(known)[:16]}; run {install_hint()} again", False
        )
    return Finding(path.name, f"sha256 {digest[:16]}{'' if known is None else ', as shipped'}")


def _devices() -> Iterator[Finding]:
    memory = ""
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        memory = f", {size / 1e9:.1f} GB of memory"
    yield Finding("cpu", f"{cpu_count()} cores{memory}", None)
    try:
        import torch
    except (ImportError, OSError) as error:
        yield Finding("cuda", f"torch cannot be imported: {first_line(error)}", False)
        return
    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count()))
        yield Finding("cuda", f"{names}; used with --device auto", None)
    else:
        yield Finding("cuda", "no GPU that torch can use; the CPU is used", None)
    from pcdiff.nets.devices import computes_bfloat16

    fast = computes_bfloat16("cuda" if torch.cuda.is_available() else "cpu")
    yield Finding("bfloat16", "fast: networks use it" if fast else "slow here: networks compute in float32", None)


def _display() -> Finding:
    available = platform.system() != "Linux" or bool({"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys())
    return Finding("display", "available" if available else "none; pcdiff view writes a page instead of a window", None)


def _built_in_case() -> Finding:
    """Designs the built-in case in a temporary folder."""
    from pcdiff.pipeline.demo import demo
    from pcdiff.pipeline.settings import Settings

    started = time.perf_counter()
    with TemporaryDirectory() as folder:
        record = demo(Path(folder) / "demo", Settings(DEFAULT))
    dsc, seconds = record["scores"]["dsc"], record["seconds"]["total"]
    words = (
        f"designed in {seconds:.0f} s, with its report {time.perf_counter() - started:.0f} s; "
        f"{record['peak_memory_mb']} MB; DSC {dsc:.3f} with the true implant"
    )
    if dsc <= MIN_DSC:
        words += f": expected more than {MIN_DSC}, please report it"
    return Finding("a case", words, dsc > MIN_DSC)


def version_of(name: str) -> str | None:
    """The version of an installed package, None without it."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
