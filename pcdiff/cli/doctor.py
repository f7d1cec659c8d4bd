"""What is installed, which weights, which device, and how long a case will take."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata, resources
from pathlib import Path
from tempfile import TemporaryDirectory

from pcdiff import __version__
from pcdiff.files import sha256

NEEDED = (
    *("numpy", "scipy", "scikit-image", "pynrrd", "SimpleITK", "pillow", "torch", "einops", "safetensors"),
    *("pydantic", "pyyaml", "typer", "tqdm", "trimesh", "plotly", "manifold3d"),
)
EXTRAS = {
    "open3d": ("open3d", "a window to turn a case in, and a second surface reconstruction"),
    "dicom": ("highdicom", "implants as DICOM segmentation"),
    "train": ("accelerate", "training"),
}
GOOD_DSC = 0.95  # of the built-in case; 0.969 where it was made
KNOWN = "13 s and 0.8 GB on two cores for a CT of 0.4 mm (README); pcdiff doctor --try measures it here"


@dataclass(frozen=True)
class Finding:
    """One line of the report. good: None where it is neither good nor bad, but to be known."""

    name: str
    words: str
    good: bool | None = True


def examine(try_it: bool = False) -> Iterator[Finding]:
    """Looks at this machine, one thing after the other; takes some seconds, loads torch, needs no network.

    try_it: designs the built-in case too, and measures it.
    """
    yield Finding("pcdiff", f"{__version__}, Python {platform.python_version()}, {platform.platform()}", None)
    for name in NEEDED:
        version = _version(name)
        yield Finding(name, version or f"missing; pip install {name}", version is not None)
    for extra, (name, what) in EXTRAS.items():
        version = _version(name)
        words = f"{version}: {what}" if version else f"not there: pip install 'pcdiff[{extra}]' for {what}"
        yield Finding(name, words, None)
    yield from _weights()
    yield from _devices()
    yield _display()
    yield _built_in_case() if try_it else Finding("a case", KNOWN, None)


def _weights() -> Iterator[Finding]:
    with resources.as_file(resources.files("pcdiff") / "weights") as folder:
        for name in ("prior", "denoiser", "places"):
            path = Path(folder) / f"{name}.safetensors"
            there = path.is_file()
            words = f"sha256 {sha256(path)[:16]}" if there else "missing; install pcdiff again"
            yield Finding(path.name, words, there)


def _devices() -> Iterator[Finding]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = ""
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        memory = f", {size / 1e9:.1f} GB of memory"
    yield Finding("cpu", f"{cores} cores{memory}", None)
    try:
        import torch
    except (ImportError, OSError) as error:
        yield Finding("cuda", f"torch cannot be imported: {error}", False)
        return
    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count()))
        yield Finding("cuda", f"{names}; --device auto takes it", None)
    else:
        yield Finding("cuda", "no GPU that torch can use; the CPU does", None)


def _display() -> Finding:
    there = platform.system() != "Linux" or bool({"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys())
    return Finding("display", "there is one" if there else "none; pcdiff view writes pages and pictures instead", None)


def _built_in_case() -> Finding:
    """Designs the built-in case into a folder that is thrown away: does it work, and how long does it take here?"""
    from pcdiff.design.demo import demo
    from pcdiff.design.settings import Settings

    started = time.perf_counter()
    with TemporaryDirectory() as folder:
        record = demo(Path(folder) / "demo", Settings("diffusion"))
    dsc, seconds = record["scores"]["dsc"], record["seconds"]["total"]
    words = (
        f"designed in {seconds:.0f} s, with its report {time.perf_counter() - started:.0f} s; "
        f"{record['peak_memory_mb']} MB; DSC {dsc:.3f} with the true implant"
    )
    return Finding("a case", words + ("" if dsc > GOOD_DSC else ": expected more, please report it"), dsc > GOOD_DSC)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
