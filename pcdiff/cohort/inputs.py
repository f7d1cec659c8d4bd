"""The scans of a cohort: paths, patterns, folders of image files, and tables."""

from __future__ import annotations

import csv
import glob
from collections.abc import Iterator, Sequence
from pathlib import Path

from pcdiff.errors import InputError
from pcdiff.files import absolute
from pcdiff.foreign import parsing, read_bytes
from pcdiff.imaging.formats import FORMATS
from pcdiff.imaging.scan import scan_source

TABLES = (".csv", ".tsv")
SCAN, CASE = "scan", "case"  # columns of a table


def find_scans(given: Sequence[str | Path]) -> dict[Path, str | None]:
    """Scan -> the name of its case where a table gives one; each scan once, in the order given.

    given: scans; patterns with `*`, `?`, `[]` and `**`, such as `patient*/scan`; folders of image files (a folder
    without any is a DICOM scan); and tables (.csv, .tsv) with a column `scan`, relative to the table's folder, and
    perhaps `case`. A scan that is missing is kept: its own case says so.

    Raises InputError for a pattern that matches nothing, and a table that cannot be read.
    """
    found: dict[Path, tuple[Path, str | None]] = {}
    for each in given:
        path = Path(each)
        if path.suffix.lower() in TABLES and path.is_file():
            scans = _rows_of(path)
        else:
            scans = ((scan, None) for place in _matches(path) for scan in _images_of(place))
        for scan, name in scans:
            source = _source_of(scan)
            found.setdefault(absolute(source), (source, name))
    return dict(found.values())


def _matches(path: Path) -> list[Path]:
    """The path itself if it is there or is no pattern, else what it matches."""
    if path.exists() or not glob.has_magic(str(path)):
        return [path]
    matches = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207 - `Path.glob` takes no pattern from the root
    if not matches:
        raise InputError(f"{path}: expected a pattern that matches scans, got no match; check the folders in it")
    return [Path(match) for match in matches]


def _images_of(path: Path) -> list[Path]:
    """The image files of a folder that holds some, each pair of header and values once; else the path itself."""
    if not path.is_dir():
        return [path]
    files = sorted(each for each in path.iterdir() if each.is_file() and not each.name.startswith("."))
    images = [each for each in files if each.name.lower().endswith(tuple(FORMATS))]
    pairs = {each.with_name(each.name[:-4]) for each in images if each.suffix.lower() == ".hdr"}
    return [each for each in images if each.suffix.lower() != ".img" or each.with_suffix("") not in pairs] or [path]


def _rows_of(table: Path) -> Iterator[tuple[Path, str | None]]:
    """Scan and name of each row of a table."""
    expected, remedy = f"a table with a column `{SCAN}`", "write the column's name into the first line"
    with parsing(table, expected, remedy):
        text = read_bytes(table, expected, remedy).decode("utf-8-sig")
        first = text.partition("\n")[0]
        delimiter = "\t" if table.suffix.lower() == ".tsv" else ";" if ";" in first and "," not in first else ","
        rows = list(csv.DictReader(text.splitlines(), delimiter=delimiter, strict=True))
    if not rows or SCAN not in rows[0]:
        columns = ", ".join(map(str, rows[0])) if rows else "no row"
        raise InputError(f"{table}: expected {expected}, got {columns[:200]}; {remedy}")
    for row in rows:
        if scan := (row[SCAN] or "").strip():
            yield table.parent / scan, (row.get(CASE) or "").strip() or None


def _source_of(scan: Path) -> Path:
    """A DICOM slice stands for the CT in its folder."""
    try:
        return scan_source(scan)
    except (InputError, OSError):
        return scan  # its own case says why it cannot be read
