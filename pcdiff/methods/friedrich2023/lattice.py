"""The cube of 512^3 voxels in which the published method makes its solid, placed over a scan."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pcdiff.errors import InputError
from pcdiff.geometry.volume import Volume

RESOLUTION = 512
SPACING_MM = 0.45  # of SkullFix; SkullBreak's grids are 512^3 at 0.4 mm already
BORDER = 4.0  # voxels between the points and the cube's sides, where the network's field is periodic


@dataclass(frozen=True)
class Lattice:
    """Voxels of a cube in patient space. Network units are voxel index / resolution.

    affine: (4, 4), voxel index (i, j, k) of a voxel's centre -> patient millimetres, LPS.
    """

    affine: np.ndarray
    resolution: int = RESOLUTION

    def to_mm(self, units: np.ndarray) -> np.ndarray:
        """(..., 3) network units -> (..., 3) mm."""
        return units * self.resolution @ self.affine[:3, :3].T + self.affine[:3, 3]

    def to_network(self, points: np.ndarray) -> np.ndarray:
        """(..., 3) mm -> (..., 3) network units; the inverse of `to_mm`."""
        return (points - self.affine[:3, 3]) @ np.linalg.inv(self.affine[:3, :3]).T / self.resolution

    def from_index_of(self, grid: Volume) -> np.ndarray:
        """(4, 4): voxel index on a scan's grid -> voxel index on the lattice."""
        return np.linalg.inv(self.affine) @ grid.affine


def lattice_over(
    shape: tuple[int, ...],
    affine: np.ndarray,
    points: np.ndarray,
    spacing_mm: float = SPACING_MM,
    resolution: int = RESOLUTION,
    faithful: bool = False,
) -> Lattice:
    """The lattice around the middle of a scan of this shape and affine (4, 4), for points (N, 3) mm on that scan.

    Its voxels are cubes of `spacing_mm` along the scan's axes (with a tilted gantry, along the nearest perpendicular
    axes). If points lie outside, the lattice is moved by the fewest voxels that include them. On a 512^3 scan of this
    spacing the lattice is the scan's grid.

    faithful: as in the original, the spacing is read from the diagonal of the directions, which is wrong for turned
    axes, and nothing is moved. That crop and padding are central is our interpretation.

    Raises InputError for points that do not fit into the cube, and if faithful for a diagonal with a zero.
    """
    if faithful:
        diagonal = np.abs(np.diag(affine)[:3])
        if not np.all(diagonal > 0):
            raise InputError(
                "faithful: expected directions with a non-zero diagonal, which the original takes for the spacing, got "
                f"{diagonal.tolist()}; use faithful: false"
            )
        linear = affine[:3, :3] * (spacing_mm / diagonal)
    else:
        # the rotation (or reflection) nearest to the axes
        left, _, right = np.linalg.svd(affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0))
        linear = spacing_mm * left @ right
    middle = affine[:3, :3] @ ((np.array(shape) - 1) / 2) + affine[:3, 3]
    own = np.eye(4)
    own[:3, :3] = linear
    own[:3, 3] = middle - linear @ np.full(3, (resolution - 1) / 2)

    index = resolution * Lattice(own, resolution).to_network(points)
    low, high = index.min(axis=0) - BORDER, index.max(axis=0) + BORDER
    shift = np.round(np.minimum(low, 0) + np.maximum(high - (resolution - 1), 0))
    if np.any(high - low > resolution - 1) or (faithful and shift.any()):
        raise InputError(
            f"expected points within the paper's cube of {resolution * spacing_mm:.0f} mm, got voxels "
            f"{index.min(0).round().tolist()} to {index.max(0).round().tolist()} of {resolution}; check that they are "
            "implant points of this skull, in mm, and that the weights are trained"
        )
    own[:3, 3] += linear @ shift
    return Lattice(own, resolution)
