"""Charts of a comparison, drawn by plotly.js in the page: boxes, accuracy against seconds, curves, shares of ranks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from markupsafe import Markup

from pcdiff.report.templates import fill

COLUMNS = 3  # panels beside each other
GAP = 0.03  # share of the width between panels
TITLE, AXIS, ROW = 22, 48, 32  # pixels of a panel's title, of the axis below it, and of a method
TICKS = [step * 10.0**power for power in range(-3, 5) for step in (1, 2, 5)]  # of a logarithmic axis
INK, ACCENT, LINE = "#1d2730", "#1a6d8c", "#dfe4e8"
FONT = {
    "family": 'system-ui, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif',
    "color": INK,
    "size": 12,
}

# Of lines: Wong, "Points of view: Color blindness", Nature Methods 2011, without the yellow.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
DASHES = ("solid", "dash", "dot")

Lines = Mapping[str, Sequence[tuple[float, float]]]  # label -> x and y of its points
Points = Mapping[str, Sequence[tuple[str, float]]]  # method -> name of a case and its value


def box_chart(name: str, panels: Mapping[str, Points], caption: str, log: bool = False) -> Markup:
    """A panel for each class, and in it a box and the points of each method, the first method on top.

    All panels have one scale. Values that are not finite are not drawn. log: a logarithmic scale, unless a value is 0.
    """
    values = [value for points in panels.values() for each in points.values() for _, value in each]
    values = [value for value in values if math.isfinite(value)]
    log = log and bool(values) and min(values) > 0
    methods = list(dict.fromkeys(method for points in panels.values() for method in points))
    columns = 2 if len(panels) == 4 else min(COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    panel = TITLE + ROW * len(methods) + AXIS
    height = rows * panel
    layout = _layout(height) | {"margin": {"l": 0, "r": 0, "t": 0, "b": 0}}
    data = []
    for k, (title, points) in enumerate(panels.items()):
        row, column = divmod(k, columns)
        left, right = column / columns + GAP / 2, (column + 1) / columns - GAP / 2
        top, bottom = 1 - (row * panel + TITLE) / height, 1 - ((row + 1) * panel - AXIS) / height
        axis = "" if k == 0 else str(k + 1)
        layout[f"xaxis{axis}"] = _axis(name, log) | {"domain": [left, right], "anchor": f"y{axis}"}
        if k:
            layout[f"xaxis{axis}"]["matches"] = "x"
        layout[f"yaxis{axis}"] = {
            "domain": [bottom, top],
            "anchor": f"x{axis}",
            "categoryorder": "array",
            "categoryarray": [escape(method) for method in reversed(methods)],
            "range": [-0.6, len(methods) - 0.4],
            "showticklabels": column == 0,
            "automargin": True,
        }
        layout["annotations"].append(_label(title, (left + right) / 2, top))
        flat = [
            (method, case, value) for method, each in points.items() for case, value in each if math.isfinite(value)
        ]
        data.append(
            {
                "type": "box",
                "orientation": "h",
                "xaxis": f"x{axis}",
                "yaxis": f"y{axis}",
                "x": [value for _, _, value in flat],
                "y": [escape(method) for method, _, _ in flat],
                "text": [escape(case) for _, case, _ in flat],
                "hovertemplate": "%{text}: %{x:.3f}<extra></extra>",
                "boxpoints": "all",
                "jitter": 0.7,
                "pointpos": 0,
                "boxmean": True,
                "line": {"color": ACCENT, "width": 1.4},
                "fillcolor": "rgba(26,109,140,0.14)",
                "marker": {"size": 4, "color": INK, "opacity": 0.45},
            }
        )
    return _chart(name, data, layout, caption)


def scatter_chart(name: str, axes: tuple[str, str], points: Sequence[Mapping[str, Any]], caption: str) -> Markup:
    """Points with a label and an interval along y; x is logarithmic.

    points: `label`, `x`, `y`, `low` and `high` of the interval, and `filled`, whether the mark is.
    """
    layout = _layout(460) | {"xaxis": _axis(axes[0], log=True), "yaxis": _axis(axes[1], log=False)}
    drawn = {
        "type": "scatter",
        "mode": "markers+text",
        "x": [point["x"] for point in points],
        "y": [point["y"] for point in points],
        "error_y": {
            "type": "data",
            "symmetric": False,
            "array": [point["high"] - point["y"] for point in points],
            "arrayminus": [point["y"] - point["low"] for point in points],
            "color": ACCENT,
            "thickness": 1.2,
        },
        "text": [f" {escape(point['label'])} " for point in points],
        "textposition": _label_places(points),
        "cliponaxis": False,
        "hovertemplate": "%{text}: %{x:.1f}, %{y:.3f}<extra></extra>",
        "marker": {
            "size": 10,
            "color": ACCENT,
            "symbol": ["circle" if point["filled"] else "circle-open" for point in points],
        },
    }
    # Labels stand beside their marks: room for them on the logarithmic scale.
    low, high = (math.log10(end([point["x"] for point in points])) for end in (min, max))
    layout["xaxis"]["range"] = [low - 0.2 - 0.1 * (high - low), high + 0.2 + 0.1 * (high - low)]
    return _chart(name, [drawn], layout, caption)


def _label_places(points: Sequence[Mapping[str, Any]]) -> list[str]:
    """For each point the side of its mark where its label covers the fewest other labels and marks.

    A character has 7 x 14 of the 1000 x 400 pixels that the chart has in a window of usual width.
    """
    x, y = (np.array([point[axis] for point in points], float) for axis in ("x", "y"))
    shares = [(values - values.min()) / max(float(np.ptp(values)), 1e-9) for values in (np.log(x), y)]
    marks = [
        (800 * across - 8, 300 * up - 8, 800 * across + 8, 300 * up + 8) for across, up in zip(*shares, strict=True)
    ]
    taken, places = list(marks), []
    for point, mark in sorted(zip(points, marks, strict=True), key=lambda each: each[1][0]):
        middle, width = ((mark[0] + mark[2]) / 2, (mark[1] + mark[3]) / 2), 7.0 * len(point["label"])
        boxes = {
            "middle right": (mark[2], middle[1] - 7, mark[2] + width, middle[1] + 7),
            "middle left": (mark[0] - width, middle[1] - 7, mark[0], middle[1] + 7),
            "top center": (middle[0] - width / 2, mark[3], middle[0] + width / 2, mark[3] + 14),
            "bottom center": (middle[0] - width / 2, mark[1] - 14, middle[0] + width / 2, mark[1]),
        }
        place = min(boxes, key=lambda name: sum(_overlap(boxes[name], other) for other in taken))
        taken.append(boxes[place])
        places.append((point["label"], place))
    chosen = dict(places)
    return [chosen[point["label"]] for point in points]


def _overlap(one: Sequence[float], other: Sequence[float]) -> float:
    """The area that two boxes (left, bottom, right, top) share."""
    across, up = (min(one[k + 2], other[k + 2]) - max(one[k], other[k]) for k in (0, 1))
    return max(across, 0.0) * max(up, 0.0)


def line_chart(name: str, panels: Mapping[str, Lines], caption: str) -> Markup:
    """Panels beside each other with one scale of y, called `name`; a panel's title is that of its x axis.

    The lines have the same colours in each panel, and one legend below.
    """
    labels = list(dict.fromkeys(label for lines in panels.values() for label in lines))
    layout = _layout(400) | {"showlegend": True, "legend": {"orientation": "h", "y": -0.2}}
    data = []
    for k, (title, lines) in enumerate(panels.items()):
        axis = "" if k == 0 else str(k + 1)
        domain = [(k + GAP * (k > 0)) / len(panels), (k + 1 - GAP * (k + 1 < len(panels))) / len(panels)]
        layout[f"xaxis{axis}"] = _axis(title, log=False) | {"domain": domain, "anchor": f"y{axis}"}
        layout[f"yaxis{axis}"] = _axis(name if k == 0 else "", log=False) | {"anchor": f"x{axis}"}
        if k:
            layout[f"yaxis{axis}"] |= {"matches": "y", "showticklabels": False}
        for label, points in lines.items():
            dash, colour = divmod(labels.index(label), len(COLOURS))
            data.append(
                {
                    "type": "scatter",
                    "mode": "lines+markers",
                    "name": escape(label),
                    "legendgroup": escape(label),
                    "showlegend": k == 0,
                    "xaxis": f"x{axis}",
                    "yaxis": f"y{axis}",
                    "x": [x for x, _ in points],
                    "y": [y for _, y in points],
                    "hovertemplate": "%{x:,.4~g}: %{y:.4f}",
                    "line": {"color": COLOURS[colour], "dash": DASHES[dash % len(DASHES)]},
                    "marker": {"size": 5},
                }
            )
    return _chart(name, data, layout, caption)


def rank_chart(name: str, shares: Mapping[str, Sequence[float]], caption: str) -> Markup:
    """A row for each method, a column for each rank: the share of resamples in which the method has it."""
    values = np.array(list(shares.values()))
    layout = _layout(ROW * len(shares) + AXIS)
    layout["xaxis"] = {"title": {"text": "rank"}, "dtick": 1, "showgrid": False, "zeroline": False}
    layout["yaxis"] = {"autorange": "reversed", "automargin": True, "showgrid": False}
    drawn = {
        "type": "heatmap",
        "x": list(range(1, values.shape[1] + 1)),
        "y": [escape(method) for method in shares],
        "z": values.tolist(),
        "text": [[f"{100 * share:.0f} %" if share >= 0.005 else "" for share in row] for row in values],
        "texttemplate": "%{text}",
        "hovertemplate": "%{y}, rank %{x}: %{z:.1%}<extra></extra>",
        "colorscale": [[0, "#ffffff"], [1, ACCENT]],
        "zmin": 0,
        "zmax": 1,
        "showscale": False,
        "xgap": 2,
        "ygap": 2,
    }
    return _chart(name, [drawn], layout, caption)


def _chart(name: str, data: list[dict[str, Any]], layout: dict[str, Any], caption: str) -> Markup:
    return fill("chart.html", name=name, figure={"data": data, "layout": layout}, caption=caption)


def _layout(height: int) -> dict[str, Any]:
    return {
        "height": height,
        "margin": {"l": 20, "r": 10, "t": 8, "b": AXIS - 8},
        "font": FONT,
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "showlegend": False,
        "annotations": [],
        "hovermode": "closest",
    }


def _axis(title: str, log: bool) -> dict[str, Any]:
    axis = {"title": {"text": title, "standoff": 6}, "gridcolor": LINE, "zeroline": False, "automargin": True}
    return axis | ({"type": "log", "tickvals": TICKS, "ticktext": [f"{tick:g}" for tick in TICKS]} if log else {})


def _label(text: str, x: float, y: float) -> dict[str, Any]:
    place = {"x": x, "y": y, "xref": "paper", "yref": "paper", "xanchor": "center", "yanchor": "bottom"}
    return {"text": f"<b>{escape(text)}</b>", "showarrow": False, **place}
