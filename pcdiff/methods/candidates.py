"""The usual kinds of candidates, and how the candidates of an ensemble become one implant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pcdiff.errors import MethodError
from pcdiff.geometry.points import PointCloud
from pcdiff.geometry.volume import Volume
from pcdiff.methods.base import Candidate
from pcdiff.reconstruct import reconstruct, reconstruct_ensemble


@dataclass(frozen=True)
class OrientedPoints:
    """A closed surface of oriented points (mm, LPS) over each defect and a band of bone around it.

    points: labelled with the defect they close, as `PriorFit.completed_surface` makes them. Poisson reconstruction
    turns them into a volume.
    """

    points: PointCloud

    def to_volume(self, skull: Volume) -> Volume:
        """See `Candidate`. Raises InputError for points outside the grid."""
        return reconstruct(self.points, skull)


@dataclass(frozen=True)
class Mask:
    """A volume that is the missing bone already."""

    volume: Volume

    def to_volume(self, skull: Volume) -> Volume:
        """See `Candidate`. Raises MethodError for another grid than the skull's."""
        _check_grid(self.volume.mask, skull)
        return skull.with_mask(self.volume.mask)


@dataclass(frozen=True)
class Field:
    """Values on the skull's grid, such as probabilities; bone is missing where they exceed `level`.

    values: (I, J, K) float.
    """

    values: np.ndarray
    level: float = 0.5

    def to_volume(self, skull: Volume) -> Volume:
        """See `Candidate`. Raises MethodError for another grid than the skull's."""
        _check_grid(self.values, skull)
        return skull.with_mask(self.values > self.level)

    @staticmethod
    def fuse(candidates: Sequence[Field], skull: Volume) -> Volume:
        """The mean field, thresholded: it keeps sub-voxel surfaces, which a vote of masks does not."""
        for candidate in candidates:
            _check_grid(candidate.values, skull)
        mean = np.mean([candidate.values - candidate.level for candidate in candidates], axis=0)
        return skull.with_mask(mean > 0)


def combine(
    candidates: Sequence[Candidate], skull: Volume, backend: str = "spectral", each: bool = False
) -> tuple[Volume, list[Volume]]:
    """The implant that all candidates give together, and, with `each`, the implant of every candidate.

    Oriented points are averaged as indicator functions, see `reconstruct`; a kind of candidate that has a static
    method `fuse(candidates, skull)` is fused by it; other candidates, and mixed kinds, vote voxel by voxel. The
    implants are disjoint from the skull. backend: of the reconstruction of oriented points.

    Raises InputError as `reconstruct`, MethodError for no candidate and for a volume on another grid than the skull's.
    """
    if not candidates:
        raise MethodError("expected at least one candidate, got none; the method returned an empty proposal")
    if all(isinstance(candidate, OrientedPoints) for candidate in candidates):
        clouds = [candidate.points for candidate in candidates if isinstance(candidate, OrientedPoints)]
        return reconstruct_ensemble(clouds, skull, backend) if each else (reconstruct(clouds, skull, backend), [])
    kinds = {type(candidate) for candidate in candidates}
    fuse = getattr(kinds.pop(), "fuse", None) if len(kinds) == 1 else None
    members: list[Volume] = []
    if each or len(candidates) == 1 or fuse is None:
        members = [_missing(candidate.to_volume(skull), skull) for candidate in candidates]
    if len(candidates) == 1:
        implant = members[0]
    elif fuse is not None:
        implant = _missing(fuse(candidates, skull), skull)
    else:
        implant = skull.with_mask(np.mean([member.mask for member in members], axis=0) > 0.5)
    return implant, members if each else []


def _check_grid(values: np.ndarray, skull: Volume) -> None:
    """Raises MethodError for values of another shape than the skull's grid."""
    if values.shape != skull.mask.shape:
        raise MethodError(f"expected a candidate of the skull's grid's shape {skull.mask.shape}, got {values.shape}")


def _missing(volume: Volume, skull: Volume) -> Volume:
    """The volume without the skull's own voxels."""
    _check_grid(volume.mask, skull)
    return skull.with_mask(volume.mask & ~skull.mask)
