"""The machine a result was made on, and the memory it took."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any


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
