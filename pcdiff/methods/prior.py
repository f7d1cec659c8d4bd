"""The shape prior alone: the floor that the network has to beat, and the fallback when a skull is strange."""

from __future__ import annotations

from dataclasses import dataclass

from pcdiff.geometry.volume import Volume
from pcdiff.methods.base import Proposal
from pcdiff.prior.fit import fit
from pcdiff.prior.model import ShapePrior


@dataclass(frozen=True)
class PriorMethod:
    """The posterior mean of the prior; there is one, so every member of an ensemble would be the same."""

    prior: ShapePrior

    def __call__(self, skull: Volume, ensemble: int = 1, seed: int = 0, device: str = "cpu") -> Proposal:
        """See `pcdiff.methods.Method`."""
        found = fit(self.prior, skull)
        return Proposal([found.completed_surface()], found)
