"""Length, width and height of a curved piece, as callipers measure them."""

from __future__ import annotations

import numpy as np

TURNS = 180  # directions of the callipers: a degree changes 100 mm by 0.02 mm at most
MANY = 20_000  # points are enough


def extents(points: np.ndarray) -> tuple[float, float, float]:
    """Length, width and height of points, mm.

    The height is measured along the direction in which the points vary least. Across it, the length is the largest
    distance between two parallel lines that touch the points (the largest Feret diameter), and the width the distance
    between the two lines parallel to it.

    Args:
        points: (N, 3) mm, at least 3.
    """
    points = points[:: max(1, len(points) // MANY)]
    centred = points - points.mean(axis=0)
    _, axes = np.linalg.eigh(centred.T @ centred)  # the least variance first
    height, across = centred @ axes[:, 0], centred @ axes[:, 1:]
    angle = np.arange(TURNS) * np.pi / TURNS
    along = across @ np.stack([np.cos(angle), np.sin(angle)])
    span = along.max(axis=0) - along.min(axis=0)
    longest = int(span.argmax())
    return float(span[longest]), float(span[(longest + TURNS // 2) % TURNS]), float(np.ptp(height))
