"""Which candidate of an ensemble to take, and how far the candidates lie apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pcdiff.checks import Report
    from pcdiff.geometry.mesh import Mesh


@dataclass(frozen=True)
class Choice:
    """One of the candidates, 0 for the mean of all, and why."""

    candidate: int
    why: str


def spread(mesh: Mesh, members: Sequence[Mesh]) -> np.ndarray:
    """(V,) mm: standard deviation of the members' surfaces along the normal, at the vertices of the implant's mesh."""
    from pcdiff.geometry.surface import distance_to

    return np.std([distance_to(member, mesh.vertices) for member in members], axis=0)


def recommend(reports: Sequence[Report | None]) -> Choice:
    """The candidate to take: that which fails the fewest checks; of those, that which agrees best with what is known.

    reports: of the mean of all candidates, then of each; None for one that left a defect open. Agreement in mm: mean
    step
    along the rim plus mean distance to the expected surface. A candidate must be better than the mean by a tenth of a
    millimetre, or by a check, to be taken in its place: the mean is the likeliest.
    """
    keys = [
        (len(report.failed), disagreement(report) - (0.1 if k == 0 else 0.0), k)
        for k, report in enumerate(reports)
        if report is not None
    ]
    failed, _, best = min(keys)
    report = reports[best]
    assert report is not None
    if len(keys) == 1:
        return Choice(best, "there is one candidate")
    name = "the mean of all candidates" if best == 0 else f"candidate {best}"
    fails = "passes every check" if failed == 0 else f"fails the fewest checks ({failed})"
    return Choice(best, f"{name} {fails}, {disagreement(report):.2f} mm off rim and expected surface")


def disagreement(report: Report) -> float:
    """mm: mean step along the rim plus mean distance to the expected surface, as far as they are known."""
    names = {"step, mean", "distance to the expected surface, mean"}
    return float(sum(f.value for check in report.checks for f in check.figures if f.name in names))
