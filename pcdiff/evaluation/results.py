"""Rows of an evaluation, their statistics, and the files they become."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from pcdiff import __version__
from pcdiff.data.cases import Case
from pcdiff.environment import machine
from pcdiff.evaluation.measure import PCDIFF
from pcdiff.files import sha256, written_beside


@dataclass(frozen=True)
class Row:
    """One method on one case. A failure has an error, DSC and bDSC 0 and HD95 infinite.

    spread_error: see `metrics.spread_error`; not a number for a single candidate.
    seconds: wall time of the process, one of `workers` at once. peak_mb: its peak resident set, 10^6 bytes.
    ml_*: volume of the implants.
    refusal: was an implant to be refused? Then there are no scores, and `reason` is what was said, if it was refused.
    implant: sha256 of the implant's file. fingerprint: of the command, this package's files, the weights' and the
    case's; rows of another one are not reused.
    """

    case: str
    method: str
    seed: int
    dsc: float = 0.0
    bdsc: float = 0.0
    hd95: float = math.inf
    spread_error: float = math.nan
    seconds: float = math.nan
    peak_mb: float = math.nan
    ml_true: float = math.nan
    ml_predicted: float = math.nan
    error: str | None = None
    workers: int = 1
    refusal: bool = False
    reason: str | None = None
    implant: str = field(default="", repr=False)
    fingerprint: str = field(default="", repr=False)

    @property
    def kind(self) -> str:
        """`bilateral` of the case `bilateral/003`, empty for `003`."""
        return self.case.rpartition("/")[0]


FIGURES = ("dsc", "bdsc", "hd95", "spread_error", "seconds", "peak_mb")
_HIGHER_IS_BETTER = {"dsc", "bdsc", "spread_error"}
REFUSED = 2  # exit code


@dataclass(frozen=True)
class Results:
    """What `evaluate` found: rows in order of method and case, and what they were measured on."""

    rows: list[Row]
    measured_on: dict[str, Any]

    def summary(self, kind: str | None = None) -> dict[str, dict[str, Any]]:
        """Method -> number of cases, names of the failed ones, and mean, median and worst of each figure.

        kind: of the cases `<kind>/...` alone. Failures count: DSC and bDSC 0, HD95 infinite. Seconds and memory are of
        what ran. Cases to be refused are in none of these, but in `refusals`: how many, and how many were refused.
        """
        result: dict[str, dict[str, Any]] = {}
        for method in dict.fromkeys(row.method for row in self.rows):
            here = [row for row in self.rows if row.method == method and kind in (None, row.kind)]
            rows, refusals = ([row for row in here if row.refusal is refusal] for refusal in (False, True))
            result[method] = {
                "cases": len(rows),
                "failed": [row.case for row in rows if row.error is not None],
                "refusals": len(refusals),
                "refused": sum(row.error is None for row in refusals),
            }
            for statistic in ("mean", "median", "worst"):
                result[method][statistic] = {
                    name: _statistic(statistic, [getattr(row, name) for row in rows], name in _HIGHER_IS_BETTER)
                    for name in FIGURES
                }
        return result

    @property
    def kinds(self) -> list[str]:
        """The classes of a data set's cases, or the variants of a suite; empty where there are none."""
        return list(dict.fromkeys(row.kind for row in self.rows if row.kind))

    def table(self) -> str:
        """The rows, the means of each kind, and mean, median and worst of each method, as a Markdown table.

        Refusals are counted below, failures named.
        """
        lines = [
            "| method | case | DSC | bDSC | HD95 mm | spread rho | seconds | peak MB | true ml | implant ml |",
            "|---|---|---|---|---|---|---|---|---|---|",
        ]
        for row in self.rows:
            volumes = f"{_number(row.ml_true, 1)} | {_number(row.ml_predicted, 1)}"
            lines.append(f"| {row.method} | {row.case} | {_figures(asdict(row))} | {volumes} |")
        for kind in self.kinds:
            for method, result in self.summary(kind).items():
                if result["cases"]:
                    mean = f"**{kind}**, mean of {result['cases']}"
                    lines.append(f"| {method} | {mean} | {_figures(result['mean'])} | | |")
        for method, result in self.summary().items():
            for name in ("mean", "median", "worst") if result["cases"] else ():
                lines.append(f"| **{method}** | **{name}** of {result['cases']} | {_figures(result[name])} | | |")
        lines.append("")
        for kind in self.kinds:
            for method, result in self.summary(kind).items():
                if result["refusals"]:
                    lines.append(f"refused, rightly: {method} on {kind}: {result['refused']} of {result['refusals']}")
        lines += [f"failed: {row.method} on {row.case}: {row.error}" for row in self.rows if row.error]
        return "\n".join(lines).rstrip() + "\n"


