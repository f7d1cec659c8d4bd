"""Results as Markdown tables: those of one evaluation, and those of the documents, made of results.json."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pcdiff.data.suite import SKULLBREAK
from pcdiff.evaluation.rows import Row
from pcdiff.evaluation.statistics import (
    FIGURES,
    METRICS,
    SCORES,
    STATISTICS,
    Difference,
    kinds_of,
    mean,
    paired_differences,
    summarise,
)

DIGITS = {
    "dsc": 3,
    "bdsc": 3,
    "hd95": 2,
    "hd": 2,
    "masd": 2,
    "nsd_05mm": 3,
    "nsd_1mm": 3,
    "volume_error": 1,
    "complete": 2,
    "no_false_positive_area": 2,
    "fit": 2,
    "feasible": 2,
    "spread_error": 2,
    "within": 2,
    "within_1sd": 2,
    "within_2sd": 2,
    "seconds": 1,
    "peak_mb": 0,
    "ml": 1,
}
FINE = DIGITS | {"dsc": 4, "bdsc": 4, "masd": 3, "nsd_05mm": 4, "nsd_1mm": 4}  # where small differences matter
TITLES = {
    "dsc": "DSC",
    "bdsc": "bDSC",
    "hd95": "HD95 mm",
    "hd": "HD mm",
    "masd": "MASD mm",
    "nsd_05mm": "NSD 0.5 mm",
    "nsd_1mm": "NSD 1 mm",
    "volume_error": "volume error %",
    "complete": "complete",
    "no_false_positive_area": "no false positive area",
    "fit": "fit",
    "feasible": "passes every check",
}
GROUPS = {
    "SkullBreak's five classes, mean of classes": SKULLBREAK,
    "irregular and two_defects": ("irregular", "two_defects"),
}

Record = Mapping[str, Any]  # the contents of a results.json
MethodSummary = Mapping[str, Any]  # see `statistics.summarise`


def results_table(rows: Sequence[Row]) -> str:
    """Every row, the mean of each kind, and mean, median and worst of each method.

    Then each method minus the first one with standard errors, how many implants pass every check, refusals and
    failures.
    """
    head = ["method", "case", *(TITLES[name] for name in METRICS), "spread rho", "in 1 sd", "in 2 sd"]
    head += ["seconds", "peak MB", "true ml", "implant ml"]
    cells = []
    for row in rows:
        volumes = [number(value, "ml") for value in (row.ml_true, row.ml_predicted)]
        cells.append([row.method, row.case, *(number(getattr(row, name), name, FINE) for name in FIGURES), *volumes])
    kinds = {kind: summarise([row for row in rows if row.kind == kind]) for kind in kinds_of(rows)}
    for kind, summary in kinds.items():
        for method, found in summary.items():
            if found["cases"]:
                cells.append([method, f"**{kind}**, mean of {found['cases']}", *_statistic(found["mean"]), "", ""])
    for method, found in summarise(rows).items():
        for name in STATISTICS if found["cases"] else ():
            cells.append([f"**{method}**", f"**{name}** of {found['cases']}", *_statistic(found[name]), "", ""])
    refusals = [
        f"correctly refused: {method} on {kind}: {found['refused']} of {found['refusals']}"
        for kind, summary in kinds.items()
        for method, found in summary.items()
        if found["refusals"]
    ]
    checks = [
        f"pass every check: {method} on {kind or 'all cases'}: {found['passed']} of {found['checked']}"
        for kind, summary in (kinds or {"": summarise(rows)}).items()
        for method, found in summary.items()
        if found["checked"]
    ]
    checks += [f"checks failed: {row.method} on {row.case}: {row.failed_checks}" for row in rows if row.failed_checks]
    failures = [f"failed: {row.method} on {row.case}: {row.error}" for row in rows if row.error]
    return "\n".join([markdown(head, cells), "", *_differences(rows), *checks, *refusals, *failures]).rstrip() + "\n"


def own_defects_table(records: Sequence[Record]) -> str:
    """The data set's own defects, one line per method; seconds only where one case ran at a time."""
    means = ["DSC, mean", "bDSC, mean", "HD95 mm, mean", "seconds, mean", "peak MB, mean"]
    cells = []
    for name, (method, record) in columns(records).items():
        own = record["kinds"].get("own") if record["kinds"] else record["summary"]
        if own is None:  # a suite of other defects only
            continue
        found = own[method]
        seconds = "" if record["workers"] > 1 else number(found["mean"]["seconds"], "seconds")
        failed = f"{len(found['failed'])} of {found['cases']}"
        ends = [number(found["mean"]["peak_mb"], "peak_mb"), number(found["worst"]["dsc"], "dsc"), failed]
        cells.append([name, *_scores(found["mean"]), seconds, *ends])
    return "\n".join([markdown(["method", *means, "DSC, worst", "failed"], cells), "", origin(records)])


