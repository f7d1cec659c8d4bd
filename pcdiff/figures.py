"""Figures as text for readers, in the terminal and in reports."""

from __future__ import annotations

from collections.abc import Sequence


def figure_text(value: float | bool | None, unit: str = "") -> str:
    """A figure or its limit for people: three significant digits, yes or no, - for none. A share has two decimals."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    text = f"{value:,.0f}" if isinstance(value, int) or abs(value) >= 1000 else f"{value:.3g}"
    if isinstance(value, float) and not unit:
        text = max(text, f"{value:.2f}", key=len)  # 1.00 is no count
    return f"{text} {unit}".rstrip()


def of_pieces(words: Sequence[str]) -> str:
    """Directions of an implant's pieces in one line: "from the right (largest piece), from the left (next)".

    words: one for each piece, the largest first; a single piece needs no name.
    """
    if len(words) < 2:
        return "".join(words)
    names = ["largest piece", *["next"] * (len(words) - 1)]
    return ", ".join(f"{way} ({name})" for way, name in zip(words, names, strict=True))
