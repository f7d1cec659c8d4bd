"""The machine that a process runs on: its packages, its memory, its threads."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


def peak_memory_mb() -> float:
    """Peak resident set of this process, 10^6 bytes."""
    import resource

    if sys.platform == "linux":  # ru_maxrss starts at the resident set of the parent process
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def machine() -> dict[str, Any]:
    """The platform and package versions that the bytes of a result may depend on, beside its settings."""
    packages = ("numpy", "scipy", "scikit-image", "torch")
    return {
        "platform": platform.platform(),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in packages},
        "cpu_count": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }


@contextmanager
def one_thread_per_child() -> Iterator[None]:
    """Processes started in the block run OpenMP and BLAS on one thread each; the libraries read this when they load.

    Many workers with as many threads as cores each would only get in each other's way.
    """
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