def variants_table(records: Sequence[Record]) -> str:
    """The variants of a suite and groups of them, one line each; then refusals, and the spread against the error.

    Of several records of a method, that with the most variants is taken.
    """
    records = sorted((record for record in records if record["kinds"]), key=lambda record: -len(record["kinds"]))
    if not records:
        return ""
    methods = columns(records)
    kinds = list(dict.fromkeys(kind for record in records for kind in record["kinds"]))
    cells = []
    for title, group in ({kind: (kind,) for kind in kinds} | GROUPS).items():
        found = [
            _group_scores([record["kinds"].get(kind, {}).get(method) for kind in group])
            for method, record in methods.values()
        ]
        if any(found):
            cells.append([title, *found])
    lines = [markdown(["DSC / bDSC / HD95 mm / worst DSC", *methods], cells)]
    if refusals := [text for name, column in methods.items() if (text := _refusals(name, *column))]:
        lines += ["", f"Skulls without a defect, refused with a reason: {'; '.join(refusals)}."]
    if spreads := [text for name, column in methods.items() if (text := _spread(name, *column))]:
        lines += ["", f"Spread of candidates against error by points, means: {'; '.join(spreads)}."]
    return "\n".join(lines)


def ablation_table(record: Record) -> str:
    """The variants of an ablation (tools/ablate.py): scores per kind of case, and DSC minus that of all parts."""
    kinds = record["kinds"]
    head = ["variant"]
    for kind in kinds:
        head += [f"{kind}: DSC / bDSC / HD95 mm / worst DSC", "DSC minus that of all parts"]
    cells = []
    for name in record["variants"]:
        line = [name]
        for of in (kinds[kind][name] for kind in kinds):
            line.append(" / ".join([*_scores(of["mean"]), number(of["worst"]["dsc"], "dsc")]))
            line.append(difference(Difference(**of["dsc_difference"]), "dsc") if of["dsc_difference"] else "")
        cells.append(line)
    return markdown(head, cells)


def lattice_table(groups: Mapping[str, Record]) -> str:
    """Variants of networks scored on the lattice (tools/measure_networks.py), the whole first in each group.

    groups: name of a group -> variant -> `dsc`, of each class, and `difference` to the whole.
    """
    cells = []
    for group, variants in groups.items():
        for name, of in variants.items():
            whole = of["difference"].get("all")
            line = [f"{group}: {name}" if group else name, number(mean(of["dsc"].values()), "dsc")]
            line.append(difference(Difference(**whole), "dsc") if whole else "")
            cells.append(line + [number(value, "dsc") for value in of["dsc"].values()])
    kinds = next(of["dsc"] for variants in groups.values() for of in variants.values())
    return markdown(["variant", "DSC, mean of classes", "minus that of all", *kinds], cells)


def columns(records: Sequence[Record]) -> dict[str, tuple[str, Record]]:
    """Name of a column -> its method and its record; the first record that has one is taken."""
    found: dict[str, tuple[str, Record]] = {}
    for record in records:
        for method, summary in record["summary"].items():
            several = record["ensemble"] > 1 and summary["mean"]["spread_error"] is not None
            name = f"{method}, {record['ensemble']} candidates" if several else method
            found.setdefault(name, (method, record))
    return found


