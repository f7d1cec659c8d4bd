"""`comparison.html`: the tables and figures of a comparison in one file that opens without a network."""

from __future__ import annotations

import math
from pathlib import Path

from markupsafe import Markup

from pcdiff import NOTICE
from pcdiff.evaluation.comparison import Comparison
from pcdiff.evaluation.comparison_tables import describe, difference_tables, main_metrics, rank_table, score_tables
from pcdiff.evaluation.inference import RESAMPLES
from pcdiff.evaluation.statistics import HIGHER_IS_BETTER
from pcdiff.evaluation.tables import TITLES, origin
from pcdiff.report.charts import box_chart, rank_chart, scatter_chart
from pcdiff.report.page import write_page
from pcdiff.report.templates import fill

PAGE = "comparison.html"


def write_comparison_page(out: Path, found: Comparison) -> None:
    """Writes `comparison.html` into an existing folder. Raises InputError if it cannot be written."""
    scores, *by_class = score_tables(found)
    sections = [
        ("All cases", [scores], _against_seconds(found)),
        ("By class", by_class, [_boxes(found, metric) for metric in main_metrics(found)]),
    ]
    if len(found.methods) > 1:
        ranks = [_ranks(found, metric) for metric in main_metrics(found)]
        sections += [("Differences", difference_tables(found), []), ("Ranks", [rank_table(found)], ranks)]
    body = fill(
        "comparison.html",
        notice=NOTICE,
        methods=found.methods,
        lines=describe(found),
        sections=sections,
        origin=origin(found.records).replace("`", ""),
    )
    write_page(out / PAGE, "Comparison of methods - pcdiff", body)


def _boxes(found: Comparison, metric: str) -> Markup:
    panels = {
        kind: {
            method: [(row.case, getattr(row, metric)) for row in rows if row.kind == kind and row.error is None]
            for method, rows in found.rows.items()
        }
        for kind in found.kinds
    }
    caption = "A point is a case; the box holds the middle half, the line is the median, the dashed line the mean."
    if failed := [f"{found.failed(method)} of {method}" for method in found.methods if found.failed(method)]:
        caption += f" Failed cases are not drawn: {', '.join(failed)}."
    return box_chart(TITLES[metric], panels, caption, log=metric not in HIGHER_IS_BETTER)


def _against_seconds(found: Comparison) -> list[Markup]:
    points = []
    for method, of in found.estimates("dsc").items():
        seconds, at_once = found.seconds(method)
        if not math.isnan(seconds):
            ends = {"y": of.mean, "low": of.low, "high": of.high}
            points.append({"label": method, "x": seconds, **ends, "filled": at_once == 1})
    if not points:
        return []
    caption = (
        "Median seconds of a case, from the start of its process to the end, and the mean DSC with its interval. An "
        "open mark: several cases ran at the same time, which makes each slower. Machines may differ, see the files."
    )
    return [scatter_chart("DSC against seconds", ("seconds", "DSC"), points, caption)]


def _ranks(found: Comparison, metric: str) -> Markup:
    shares = {method: rank.shares for method, rank in found.ranks(metric).items()}
    caption = f"How often a method has a rank by its mean in {RESAMPLES:,} bootstrap resamples of heads."
    return rank_chart(f"Ranks by {TITLES[metric]}", shares, caption)
