"""The results of an evaluation, and the files that hold them."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pcdiff import __version__
from pcdiff.environment import commit, machine
from pcdiff.evaluation.measure import PCDIFF
from pcdiff.evaluation.rows import Row, finite
from pcdiff.evaluation.statistics import Summary, kinds_of, summarise
from pcdiff.evaluation.tables import results_table
from pcdiff.files import write_csv, written_beside
from pcdiff.geometry.metrics import VERSION


@dataclass(frozen=True)
class Results:
    """Rows in order of method and case; conditions: version, machine, command and what else they depend on."""

    rows: list[Row]
    conditions: dict[str, Any]

    @property
    def kinds(self) -> list[str]:
        """See `statistics.kinds_of`."""
        return kinds_of(self.rows)

    def summary(self, kind: str | None = None) -> Summary:
        """See `statistics.summarise`; of the cases of one kind, or of all."""
        return summarise([row for row in self.rows if kind in (None, row.kind)])

    def table(self) -> str:
        """See `tables.results_table`."""
        return results_table(self.rows)

    def record(self) -> dict[str, Any]:
        """The contents of `results.json`: conditions, summary, summary per kind, and rows."""
        kinds = {kind: self.summary(kind) for kind in self.kinds}
        rows = [row.to_json() for row in self.rows]
        return {**finite(self.conditions), "summary": finite(self.summary()), "kinds": finite(kinds), "rows": rows}


def write_results(out: Path, results: Results) -> None:
    """Writes `results.csv`, which has one row a line, and `results.json`, which has all of it.

    That comes last: a folder with it is whole.
    """
    columns = [item.name for item in fields(Row)]
    write_csv(out / "results.csv", columns, (list(asdict(row).values()) for row in results.rows))
    with written_beside(out / "results.json") as part, part.open("w", encoding="utf-8") as file:
        json.dump(results.record(), file, indent=1, allow_nan=False)
        file.write("\n")


def conditions_of(command: Sequence[str]) -> dict[str, Any]:
    """Version, commit, definitions of the scores, machine, date and command; of a path in the command only the name."""
    is_pcdiff = tuple(command[: len(PCDIFF)]) == PCDIFF
    words = ["pcdiff", *command[len(PCDIFF) :]] if is_pcdiff else command
    return {
        "pcdiff": __version__,
        "commit": commit(),
        "metrics": VERSION,
        **machine(),
        "processor": platform.processor() or platform.machine(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(Path(word).name if Path(word).is_absolute() else word for word in words),
    }
