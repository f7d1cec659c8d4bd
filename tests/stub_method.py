"""A method without a network for the tests of commands, and what they share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pcdiff.geometry.volume import Volume
from pcdiff.methods.base import Proposal
from pcdiff.methods.candidates import OrientedPoints
from pcdiff.prior.fit import PriorFit

Run = Callable[..., tuple[int, str, str]]


@dataclass
class Stub:
    """A method without a network: the fitted completed surface, its members apart by some tenths of a millimetre."""

    fitted: PriorFit
    calls: list[int] = field(default_factory=list)
    error: Exception | None = None

    def __call__(self, skull: Volume, *, ensemble: int = 1, seed: int = 0, device: str = "cpu") -> Proposal:
        self.calls.append(seed)
        if self.error:
            raise self.error
        shifts = np.random.default_rng(seed).normal(0, 1.0, ensemble)
        return Proposal([OrientedPoints(self.fitted.completed_surface(self.fitted.outer + shift)) for shift in shifts])


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
