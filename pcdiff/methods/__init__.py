"""Methods: a defective skull in, candidates for the missing surface out. Evaluation cannot tell them apart."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from pcdiff.points import PointCloud
from pcdiff.prior.fit import PriorFit
from pcdiff.prior.model import ShapePrior
from pcdiff.reconstruct import reconstruct, reconstruct_ensemble
from pcdiff.record import weights_files
from pcdiff.volume import Volume


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

    candidates: one closed slab of oriented points (mm) per ensemble member: both tables of the completed bone over
    each hole and a band of bone around it, and the band's side wall; see `PriorFit.slab`.
    fit: where the shape prior found the holes, and what it knew there.
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
    """Raises InputError when the skull shows no hole, or is no head."""

    def __call__(self, skull: Volume, ensemble: int, seed: int, device: str = "cpu") -> Proposal: ...


def load_method(name: str, weights: Path | None = None) -> Method:
    """One of `record.METHODS`; weights: of your own, None for those shipped. Loads torch only where it must.

    Raises InputError for an unknown method, or other files.
    """
    own, *beside = weights_files(name, weights)
    if name == "prior":
        from pcdiff.methods.prior import PriorMethod

        return PriorMethod(ShapePrior.load(own))
    if name == "paper":
        from pcdiff.methods.paper import PaperMethod

        return PaperMethod.load(own, ShapePrior.load(beside[0]))
    from pcdiff.methods.diffusion import DiffusionMethod
    from pcdiff.methods.places import PlaceModel

    prior, *places = beside
    return DiffusionMethod.load(own, ShapePrior.load(prior), PlaceModel.load(places[0]) if places else None)
