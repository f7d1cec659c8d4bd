"""Methods: a defective skull in, candidates for the missing surface out. Evaluation cannot tell them apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from pcdiff.errors import InputError
from pcdiff.points import PointCloud
from pcdiff.prior.fit import PriorFit
from pcdiff.volume import Volume


@dataclass(frozen=True)
class Proposal:
    """What a method says of a defective skull.

    candidates: one closed slab of oriented points (mm) per ensemble member: both tables of the completed bone over
    each hole and a band of bone around it, and the band's side wall; see `PriorFit.slab`.
    fit: where the shape prior found the holes, and what it knew there.
    """

    candidates: list[PointCloud]
    fit: PriorFit


class Method(Protocol):
    """Raises InputError when the skull shows no hole, or is no head."""

    def __call__(self, skull: Volume, ensemble: int, seed: int, device: str = "cpu") -> Proposal: ...


def load_method(name: str) -> Method:
    """`prior` or `diffusion`, with the weights that the package ships. Loads torch only where the method needs it."""
    if name == "prior":
        from pcdiff.methods.prior import PriorMethod

        return PriorMethod.shipped()
    if name == "diffusion":
        from pcdiff.methods.diffusion import DiffusionMethod

        return DiffusionMethod.shipped()
    raise InputError(f"unknown method {name!r}: expected one of {', '.join(METHODS)}")


METHODS = ("diffusion", "prior")
