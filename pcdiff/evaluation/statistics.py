"""Statistics of an evaluation's rows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pcdiff.evaluation.rows import Row

SCORES = ("dsc", "bdsc", "hd95")  # those of the AutoImplant challenges
CRITERIA = ("complete", "no_false_positive_area", "fit", "feasible")  # those of its neurosurgeons, by the checks
METRICS = (*SCORES, "hd", "masd", "nsd_05mm", "nsd_1mm", "volume_error", *CRITERIA)
FIGURES = (*METRICS, "spread_error", "within_1sd", "within_2sd", "seconds", "peak_mb")
HIGHER_IS_BETTER = {"dsc", "bdsc", "nsd_05mm", "nsd_1mm", *CRITERIA, "spread_error", "within_1sd", "within_2sd"}
STATISTICS = ("mean", "median", "worst")

Summary = dict[str, dict[str, Any]]


def summarise(rows: Sequence[Row]) -> Summary:
    """Method -> number of cases, names of the failed ones, and mean, median and worst of each figure.

    A failure counts with the worst scores, see `Row`. Seconds and memory are those of the commands that
    started. Skulls without a defect are not among the cases: `refusals` is their number, `refused` how many of them
    were refused. Of the implants that were `checked`, `passed` passed every check.
    """
    return {method: _summarise([row for row in rows if row.method == method]) for method in _in_order(rows, "method")}


@dataclass(frozen=True)
class Difference:
    """Of a score between two methods on the same skulls: mean, standard error, and skulls that got better of all.

    A skull with several defects counts once, with its mean: its cases are not independent. The standard error is NaN
    for a single skull.
    """

    mean: float
    standard_error: float
    better: int
    skulls: int


def paired_differences(rows: Sequence[Row], method: str, reference: str) -> dict[str, Difference]:
    """Score -> `method` minus `reference`, over the cases that both were measured on; empty without such cases.

    HD95 leaves out cases that failed.
    """
    scored = {(row.method, row.case, row.seed): row for row in rows if not row.refusal}
    pairs = [
        (row, scored[reference, case, seed])
        for (name, case, seed), row in scored.items()
        if name == method and (reference, case, seed) in scored
    ]
    found = {}
    for score in SCORES:
        skulls: dict[str, list[float]] = {}
        for row, other in pairs:
            difference = getattr(row, score) - getattr(other, score)
            if math.isfinite(difference):
                skulls.setdefault(row.skull, []).append(difference)
        if skulls:
            values = np.array([np.mean(differences) for differences in skulls.values()])
            error = float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan
            better = int(np.sum(values > 0 if score in HIGHER_IS_BETTER else values < 0))
            found[score] = Difference(float(values.mean()), error, better, len(values))
    return found


def kinds_of(rows: Sequence[Row]) -> list[str]:
    """The classes of the data set's cases or the variants of a suite, in order of appearance; may be empty."""
    return [kind for kind in _in_order(rows, "kind") if kind]


def mean(values: Iterable[float]) -> float:
    """Mean of the values that are not NaN; NaN if there are none."""
    known = _known(values)
    return float(np.mean(known)) if known else math.nan


def median(values: Iterable[float]) -> float:
    """Median of the values that are not NaN; NaN if there are none."""
    known = _known(values)
    return float(np.median(known)) if known else math.nan


def worst(values: Iterable[float], higher_is_better: bool) -> float:
    """The worst of the values that are not NaN; NaN if there are none."""
    known = _known(values)
    return (min if higher_is_better else max)(known, default=math.nan)


def _summarise(rows: Sequence[Row]) -> dict[str, Any]:
    """Of one method."""
    cases = [row for row in rows if not row.refusal]
    refusals = [row for row in rows if row.refusal]
    figures = {name: [getattr(row, name) for row in cases] for name in FIGURES}
    return {
        "cases": len(cases),
        "failed": [row.case for row in cases if row.error is not None],
        "refusals": len(refusals),
        "refused": sum(row.error is None for row in refusals),
        "checked": sum(row.failed_checks is not None for row in cases),
        "passed": sum(row.failed_checks == "" for row in cases),
        "mean": {name: mean(values) for name, values in figures.items()},
        "median": {name: median(values) for name, values in figures.items()},
        "worst": {name: worst(values, name in HIGHER_IS_BETTER) for name, values in figures.items()},
    }


def _in_order(rows: Sequence[Row], attribute: str) -> list[str]:
    return list(dict.fromkeys(getattr(row, attribute) for row in rows))


def _known(values: Iterable[float]) -> list[float]:
    return [value for value in values if not math.isnan(value)]
