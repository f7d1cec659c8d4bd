"""How long commands take and what memory they need: repeated measurements, and their table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from pcdiff.evaluation.tables import markdown

COLUMNS = ("command", "commit", "seconds", "CPU-s", "peak MB", "start and report")


def speed_table(results: Mapping[str, Any]) -> str:
    """Where and when, and a Markdown table with a row for each command and commit: medians, and ranges in brackets.

    results: what `tools/benchmark.py --json` writes. `start` is the time outside the stages: interpreter, imports,
    weights, hashes and the report; for the demo also the simulated craniotomy and the scores. Memory is the largest of
    the repeats. Where two commits were measured, their difference follows: the first less the second.
    """
    rows = results["rows"]
    stages = list(dict.fromkeys(name for row in rows for name in row["stages"] if name not in ("start", "total")))
    lines = []
    for number, row in enumerate(rows):
        lines.append([row["command"], row["commit"], *_whole(row), *_parts(row, ("start", *stages))])
        if number and rows[number - 1]["command"] == row["command"]:
            lines.append(
                [row["command"], "difference", *_difference(rows[number - 1], row), *("",) * (len(stages) + 1)]
            )
    machine = ", ".join(f"{name} {value}" for name, value in results["machine"].items())
    load = " to ".join(f"{value:.1f}" for value in results["load"])
    repeats = len(rows[0]["seconds"]) if rows else 0
    where = f"{results['date'][:10]}, {machine}. Medians of {repeats} runs. Load average of the machine: {load}."
    return f"{where}\n\n{markdown([*COLUMNS, *stages], lines)}"


def _whole(row: Mapping[str, Any]) -> list[str]:
    return [_range(row["seconds"]), _range(row["cpu_seconds"]), f"{max(row['peak_mb']):.0f}"]


def _range(values: Sequence[float]) -> str:
    return f"{median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def _parts(row: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    return [f"{median(row['stages'][name]):.2f}" if name in row["stages"] else "" for name in names]


def _difference(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    seconds, cpu = (median(first[key]) - median(second[key]) for key in ("seconds", "cpu_seconds"))
    return [f"{seconds:+.1f}", f"{cpu:+.1f}", f"{max(first['peak_mb']) - max(second['peak_mb']):+.0f}"]
