"""Building blocks of the report's HTML: sections, cards, lights, lists, tables, and numbers as text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

STATUS = {True: ("good", "passed"), False: ("bad", "failed"), None: ("none", "not assessed")}


def section(title: str, content: str, kind: str = "") -> str:
    """A titled section; nothing where the content is empty. kind: CSS class."""
    return f'<section class="{kind}"><h2>{escape(title)}</h2>{content}</section>' if content else ""


def card(value: str, name: str) -> str:
    """A value in large type above its name."""
    return f'<div class="card"><b>{escape(value)}</b><span>{escape(name)}</span></div>'


def light(passed: bool | None, text: str | None = None) -> str:
    """A coloured dot with `passed`, `failed` or `not assessed` (None), or with another text."""
    kind, usual = STATUS[passed]
    return f'<span class="light {kind}">{escape(usual if text is None else text)}</span>'


def fact_list(facts: Mapping[str, str]) -> str:
    """Names (text) -> values (HTML), as a definition list."""
    return f"<dl>{''.join(f'<dt>{escape(name)}</dt><dd>{value}</dd>' for name, value in facts.items())}</dl>"


def table(
    heads: Sequence[str], rows: Iterable[Sequence[str]], classes: Sequence[str] = (), numbers: Sequence[int] = ()
) -> str:
    """A table of HTML cells. classes: CSS class of each row. numbers: columns that are aligned right."""
    kind = ['class="number"' if n in numbers else "" for n in range(len(heads))]
    head = "".join(f"<th {kind[n]}>{text}</th>" for n, text in enumerate(heads))
    body = "".join(
        f'<tr class="{classes[r] if classes else ""}">'
        + "".join(f"<td {kind[n]}>{cell}</td>" for n, cell in enumerate(row))
        + "</tr>"
        for r, row in enumerate(rows)
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def code(text: str) -> str:
    """Text in a fixed-width font."""
    return f"<code>{escape(text)}</code>"


def value_text(value: Any) -> str:
    """A JSON value as plain text: three significant digits, yes and no, - for null; an object as `key value, ...`."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {value_text(each)}" for key, each in value.items())
    return str(value)


def product_text(values: Iterable[float]) -> str:
    """Sizes along several axes: `0.45 x 0.45 x 1`."""
    return " x ".join(f"{value:.4g}" for value in values)
