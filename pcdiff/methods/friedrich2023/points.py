"""Input of the published networks: points on the surfaces of skull and implant, in one frame."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pcdiff.errors import InputError
from pcdiff.geometry.grid import bounding_box, box_slices
from pcdiff.geometry.mesh import Mesh
from pcdiff.geometry.surface import isosurface, sample_surface
from pcdiff.geometry.volume import Volume

HALF_EXTENT = 3.0  # network units: half the largest side of the points' bounding box
ISO = 1e-3  # isovalue in a 0/1 mask: the surface lies half a voxel outside the bone, as the original's points do


@dataclass(frozen=True)
class PaperFrame:
    """Millimetres <-> network units: the box of the points is centred, and its largest side becomes six units long.

    Millimetres are the patient's, LPS. With `faithful` they are index times the diagonal of the directions, along the
    grid's own axes, as in the original; that is wrong for scans with turned axes.
    """

    centre: np.ndarray  # (3,) the frame's mm
    scale: float  # mm per network unit
    from_patient: np.ndarray  # (4, 4), LPS mm -> the frame's mm

    @classmethod
    def of(cls, points: np.ndarray, affine: np.ndarray, faithful: bool = False) -> PaperFrame:
        """Points (N, 3) LPS mm, affine (4, 4) index -> LPS mm of their scan.

        Raises InputError for points without extent.
        """
        from_patient = np.eye(4)
        if faithful:
            diagonal = np.abs(np.diag(affine)[:3])
            if not (diagonal > 0).all():
                raise InputError(
                    "faithful: expected directions with a non-zero diagonal, which the original takes for the spacing, "
                    f"got {diagonal.tolist()}; use faithful: false"
                )
            from_patient = np.diag([*diagonal, 1.0]) @ np.linalg.inv(affine)
        own = points @ from_patient[:3, :3].T + from_patient[:3, 3]
        low, high = own.min(0), own.max(0)
        scale = float((high - low).max()) / 2 / HALF_EXTENT
        if not scale > 0:
            raise InputError("expected a skull with an extent, got a single point; check the mask")
        return cls((low + high) / 2, scale, from_patient)

    def to_network(self, points: np.ndarray) -> np.ndarray:
        """(..., 3) LPS mm -> network units."""
        own = points @ self.from_patient[:3, :3].T + self.from_patient[:3, 3]
        return (own - self.centre) / self.scale

    def to_mm(self, points: np.ndarray) -> np.ndarray:
        """(..., 3) network units -> LPS mm; the inverse of `to_network`."""
        back = np.linalg.inv(self.from_patient)
        return (points * self.scale + self.centre) @ back[:3, :3].T + back[:3, 3]


def outer_mesh(volume: Volume) -> Mesh:
    """The surface half a voxel outside a mask, mm, LPS. Raises InputError for an empty mask."""
    if not volume.mask.any():
        raise InputError("expected a mask with bone to sample points from, got an empty one")
    low, high = bounding_box(volume.mask)
    values = np.pad(volume.mask[box_slices(low, high)], 1).astype(np.float32)
    return isosurface(values, ISO, volume, low - 1)


def surface_points(volume: Volume, n: int, rng: np.random.Generator) -> np.ndarray:
    """(n, 3) mm, independent and uniform on `outer_mesh`, as a random choice among the original's 400,000 points is."""
    return sample_surface(outer_mesh(volume), n, rng).points
