"""Negative controls: phantoms of a jaw and a knee, random unions of ellipsoids on a scan's grid."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from pcdiff.geometry.grid import box_slices
from pcdiff.geometry.volume import Volume

Ellipsoid = tuple[np.ndarray, np.ndarray]  # centre (3,) mm; (3, 3) mm, columns: the half axes
SIDES = (-1.0, 1.0)
STEP = 4.0  # mm between the ellipsoids along a bone


def jaw(grid: Volume, rng: np.random.Generator) -> Volume:
    """A mandible in the middle of the grid: body, both rami, condyles and coronoid processes."""
    return _solid(_jaw(rng), grid, rng)


def knee(grid: Volume, rng: np.random.Generator) -> Volume:
    """A knee in the middle of the grid: femur, tibia and fibula with their shafts, and the patella."""
    return _solid(_knee(rng), grid, rng)


def _jaw(rng: np.random.Generator) -> Iterator[Ellipsoid]:
    """Around the middle of the mandible's arch, LPS mm; the chin points to -y."""
    width, depth, tall = rng.normal([44, 66, 14], [2, 3, 1])
    for angle in np.radians(np.arange(-84, 85, 3.5)):
        outward = np.array([np.sin(angle), -np.cos(angle), 0.0])
        along = np.array([np.cos(angle), np.sin(angle), 0.0])
        yield outward * (width, depth, 0), np.stack([6 * along, 5.5 * outward, [0, 0, tall]], 1)
    for side in SIDES:
        gonion, neck = np.array([side * width, 2, 0]), np.array([side * (width + 5), 16, 40])
        yield from _along(gonion, neck, (5, 17, 9), (4.5, 14, 7))
        condyle, notch, coronoid = (neck + np.array(by) for by in ((side * 2, 4, 14), (0, -8, -4), (0, -16, 10)))
        yield from _along(neck, condyle, (4.5, 7, 5), (10, 4.5, 5))
        yield from _along(notch, coronoid, (4, 9, 6), (2.5, 3.5, 4))


def _knee(rng: np.random.Generator) -> Iterator[Ellipsoid]:
    """Around the middle of the femur's condyles, LPS mm; a left or a right knee."""
    wide, shaft = rng.normal([21, 14], [1.5, 1])
    lateral = rng.choice(SIDES)
    yield from _along((0, 0, 150), (0, 0, 55), (shaft,) * 3, (shaft,) * 3)
    yield from _along((0, 0, 55), (0, -2, 14), (shaft,) * 3, (wide + 12, 22, 14))
    yield np.array([0.0, -18, 8]), np.diag([wide + 5, 13.0, 16])
    for side in SIDES:
        yield np.array([side * wide, 6, 0]), np.diag([15.0, 29, 20])
        yield np.array([side * (wide - 2), 0, -35]), np.diag([20.0, 24, 10])
    yield from _along((0, 0, -38), (0, -3, -75), (wide + 10, 20, 10), (shaft, shaft, 10))
    yield from _along((0, -3, -75), (0, 0, -150), (shaft,) * 3, (shaft - 2,) * 3)
    head = np.array([lateral * (wide + 17), 17, -50])
    yield from _along(head, head - [lateral * 4, 0, 22], (8, 8, 8), (5.5, 5.5, 8))
    yield from _along(head - [lateral * 4, 0, 22], head - [lateral * 8, 0, 100], (5.5,) * 3, (5.5,) * 3)
    yield np.array([0.0, -46, 10]), np.diag([21.0, 9, 21])


def _along(
    start: Iterable[float], end: Iterable[float], first: Iterable[float], last: Iterable[float]
) -> Iterator[Ellipsoid]:
    """Ellipsoids from start to end (3,) mm; their half axes along x, y, z change from `first` to `last` (3,) mm."""
    a, b, before, after = (np.array(list(values), float) for values in (start, end, first, last))
    for share in np.linspace(0, 1, int(np.linalg.norm(b - a) / STEP) + 2):
        yield a + share * (b - a), np.diag(before + share * (after - before))


def _solid(ellipsoids: Iterable[Ellipsoid], grid: Volume, rng: np.random.Generator) -> Volume:
    """The union of ellipsoids around the middle of the grid, scaled and turned a little at random."""
    linear = np.linalg.qr(np.eye(3) + rng.normal(0, 0.08, (3, 3)))[0]
    linear = linear * np.sign(np.diag(linear)) * rng.uniform(0.92, 1.08)  # undoes the mirroring of axes by QR
    middle = grid.to_mm((np.array(grid.mask.shape) - 1) / 2)
    inverse = np.linalg.inv(grid.affine[:3, :3])
    mask = np.zeros(grid.mask.shape, bool, order="F")
    for centre, axes in ellipsoids:
        position, shape = middle + linear @ centre, linear @ axes
        at, reach = grid.to_index(position), np.linalg.norm(inverse @ shape, axis=1)
        low = np.maximum(np.ceil(at - reach), 0).astype(int)
        high = np.minimum(np.floor(at + reach) + 1, mask.shape).astype(int)
        if (low >= high).any():
            continue
        box = box_slices(low, high)
        index = np.moveaxis(np.mgrid[box], 0, -1)
        mask[box] |= np.linalg.norm((grid.to_mm(index) - position) @ np.linalg.inv(shape).T, axis=-1) <= 1
    return grid.with_mask(mask)
