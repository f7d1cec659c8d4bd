"""The tables of a comparison, each once as values and then as Markdown, LaTeX and CSV."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pcdiff.evaluation.comparison import Comparison, Estimate, PairedTest
from pcdiff.evaluation.inference import CONFIDENCE, RESAMPLES
from pcdiff.evaluation.places import PlaceEstimates, bands, by_rim, by_size, estimates
from pcdiff.evaluation.rows import finite
from pcdiff.evaluation.statistics import CRITERIA, METRICS
from pcdiff.evaluation.tables import FINE, TITLES, markdown, number
from pcdiff.files import write_csv, written_beside

TABLES = ("tables.md", "tables.tex", "scores.csv", "places.csv", "tests.csv", "ranks.csv")  # files
SHOWN = ("dsc", "bdsc", "hd95", "nsd_1mm")  # where a table or figure for each of METRICS would be too much
TEX = {character: f"\\{character}" for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "\n": " ",  # two would be a paragraph, which no row may hold
    "±": r"$\pm$",
}


@dataclass(frozen=True)
class Table:
    """A table of text. The first column names the row."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    def to_markdown(self) -> str:
        """A heading and the table."""
        return f"## {self.title}\n\n{markdown(self.head, self.rows)}\n"

    def to_latex(self) -> str:
        """A table environment; it needs the package booktabs."""
        lines = [" & ".join(map(_escaped, cells)) + r" \\" for cells in (self.head, *self.rows)]
        return "\n".join(
            [
                r"\begin{table}",
                rf"\caption{{{_escaped(self.title)}}}",
                rf"\begin{{tabular}}{{l{'r' * (len(self.head) - 1)}}}",
                r"\toprule",
                lines[0],
                r"\midrule",
                *lines[1:],
                r"\bottomrule",
                r"\end{tabular}",
                r"\end{table}",
                "",
            ]
        )


def describe(found: Comparison) -> list[str]:
    """What was compared, and how its figures are to be read: one sentence each."""
    heads, kinds = len(found.heads), len(found.kinds)
    lines = [
        f"{found.cases} cases of {heads} heads, {kinds} {'class' if kinds == 1 else 'classes'}.",
        f"Means over heads, a head with the mean of its cases, and in brackets the {CONFIDENCE} % interval of "
        f"{RESAMPLES:,} bootstrap resamples of heads.",
        "A case without an implant has the worst scores: 0, or an infinite distance.",
    ]
    if any(found.ranks(criterion) for criterion in CRITERIA):
        lines.append(
            "Complete, no false positive area, fit (goes in, without a step or an overlap) and passes every check: the "
            "share of implants that pass these checks of pcdiff check."
        )
    methods = len(found.methods)
    if methods > 1:
        lines.append("p: Wilcoxon's signed-rank test on heads, with Holm's correction for all pairs of methods.")
        least = methods * (methods - 1) / 2 * 2 / 2**heads  # all heads differ in one direction
        if least > 0.05:
            lines.append(f"With {heads} heads no p of these {methods} methods can be below {min(least, 1):.2g}.")
    lines += [
        f"{count} cases of {method} are left out, because another method lacks them."
        for method, count in found.left_out.items()
        if count
    ]
    return lines


def comparison_record(found: Comparison) -> dict[str, Any]:
    """For `pcdiff compare --json`: what was compared, and the scores, tests and ranks of each metric."""
    metrics = {
        metric: {
            "scores": {method: asdict(estimate) for method, estimate in found.estimates(metric).items()},
            "tests": [asdict(test) for test in found.tests(metric)],
            "ranks": {method: asdict(rank) for method, rank in found.ranks(metric).items()},
        }
        for metric in METRICS
        if found.ranks(metric)
    }
    failed = {method: found.failed(method) for method in found.methods}
    return {
        **{"methods": found.methods, "heads": found.heads, "classes": found.kinds, "cases": found.cases},
        **{"left_out": dict(found.left_out), "failed": failed, "metrics": finite(metrics)},
    }


def main_metrics(found: Comparison) -> list[str]:
    """Those of SHOWN that one method at least was measured by: files of earlier versions lack some."""
    return [metric for metric in SHOWN if found.ranks(metric)]


def score_tables(found: Comparison) -> list[Table]:
    """All metrics that were measured, of all cases, then the main metrics by class."""
    columns = {metric: found.estimates(metric) for metric in METRICS if found.ranks(metric)}
    rows = []
    for method in found.methods:
        cells = [_estimate(of[method], metric) for metric, of in columns.items()]
        rows.append([method, *cells, _seconds(*found.seconds(method)), str(found.failed(method))])
    head = ["method", *(TITLES[metric] for metric in columns), "seconds", "failed"]
    tables = [Table("Scores", head, rows)]
    if len(found.kinds) > 1:
        for metric in main_metrics(found):
            of_kinds = [found.estimates(metric, kind) for kind in found.kinds]
            rows = [[name, *(_estimate(of[name], metric) for of in of_kinds)] for name in found.methods]
            tables.append(Table(f"{TITLES[metric]} by class", ["method", *found.kinds], rows))
    return tables


