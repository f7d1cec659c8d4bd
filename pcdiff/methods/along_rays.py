"""What the methods share that complete outer table and thickness along the rays of the shape model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from pcdiff.geometry.volume import Volume
from pcdiff.methods.base import Proposal
from pcdiff.methods.candidates import OrientedPoints
from pcdiff.prior.fit import PriorFit
from pcdiff.prior.model import ShapePrior


@dataclass(frozen=True)
class RayMethod(ABC):
    """The tables that a subclass gives, as one closed surface; the usual reconstruction makes the implant of it.

    prior: gives the pose and the defects, and what else the subclass takes from it.
    """

    prior: ShapePrior

    @abstractmethod
    def tables(self, fit: PriorFit) -> tuple[np.ndarray, np.ndarray]:
        """(R,) mm each: outer radius and thickness, known at the fit's targets."""

    def __call__(
        self, skull: Volume, fit: PriorFit, *, ensemble: int = 1, seed: int = 0, device: str = "cpu"
    ) -> Proposal:
        """See `PriorBasedMethod`. Every member of an ensemble is the same, so there is one candidate."""
        return Proposal([OrientedPoints(fit.completed_surface(*self.tables(fit)))])