def origin(records: Sequence[Record]) -> str:
    """Versions and weights that were evaluated."""
    hashes: dict[str, list[str]] = {}
    for name, digest in (item for record in records for files in record["weights"].values() for item in files.items()):
        if digest[:12] not in hashes.setdefault(name, []):
            hashes[name].append(digest[:12])
    weights = ", ".join(f"`{name}` {' and '.join(digests)}" for name, digests in sorted(hashes.items()))
    versions = ", ".join(sorted({f"pcdiff {record['pcdiff']}" for record in records}))
    return f"{versions}; weights (sha256): {weights}."


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join([markdown_row(head), "|---" * len(head) + "|", *map(markdown_row, rows)])


def markdown_row(cells: Sequence[str]) -> str:
    """One line of a Markdown table; no character of a name that someone gave ends its cell."""
    escaped = (" ".join(cell.split()).replace("|", r"\|") for cell in cells)
    return f"| {' | '.join(escaped)} |"


def number(value: float | None, figure: str, digits: Mapping[str, int] = DIGITS) -> str:
    """A figure as text, empty for NaN. None, from JSON, is the infinite HD95 of a failure, or NaN."""
    if value is None:
        value = math.inf if figure == "hd95" else math.nan
    return "" if math.isnan(value) else f"{value:.{digits[figure]}f}"


def difference(found: Difference, figure: str) -> str:
    """`+0.0031 ± 0.0010 (12 of 15 better)`."""
    digits = FINE[figure]
    return f"{found.mean:+.{digits}f} ± {found.standard_error:.{digits}f} ({found.better} of {found.skulls} better)"


def _differences(rows: Sequence[Row]) -> list[str]:
    """Lines: each method minus the first, of each kind and of all."""
    methods = list(dict.fromkeys(row.method for row in rows))
    kinds = kinds_of(rows)
    groups = {f", {kind}": [row for row in rows if row.kind == kind] for kind in kinds} if len(kinds) > 1 else {}
    lines = []
    for method in methods[1:]:
        for name, group in (groups | {"": rows}).items():
            if found := paired_differences(group, method, methods[0]):
                scores = ", ".join(f"{TITLES[score]} {difference(of, score)}" for score, of in found.items())
                lines.append(f"{method} minus {methods[0]}{name}: {scores}")
    return lines


def _statistic(values: Mapping[str, float]) -> list[str]:
    return [number(values[name], name, FINE) for name in FIGURES]


def _scores(values: Mapping[str, float | None], digits: Mapping[str, int] = DIGITS) -> list[str]:
    return [number(values[name], name, digits) for name in SCORES]


def _group_scores(group: Sequence[MethodSummary | None]) -> str:
    """Means over kinds, and the worst of all; empty if one was not measured or has no cases."""
    found = [summary for summary in group if summary and summary["cases"]]
    if len(found) < len(group):
        return ""
    means = {name: [summary["mean"][name] for summary in found] for name in SCORES}
    figures = _scores({name: None if None in values else mean(values) for name, values in means.items()})
    figures.append(number(min(summary["worst"]["dsc"] for summary in found), "dsc"))
    failed = sum(len(summary["failed"]) for summary in found)
    return " / ".join(figures) + (f" ({failed} failed)" if failed else "")


def _refusals(name: str, method: str, record: Record) -> str:
    """How many of the skulls without a defect a method refused, per kind."""
    kinds = {kind: summary[method] for kind, summary in record["kinds"].items()}
    counts = [f"{kind} {of['refused']} of {of['refusals']}" for kind, of in kinds.items() if of["refusals"]]
    return f"{name}: {', '.join(counts)}" if counts else ""


def _spread(name: str, method: str, record: Record) -> str:
    means = record["summary"][method]["mean"]
    if means["spread_error"] is None:
        return ""
    within = [means.get(figure) for figure in ("within_1sd", "within_2sd")]
    shares = (
        ""
        if None in within
        else f", error within 1 sd {number(within[0], 'within')}, 2 sd {number(within[1], 'within')}"
    )
    return f"{name}: Spearman's rho {number(means['spread_error'], 'spread_error')}{shares}"
