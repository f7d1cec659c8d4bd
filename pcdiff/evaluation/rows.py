"""One row per method and case, and the journal that keeps the rows of earlier runs."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from pydantic import FiniteFloat, TypeAdapter

from pcdiff.files import opened_alone
from pcdiff.foreign import read_bytes

MAX_BYTES = 256 * 2**20  # of a journal
FIT = frozenset({"implantable", "smooth_transition", "clearance"})  # checks of how an implant meets the bone
INFINITE = ("hd95", "hd", "masd")  # scores of a failure that JSON cannot hold
MOST = dict.fromkeys(INFINITE, math.inf) | dict.fromkeys(("dsc", "bdsc", "nsd_05mm", "nsd_1mm"), 1.0)
Key = tuple[str, str, int, str]


@dataclass(frozen=True)
class Row:
    """One method on one case. A failure has an error and the worst scores: 0, or infinite for a distance.

    dsc to nsd_1mm: see `metrics.Scores`; NaN in a row of an earlier version that did not measure it.

    error_0_5mm to error_20mm: see `rim_errors.RimErrors`; NaN for a failure.
    spread_error, within_1sd, within_2sd: see `spread.Spread`; NaN for a single candidate.
    seconds: wall time of the process, one of `workers` at once. peak_mb: its peak resident set, 10^6 bytes.
    ml_true, ml_predicted: volume of the true and of the designed implant.
    truth: digest of the case, see `LoadedCase.digest`; empty in a row of an earlier version.
    refusal: the skull has no defect, so an implant must be refused. Such a row has no scores; `reason` is the message
    of the refusal, and an implant is an error.
    failed_checks: names of the checks that the implant did not pass, with spaces between; None if it was not checked.
    implant: sha256 of the implant's file. fingerprint: see `plan.Run`.
    """

    case: str
    method: str
    seed: int
    dsc: float = 0.0
    bdsc: float = 0.0
    hd95: float = math.inf
    hd: float = math.inf
    masd: float = math.inf
    nsd_05mm: float = 0.0
    nsd_1mm: float = 0.0
    error_0_5mm: float = math.nan
    error_5_10mm: float = math.nan
    error_10_20mm: float = math.nan
    error_20mm: float = math.nan
    spread_error: float = math.nan
    within_1sd: float = math.nan
    within_2sd: float = math.nan
    seconds: float = math.nan
    peak_mb: float = math.nan
    ml_true: float = math.nan
    ml_predicted: float = math.nan
    truth: str = ""
    error: str | None = None
    workers: int = 1
    refusal: bool = False
    reason: str | None = None
    failed_checks: str | None = None
    implant: str = field(default="", repr=False)
    fingerprint: str = field(default="", repr=False)

    @property
    def volume_error(self) -> float:
        """Between the designed and the true volume, % of the true one; infinite for a failure, NaN if not known."""
        if self.error is not None and not self.refusal:
            return math.inf
        return 100 * abs(self.ml_predicted - self.ml_true) / self.ml_true if self.ml_true else math.nan

    @property
    def complete(self) -> float:
        """1 if the implant covers the whole defect, else 0; NaN if it was not checked, 0 for a failure.

        This and the next three stand beside the grades of neurosurgeons in AutoImplant 2021. We found no rule for
        those; the means of these are shares of implants that keep the checks' limits, see docs/checks.md.
        """
        return self._passes({"complete"})

    @property
    def no_false_positive_area(self) -> float:
        """1 if the implant ends at the edge of the defect."""
        return self._passes({"no_false_positive_area"})

    @property
    def fit(self) -> float:
        """1 if the implant goes in, and meets the bone without a step or an overlap."""
        return self._passes(FIT)

    @property
    def feasible(self) -> float:
        """1 if the implant passes every check."""
        return self._passes(None)

    def _passes(self, checks: AbstractSet[str] | None) -> float:
        """Whether it passes all of these checks; None stands for every check."""
        if self.error is not None and not self.refusal:
            return 0.0
        if self.failed_checks is None:
            return math.nan
        failed = set(self.failed_checks.split())
        return float(not (failed if checks is None else failed & checks))

    @property
    def kind(self) -> str:
        """`bilateral` for the case `bilateral/003`, empty for `003`."""
        return self.case.rpartition("/")[0]

    @property
    def skull(self) -> str:
        """`003` for the case `bilateral/003`."""
        return self.case.rpartition("/")[2]

    @property
    def key(self) -> Key:
        """Identifies the run that the row came from."""
        return self.method, self.case, self.seed, self.fingerprint

    def to_json(self) -> dict[str, Any]:
        """The row as JSON can hold it: None for NaN and infinity."""
        values: dict[str, Any] = finite(asdict(self))
        return values

    @classmethod
    def from_json(cls, values: Any) -> Row:
        """The row that `to_json` wrote. Raises ValueError for any other value."""
        if not isinstance(values, Mapping) or not values.keys() <= {item.name for item in fields(cls)}:
            raise ValueError(f"expected a row, got {str(values)[:80]}")
        numbers = [item.name for item in fields(cls) if item.type == "float"]
        missing = {name: math.nan for name in numbers if values.get(name) is None}
        if not values.get("refusal"):  # which has no scores
            missing |= {name: math.inf for name in INFINITE if name in values and name in missing}
        row = _ROW.validate_python({**values, **missing})
        for name, most in MOST.items():
            if (value := getattr(row, name)) < 0 or value > most:
                raise ValueError(f"expected {name} from 0 to {most:g}, got {value:g}")
        if not row.method or (math.isnan(row.dsc) and not row.refusal):
            raise ValueError(f"expected a row with a method and a DSC, got {str(values)[:80]}")
        return row


_ROW = TypeAdapter(Row)
_LINE = TypeAdapter(dict[str, str | bool | int | FiniteFloat | None])


class Journal:
    """`rows.jsonl`: every row is added as soon as it is known, so an interrupted evaluation can go on.

    A context manager. earlier: the rows that the file held. Raises InputError while another evaluation writes them,
    OSError if the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.earlier = _read_rows(path)
        self._file = opened_alone(path, "pcdiff evaluate")

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def add(self, row: Row) -> None:
        """Writes the row to the disk, unless the file holds it already."""
        if self.earlier.get(row.key) is row:
            return
        self._file.write(json.dumps(row.to_json(), allow_nan=False) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())


def finite(value: Any) -> Any:
    """The same with None for each NaN and infinity, which JSON does not have."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _read_rows(path: Path) -> dict[Key, Row]:
    """The rows of a journal.

    A line that a crash cut short, or that is no row, is skipped: its case is run again. The last line is ended so that
    the next row stands alone. Raises InputError for anything but a file.
    """
    if not path.exists():
        return {}
    data = read_bytes(path, "the rows of an evaluation", "choose another output folder", MAX_BYTES)
    if data and not data.endswith(b"\n"):
        with path.open("ab") as file:
            file.write(b"\n")
    rows = []
    for line in data.splitlines():
        with suppress(ValueError):
            rows.append(Row.from_json(_LINE.validate_json(line)))
    return {row.key: row for row in rows}
