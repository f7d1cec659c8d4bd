"""Stage 2: from oriented points of the completed bone to the implant as a volume on the scan's own grid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from pcdiff.errors import InputError
from pcdiff.geometry.points import PointCloud
from pcdiff.geometry.volume import Volume
from pcdiff.reconstruct import screened, spectral
from pcdiff.reconstruct.finish import finish

__all__ = ["BACKENDS", "Indicator", "finish", "indicator", "reconstruct", "reconstruct_ensemble", "region"]

# points, skull, low, high -> indicator (high - low) float32, see `spectral.solve`.
BACKENDS: dict[str, Callable[[PointCloud, Volume, np.ndarray, np.ndarray], np.ndarray]] = {
    "spectral": spectral.solve,
    "screened": screened.solve,
}


SOLVERS = 2  # threads: a candidate of a large defect takes a quarter of a gigabyte
OUTSIDE_MM = 50.0  # points may lie this far outside a scan that cuts off the vault; more is another coordinate space


@dataclass(frozen=True)
class Indicator:
    """The indicator function of the completed bone on a crop of the skull's grid.

    values: (i, j, k) float32; ~1 inside the completed bone, ~0 outside, 0.5 at its surface.
    low:    (3,) int, index of the crop's first voxel on the skull's grid.
    """

    values: np.ndarray
    low: np.ndarray


def region(points: PointCloud, skull: Volume, margin_mm: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
    """(low, high), (3,) int each: the box of the points and a margin on the skull's grid, clipped to it.

    Raises InputError for points outside the grid, and ValueError for coordinates that are not finite.
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
    """The indicator function of the solid that the points enclose.

    Args:
        points: A closed completed surface with outward normals, mm: outer and inner table over the defect and a band of
            bone around it, and the side of the band.
        skull: Only its grid is used.
        backend: A name in `BACKENDS`.
        box: (low, high) on the skull's grid, by default the points' `region`. Candidates of one ensemble need the same
            box so that they can be averaged.

    Returns:
        The indicator on the box.

    Raises:
        InputError: Unknown backend, or points outside the grid.
    """
    solve = backend_named(backend)
    low, high = region(points, skull) if box is None else box
    return Indicator(solve(points, skull, low, high), low)


def backend_named(name: str) -> Callable[[PointCloud, Volume, np.ndarray, np.ndarray], np.ndarray]:
    """The backend of a name in `BACKENDS`. Raises InputError for another name."""
    if name not in BACKENDS:
        raise InputError(f"backend must be one of {', '.join(BACKENDS)}, got {name!r}; choose one of them")
    return BACKENDS[name]


def reconstruct(points: PointCloud | Sequence[PointCloud], skull: Volume, backend: str = "spectral") -> Volume:
    """The implant on the skull's grid.

    points: the completed surface with `defect` labels, or several candidates of it. The candidates' mean indicator is
    thresholded: unlike a vote of masks it keeps their sub-voxel surfaces, so that two candidates 2 mm apart give the
    surface midway. Raises InputError as `indicator`, and ValueError for no candidate or points without labels.
    """
    return _reconstruct(points, skull, backend, each=False)[0]


def reconstruct_ensemble(
    candidates: Sequence[PointCloud], skull: Volume, backend: str = "spectral"
) -> tuple[Volume, list[Volume]]:
    """The implant as `reconstruct` returns it, and each candidate as an implant of its own."""
    return _reconstruct(candidates, skull, backend, each=True)


def _reconstruct(
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

    def solved(candidate: PointCloud) -> tuple[np.ndarray, Volume | None]:
        values = indicator(candidate, skull, backend, (low, high)).values
        return values, finish(values, low, skull, candidate) if each else None

    with ThreadPoolExecutor(SOLVERS) as pool:
        for values, member in pool.map(solved, candidates):
            total += values
            if member is not None:
                members.append(member)
    return finish(total / np.float32(len(candidates)), low, skull, joined), members
