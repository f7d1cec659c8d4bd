"""Values of a record as text for readers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


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