def difference_tables(found: Comparison) -> list[Table]:
    """For each main metric the difference of each pair, the row's method minus the column's, and Holm's p."""
    tables = []
    for metric in SHOWN:
        if not (tests := found.tests(metric)):
            continue
        cells = {(test.first, test.second): _test(test, metric) for test in tests}
        firsts, seconds = (list(dict.fromkeys(pair[place] for pair in cells)) for place in (0, 1))
        rows = [[first, *(cells.get((first, second), "") for second in seconds)] for first in firsts]
        tables.append(Table(f"{TITLES[metric]}: row minus column (p)", ["", *seconds], rows))
    return tables


def place_tables(found: Comparison) -> list[Table]:
    """DSC by the size of the defect, and the mean surface error by the distance from the bone around it."""
    return [
        Table(
            title,
            ["method", *of],
            [[name, *(_estimate(each[name], metric) for each in of.values())] for name in found.methods],
        )
        for title, metric, of in _places(found)
    ]


def rank_table(found: Comparison) -> Table:
    """The rank of each method by the main metrics, with its interval, and how often it is the first."""
    columns = {metric: found.ranks(metric) for metric in main_metrics(found)}
    rows = []
    for method in found.methods:
        of = [ranks.get(method) for ranks in columns.values()]
        rows.append(
            [
                method,
                *(
                    f"{rank.rank} [{rank.low}, {rank.high}], {100 * rank.shares[0]:.0f} %" if rank else ""
                    for rank in of
                ),
            ]
        )
    return Table(
        "Ranks, and share of resamples in which a method is first",
        ["method", *(TITLES[metric] for metric in columns)],
        rows,
    )


def write_tables(out: Path, found: Comparison) -> None:
    """Writes TABLES; scores.csv, tests.csv and ranks.csv have all metrics."""
    tables = [*score_tables(found), *place_tables(found), *difference_tables(found), rank_table(found)]
    _write(out / "tables.md", "\n".join(["\n".join(describe(found)), "", *(table.to_markdown() for table in tables)]))
    notes = [f"% {line}" for line in ("Needs the package booktabs.", *describe(found))]
    _write(out / "tables.tex", "\n".join([*notes, "", *(table.to_latex() for table in tables)]))
    _write_csv(out / "scores.csv", "class,method,metric,mean,low,high,failed", _score_lines(found))
    _write_csv(out / "places.csv", "table,group,method,mean,low,high", _place_lines(found))
    _write_csv(out / "tests.csv", "metric,first,second,difference,low,high,p,p_holm", _test_lines(found))
    _write_csv(out / "ranks.csv", "metric,method,rank,low,high,first", _rank_lines(found))


def _places(found: Comparison) -> list[tuple[str, str, PlaceEstimates]]:
    """Title, the metric whose digits serve, and the estimates of each grouping that was measured."""
    size, rim = by_size(found), by_rim(found)
    of = (
        ("DSC by volume of the true implant", "dsc", estimates(size, dict.fromkeys(size, "dsc"))),
        ("Mean surface error in mm by distance from the bone", "masd", estimates(rim, bands())),
    )
    return [each for each in of if each[2]]


def _place_lines(found: Comparison) -> Iterable[Sequence[object]]:
    for title, _, groups in _places(found):
        for name, methods in groups.items():
            for method, of in methods.items():
                if of is not None:
                    yield title, name, method, of.mean, of.low, of.high


def _score_lines(found: Comparison) -> Iterable[Sequence[object]]:
    for kind in (None, *found.kinds):
        for metric in METRICS:
            for method, of in found.estimates(metric, kind).items():
                yield kind or "all", method, metric, of.mean, of.low, of.high, found.failed(method, kind)


def _test_lines(found: Comparison) -> Iterable[Sequence[object]]:
    for metric in METRICS:
        for test in found.tests(metric):
            of = test.difference
            yield metric, test.first, test.second, of.mean, of.low, of.high, test.p, test.p_holm


def _rank_lines(found: Comparison) -> Iterable[Sequence[object]]:
    for metric in METRICS:
        for method, of in found.ranks(metric).items():
            yield metric, method, of.rank, of.low, of.high, of.shares[0]


def _write(path: Path, text: str) -> None:
    with written_beside(path) as part:
        part.write_text(text, encoding="utf-8")


def _write_csv(path: Path, head: str, lines: Iterable[Sequence[object]]) -> None:
    """NaN, of what was not measured, is an empty cell."""
    write_csv(path, head.split(","), [["" if cell != cell else cell for cell in line] for line in lines])


def _estimate(of: Estimate | None, metric: str) -> str:
    if of is None or math.isnan(of.mean):
        return ""
    return f"{number(of.mean, metric)} [{number(of.low, metric)}, {number(of.high, metric)}]"


def _test(test: PairedTest, metric: str) -> str:
    mean = test.difference.mean
    difference = "" if math.isnan(mean) else f"{mean:+.{FINE[metric]}f} "
    return f"{difference}({'< 0.001' if test.p_holm < 0.001 else f'{test.p_holm:.3f}'})"


def _seconds(median: float, at_once: int) -> str:
    return "" if math.isnan(median) else f"{median:.1f}" + (f" ({at_once} at once)" if at_once > 1 else "")


def _escaped(text: str) -> str:
    start = "{}" if text.startswith("[") else ""  # behind the line break of a row it would be an option
    return start + "".join(TEX.get(character, character) for character in text)
