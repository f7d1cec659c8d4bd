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


def defect_numbers(record: Mapping[str, Any]) -> dict[int, int]:
    """Label of each closed defect -> its number for readers: as in `pcdiff info`, if some were chosen."""
    labels = range(1, record["defects"] + 1)
    chosen = record["settings"].get("defects")
    return dict(zip(labels, sorted(chosen) if isinstance(chosen, list) else labels, strict=False))


def piece_names(record: Mapping[str, Any]) -> list[str]:
    """What each of the `pieces` is for, such as "defect 2"; empty for the one piece of one defect."""
    pieces, numbers = record["pieces"], defect_numbers(record)
    labels = [piece["defect"] for piece in pieces]
    names = []
    for n, label in enumerate(labels):
        name = f"defect {numbers.get(label, label)}" if len(numbers) > 1 else ""
        if (several := labels.count(label)) > 1:
            name = f"{name}, part {labels[: n + 1].count(label)} of {several}".removeprefix(", ")
        names.append(name)
    return names


def product_text(values: Iterable[float]) -> str:
    """Sizes along several axes: `0.45 x 0.45 x 1`."""
    return " x ".join(f"{value:.4g}" for value in values)
