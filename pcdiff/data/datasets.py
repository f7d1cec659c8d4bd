"""What `pcdiff datasets` prints: the layouts that are read, and what a data set holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pcdiff.data.cases import find_cases
from pcdiff.data.layouts import LAYOUTS, read_dataset
from pcdiff.data.patterns import other_files

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


def layouts_record() -> dict[str, Any]:
    """The same for programs: the name of each layout, and its title, files, splits and source."""
    return {
        name: {
            "title": layout.title,
            "files": layout.files,
            "splits": [*filter(None, layout.splits)],
            "source": layout.source,
        }
        for name, layout in LAYOUTS.items()
    }


def contents(source: Path, cases: str | None = None) -> list[dict[str, Any]]:
    """The number of cases, heads and files of a data set, for each split and class. Raises InputError as `find_cases`.

    A case can be evaluated if two of its three files are there, and a head prepared if its complete skull is.
    """
    found = find_cases(source, cases)
    rows = []
    for split, kind in dict.fromkeys((case.split, case.name.rpartition("/")[0]) for case in found):
        here = [case for case in found if (case.split, case.name.rpartition("/")[0]) == (split, kind)]
        row = {
            "split": split or None,
            "class": kind or None,
            "cases": len(here),
            "heads": len({case.head for case in here}),
        }
        row |= {f"{part}s": sum(getattr(case, part) is not None for case in here) for part in PARTS}
        rows.append(row | {"can_be_evaluated": sum(case.is_whole for case in here)})
    return rows


def contents_table(source: Path, cases: str | None = None) -> str:
    """The same as text, one row for each split and class. Raises InputError as `find_cases`."""
    head = ("split", "class", "cases", "heads", *(f"{part.replace('_', ' ')}s" for part in PARTS), "can be evaluated")
    counted = contents(source, cases)
    rows = [head, *(tuple("-" if value is None else str(value) for value in row.values()) for row in counted)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    layout = LAYOUTS.get(read_dataset(source).layout)
    lines = [f"{source}: {layout.title if layout else 'described by a YAML file'}"]
    lines += ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, *_left_out_lines(source, cases)])


def left_out(source: Path, cases: str | None = None) -> dict[str, list[str]]:
    """What a data set holds and no command uses, because it is rest or has the wrong name or place.

    single_file: cases of a defective skull or an implant alone. other_files: images, meshes and archives of no case, by
    their places in the folder. Raises InputError as `find_cases`.
    """
    dataset = read_dataset(source)
    others = other_files(dataset.folder, [path for files in dataset.cases.values() for path in files.values()])
    alone = [case.name for case in find_cases(source, cases) if not case.is_whole and case.complete_skull is None]
    return {"single_file": alone, "other_files": [path.relative_to(dataset.folder).as_posix() for path in others]}


def _left_out_lines(source: Path, cases: str | None) -> list[str]:
    found = left_out(source, cases)
    titles = ("cases with a defective skull or an implant alone", "images, meshes and archives of no case")
    return [
        f"{title}: {len(names)} ({', '.join(names[:3])}{', ...' * (len(names) > 3)})"
        for names, title in zip(found.values(), titles, strict=True)
        if names
    ]