def _kept(out: Path, method: str, case: str) -> Path:
    """Where the implant of a case is kept."""
    return out / "implants" / method / f"{case}.nrrd"


def _is(path: Path, digest: str) -> bool:
    return path.is_file() and sha256(path) == digest


def _filled(part: str, **values: object) -> str:
    """{skull} and the like in a part of a command; other braces may be a path's."""
    for name, value in values.items():
        part = part.replace(f"{{{name}}}", str(value))
    return part


def _fingerprint(command: Sequence[str], code: str, case: Case) -> str:
    files = (case.complete_skull, case.defective_skull, case.implant)
    bytes_of = [sha256(path) if path and path.is_file() else None for path in files]
    return hashlib.sha256(json.dumps([*command, code, *bytes_of]).encode()).hexdigest()[:16]


def _read_rows(path: Path) -> dict[tuple[str, str, int, str], Row]:
    """The rows of an earlier run; a line that a crash cut short is dropped, and ended so that the next stands alone."""
    if not path.exists():
        return {}
    text = path.read_text(encoding="utf-8")
    if text and not text.endswith("\n"):
        with path.open("a", encoding="utf-8") as file:
            file.write("\n")
    rows = []
    for line in text.splitlines():
        try:
            values = json.loads(line)
            # JSON has neither NaN nor infinity; a refusal has no scores, and only a failure's HD95 is infinite
            numbers = [item.name for item in fields(Row) if item.type == "float"]
            unknown = {name: math.nan for name in numbers if values[name] is None}
            if "hd95" in unknown and not values["refusal"]:
                unknown["hd95"] = math.inf
            rows.append(Row(**(values | unknown)))
        except (ValueError, TypeError, KeyError):
            continue
    return {(row.method, row.case, row.seed, row.fingerprint): row for row in rows}


def _statistic(name: str, values: list[float], higher_is_better: bool) -> float:
    """Mean, median or worst of what was measured; not a number where nothing was."""
    measured = [value for value in values if not math.isnan(value)]
    if not measured:
        return math.nan
    if name == "worst":
        return min(measured) if higher_is_better else max(measured)
    return float(np.mean(measured) if name == "mean" else np.median(measured))


def _measured_on(command: Sequence[str]) -> dict[str, Any]:
    ours = tuple(command[: len(PCDIFF)]) == PCDIFF
    words = ["pcdiff", *command[len(PCDIFF) :]] if ours else command
    return {
        "pcdiff": __version__,
        **machine(),
        "processor": platform.processor() or platform.machine(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(Path(word).name if Path(word).is_absolute() else word for word in words),
    }


def _write(out: Path, results: Results) -> None:
    with (
        written_beside(out / "results.csv") as path,
        path.open("w", encoding="utf-8", newline="") as file,
    ):
        writer = csv.DictWriter(file, [item.name for item in fields(Row)])
        writer.writeheader()
        writer.writerows(asdict(row) for row in results.rows)
    kinds = {kind: results.summary(kind) for kind in results.kinds}
    report = _strict(results.measured_on | {"summary": results.summary(), "kinds": kinds})
    rows = ",\n".join(json.dumps(_strict(asdict(row)), allow_nan=False) for row in results.rows)  # one a line
    text = json.dumps(report, indent=1, allow_nan=False).removesuffix("\n}")
    with written_beside(out / "results.json") as path:
        path.write_text(f'{text},\n "rows": [\n{rows}\n]\n}}\n', encoding="utf-8")


def _strict(value: Any) -> Any:
    """JSON has no infinity and no NaN: both become null."""
    if isinstance(value, Mapping):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_strict(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _figures(values: Mapping[str, float]) -> str:
    digits = {"dsc": 4, "bdsc": 4, "hd95": 2, "spread_error": 2, "seconds": 1, "peak_mb": 0}
    return " | ".join(_number(values[name], digits[name]) for name in FIGURES)


def _number(value: float, digits: int) -> str:
    return "" if math.isnan(value) else f"{value:.{digits}f}"
