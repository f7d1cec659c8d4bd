"""Stage 2: oriented points of the completed bone -> the implant as a volume on the scan's own grid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pcdiff.errors import InputError
from pcdiff.geometry.points import PointCloud
from pcdiff.geometry.volume import Volume
from pcdiff.reconstruct import screened, spectral
from pcdiff.reconstruct.finish import finish

__all__ = ["BACKENDS", "Indicator", "finish", "indicator", "reconstruct", "reconstruct_ensemble", "region"]

# points, skull, low, high -> (high - low) float32; one contract, see `spectral.solve`.
BACKENDS: dict[str, Callable[[PointCloud, Volume, np.ndarray, np.ndarray], np.ndarray]] = {
    "spectral": spectral.solve,
    "screened": screened.solve,
}


@dataclass(frozen=True)
class Indicator:
    """Where bone should be, on a crop of the skull's grid.

    values: (i, j, k) float32; ~1 inside the completed bone, ~0 outside, 0.5 at its surface.
    low:    (3,) int, index of the crop's first voxel on the skull's grid.
    """

    values: np.ndarray
    low: np.ndarray


OUTSIDE_MM = 50.0  # a vault cut off by the field of view may lie this far outside the grid; more is a mix-up of frames


def region(points: PointCloud, skull: Volume, margin_mm: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
    """(low, high): the box low <= index < high that holds the points and a margin, clipped to the skull's grid.

    InputError: points that lie outside the grid, so that the box would be empty or the solve too large.
    ValueError: coordinates that are not finite.
    """
    if not np.isfinite(points.points).all():
        raise ValueError("points must be finite, got NaN or infinity")
    index = skull.to_index(points.points)
    margin, slack = margin_mm * skull.voxels_per_mm, OUTSIDE_MM * skull.voxels_per_mm
    low = np.clip(np.floor(index.min(0) - margin), 0, skull.mask.shape).astype(int)
    high = np.clip(np.ceil(index.max(0) + margin) + 1, 0, skull.mask.shape).astype(int)
    far = np.any(index.min(0) < -slack) or np.any(index.max(0) > skull.mask.shape + slack)
    if far or not np.all(low < high):
        raise InputError(
            f"points must lie on the skull's grid, got indices {index.min(0).round()} to {index.max(0).round()} for "
            f"shape {skull.mask.shape}; give them in patient millimetres, LPS"
        )
    return low, high


def indicator(
    points: PointCloud,
    skull: Volume,
    backend: str = "spectral",
    box: tuple[np.ndarray, np.ndarray] | None = None,
) -> Indicator:
    """Indicator of the solid that the points enclose, on `box` (default: their `region`) of the skull's grid.

    points: a closed completed surface, outward normals, mm: both tables over defect and band, and the band's side
    wall. Only the grid
    of `skull` is used. backend: a name in `BACKENDS`. Give candidates of one ensemble the same box to average them.

    InputError: unknown backend, or points outside the grid.
    """
    solve = backend_named(backend)
    low, high = region(points, skull) if box is None else box
    return Indicator(solve(points, skull, low, high), low)


def backend_named(name: str) -> Callable[[PointCloud, Volume, np.ndarray, np.ndarray], np.ndarray]:
    """One of `BACKENDS`. Raises InputError for another name."""
    if name not in BACKENDS:
        raise InputError(f"backend must be one of {', '.join(BACKENDS)}, got {name!r}; choose one of them")
    return BACKENDS[name]


def reconstruct(points: PointCloud | Sequence[PointCloud], skull: Volume, backend: str = "spectral") -> Volume:
    """Labelled completed surface points, or several candidates of them -> the implant, bool on the skull's grid.

    Of several candidates the mean indicator is thresholded: unlike a vote of masks it keeps each candidate's sub-voxel
    surface, so that two candidates 2 mm apart yield the surface midway.

    InputError: as `indicator`.
    """
    return _solids(points, skull, backend, each=False)[0]


def reconstruct_ensemble(
    candidates: Sequence[PointCloud], skull: Volume, backend: str = "spectral"
) -> tuple[Volume, list[Volume]]:
    """The implant, as `reconstruct` makes it, and each candidate as an implant of its own; each is solved for once."""
    return _solids(candidates, skull, backend, each=True)


def _solids(
    points: PointCloud | Sequence[PointCloud], skull: Volume, backend: str, each: bool
) -> tuple[Volume, list[Volume]]:
    candidates = [points] if isinstance(points, PointCloud) else list(points)
    if not candidates:
        raise ValueError("reconstruct needs at least one candidate, got none")
    if any(c.defect is None for c in candidates):
        raise ValueError("reconstruct needs points labelled with the defect they fill, got defect=None")
    joined = PointCloud(
        np.concatenate([c.points for c in candidates]),
        np.concatenate([c.normals for c in candidates]),
        np.concatenate([c.defect for c in candidates if c.defect is not None]),
    )
    low, high = region(joined, skull)
    total = np.zeros(tuple(high - low), np.float32)
    members = []
    for candidate in candidates:
        values = indicator(candidate, skull, backend, (low, high)).values
        total += values
        if each:
            members.append(finish(values, low, skull, candidate))
    return finish(total / np.float32(len(candidates)), low, skull, joined), members
