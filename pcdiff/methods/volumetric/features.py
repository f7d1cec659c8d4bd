"""Input of the volumetric U-Net: windows of a 2 mm lattice in the shape model's pose, and the channels in them.

The lattice is symmetric about the middle plane of the head: the mirror image of the skull is the reversed array.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pcdiff.geometry.interpolator import Interpolator
from pcdiff.geometry.occupancy import Head
from pcdiff.methods.volumetric.config import LAYOUT, FusionConfig
from pcdiff.methods.volumetric.lattice import Lattice, TableMaps, map_position, missing_table_points, table_log_odds
from pcdiff.prior.direction_map import Pose
from pcdiff.prior.fit import PriorFit

STEP = LAYOUT.step_mm
LATTICE = Lattice(np.array(LAYOUT.low_mm), LAYOUT.shape, STEP)
MARGIN = round(LAYOUT.window_margin_mm / STEP)

Window = tuple[slice, slice, slice]  # a part of the lattice


def occupancy_at(head: Head, pose: Pose, points: np.ndarray) -> np.ndarray:
    """Share of bone (...) float32 at points (..., 3) model mm of a posed head; 0 outside its grid."""
    to_index = np.linalg.inv(head.affine)
    index = pose.to_patient(points) @ to_index[:3, :3].T + to_index[:3, 3]
    return Interpolator(head.occupancy)(np.moveaxis(index, -1, 0)) / 255


def soft_occupancy(head: Head, pose: Pose, lattice: Lattice = LATTICE) -> np.ndarray:
    """(I, J, K) float32 share of bone around each lattice point, weighted by a tent of one step either way.

    An average, not the value at a point: walls thinner than a step keep their volume.
    """
    half = lattice.step / 2
    i, j, k = (2 * n + 1 for n in lattice.shape)
    values = occupancy_at(head, pose, Lattice(lattice.low - half, (i, j, k), half).points)
    for axis in range(3):
        along = np.moveaxis(values, axis, 0)
        values = np.moveaxis((along[0:-2:2] + 2 * along[1:-1:2] + along[2::2]) / 4, 0, axis)
    return np.ascontiguousarray(values, np.float32)


def windows_occupancy(head: Head, pose: Pose, windows: Sequence[Window]) -> np.ndarray:
    """`LAYOUT.shape` float32: `soft_occupancy` where windows and their mirror images lie, 0 elsewhere."""
    bone = np.zeros(LATTICE.shape, np.float32)
    if windows:
        sides = np.array([[[side.start, side.stop] for side in window[1:]] for window in windows])
        (j, k), (j_end, k_end) = sides[..., 0].min(0), sides[..., 1].max(0)
        part = Lattice(LATTICE.low + STEP * np.array([0, j, k]), (LATTICE.shape[0], j_end - j, k_end - k), STEP)
        bone[:, j:j_end, k:k_end] = soft_occupancy(head, pose, part)
    return bone


def window_around(low: np.ndarray, high: np.ndarray, margin: int = MARGIN, slack: np.ndarray | float = 0.5) -> Window:
    """The window that holds a box of model space and a margin, within the lattice.

    Args:
        low: (3,) mm, first corner of the box.
        high: (3,) mm, last corner.
        margin: lattice points around the box.
        slack: (3,) 0 to 1, the share of the rounding of each side that lies before the box; training draws it.
    """
    shape, multiple = np.array(LATTICE.shape), LAYOUT.window_multiple
    first = np.floor((low - LATTICE.low) / STEP).astype(int) - margin
    last = np.ceil((high - LATTICE.low) / STEP).astype(int) + 1 + margin
    first, last = np.clip(first, 0, shape), np.clip(last, 0, shape)
    size = np.minimum(-(-np.maximum(last - first, 1) // multiple) * multiple, shape // multiple * multiple)
    first = np.clip(np.round(first - slack * (size - (last - first))), 0, shape - size).astype(int)
    first -= first % 2  # every second lattice point carries the coarse channels
    a, b, c = (slice(int(f), int(f + n)) for f, n in zip(first, size, strict=True))
    return a, b, c


def defect_windows(fit: PriorFit) -> list[Window]:
    """A window for each defect of a fitted skull, around its missing tables."""
    windows = []
    points = missing_table_points(fit)
    rays = np.flatnonzero((fit.defect > 0) & np.isfinite(fit.outer))
    for label in range(1, fit.defects + 1):
        own = points[np.tile(fit.defect[rays] == label, 2)]
        if len(own):
            windows.append(window_around(own.min(0), own.max(0)))
    return windows


def coordinates(window: Window) -> Tensor:
    """(3, I/2, J/2, K/2) float32: the middle of each block of 2 x 2 x 2 lattice points, about -1 to 1."""
    axes = [
        torch.arange(s.start, s.stop, 2) * STEP + (low + STEP / 2) for s, low in zip(window, LATTICE.low, strict=True)
    ]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    return (points / torch.tensor(LAYOUT.coordinate_scale_mm, dtype=torch.float64)[:, None, None, None]).float()


def fine_channels(bone: np.ndarray, mean: np.ndarray, across: slice) -> np.ndarray:
    """(3, I, J, K) float32, as `LAYOUT.fine`, from arrays over the whole width of the head; across: the window's x."""
    return np.stack([bone[across], bone[::-1][across], mean[across]]).astype(np.float32)


