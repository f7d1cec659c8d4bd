"""The scans of a cohort: paths, patterns, folders of image files, and tables."""

from __future__ import annotations

import csv
import glob
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from pcdiff.errors import InputError
from pcdiff.files import absolute
from pcdiff.foreign import parsing, read_bytes
from pcdiff.imaging.formats import FORMATS
from pcdiff.imaging.scan import scan_source
from pcdiff.pipeline.names import names_a_folder

TABLES = (".csv", ".tsv")
SCAN, CASE = "scan", "case"  # columns of a table


class _Entry(NamedTuple):
    """A scan that was named. row: where a table names it, such as `cases.csv, row 3`; else empty."""

    scan: Path
    case: str | None = None
    row: str = ""


def find_scans(given: Sequence[str | Path]) -> dict[Path, str | None]:
    """Scan -> the name of its case where a table gives one; each scan once, in the order given.

    given: scans; patterns with `*`, `?`, `[]` and `**`, such as `patient*/scan`; folders of image files (a folder
    without any is a DICOM scan); and tables (.csv, .tsv) with a column `scan`, relative to the table's folder, and
    perhaps `case`. A scan that is missing is kept: its own case says so. The name of a scan that is also given
    otherwise is that of the table.

    Raises InputError for a pattern that matches nothing, a table that is missing or cannot be read, a row without a
    scan or with a case that cannot name a folder, and a scan that two rows name.
    """
    found: dict[Path, _Entry] = {}
    for each in given:
        path = Path(each)
        if path.suffix.lower() in TABLES and path.is_file():
            entries = _rows_of(path)
        elif path.suffix.lower() in TABLES and not path.exists() and not glob.has_magic(str(path)):
            raise InputError(f"{path}: expected a table with a column `{SCAN}`, found none; check the path")
        else:
            entries = (_Entry(scan) for place in _matches(path) for scan in _images_of(place))
        for entry in entries:
            source = _source_of(entry.scan)
            earlier = found.get(absolute(source))
            if earlier is None:
                found[absolute(source)] = entry._replace(scan=source)
            elif entry.row and earlier.row:
                raise InputError(
                    f"{entry.row}: expected each scan once, got {entry.scan}, which is that of {earlier.row}; remove "
                    "one of the two rows"
                )
            elif entry.row:
                found[absolute(source)] = entry._replace(scan=earlier.scan)
    return {entry.scan: entry.case for entry in found.values()}


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


def _rows_of(table: Path) -> Iterator[_Entry]:
    """What each row of a table names. Rows count as in a spreadsheet: the line of the columns' names is the first."""
    expected, remedy = f"a table with a column `{SCAN}`", "write the column's name into the first line"
    with parsing(table, expected, remedy):
        text = read_bytes(table, expected, remedy).decode("utf-8-sig")
        first = text.partition("\n")[0]
        delimiter = "\t" if table.suffix.lower() == ".tsv" else ";" if ";" in first and "," not in first else ","
        reader = csv.DictReader(text.splitlines(), delimiter=delimiter, strict=True)
        rows = [(reader.line_num, row) for row in reader]
    columns = list(reader.fieldnames or ())
    if SCAN not in columns:
        raise InputError(f"{table}: expected {expected}, got {', '.join(columns)[:200] or 'an empty file'}; {remedy}")
    if not rows:
        raise InputError(f"{table}: expected a scan in each row, got the columns' names alone; add a row for each scan")
    for number, row in rows:
        place = f"{table}, row {number}"
        scan, case = ((row.get(column) or "").strip() for column in (SCAN, CASE))
        if scan:
            if case and not names_a_folder(case):
                raise InputError(
                    f"{place}, column `{CASE}`: expected the name of a folder, got {case!r}; leave out / and \\"
                )
            yield _Entry(table.parent / scan, case or None, place)
        elif any("".join(cell or ()).strip() for cell in row.values()):  # a cell too many is in a list
            raise InputError(f"{place}, column `{SCAN}`: expected a scan, got an empty cell; name the scan")


def _source_of(scan: Path) -> Path:
    """A DICOM slice stands for the CT in its folder."""
    try:
        return scan_source(scan)
    except (InputError, OSError):
        return scan  # its own case says why it cannot be read
