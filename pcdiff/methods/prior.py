"""The statistical shape model alone: the baseline that every network has to beat."""

from __future__ import annotations

from dataclasses import dataclass

from pcdiff.geometry.volume import Volume
from pcdiff.methods.base import Proposal
from pcdiff.methods.candidates import OrientedPoints
from pcdiff.methods.registry import WeightsFiles
from pcdiff.prior.fit import PriorFit
from pcdiff.prior.model import ShapePrior


@dataclass(frozen=True)
class PriorMethod:
    """The posterior mean of the shape model. Every member of an ensemble is the same, so there is one candidate."""

    prior: ShapePrior

    def __call__(
        self, skull: Volume, fit: PriorFit, *, ensemble: int = 1, seed: int = 0, device: str = "cpu"
    ) -> Proposal:
        """See `PriorBasedMethod`."""
        return Proposal([OrientedPoints(fit.completed_surface())])


def load(files: WeightsFiles) -> PriorMethod:
    """The method on the shape model of the files. Raises InputError for a file of another kind."""
    return PriorMethod(ShapePrior.load(files.prior))
