"""Which cases and which places are hard: scores by the size of the defect, errors by the distance from its rim."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from pcdiff.evaluation.comparison import Comparison, Estimate, by_head, estimate
from pcdiff.evaluation.rim_errors import BANDS, LIMITS_MM
from pcdiff.evaluation.rows import Row

SIZES = 4  # groups of cases, equally many in each
Groups = Mapping[str, Mapping[str, Sequence[Row]]]  # name of a group -> method -> rows
PlaceEstimates = Mapping[str, Mapping[str, Estimate | None]]  # name of a group -> method -> None without a case


def bands() -> dict[str, str]:
    """The name of each band of distance from the bone -> its figure of a row."""
    ends = ["0", *(f"{limit:g}" for limit in LIMITS_MM)]
    names = [f"{low} to {high} mm" for low, high in pairwise(ends)]
    return dict(zip([*names, f"over {ends[-1]} mm"], BANDS, strict=True))


def by_size(found: Comparison) -> Groups:
    """The cases in four groups by the volume of the true implant; empty for few cases, or all of one size."""
    volumes = {row.case: row.ml_true for rows in found.rows.values() for row in rows if not math.isnan(row.ml_true)}
    groups = np.array_split(sorted(volumes, key=lambda case: volumes[case]), SIZES)
    named = {f"{volumes[cases[0]]:.0f} to {volumes[cases[-1]]:.0f} ml": set(cases) for cases in groups if len(cases)}
    if len(named) < SIZES:
        return {}
    return {
        name: {method: [row for row in rows if row.case in cases] for method, rows in found.rows.items()}
        for name, cases in named.items()
    }


def by_rim(found: Comparison) -> Groups:
    """The rows that have an error in each band; a band without one in any method is left out, and so are failures."""
    groups = {
        name: {
            method: [row for row in rows if row.error is None and not math.isnan(getattr(row, figure))]
            for method, rows in found.rows.items()
        }
        for name, figure in bands().items()
    }
    return {name: methods for name, methods in groups.items() if any(methods.values())}


def estimates(groups: Groups, figures: Mapping[str, str]) -> PlaceEstimates:
    """Group -> method -> mean over the heads that have a case in the group; figures: group -> figure of a row."""
    return {
        name: {method: estimate(by_head(rows, figures[name])) if rows else None for method, rows in methods.items()}
        for name, methods in groups.items()
    }
