"""What `pcdiff datasets` prints: the layouts that are read, and what a data set holds."""

from __future__ import annotations

from pathlib import Path

from pcdiff.data.cases import find_cases
from pcdiff.data.layouts import LAYOUTS, read_dataset

PARTS = ("complete_skull", "defective_skull", "implant")


def layouts_table() -> str:
    """Each layout with its files, its splits and its source."""
    lines = []
    for layout in LAYOUTS.values():
        splits = " and ".join(filter(None, layout.splits)) or "none"
        lines += [layout.title, f"  files   {layout.files}", f"  splits  {splits}", f"  source  {layout.source}"]
    own = "patterns for complete_skull, defective_skull and implant (mask or mesh), and splits: docs/datasets.md"
    lines += ["any other, by a YAML file", f"  files   {own}", "  splits  those of the file"]
    return "\n".join(lines)


def contents_table(source: Path, cases: str | None = None) -> str:
    """The number of cases, heads and files of a data set, for each split and class. Raises InputError as `find_cases`.

    A case can be evaluated if two of its three files are there, and a head prepared if its complete skull is.
    """
    found = find_cases(source, cases)
    groups = list(dict.fromkeys((case.split, case.name.rpartition("/")[0]) for case in found))
    head = ("split", "class", "cases", "heads", *(f"{part.replace('_', ' ')}s" for part in PARTS), "can be evaluated")
    rows = [head]
    for group in groups:
        here = [case for case in found if (case.split, case.name.rpartition("/")[0]) == group]
        counts = [len(here), len({case.head for case in here})]
        counts += [sum(getattr(case, part) is not None for case in here) for part in PARTS]
        rows.append((*(name or "-" for name in group), *map(str, counts), str(sum(case.is_whole for case in here))))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    layout = LAYOUTS.get(read_dataset(source).layout)
    lines = [f"{source}: {layout.title if layout else 'described by a YAML file'}"]
    lines += ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines)
