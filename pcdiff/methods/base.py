"""The contract of a method: a defective skull in, candidates for the missing bone out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from pcdiff.geometry.volume import Volume

if TYPE_CHECKING:
    from pcdiff.prior.fit import PriorFit
    from pcdiff.prior.model import ShapePrior


class Candidate(Protocol):
    """One answer of a method. `methods.candidates` has the usual kinds: oriented points, masks, fields."""

    def to_volume(self, skull: Volume) -> Volume:
        """The missing bone as a mask on the skull's grid. Voxels of the skull itself do not count."""


@dataclass(frozen=True)
class Trajectory:
    """The path of the points of a method that moves points.

    points: (K, T, N, 3) float32 mm, LPS: N points of each of K candidates at T steps; the first step is the start, the
    last one the result. captions: (T,) one line for each step.
    """

    points: np.ndarray
    captions: tuple[str, ...]


@dataclass(frozen=True)
class Proposal:
    """What a method returns: one candidate for each member of the ensemble, and the trajectory, if points moved."""

    candidates: Sequence[Candidate]
    trajectory: Trajectory | None = None


class Method(Protocol):
    """Proposes the missing bone of a defective skull."""

    def __call__(self, skull: Volume, *, ensemble: int = 1, seed: int = 0, device: str = "cpu") -> Proposal:
        """Returns `ensemble` candidates.

        The same seed gives the same candidates. A method holds no state that a call changes, so that several threads
        can share it. Raises InputError for a skull that the method cannot complete.
        """


@runtime_checkable
class ChecksSkull(Protocol):
    """A method that can tell before the shape model is fitted, which takes long, that it cannot complete a skull."""

    def check(self, skull: Volume) -> None:
        """Raises InputError for such a skull."""


@runtime_checkable
class PriorBasedMethod(Protocol):
    """A method that builds on a statistical shape model: the flow fits `prior` once and hands over the fit."""

    @property
    def prior(self) -> ShapePrior:
        """The shape model that the method was made with."""

    def __call__(
        self, skull: Volume, fit: PriorFit, *, ensemble: int = 1, seed: int = 0, device: str = "cpu"
    ) -> Proposal:
        """As `Method`; fit: `prior` fitted to the skull."""
