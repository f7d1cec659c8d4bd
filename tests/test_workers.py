"""What worker processes do with the memory that a case leaves."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

ARRAYS = """
import resource
from pathlib import Path
import numpy as np
from cohort_rows import job
from pcdiff.cohort.work import design_row
design_row(job(Path("gone")))
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(200):
    np.ones(1_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


LARGE = """
import numpy as np
from cohort_rows import job
from pathlib import Path
from pcdiff.cohort.work import RETURN_AFTER, design_row
design_row(job(Path("gone")))
held = [np.ones(1_000) for _ in range(50_000)]
kept = held[::500]
del held
def pages():
    return int(Path("/proc/self/statm").read_text().split()[1])
before = pages()
for _ in range(RETURN_AFTER):
    design_row(job(Path("gone")))
print((before - pages()) * 4096 // 10**6)
"""
pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="about glibc")


def printed_by(program: str, folder: Path, **variables: str) -> int:
    """The number that a Python program prints."""
    variables["PYTHONPATH"] = os.pathsep.join(sys.path)
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=os.environ | variables, cwd=folder, capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_a_worker_of_a_cohort_uses_freed_memory_again(tmp_path: Path) -> None:
    """Dask makes its workers return it to the system, which clears each page at its next use: a third of a case."""
    assert printed_by(ARRAYS, tmp_path, MALLOC_TRIM_THRESHOLD_="65536") < 5_000  # 84,200 if each has its pages anew


def test_a_worker_of_a_cohort_returns_at_times_what_a_large_case_has_left(tmp_path: Path) -> None:
    assert printed_by(LARGE, tmp_path) > 300  # MB of 400; without it 0
