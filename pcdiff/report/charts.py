"""Charts of a comparison as SVG: boxes, accuracy against seconds, curves, ranks. A tooltip names each mark."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from markupsafe import Markup

from pcdiff.report.templates import fill

WIDTH = 1060.0  # of a drawing; all lengths are in its pixels
NARROW = 340.0  # of one for a phone
COLUMNS = 3  # panels beside each other
GAP = 26.0  # between panels
TITLE, AXIS, ROW = 22, 48, 32  # of a panel's title, of the axis below it, and of a method
LETTER = 6.8  # width of a character
MIN_TICK = 60.0  # between two numbers of an axis
TICKS = [step * 10.0**power for power in range(-6, 12) for step in (1, 2, 5)]  # numbers of an axis
INK, ACCENT, LINE = "#1d2730", "#1a6d8c", "#dfe4e8"
WHISKER = 1.5  # of the box, as Tukey draws them

# Of lines: Wong, "Points of view: Color blindness", Nature Methods 2011, without the yellow.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
DASHES = ("none", "7 4", "2 3")

SIDES = {  # of a mark, where its label may stand: across and down
    "right": (1, 0),
    "left": (-1, 0),
    "above": (0, -1),
    "below": (0, 1),
    "above right": (1, -1),
    "below right": (1, 1),
    "above left": (-1, -1),
    "below left": (-1, 1),
}

Lines = Mapping[str, Sequence[tuple[float, float]]]  # label -> x and y of its points
Points = Mapping[str, Sequence[tuple[str, float]]]  # method -> name of a case and its value
Scale = Callable[[float], float]


def box_chart(name: str, panels: Mapping[str, Points], caption: str, log: bool = False) -> Markup:
    """A panel for each class, and in it a box and the points of each method, the first method on top.

    All panels have one scale. Values that are not finite are not drawn. log: a logarithmic scale, unless a value is 0.
    """
    values = [value for points in panels.values() for each in points.values() for _, value in each]
    values = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    log = log and min(values) > 0
    methods = list(dict.fromkeys(method for points in panels.values() for method in points))
    columns = 2 if len(panels) == 4 else min(COLUMNS, len(panels))
    names = LETTER * max(map(len, methods)) + 12
    width = (WIDTH - names - GAP * columns) / columns
    panel = TITLE + ROW * len(methods) + AXIS
    drawn = []
    for k, (title, points) in enumerate(panels.items()):
        row, column = divmod(k, columns)
        left, top = names + column * (width + GAP), row * panel + TITLE
        bottom = top + ROW * len(methods)
        drawn.append(_text(left + width / 2, top - 7, title, "middle", bold=True))
        x, axis = _x_axis(values, (left, left + width), (top, bottom), name, log)
        drawn.append(axis)
        for n, method in enumerate(methods):
            middle = top + ROW * (n + 0.5)
            if column == 0:
                drawn.append(_text(names - 8, middle + 4, method, "end"))
            known = [(case, value) for case, value in points.get(method, ()) if math.isfinite(value)]
            drawn.append(_box(known, x, middle))
    return _chart(name, math.ceil(len(panels) / columns) * panel, drawn, caption)


def _box(points: Sequence[tuple[str, float]], x: Scale, y: float) -> str:
    """The box of the middle half, whiskers, median, mean (dashed), and a mark for each case."""
    if not points:
        return ""
    values = np.array([value for _, value in points])
    low, median, high = np.percentile(values, [25, 50, 75])
    reach = WHISKER * (high - low)
    ends = values[values >= low - reach].min(), values[values <= high + reach].max()
    half = ROW * 0.3
    lines = [_line(x(ends[0]), y, x(low), y), _line(x(high), y, x(ends[1]), y)]
    lines += [_line(x(end), y - half / 2, x(end), y + half / 2) for end in ends]
    box = (
        f'<rect x="{x(low):.1f}" y="{y - half:.1f}" width="{max(x(high) - x(low), 0.5):.1f}" height="{2 * half:.1f}" '
        f'fill="{ACCENT}" fill-opacity=".14" stroke="{ACCENT}" stroke-width="1.4"/>'
    )
    median, mean = float(median), float(values.mean())
    lines += [
        _line(x(median), y - half, x(median), y + half, 2.2),
        _line(x(mean), y - half, x(mean), y + half, dash="3 2"),
    ]
    # Spread over the row by the golden ratio: neighbours in the list lie apart, and the same page is drawn again.
    marks = (
        _mark(x(value), y + half * (2 * ((k * 0.618) % 1) - 1), 2.2, f"{case}: {value:.3f}", "inner")
        for k, (case, value) in enumerate(points)
    )
    return box + "".join(lines) + "".join(marks)


def scatter_chart(name: str, axes: tuple[str, str], points: Sequence[Mapping[str, Any]], caption: str) -> Markup:
    """Points with a label and an interval along y; x is logarithmic. On a phone the whole chart is drawn anew.

    points: `label`, `x`, `y`, `low` and `high` of the interval, and `filled`, whether the mark is.
    """
    height = 460
    wide, narrow = (_scatter(axes, points, width, height) for width in (WIDTH, NARROW))
    return _chart(name, height, wide, caption, narrow)


def _scatter(axes: tuple[str, str], points: Sequence[Mapping[str, Any]], width: float, height: float) -> list[str]:
    """What `scatter_chart` draws in a width."""
    left, right, top, bottom = 64.0, width - 12, 10.0, height - AXIS
    logs = [math.log10(point["x"]) for point in points]
    room = 0.2 + 0.1 * (max(logs) - min(logs))  # labels stand beside their marks
    ends = 10 ** (min(logs) - room), 10 ** (max(logs) + room)
    x, x_axis = _x_axis(ends, (left, right), (top, bottom), axes[0], log=True)
    values = [point[end] for point in points for end in ("low", "high")]
    y, y_axis = _y_axis(values, (bottom, top), (left, right), axes[1])
    drawn = [x_axis, y_axis]
    at = [(x(point["x"]), y(point["y"])) for point in points]
    intervals = [(px, y(point["high"]), px, y(point["low"])) for (px, _), point in zip(at, points, strict=True)]
    for point, (px, py), (_, high, _, low) in zip(points, at, intervals, strict=True):
        drawn.append(_line(px, low, px, high, 1.2))
        words = f"{point['label']}: {point['x']:.1f} {axes[0]}, {axes[1]} {point['y']:.3f}"
        drawn.append(_mark(px, py, 5, words, "full" if point["filled"] else "open"))
    labels = [point["label"] for point in points]
    sides = _label_sides(at, labels, intervals, (left, right))
    for label, (px, py), side in zip(labels, at, sides, strict=True):
        across, down = SIDES[side]
        anchor = {1: "start", -1: "end", 0: "middle"}[across]
        drawn.append(_text(px + 9 * across, py + 4 + 15 * down, label, anchor, halo=True))
    return drawn


def _label_sides(
    at: Sequence[tuple[float, float]],
    labels: Sequence[str],
    intervals: Sequence[tuple[float, float, float, float]],
    ends: tuple[float, float],
) -> list[str]:
    """For each mark (x, y) the one of `SIDES` where its label covers the fewest marks, intervals and other labels.

    ends: left and right of the chart, where a label that reaches out of it is cut off.
    """
    taken = [(-math.inf, -math.inf, ends[0], math.inf), (ends[1], -math.inf, math.inf, math.inf)]
    taken += [(x - 8, y - 8, x + 8, y + 8) for x, y in at]
    taken += [(x - 1, top, x + 1, bottom) for x, top, _, bottom in intervals]
    sides = [""] * len(at)
    for k in sorted(range(len(at)), key=lambda k: at[k]):
        (x, y), width = at[k], LETTER * len(labels[k])
        boxes = {}
        for side, (across, down) in SIDES.items():
            left = x + 9 * across - width * {1: 0.0, 0: 0.5, -1: 1.0}[across]
            boxes[side] = (left, y + 15 * down - 7, left + width, y + 15 * down + 7)
        sides[k] = min(boxes, key=lambda side: sum(_overlap(boxes[side], other) for other in taken))
        taken.append(boxes[sides[k]])
    return sides


def _overlap(one: Sequence[float], other: Sequence[float]) -> float:
    """The area that two boxes (left, top, right, bottom) share."""
    across, down = (min(one[k + 2], other[k + 2]) - max(one[k], other[k]) for k in (0, 1))
    return max(across, 0.0) * max(down, 0.0)


def line_chart(name: str, panels: Mapping[str, Lines], caption: str) -> Markup:
    """Panels beside each other with one scale of y, called `name`; a panel's title is that of its x axis.

    The lines have the same colours in each panel, and one legend below.
    """
    labels = list(dict.fromkeys(label for lines in panels.values() for label in lines))
    top, bottom, left = 10.0, 340.0, 64.0
    width = (WIDTH - left - 12 - GAP * (len(panels) - 1)) / len(panels)
    values = [y for lines in panels.values() for points in lines.values() for _, y in points]
    drawn = []
    for k, (title, lines) in enumerate(panels.items()):
        ends = left + k * (width + GAP), left + k * (width + GAP) + width
        y, up = _y_axis(values, (bottom, top), ends, name if k == 0 else "", numbers=k == 0)
        x, across = _x_axis([x for points in lines.values() for x, _ in points], ends, (top, bottom), title, False)
        drawn += [up, across]
        for label, points in lines.items():
            colour, dash = _style(labels.index(label))
            path = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in points)
            drawn.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2" {dash}/>')
            drawn += [_mark(x(a), y(b), 3, f"{label}: {a:,.4g}, {b:.4f}", "full", colour) for a, b in points]
    at, row = left, bottom + AXIS + 12
    for number, label in enumerate(labels):
        needed = LETTER * len(label) + 50
        if at + needed > WIDTH and at > left:
            at, row = left, row + 20
        colour, dash = _style(number)
        drawn.append(f'<path d="M{at:.0f},{row - 4:.0f}h26" stroke="{colour}" stroke-width="2" {dash}/>')
        drawn.append(_text(at + 32, row, label))
        at += needed
    return _chart(name, row + 12, drawn, caption)


def _style(number: int) -> tuple[str, str]:
    """Colour and dash of the line with a number."""
    dash, colour = divmod(number, len(COLOURS))
    return COLOURS[colour], f'stroke-dasharray="{DASHES[dash % len(DASHES)]}"'


def rank_chart(name: str, shares: Mapping[str, Sequence[float]], caption: str) -> Markup:
    """A row for each method, a column for each rank: the share of resamples in which the method has it."""
    names = LETTER * max(map(len, shares)) + 12
    ranks = max(map(len, shares.values()))
    width = (WIDTH - names) / ranks
    drawn = []
    for row, (method, of) in enumerate(shares.items()):
        drawn.append(_text(names - 8, ROW * (row + 0.5) + 4, method, "end"))
        for rank, share in enumerate(of, 1):
            left, top = names + width * (rank - 1), ROW * row
            drawn.append(
                f'<rect x="{left + 1:.1f}" y="{top + 1}" width="{width - 2:.1f}" height="{ROW - 2}" fill="{ACCENT}" '
                f'fill-opacity="{share:.3f}">{_tip(f"{method}, rank {rank}: {share:.1%}")}</rect>'
            )
            if share > 0.005:
                colour = "#fff" if share > 0.65 else INK
                drawn.append(
                    _text(left + width / 2, top + ROW / 2 + 4, f"{100 * share:.0f} %", "middle", colour=colour)
                )
    bottom = ROW * len(shares)
    drawn += [_text(names + width * (rank + 0.5), bottom + 18, str(rank + 1), "middle") for rank in range(ranks)]
    drawn.append(_text(names + width * ranks / 2, bottom + 38, "rank", "middle"))
    return _chart(name, bottom + AXIS, drawn, caption)


def _x_axis(
    values: Sequence[float], ends: tuple[float, float], sides: tuple[float, float], title: str, log: bool
) -> tuple[Scale, str]:
    """A scale from left to right, and its grid from top to bottom with numbers and title below."""
    scale, ticks = _scale(values, ends, log)
    top, bottom = sides
    drawn = [_grid(scale(tick), top, scale(tick), bottom) for tick in ticks]
    drawn += [_text(scale(tick), bottom + 16, f"{tick:,.6g}", "middle") for tick in ticks]
    return scale, "".join(drawn) + _text(sum(ends) / 2, bottom + 36, title, "middle")


def _y_axis(
    values: Sequence[float], ends: tuple[float, float], sides: tuple[float, float], title: str, numbers: bool = True
) -> tuple[Scale, str]:
    """A scale from bottom to top, and its grid with numbers and title at the left."""
    scale, ticks = _scale(values, ends, False)
    left, right = sides
    drawn = [_grid(left, scale(tick), right, scale(tick)) for tick in ticks]
    if numbers:
        drawn += [_text(left - 8, scale(tick) + 4, f"{tick:.6g}", "end") for tick in ticks]
    turned = f'<g transform="translate(14 {sum(ends) / 2:.0f}) rotate(-90)">{_text(0, 0, title, "middle")}</g>'
    return scale, "".join(drawn) + (turned if title else "")


def _scale(values: Sequence[float], ends: tuple[float, float], log: bool) -> tuple[Scale, list[float]]:
    """Value -> pixel, with some room beyond the values, and the values that get a number."""
    put = math.log10 if log else float
    low, high = put(min(values)), put(max(values))
    room = 0.04 * (high - low) or 0.05 * abs(high) or 0.5
    low, high = low - room, high + room

    def scale(value: float) -> float:
        return ends[0] + (put(value) - low) / (high - low) * (ends[1] - ends[0])

    length = abs(ends[1] - ends[0])
    if log:
        ticks = [tick for tick in TICKS if low <= put(tick) <= high]
        if len(ticks) * MIN_TICK > length:
            ticks = [tick for tick in ticks if round(math.log10(tick), 9).is_integer()] or ticks[:1]
        return scale, ticks
    step = next(step for step in TICKS if step * length / (high - low) >= MIN_TICK)
    return scale, [round(k * step, 9) for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _chart(name: str, height: float, drawn: Sequence[str], caption: str, narrow: Sequence[str] = ()) -> Markup:
    """narrow: the same for a phone; without it the drawing is scrolled there."""
    drawings = [("drawing", WIDTH, Markup("".join(drawn)))]
    if narrow:
        drawings.append(("drawing narrow", NARROW, Markup("".join(narrow))))
    return fill("chart.html", name=name, height=height, drawings=drawings, caption=caption)


def _text(
    x: float, y: float, text: str, anchor: str = "start", bold: bool = False, colour: str = INK, halo: bool = False
) -> str:
    look = ' font-weight="600"' if bold else ""
    look += ' paint-order="stroke" stroke="#fff" stroke-width="3"' if halo else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}"{look}>{escape(text)}</text>'


def _line(x0: float, y0: float, x1: float, y1: float, width: float = 1.4, dash: str = "none") -> str:
    path = f'<path d="M{x0:.1f},{y0:.1f}L{x1:.1f},{y1:.1f}" stroke="{ACCENT}" stroke-width="{width}"'
    return f'{path} stroke-dasharray="{dash}"/>'


def _grid(x0: float, y0: float, x1: float, y1: float) -> str:
    return f'<path d="M{x0:.1f},{y0:.1f}L{x1:.1f},{y1:.1f}" stroke="{LINE}"/>'


def _mark(x: float, y: float, radius: float, words: str, kind: str, colour: str = ACCENT) -> str:
    """A circle that names itself. kind: full, open, or inner (a case within a box)."""
    look = {
        "full": f'fill="{colour}"',
        "open": f'fill="#fff" stroke="{colour}" stroke-width="1.6"',
        "inner": f'fill="{INK}" fill-opacity=".45"',
    }[kind]
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" {look}>{_tip(words)}</circle>'


def _tip(words: str) -> str:
    return f"<title>{escape(words)}</title>"
