"""Methods: a defective skull in, candidates for the missing surface out. Evaluation cannot tell them apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from pcdiff.geometry.points import PointCloud
from pcdiff.geometry.volume import Volume
from pcdiff.prior.fit import PriorFit
from pcdiff.reconstruct import reconstruct, reconstruct_ensemble


@dataclass(frozen=True)
class Trajectory:
    """How points of the missing surface moved from the prior to their places.

    points: (K, T, N, 3) float32 mm, for each ensemble member at each of T noise levels; the first is the prior's own
    surface, the last the result. captions: (T,) what each level is.
    """

    points: np.ndarray
    captions: tuple[str, ...]


@dataclass(frozen=True)
class Proposal:
    """What a method says of a defective skull.

    candidates: one closed completed surface of oriented points (mm) per ensemble member: both tables of the completed
    bone over
    each defect and a band of bone around it, and the band's side wall; see `PriorFit.completed_surface`.
    fit: where the shape prior found the defects, and what it knew there.
    trajectory: of a method that moves points, None of another.
    """

    candidates: list[PointCloud]
    fit: PriorFit
    trajectory: Trajectory | None = None

    def implants(self, skull: Volume, backend: str, each: bool) -> tuple[Volume, list[Volume]]:
        """Stage 2: the implant, and with `each` every candidate as an implant of its own. Errors as `reconstruct`."""
        if each:
            return reconstruct_ensemble(self.candidates, skull, backend)
        return reconstruct(self.candidates, skull, backend), []


class Method(Protocol):
    """Raises InputError when the skull shows no defect, or is no head."""

    def __call__(self, skull: Volume, ensemble: int, seed: int, device: str = "cpu") -> Proposal: ...
