"""Evaluations of different methods, run at different times, put into one file that says where each row comes from."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pcdiff.errors import InputError
from pcdiff.evaluation.comparison import read_results, rows_by_method
from pcdiff.evaluation.rows import INFINITE, Row
from pcdiff.files import written_beside
from pcdiff.geometry.metrics import VERSION

RUN = ("pcdiff", "commit", "date", "command", "platform", "cpu_count", "torch", "workers")
LEFT_OUT = ("implant", "fingerprint", "refusal", "reason")  # of a row
SAME_ML = 1e-6  # relative difference of the true volumes of one case


def merge(paths: Sequence[Path], common: bool = False) -> dict[str, Any]:
    """The contents of results.json files, or of files that `write_merged` wrote, as one.

    The last file that holds a method gives all of its rows, unless it holds other cases than an earlier one: a method
    may be evaluated in parts. common: only the cases that all methods have been run on.

    Returns:
        `methods`: name -> `runs`, the conditions of each run with the commit, and `training`, what the weights say of
        it; `rows`, by method; and what `pcdiff compare` reads of results.json.

    Raises:
        InputError: a file of another kind, scores by other definitions, parts of a method with different weights, a
            case whose skull or true implant differs between two methods, and a method that lacks cases of another one.
    """
    rows: dict[str, list[Row]] = {}
    methods: dict[str, dict[str, Any]] = {}
    for path in paths:
        record = read_results(path)
        for name, found in rows_by_method(record).items():
            about = record.get("methods", {}).get(name) or _about(record, found[0].method)
            if name in methods and about["weights"] == methods[name]["weights"]:  # earlier versions say less of them
                about["training"] = about["training"] or methods[name]["training"]
            earlier = rows.get(name, [])
            if {row.case for row in earlier} & {row.case for row in found}:
                earlier = []
            if earlier and about["weights"] != methods[name]["weights"]:
                raise InputError(
                    f"{path}: expected the weights that {name} had on other cases, got others; evaluate it on all "
                    "cases with the same weights"
                )
            rows[name] = [*earlier, *(replace(row, method=name) for row in found)]
            runs = [*(methods[name]["runs"] if earlier else []), *about["runs"]]
            methods[name] = {**about, "runs": runs}
    if common:
        shared = set.intersection(*({row.case for row in of} for of in rows.values()))
        rows = {name: [row for row in of if row.case in shared] for name, of in rows.items()}
    _check(rows)
    return {
        "pcdiff": ", ".join(sorted({str(run["pcdiff"]) for of in methods.values() for run in of["runs"]})),
        "metrics": VERSION,
        "ensemble": 1,
        "weights": {name: of["weights"] for name, of in methods.items()},
        "methods": methods,
        "rows": [row for of in rows.values() for row in of],
    }


def write_merged(path: Path, record: Mapping[str, Any]) -> None:
    """Writes what `merge` returned, a row a line."""
    head = json.dumps({key: value for key, value in record.items() if key != "rows"}, indent=1)
    lines = ",\n".join(json.dumps(_short(row), allow_nan=False) for row in record["rows"])
    with written_beside(path) as part:
        part.write_text(f'{head[:-2]},\n "rows": [\n{lines}\n]\n}}\n', encoding="utf-8")


def _about(record: Mapping[str, Any], method: str) -> dict[str, Any]:
    """Of a method in results.json."""
    return {
        "runs": [{key: record.get(key) for key in RUN}],
        "weights": record["weights"].get(method, {}),
        "training": record.get("training", {}).get(method, {}),
    }


def _check(rows: Mapping[str, Sequence[Row]]) -> None:
    """Raises InputError unless all methods have the same cases, with the same truth."""
    every = {case for of in rows.values() for case in (row.case for row in of)}
    first: dict[str, Row] = {}
    for name, of in rows.items():
        if missing := sorted(every - {row.case for row in of}):
            raise InputError(
                f"expected the same cases of every method, got {name} without {missing[0]} ({len(missing)} of "
                f"{len(every)} are missing); evaluate it on all of them"
            )
        for row in of:
            known = first.setdefault(row.case, row)
            other = row.truth and known.truth and row.truth != known.truth
            if other or not _same_volume(row, known):
                raise InputError(
                    f"case {row.case}: expected one skull and one true implant, got others for {known.method} and for "
                    f"{name}: another data set, suite or seed; evaluate one of them again"
                )
            if row.truth and not known.truth:
                first[row.case] = row


def _same_volume(row: Row, known: Row) -> bool:
    """Of the true implant; rows of earlier versions have no digest. A case that could not be read has no volume."""
    volumes = (row.ml_true, known.ml_true)
    return any(map(math.isnan, volumes)) or math.isclose(*volumes, rel_tol=SAME_ML)


def _short(row: Row) -> dict[str, Any]:
    """The row without what is empty, and without what only a later run of the evaluation would read."""
    values = row.to_json()
    empty = {key for key, value in values.items() if value is None and not (key in INFINITE and row.error)}
    return {key: value for key, value in values.items() if key not in empty.union(LEFT_OUT)}