def _map_positions(window: Window, every: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (2, ...) and radii (...) float32 of a window's points, or of the middle of each block of 2 x 2 x 2."""
    low = LATTICE.low + STEP * (np.array([side.start for side in window]) + (every - 1) / 2)
    i, j, k = ((side.stop - side.start) // every for side in window)
    pixels, radius = map_position(Lattice(low, (i, j, k), every * STEP).points)
    return pixels.astype(np.float32), radius.astype(np.float32)


def prior_tables(maps: TableMaps, window: Window) -> np.ndarray:
    """(6, I/2, J/2, K/2) float32, as `LAYOUT.tables`: signed distances and deviations.

    Depth below the outer and height above the inner table over 4 mm, standard deviations in mm, distance inside the
    defect's border over 8 mm, and 1.
    """
    pixels, radius = _map_positions(window, 2)
    outer, inner, outer_std, thickness_std, border = maps.sample(
        pixels, "outer", "inner", "outer_std", "thickness_std", "border"
    )
    below, above = np.clip(outer - radius, -10, 10) / 4, np.clip(radius - inner, -10, 10) / 4
    channels = [below, above, outer_std, thickness_std, np.clip(border, -16, 16) / 8, np.ones_like(border)]
    return np.stack(channels).astype(np.float32)


def prior_log_odds(maps: TableMaps, window: Window, fusion: FusionConfig) -> np.ndarray:
    """(I, J, K) float32: log-odds of bone by the completed tables."""
    pixels, radius = _map_positions(window, 1)
    outer, inner, border = maps.sample(pixels, "outer", "inner", "border")
    return table_log_odds(outer - radius, radius - inner, border, fusion).astype(np.float32)


def network_inputs(
    bone: np.ndarray, mean: np.ndarray, windows: Sequence[Window], maps: TableMaps | None = None
) -> list[tuple[Tensor, Tensor]]:
    """For each window the fine channels (1, 3, I, J, K) and the coarse ones (1, 9, I/2, J/2, K/2), float32.

    Args:
        bone: (I, J, K) over the whole lattice, share of bone.
        mean: the same of the mean head.
        windows: parts of the lattice.
        maps: the completed tables; None hides them.
    """
    inputs = []
    for window in windows:
        across, *rest = window
        strip = (slice(None), *rest)
        fine = torch.from_numpy(fine_channels(bone[strip], mean[strip], across))
        inputs.append((fine[None], coarse_channels(window, maps)[None]))
    return inputs


def coarse_channels(window: Window, maps: TableMaps | None = None) -> Tensor:
    """(9, I/2, J/2, K/2) float32: coordinates and tables; maps as in `network_inputs`."""
    where = coordinates(window)
    if maps is None:
        return torch.cat([where, torch.zeros(len(LAYOUT.tables), *where.shape[1:])])
    return torch.cat([where, torch.from_numpy(prior_tables(maps, window))])


def mirrored(fine: Tensor, coarse: Tensor) -> tuple[Tensor, Tensor]:
    """The input of the mirrored head around the mirrored defect; (B, C, I, J, K) each."""
    where, tables = coarse.flip(2).split([len(LAYOUT.coordinates), len(LAYOUT.tables)], 1)
    where = where * where.new_tensor([-1.0, 1.0, 1.0])[:, None, None, None]
    return fine.flip(2), torch.cat([where, tables], 1)
