"""The recommended candidate of an ensemble, and the spread of its surfaces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pcdiff.checks.report import CONTINUATION_MEAN, STEP_MEAN

if TYPE_CHECKING:
    from pcdiff.checks.report import Report
    from pcdiff.geometry.mesh import Mesh

MEAN_BONUS_MM = 0.1  # a candidate must be better by this than the mean of all, which is the likeliest


@dataclass(frozen=True)
class Choice:
    """The recommended candidate, from 1, or 0 for the mean of all; and the reason as a sentence."""

    candidate: int
    why: str


def surface_std(points: np.ndarray, members: Sequence[Mesh]) -> np.ndarray:
    """(N, 3) mm on the implant's surface -> (N,) mm: standard deviation of the members' surfaces along the normal.

    That of a population of which the members, two at least, are a sample.
    """
    from pcdiff.geometry.surface import distance_to

    return np.std([distance_to(member, points) for member in members], axis=0, ddof=1)


def recommend(reports: Sequence[Report | None]) -> Choice:
    """The candidate that fails the fewest checks; of those, the one with the smallest `disagreement`.

    reports: of the mean of all candidates, then of each candidate; None for one that leaves a defect open. A candidate
    replaces the mean only if it fails fewer checks, or is better by `MEAN_BONUS_MM`.
    """
    ranked = [
        (len(report.failed), disagreement(report) - (MEAN_BONUS_MM if number == 0 else 0.0), number)
        for number, report in enumerate(reports)
        if report is not None
    ]
    failed, _, best = min(ranked)
    report = reports[best]
    assert report is not None
    if len(ranked) == 1:
        return Choice(best, "there is one candidate")
    name = "the mean of all candidates" if best == 0 else f"candidate {best}"
    fails = "passes every check" if failed == 0 else f"fails the fewest checks ({failed})"
    return Choice(
        best, f"{name} {fails}; step at the rim plus distance to the continued bone {disagreement(report):.2f} mm"
    )


def disagreement(report: Report) -> float:
    """Mean step along the rim plus mean distance to the continued bone, mm; what was not measured adds nothing."""
    keys = {STEP_MEAN, CONTINUATION_MEAN}
    return float(sum(f.value for check in report.checks for f in check.figures if f.key in keys))
