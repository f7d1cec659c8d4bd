"""nnU-Net's configuration of its network from the data's fingerprint (Isensee 2021, rules for the architecture).

Spacing is the lattice's own, so resampling, anisotropic kernels and the memory's patch size have nothing to decide: the
fingerprint is the median window. Its rules for the number of levels and of channels remain.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

FIRST_WIDTH = 32
MAX_WIDTH = 320
MIN_SIDE = 4  # points of the coarsest level, at least twice that before the last halving
MAX_LEVELS = 6


def planned_widths(windows: Sequence[tuple[int, int, int]]) -> tuple[int, ...]:
    """Channels of the levels for windows of these sides: halved while each side of the median keeps 4 points."""
    side = float(np.min(np.median(np.array(windows), 0)))
    levels = 1
    while levels < MAX_LEVELS and side >= 2 * MIN_SIDE:
        side, levels = side / 2, levels + 1
    return tuple(min(FIRST_WIDTH * 2**level, MAX_WIDTH) for level in range(levels))
