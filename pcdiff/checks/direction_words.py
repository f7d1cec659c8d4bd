"""Directions in the patient's frame, in words."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

# Patient axes are LPS: x points to the left, y to the back, z up. Per axis: the side where a movement along it starts,
# and the side where a movement against it starts.
SIDES = (("the right", "the left"), ("the front", "behind"), ("below", "above"))
NAMED = 0.4  # smallest component of a unit vector that is named: about 24 degrees off the plane of the other axes


def describe_movement(direction: ArrayLike) -> str:
    """Where a straight movement comes from: "from above", "from the left and above".

    The largest component is named first; components below `NAMED` are left out.

    Args:
        direction: (3,) vector of the movement, LPS, of any length.

    Raises:
        ValueError: the vector has no length, or is not finite.
    """
    vector = np.asarray(direction, float)
    length = float(np.linalg.norm(vector))
    if not 0 < length < np.inf:
        raise ValueError(f"expected a vector with a direction, got {vector}")
    unit = vector / length
    largest_first = np.argsort(-np.abs(unit), kind="stable")
    sides = [SIDES[axis][int(unit[axis] < 0)] for axis in largest_first if abs(unit[axis]) >= NAMED]
    *first, last = sides
    return f"from {', '.join(first)} and {last}" if first else f"from {last}"


def describe_vector(direction: ArrayLike) -> str:
    """The same with its figures: "from above (unit vector -0.07, -0.06, -1.00, LPS)"."""
    vector = np.asarray(direction, float)
    unit = vector / np.linalg.norm(vector)
    figures = ", ".join(f"{0.0 + round(float(x), 2):.2f}" for x in unit)
    return f"{describe_movement(vector)} (unit vector {figures}, LPS)"
