"""Work on threads: results as on one, and no harm by an error or a signal; the nearest points of a tree."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from scipy.spatial import cKDTree

from pcdiff.environment import side_by_side
from pcdiff.errors import InputError
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


def test_side_by_side_keeps_the_order_and_begins_nothing_after_an_error() -> None:
    assert side_by_side(lambda n: n * n, range(5)) == [0, 1, 4, 9, 16]
    assert side_by_side(len, []) == []
    begun = []

    def work(number: int) -> None:
        begun.append(number)
        time.sleep(0.1)
        raise InputError("no room")

    with pytest.raises(InputError, match="no room"):
        side_by_side(work, range(20))
    assert len(begun) < 6
