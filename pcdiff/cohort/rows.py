"""One row for each case of a cohort, and the file that gets it as soon as it is known: `cohort.jsonl`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter

from pcdiff.files import folder_to_write, opened_alone, write_csv, written_beside
from pcdiff.foreign import read_bytes

JOURNAL, TABLE = "cohort.jsonl", "cohort.csv"
MAX_BYTES = 2**32
LEFT_OUT = ("picture", "settings")  # of the table


@dataclass(frozen=True)
class Row:
    """A case, designed or failed.

    case: the name of its folder. scan: the path from the root. sha256: of the scan, None where it cannot be read.
    settings: the sha256 of what decides the result, see `work.fingerprint`. reason: why it failed. exit_code: that
    `pcdiff design` would have. failed_checks: their titles. expected_mb, peak_memory_mb: 10^6 bytes. seconds: of the
    design. picture: a data URL.
    """

    case: str
    scan: str
    settings: str
    state: Literal["designed", "failed"]
    sha256: str | None = None
    reason: str = ""
    exit_code: int = 0
    failed_checks: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    defects: int | None = None
    pieces: int | None = None
    implant_ml: float | None = None
    seconds: float | None = None
    stages: dict[str, float] = field(default_factory=dict)
    peak_memory_mb: int | None = None
    expected_mb: int | None = None
    date: str = ""
    picture: str = field(default="", repr=False)

    @property
    def failed(self) -> bool:
        """Whether there is no implant."""
        return self.state == "failed"


_ROW = TypeAdapter(Row)


class Journal:
    """`cohort.jsonl`: a row is added as soon as it is known, so an interrupted cohort can go on.

    A context manager, which at its end leaves one line for each case. earlier: scan -> the row that the file held.
    rows: also those added. Raises InputError for a folder that cannot be written, and one to which another cohort
    writes at the time.
    """

    def __init__(self, out: Path) -> None:
        self.path = out / JOURNAL
        with folder_to_write(out):
            out.mkdir(parents=True, exist_ok=True)
            self._file = opened_alone(self.path, "pcdiff cohort")
        self.earlier = _read_rows(self.path)
        self.rows = dict(self.earlier)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *error: object) -> None:
        try:
            with written_beside(self.path) as part, part.open("w", encoding="utf-8") as file:
                file.writelines(map(_line, self.rows.values()))
        finally:
            self._file.close()

    def add(self, row: Row) -> None:
        """Writes the row to the disk, unless the file holds it already."""
        if self.rows.get(row.scan) == row:
            return
        self.rows[row.scan] = row
        self._file.write(_line(row))
        self._file.flush()
        os.fsync(self._file.fileno())


def write_table(out: Path, rows: Iterable[Row]) -> None:
    """Writes `cohort.csv`: one line for each case; several checks or warnings are separated by `; `."""
    columns = [name for name in Row.__dataclass_fields__ if name not in (*LEFT_OUT, "stages")]
    lines = (
        asdict(row) | {"failed_checks": "; ".join(row.failed_checks), "warnings": "; ".join(row.warnings)}
        for row in rows
    )
    write_csv(out / TABLE, columns, ([line[name] for name in columns] for line in lines))


def _line(row: Row) -> str:
    return json.dumps(asdict(row), allow_nan=False) + "\n"


def _read_rows(path: Path) -> dict[str, Row]:
    """The last row of each scan.

    A line that a crash cut short, or that is no row, is skipped: its case is looked at again. The last line is ended so
    that the next row stands alone.
    """
    data = read_bytes(path, "the rows of a cohort", "choose another output folder", MAX_BYTES)
    if data and not data.endswith(b"\n"):
        with path.open("ab") as file:
            file.write(b"\n")
    rows = {}
    for line in data.splitlines():
        with suppress(ValueError):
            row = _ROW.validate_json(line)
            rows[row.scan] = row
    return rows
