"""`comparison.html`: the tables and figures of a comparison in one file that opens without a network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from pcdiff import NOTICE
from pcdiff.evaluation.comparison import Comparison
from pcdiff.evaluation.comparison_tables import (
    describe,
    difference_tables,
    main_metrics,
    place_tables,
    rank_table,
    score_tables,
)
from pcdiff.evaluation.inference import RESAMPLES
from pcdiff.evaluation.learning import Curve
from pcdiff.evaluation.places import bands, by_rim, by_size
from pcdiff.evaluation.statistics import HIGHER_IS_BETTER
from pcdiff.evaluation.tables import TITLES, origin
from pcdiff.report.charts import box_chart, line_chart, rank_chart, scatter_chart
from pcdiff.report.page import write_page
from pcdiff.report.templates import fill

PAGE = "comparison.html"


def write_comparison_page(out: Path, found: Comparison, curves: Sequence[Curve] = ()) -> None:
    """Writes `comparison.html` into an existing folder. Raises InputError if it cannot be written."""
    scores, *by_class = score_tables(found)
    sections = [
        ("All cases", [scores], _against_seconds(found)),
        ("By class", by_class, [_boxes(found, metric) for metric in main_metrics(found)]),
    ]
    if places := place_tables(found):
        sections.append(("By size and by place", places, _places(found)))
    if curves:
        sections.append(("Learning curves", [], _learning(curves)))
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


def _places(found: Comparison) -> list[Markup]:
    """Boxes of the cases in each group of sizes, and of the errors in each band of distance from the bone."""
    sizes = {
        name: {method: [(row.case, row.dsc) for row in rows if row.error is None] for method, rows in of.items()}
        for name, of in by_size(found).items()
    }
    rim = {
        name: {method: [(row.case, getattr(row, bands()[name])) for row in rows] for method, rows in of.items()}
        for name, of in by_rim(found).items()
    }
    caption = "A point is a case. Failed cases are not drawn."
    of_rim = f"{caption} The error is the mean distance between both surfaces at that distance from the bone."
    charts = (
        [box_chart("DSC", sizes, f"{caption} Four groups of as many cases, by the volume of the true implant.")]
        if sizes
        else []
    )
    return charts + ([box_chart("mean surface error, mm", rim, of_rim, log=True)] if rim else [])


def _learning(curves: Sequence[Curve]) -> list[Markup]:
    """A chart of each score that a run logged."""
    caption = (
        "Scores on held-out heads during training, as each run computes them: other cases and other definitions than "
        "the tables above. Hours are of wall time; machines may differ."
    )
    charts = []
    for score in dict.fromkeys(name for curve in curves for name in curve.scores):
        of = {curve.name: [point for point in curve.points if score in point.scores] for curve in curves}
        of = {name: points for name, points in of.items() if points}
        panels = {
            "samples seen": {name: [(p.windows, p.scores[score]) for p in points] for name, points in of.items()},
            "hours": {name: [(p.seconds / 3600, p.scores[score]) for p in points] for name, points in of.items()},
        }
        charts.append(line_chart(f"{score.replace('_', ' ')} while training", panels, caption))
    return charts


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
