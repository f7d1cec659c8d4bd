"""The table of docs/methods.md: a row for each method of a file that `merging.merge` made."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from pcdiff.data.suite import SKULLBREAK
from pcdiff.evaluation.comparison import OWN, by_head
from pcdiff.evaluation.rows import Row
from pcdiff.evaluation.statistics import SCORES, kinds_of, median, paired_differences
from pcdiff.evaluation.tables import DIGITS, TITLES, difference, markdown, number, origin
from pcdiff.methods.registry import METHODS

SCORED = [TITLES[score] for score in SCORES]
HEAD = ("method", *(f"own: {title}" for title in SCORED), *(f"five classes: {title}" for title in SCORED))
HEAD += ("failed", "seconds", "peak MB", "samples seen", "training", "source", "commit")
UNKNOWN = "not recorded"
REFERENCE = "unet"  # the default method; every other one is compared with it
PAIRS = (("gpmm", "ssm"), ("atlas", "ssm"), ("coarse_to_fine", "encoder_decoder"))  # one builds on the other


def methods_table(record: Mapping[str, Any]) -> str:
    """The table, best DSC over the five classes first, the DSC by class, and paired differences.

    Between the first two, what methods that fail do on their other cases. Scores are means and standard errors over
    heads; the value of a head is the mean of its cases.
    """
    rows = [Row.from_json(values) for values in record["rows"]]
    of_method = {name: [row for row in rows if row.method == name] for name in record["methods"]}
    best_first = sorted(of_method, key=lambda name: -_rank(of_method[name]))
    lines = [_line(name, of_method[name], record["methods"][name]) for name in best_first]
    notes = [note for name in best_first if (note := _without_failures(name, of_method[name]))]
    kinds = kinds_of(rows)
    by_class = [[name, *(_scores(of_method[name], (kind,))[0] for kind in kinds)] for name in best_first]
    parts = [markdown(HEAD, lines), *notes, markdown(("DSC by class", *kinds), by_class)]
    pairs = [*((name, REFERENCE) for name in best_first if name != REFERENCE), *PAIRS]
    if differences := [_difference(rows, *pair) for pair in pairs if set(pair) <= set(of_method)]:
        parts.append(markdown(("DSC, paired by head", "own", "five classes"), differences))
    return "\n\n".join([*parts, origin([record])])


def _line(name: str, rows: Sequence[Row], about: Mapping[str, Any]) -> list[str]:
    failed = sum(row.error is not None for row in rows)
    at_once = max(row.workers for row in rows)
    seconds = number(median(row.seconds for row in rows), "seconds") + (f" ({at_once} at once)" if at_once > 1 else "")
    entry = METHODS.get(name.split(",")[0])
    return [
        name,
        *_scores(rows, (OWN,)),
        *_scores(rows, SKULLBREAK),
        f"{failed} of {len(rows)}",
        seconds,
        number(median(row.peak_mb for row in rows), "peak_mb"),
        *_training(about["training"]),
        entry.source if entry else "",
        ", ".join(dict.fromkeys(run["commit"] or UNKNOWN for run in about["runs"])),
    ]


def _difference(rows: Sequence[Row], method: str, reference: str) -> list[str]:
    """The mean difference with its standard error, and the heads in which `method` is better."""
    cells = [f"{method} minus {reference}"]
    for kinds in ((OWN,), SKULLBREAK):
        chosen = [row for row in rows if row.kind in kinds and row.method in (method, reference)]
        complete = {row.kind for row in chosen} == set(kinds)
        cells.append(difference(paired_differences(chosen, method, reference)["dsc"], "dsc") if complete else "")
    return cells


def _training(notes: Mapping[str, Any]) -> tuple[str, str]:
    """Samples seen, and hours with the device; empty for a method without training."""
    if "windows" not in notes:
        return "", ""
    if "seconds" not in notes:
        return f"{notes['windows']:,}", UNKNOWN
    device = "CPU" if str(notes.get("device", "cpu")).startswith("cpu") else "GPU"
    return f"{notes['windows']:,}", f"{notes['seconds'] / 3600:.1f} {device} h"


def _scores(rows: Sequence[Row], kinds: Collection[str]) -> list[str]:
    """Empty cells unless the method has cases of each of the kinds."""
    chosen = [row for row in rows if row.kind in kinds]
    if {row.kind for row in chosen} != set(kinds):
        return [""] * len(SCORES)
    return [_mean(by_head(chosen, score), score) for score in SCORES]


def _mean(values: Sequence[float], score: str) -> str:
    """`0.944 ± 0.004`; without an error for a single head, and for an infinite mean."""
    mean = number(float(np.mean(values)), score)
    if len(values) < 2 or not np.isfinite(values).all():
        return mean
    return f"{mean} ± {np.std(values, ddof=1) / math.sqrt(len(values)):.{DIGITS[score]}f}"


def _without_failures(name: str, rows: Sequence[Row]) -> str:
    made = [row for row in rows if row.error is None]
    if len(made) == len(rows) or not made:
        return ""
    scores = ", ".join(f"{TITLES[score]} {_mean(by_head(made, score), score)}" for score in SCORES)
    heads = len({row.skull for row in made})
    return f"- {name}, on the {len(made)} of {len(rows)} cases in which it gives an implant ({heads} heads): {scores}"


def _rank(rows: Sequence[Row]) -> float:
    chosen = [row for row in rows if row.kind in SKULLBREAK] or rows
    return float(np.mean(by_head(chosen, "dsc")))
