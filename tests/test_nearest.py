"""The nearest points of a tree, on all cores: the same as on one, and a signal in between does no harm."""

from __future__ import annotations

import signal
import subprocess
import sys

import numpy as np
import pytest
from scipy.spatial import cKDTree

from pcdiff.geometry.nearest import FEW, nearest

ENDED = """
import signal
import numpy as np
from scipy.spatial import cKDTree
from pcdiff.geometry.nearest import nearest

def end(*_):
    raise KeyboardInterrupt

signal.signal(signal.SIGALRM, end)
tree = cKDTree(np.random.default_rng(0).random((100_000, 3)))
for k in range(12):
    points = np.random.default_rng(k).random((150_000, 3))
    signal.setitimer(signal.ITIMER_REAL, 0.01 + 0.01 * k)
    try:
        nearest(tree, points, k=3)
    except KeyboardInterrupt:
        pass
    signal.setitimer(signal.ITIMER_REAL, 0)
    del points
    others = [np.ones(100_000) for _ in range(50)]
"""


@pytest.mark.parametrize("count", [0, 5, FEW + 1])
def test_they_are_those_of_one_thread(count: int) -> None:
    rng = np.random.default_rng(0)
    tree, points = cKDTree(rng.random((500, 3))), rng.random((count, 3))
    for options in ({}, {"k": 4}, {"distance_upper_bound": 0.05}):
        for found, expected in zip(nearest(tree, points, **options), tree.query(points, **options), strict=True):
            assert np.array_equal(found, expected)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs signals of POSIX")
def test_a_signal_does_not_crash_the_process() -> None:
    assert subprocess.run([sys.executable, "-c", ENDED], check=False).returncode == 0
